import numpy as np
from PIL import Image

from fewstep.files import step_pictures
from fewstep.viz.dashboard import animation
from fewstep.viz.dashboard.animation import make_gif
from fewstep.viz.dashboard.scene import INK


def test_frames_are_those_with_a_step_in_its_order(tmp_path):
    for name in ("step_00000200.png", "step_00000010.png", "step_last.png", "step_.png"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in step_pictures(tmp_path)] == ["step_00000010.png", "step_00000200.png"]


def test_a_loop_of_many_frames_is_thinned_evenly(tmp_path):
    for k in range(130):  # a dark bar grows by 10 pixels a frame
        image = Image.new("RGB", (1500, 900), "#ffffff")
        image.paste(INK, (0, 0, 10 * k + 10, 900))
        image.save(tmp_path / f"step_{k:08d}.png", compress_level=1)
    make_gif(step_pictures(tmp_path), tmp_path / "loop.gif")
    bars, durations = [], []
    with Image.open(tmp_path / "loop.gif") as loop:
        assert (loop.n_frames, loop.size, loop.info["loop"]) == (60, (1200, 720), 0)
        for k in range(60):
            loop.seek(k)
            row = np.asarray(loop.convert("RGB"))[300]
            assert set(row[[0, -1], 0]) == {26, 255}  # the figure's own colours are exact
            bars.append((row[:, 0] == 26).sum() / 8 - 1)
            durations.append(loop.info["duration"])
    assert (bars[0], bars[-1]) == (0, 129)
    assert np.abs(np.array(bars) - np.linspace(0, 129, 60)).max() <= 0.5
    assert sum(durations) <= 8000
    assert durations[-1] > 3 * durations[0]


def test_a_loop_that_is_too_large_is_made_smaller(tmp_path, monkeypatch):
    sizes = {}
    for k, colour in enumerate(("red", "blue")):
        Image.new("RGB", (1500, 900), colour).save(tmp_path / f"step_{k}.png")
    for limit in (10**6, 3000, 1):
        monkeypatch.setattr(animation, "GIF_BYTES", limit)
        make_gif(step_pictures(tmp_path), tmp_path / "loop.gif")
        with Image.open(tmp_path / "loop.gif") as loop:
            sizes[limit] = loop.size
        assert (tmp_path / "loop.gif").stat().st_size < limit or limit == 1
    assert sizes[10**6] == (1200, 720)
    assert 600 < sizes[3000][0] < 1200
    assert sizes[1] == (600, 360)
