import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dashboard_frames import WEIGHTS, make_frame, pixels, shown
from fewstep.files import step_of, step_pictures
from fewstep.viz.dashboard import Dashboard, Frame, Scene, recording
from fewstep.viz.dashboard.animation import earlier
from fewstep.viz.dashboard.messages import messages, pack
from fewstep.viz.dashboard.picture import Picture
from fewstep.viz.dashboard.scene import Reading

linux = pytest.mark.skipif(sys.platform != "linux", reason="an X display, or /proc")


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


def test_a_run(scene, tmp_path, capsys):
    board = Dashboard(tmp_path / "run", scene)
    times = []
    for step in range(100, 501, 100):
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
    assert [path.name for path in step_pictures(board.frames)] == [f"step_{step:08d}.png" for step in range(100, 501, 100)]
    frames = [make_frame(step) for step in range(100, 501, 100)]
    shown(scene, *frames).save(tmp_path / "here.png")
    with Image.open(tmp_path / "here.png") as here, Image.open(step_pictures(board.frames)[-1]) as there:
        assert here.size == there.size == (1500, 900)
        assert np.abs(np.asarray(here, int) - np.asarray(there, int)).mean() < 0.05  # arrays travel in float32
    with Image.open(gif) as loop:
        assert (loop.n_frames, loop.size) == (5, (1200, 720))
        assert loop.convert("RGB").getpixel((2, 2)) == (255, 255, 255)  # white paper, though Pillow rounds
    with Image.open(png) as last:
        assert last.size == (2700, 1620)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.rglob("*.partial"))


def test_a_resumed_run_goes_on(scene, tmp_path):
    steps = (100, 200, 300)
    before = Picture(scene)
    (tmp_path / "frames").mkdir()
    for step in steps:
        before.show(make_frame(step), [])
        before.save(tmp_path / "frames" / f"step_{step:08d}.png", readings=[Reading.of(make_frame(k)) for k in (step - 50, step)])
    (tmp_path / "dashboard.gif").write_bytes(b"of the run that broke off")
    (tmp_path / "frames" / "step_00000400.png.partial").write_bytes(b"half")
    board = Dashboard(tmp_path, scene)
    board.forget_after(200)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["step_00000100.png", "step_00000200.png"]
    assert [reading.step for reading in earlier(board.frames)] == [50, 100, 150, 200]
    for step in (300, 400):
        board.record(make_frame(step))
    gif, _ = board.close()
    with Image.open(gif) as loop:
        assert loop.n_frames == 4
    assert [reading.step for reading in earlier(board.frames)] == [50, 100, 150, 200, 300, 400]
    # the curves of the last picture begin with the run, not with its second part
    picture = Picture(scene)
    picture.show(make_frame(400), earlier(board.frames))
    with Image.open(step_pictures(board.frames)[-1]) as there:
        assert np.abs(pixels(picture) - np.asarray(there, int)).mean() < 0.05
    board = Dashboard(tmp_path, scene)
    board.forget_after(-1)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="a worker that lags is one that is stopped")
def test_a_worker_that_lags_draws_the_last_frame_and_knows_all_figures(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "WAITING", 4)
    board = Dashboard(tmp_path, scene)
    board.record(make_frame(1))
    wait_until(lambda: step_pictures(board.frames))
    os.kill(board.worker.pid, signal.SIGSTOP)
    for step in range(2, 102):
        board.record(make_frame(step))
        assert sum(isinstance(item, Frame) for item in board.waiting) <= 4
        if step < 20:
            time.sleep(0.01)  # the pipe is filled first
    os.kill(board.worker.pid, signal.SIGCONT)
    board.close()
    drawn = [step_of(path) for path in step_pictures(board.frames)]
    assert drawn[-1] == 101
    assert len(drawn) < 40
    assert [reading.step for reading in earlier(board.frames)] == list(range(1, 102))
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no signals")
def test_a_worker_that_is_killed_stops_nothing(scene, tmp_path, capsys):
    board = Dashboard(tmp_path, scene)
    board.record(make_frame(1))
    wait_until(lambda: step_pictures(board.frames))
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
        assert loop.n_frames == len(step_pictures(board.frames))
    assert png.read_bytes() == step_pictures(board.frames)[-1].read_bytes()


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no signals")
def test_a_worker_that_hangs_is_given_up(scene, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recording, "PATIENCE", 0.5)
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
    assert len(step_pictures(board.frames)) == 2
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
from dashboard_frames import make_frame, CENTRES
import numpy as np
from fewstep.viz.dashboard import Dashboard, Scene
from fewstep.files import step_pictures
density = np.ones((5, 5))
board = Dashboard(Path(sys.argv[1]), Scene("", -4, 4, density, density, CENTRES))
board.record(make_frame(1))
while not step_pictures(board.frames):
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
    for path in step_pictures(tmp_path / "frames"):  # whole, all of them
        with Image.open(path) as image:
            image.load()
