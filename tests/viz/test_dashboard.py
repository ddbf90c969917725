import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewstep.viz import dashboard
from fewstep.viz.dashboard import Dashboard, Frame, Picture, Reading, Scene, draw, earlier, make_gif, messages, pack, saved_frames

CENTRES = np.array([[2.0, -1.0], [-2.0, 2.0]])
WEIGHTS = np.array([0.75, 0.25])
SIGMA = 0.4
linux = pytest.mark.skipif(sys.platform != "linux", reason="an X display, or /proc")


@pytest.fixture
def scene():
    """Two modes of unequal weight: no reflection maps the picture to itself."""
    x, y = np.meshgrid(np.linspace(-4, 4, 41), np.linspace(-4, 4, 41))
    parts = [w * np.exp(-((x - a) ** 2 + (y - b) ** 2) / (2 * SIGMA**2)) for (a, b), w in zip(CENTRES, WEIGHTS, strict=True)]
    density = sum(parts)
    return Scene("two modes", -4.0, 4.0, density, density**2 / (density**2).sum(), CENTRES, WEIGHTS)


def make_frame(step, total=1000, **changes):
    rng = np.random.default_rng(step)
    axis = np.linspace(-4, 4, 9)
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    steps = np.arange(1, step + 1, 5)
    values = {
        "samples": CENTRES[rng.choice(2, 100, p=WEIGHTS)] + SIGMA * rng.normal(size=(100, 2)),
        "points": points,
        "field": CENTRES[0] - points,
        "loss": (steps, np.exp(-steps / 300) * np.exp(0.2 * rng.normal(size=len(steps)))),
        "shares": np.array([0.7, 0.2]) * step / 1000,
        "inside": 0.9 * step / 1000,
    }
    return Frame(**{"step": step, "total": total, "gamma": 2.0, "temperature": 0.1, **values, **changes})


def shown(scene, *frames):
    picture = Picture(scene)
    history = []
    for frame in frames:
        history.append(Reading.of(frame))
        picture.show(frame, history)
    return picture


def pixels(picture):
    return np.array(picture.canvas.buffer_rgba())[..., :3].astype(int)


def panels(picture):
    return {axes.get_title(loc="left").split("  ")[0]: axes for axes in picture.figure.axes if axes.get_title(loc="left")}


def at(picture, title, point):
    """Row and column of the pixel that shows `point`."""
    column, height = panels(picture)[title].transData.transform(point)
    return round(dashboard.HEIGHT - height), round(column)


def stale(pid):
    """Whether the process is over (a zombie is: in a container nobody may reap it)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------------------- the picture


def test_densities_samples_and_arrows_lie_where_they_should(scene):
    frame = make_frame(500, samples=np.array([[-3.0, -2.0]]))
    picture = shown(scene, frame)
    image = pixels(picture)
    for title in ("Reference density", "Target"):
        light = {point: image[at(picture, title, point)].sum() for point in [(2, -1), (-2, 2), (2, 1), (-1, 2), (-2, -1)]}
        assert light[2, -1] < light[-2, 2] < min(light[2, 1], light[-1, 2], light[-2, -1])  # the heavier mode is the darker
    red, green, blue = image[at(picture, "Target", (-3, -2))]
    assert red > 180
    assert max(green, blue) < 90
    arrows = np.stack([picture.arrows.U, picture.arrows.V], 1)
    lengths = np.linalg.norm(arrows, axis=1)
    assert lengths.max() == pytest.approx(0.8 * 1.0)  # the points are 1 apart
    size = np.linalg.norm(frame.field, axis=1)
    np.testing.assert_allclose(lengths, 0.8 * np.sqrt(size / size.max()), atol=1e-6)
    np.testing.assert_allclose(np.asarray(picture.arrows.get_array()), size / size.max(), atol=1e-6)
    np.testing.assert_allclose(arrows * size[:, None], frame.field * lengths[:, None], atol=1e-5)  # and point along the field
    assert picture.scale.get_ylim() == (0, pytest.approx(size.max()))


def test_limits_stay_and_an_old_frame_leaves_no_trace(scene):
    first = make_frame(100, samples=np.full((50, 2), 3.0))
    wild = make_frame(600, samples=100 * np.random.default_rng(0).normal(size=(500, 2)), field=1e5 * make_frame(1).field)
    picture = shown(scene, first, wild)
    for title in ("Reference density", "Target", "Drift field"):
        axes = panels(picture)[title]
        assert (axes.get_xlim(), axes.get_ylim()) == ((-4, 4), (-4, 4))
    assert picture.outside.get_text() == f"{(np.abs(wild.samples) > 4).any(1).sum()} of 500 outside"
    fresh = Picture(scene)
    fresh.show(wild, [Reading.of(first), Reading.of(wild)])
    np.testing.assert_array_equal(pixels(picture), pixels(fresh))


def test_the_sharp_picture_holds_all_that_a_frame_holds(scene, tmp_path):
    frames = [make_frame(step) for step in (200, 400, 600)]
    draw(scene, frames, tmp_path / "frame.png")
    picture = shown(scene, *frames)
    picture.save(tmp_path / "sharp.png", 2 * dashboard.DPI)
    with Image.open(tmp_path / "frame.png") as one, Image.open(tmp_path / "sharp.png") as two:
        assert one.size == (1500, 900)
        assert two.size == (3000, 1800)
        blocks = [np.asarray(image.convert("L").resize((150, 90), Image.Resampling.BOX), float) for image in (one, two)]
    assert np.abs(blocks[0] - blocks[1]).max() < 64  # text and lines differ by less than a pixel; what is missing shows as more
    assert np.abs(blocks[0] - blocks[1]).mean() < 1
    assert not list(tmp_path.glob("*.partial"))


def test_curves_of_the_modes(scene):
    picture = shown(scene, make_frame(200), make_frame(1000))
    np.testing.assert_allclose(picture.share_lines[0].get_xydata(), [[200, 0.14], [1000, 0.7]])
    np.testing.assert_allclose(picture.share_lines[1].get_xydata(), [[200, 0.04], [1000, 0.2]])
    # a fifth of the weights is 0.15 and 0.05: none of the modes, then both
    np.testing.assert_allclose(picture.covered.get_xydata(), [[200, 0], [1000, 1]])
    np.testing.assert_allclose(picture.inside.get_xydata(), [[200, 0.18], [1000, 0.9]])
    assert [text.get_text() for text in picture.figures.get_texts()] == ["modes covered: 2 of 2", "samples near a mode: 90%"]
    dashed = {line.get_ydata()[0] for line in picture.shares_axes.get_lines() if line.get_linestyle() == "--"}
    assert dashed == set(WEIGHTS)


def test_the_loss_and_its_moving_average(scene):
    frame = make_frame(300)
    steps, values = frame.loss
    picture = shown(scene, frame)
    np.testing.assert_allclose(picture.losses.get_xydata(), np.stack([steps, values], 1))
    average = [values[max(0, i - 2) : i + 1].mean() for i in range(60)]  # over a twentieth of 60
    np.testing.assert_allclose(picture.mean_loss.get_xydata(), np.stack([steps, average], 1))
    assert picture.loss_axes.get_yscale() == "log"
    assert picture.loss_axes.get_xlim() == (0, 1000)


def test_without_modes_four_panels_fill_the_figure(scene):
    names = ["Reference density", "Target", "Drift field", "Loss"]
    with_modes = shown(scene, make_frame(500))
    assert list(panels(with_modes)) == [*names, "Share of samples per mode", "Coverage"]
    for modes in (None, np.empty((0, 2))):
        plain = shown(dataclasses.replace(scene, modes=modes, weights=None), make_frame(500, shares=None, inside=None))
        assert list(panels(plain)) == names
        right = panels(plain)["Loss"].get_position().x1
        assert right == pytest.approx(panels(with_modes)["Coverage"].get_position().x1)


@pytest.mark.filterwarnings("error")
def test_a_run_that_went_wrong_can_be_drawn(scene):
    ones, flat = np.ones((81, 2)), np.empty((0, 2))
    wrong = [
        {"samples": np.nan * ones},
        {"samples": flat},
        {"points": flat, "field": flat},
        {"points": ones[:1], "field": ones[:1]},
        {"field": 0 * ones},
        {"field": np.inf * ones},
        {"field": 1e-30 * ones},
        {"loss": (np.arange(3), np.array([0.0, -1.0, np.nan]))},
        {"loss": (np.arange(2), np.array([1e-9, 1e9]))},
        {"loss": (np.arange(2), np.array([0.5, 0.5]))},
        {"shares": np.array([np.nan, 0.5])},
        {"shares": np.ones(3)},
        {"shares": None, "inside": None},
        {"total": 10_000_000},
    ]
    shown(scene, *(make_frame(k + 1, **changes) for k, changes in enumerate(wrong)))
    nothing = {"samples": flat, "points": flat, "field": flat, "loss": (flat[:, 0], flat[:, 0]), "shares": None, "inside": None}
    shown(scene, make_frame(0, total=0, **nothing), make_frame(1))
    shown(dataclasses.replace(scene, reference=0 * scene.reference, target=np.nan * scene.target), make_frame(1))


def test_a_title_is_no_formula(scene):
    shown(dataclasses.replace(scene, title="$x^ {2 " * 20), make_frame(100))


def test_an_unfinished_message_ends_the_stream(scene, tmp_path):
    frame = make_frame(300, shares=None)
    whole = pack(scene) + pack(frame) + pack(Reading(4, WEIGHTS, None)) + pack(None)
    file = tmp_path / "stream"
    file.write_bytes(whole)
    with file.open("rb") as stream:
        first, second, third, last = messages(stream)
    assert (first.title, first.low) == ("two modes", -4.0)
    np.testing.assert_array_equal(first.target, scene.target)
    np.testing.assert_array_equal(second.samples, frame.samples)
    np.testing.assert_array_equal(np.stack(second.loss), np.stack(frame.loss))
    assert (second.step, second.temperature, second.shares) == (300, 0.1, None)
    assert (third.step, third.shares.tolist(), third.inside, last) == (4, WEIGHTS.tolist(), None, None)
    file.write_bytes(whole[:-20])
    with file.open("rb") as stream:
        assert [type(item) for item in messages(stream)] == [Scene, Frame, Reading]


# -------------------------------------------------------------------------------------------------------------------- the loop


def test_a_loop_of_many_frames_is_thinned_evenly(tmp_path):
    for k in range(130):  # a dark bar grows by 10 pixels a frame
        image = Image.new("RGB", (1500, 900), "#ffffff")
        image.paste(dashboard.INK, (0, 0, 10 * k + 10, 900))
        image.save(tmp_path / f"step_{k:08d}.png", compress_level=1)
    make_gif(saved_frames(tmp_path), tmp_path / "loop.gif")
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
        monkeypatch.setattr(dashboard, "GIF_BYTES", limit)
        make_gif(saved_frames(tmp_path), tmp_path / "loop.gif")
        with Image.open(tmp_path / "loop.gif") as loop:
            sizes[limit] = loop.size
        assert (tmp_path / "loop.gif").stat().st_size < limit or limit == 1
    assert sizes[10**6] == (1200, 720)
    assert 600 < sizes[3000][0] < 1200
    assert sizes[1] == (600, 360)


# ---------------------------------------------------------------------------------------------------------- the other process


def test_a_run(scene, tmp_path, capsys):
    board = Dashboard(tmp_path / "run", scene)
    times = []
    for step in range(100, 1001, 100):
        frame = make_frame(step)
        began = time.perf_counter()
        board.record(frame)
        times.append(time.perf_counter() - began)
        frame.samples[:] = 0  # the training goes on in its arrays
        if step == 100 and hasattr(signal, "pthread_sigmask"):  # Ctrl-C goes to all processes of a terminal, from the first moment
            wait_until(lambda: board.worker is not None)
            os.kill(board.worker.pid, signal.SIGINT)
    assert np.median(times) < 0.005
    gif, png = board.close()
    assert board.close() == (gif, png)
    assert [path.name for path in saved_frames(board.frames)] == [f"step_{step:08d}.png" for step in range(100, 1001, 100)]
    frames = [make_frame(step) for step in range(100, 1001, 100)]
    draw(scene, frames, tmp_path / "here.png")
    with Image.open(tmp_path / "here.png") as here, Image.open(saved_frames(board.frames)[-1]) as there:
        assert here.size == there.size == (1500, 900)
        assert np.abs(np.asarray(here, int) - np.asarray(there, int)).mean() < 0.05  # arrays travel in float32
    with Image.open(gif) as loop:
        assert (loop.n_frames, loop.size) == (10, (1200, 720))
        assert loop.convert("RGB").getpixel((2, 2)) == (255, 255, 255)  # white paper, though Pillow rounds
    with Image.open(png) as last:
        assert last.size == (2700, 1620)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.rglob("*.partial"))


def test_a_resumed_run_goes_on(scene, tmp_path):
    steps = (100, 200, 300, 400)
    before = Picture(scene)
    (tmp_path / "frames").mkdir()
    for step in steps:
        before.show(make_frame(step), [])
        before.save(tmp_path / "frames" / f"step_{step:08d}.png", readings=[Reading.of(make_frame(k)) for k in (step - 50, step)])
    (tmp_path / "dashboard.gif").write_bytes(b"of the run that broke off")
    (tmp_path / "frames" / "step_00000500.png.partial").write_bytes(b"half")
    board = Dashboard(tmp_path, scene)
    board.forget_after(200)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["step_00000100.png", "step_00000200.png"]
    assert [reading.step for reading in earlier(board.frames)] == [50, 100, 150, 200]
    for step in (300, 400, 500):
        board.record(make_frame(step))
    gif, _ = board.close()
    with Image.open(gif) as loop:
        assert loop.n_frames == 5
    assert [reading.step for reading in earlier(board.frames)] == [50, 100, 150, 200, 300, 400, 500]
    # the curves of the last picture begin with the run, not with its second part
    picture = Picture(scene)
    picture.show(make_frame(500), earlier(board.frames))
    with Image.open(saved_frames(board.frames)[-1]) as there:
        assert np.abs(pixels(picture) - np.asarray(there, int)).mean() < 0.05
    board = Dashboard(tmp_path, scene)
    board.forget_after(-1)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a worker that lags is one that is stopped")
def test_a_worker_that_lags_draws_the_last_frame_and_knows_all_figures(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "WAITING", 4)
    board = Dashboard(tmp_path, scene)
    board.record(make_frame(1))
    wait_until(lambda: saved_frames(board.frames))
    os.kill(board.worker.pid, signal.SIGSTOP)
    for step in range(2, 102):
        board.record(make_frame(step))
        assert sum(isinstance(item, Frame) for item in board.waiting) <= 4
        if step < 20:
            time.sleep(0.01)  # the pipe is filled first
    os.kill(board.worker.pid, signal.SIGCONT)
    board.close()
    drawn = [dashboard.step_of(path) for path in saved_frames(board.frames)]
    assert drawn[-1] == 101
    assert len(drawn) < 40
    assert [reading.step for reading in earlier(board.frames)] == list(range(1, 102))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals")
def test_a_worker_that_is_killed_stops_nothing(scene, tmp_path, capsys):
    board = Dashboard(tmp_path, scene)
    board.record(make_frame(1))
    wait_until(lambda: saved_frames(board.frames))
    board.worker.kill()
    for step in range(2, 500):
        board.record(make_frame(step, samples=np.zeros((3000, 2))))
    began = time.monotonic()
    gif, png = board.close()
    assert time.monotonic() - began < 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "killed by signal 9" in said
    assert "Training was not affected" in said
    with Image.open(gif) as loop:
        assert loop.n_frames == len(saved_frames(board.frames))
    assert png.read_bytes() == saved_frames(board.frames)[-1].read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signals")
def test_a_worker_that_hangs_is_given_up(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "PATIENCE", 0.5)
    board = Dashboard(tmp_path, scene)
    board.record(make_frame(1))
    wait_until(lambda: board.worker is not None)
    os.kill(board.worker.pid, signal.SIGSTOP)
    board.record(make_frame(2, samples=np.zeros((4000, 2))))
    began = time.monotonic()
    gif, png = board.close()
    assert time.monotonic() - began < 5
    assert board.worker.poll() is not None
    assert capsys.readouterr().err.count("nothing was drawn for") == 1
    assert not gif.exists()
    assert not png.exists()


def test_a_worker_that_cannot_import_says_why(scene, tmp_path, monkeypatch, capsys):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('no matplotlib here')")
    monkeypatch.syspath_prepend(str(tmp_path))
    board = Dashboard(tmp_path / "run", scene)
    board.record(make_frame(1))
    board.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "ImportError: no matplotlib here" in said


def test_a_worker_that_cannot_be_started(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    board = Dashboard(tmp_path / "run", scene)
    for step in range(3):
        board.record(make_frame(step))
    board.close()
    assert capsys.readouterr().err.count("could not be started") == 1


@linux
@pytest.mark.parametrize("live", [None, True])
def test_a_display_that_is_not_there_costs_only_the_window(live, scene, tmp_path, monkeypatch, capsys):
    if live is None:
        monkeypatch.delenv("MPLBACKEND")  # else it is not tried
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setenv("DISPLAY", ":4711")
    board = Dashboard(tmp_path, scene, live)
    assert board.live
    for step in (100, 200):
        board.record(make_frame(step))
    gif, png = board.close()
    assert gif.exists()
    assert png.exists()
    assert len(saved_frames(board.frames)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no window for the dashboard (no display can be reached" in said


@linux
def test_where_a_window_is_wanted(scene, tmp_path, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND"):
        monkeypatch.delenv(name, raising=False)
    assert not Dashboard(tmp_path, scene).live
    monkeypatch.setenv("DISPLAY", ":0")
    assert Dashboard(tmp_path, scene).live
    assert not Dashboard(tmp_path, scene, live=False).live
    for backend in ("Agg", "module://matplotlib_inline.backend_inline"):
        monkeypatch.setenv("MPLBACKEND", backend)
        assert not Dashboard(tmp_path, scene).live


PARENT = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from test_dashboard import make_frame, CENTRES
import numpy as np
from fewstep.viz.dashboard import Dashboard, Scene, saved_frames
density = np.ones((5, 5))
board = Dashboard(Path(sys.argv[1]), Scene("", -4, 4, density, density, CENTRES))
board.record(make_frame(1))
while not saved_frames(board.frames):
    time.sleep(0.02)
print(board.worker.pid, flush=True)
for step in range(2, 100):
    board.record(make_frame(step))
time.sleep(600)
"""


@linux
def test_the_worker_dies_with_its_parent_and_holds_no_torch(tmp_path):
    command = [sys.executable, "-c", PARENT, str(tmp_path), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            pid = int(parent.stdout.readline())
            assert "libtorch" not in Path(f"/proc/{pid}/maps").read_text()
            assert int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[16]) == 19  # its niceness
        finally:
            parent.kill()
        parent.wait()
        wait_until(lambda: stale(pid))
    for path in saved_frames(tmp_path / "frames"):  # whole, all of them
        with Image.open(path) as image:
            image.load()
