"""The drawing process, ``python -m fewstep.viz.dashboard.worker``, which uses numpy and matplotlib but not torch; and the window's process.

The drawing process draws the frames that come by its standard input, at the lowest priority, and ends when its input ends, that is, with
the training process. If a window is wanted, it starts a third process that shows the newest frame; drawing does not depend on it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fewstep.files import step_pictures
from fewstep.viz.dashboard.animation import earlier
from fewstep.viz.dashboard.messages import messages
from fewstep.viz.dashboard.picture import Picture
from fewstep.viz.dashboard.process import SAYS, interactive, start
from fewstep.viz.dashboard.scene import DPI, HEIGHT, WIDTH, Frame, Reading, Scene

SHARP = 180  # resolution of dashboard.png, in dots per inch


class Window:
    """The window that shows the newest frame, in a separate process: a toolkit that aborts or a display that hangs costs no frame."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process runs
        self.process: subprocess.Popen[bytes] | None = start("show", str(folder), stderr=self.errors)

    def check(self) -> None:
        """Print a message, once, if the window could not be opened."""
        if self.process is None or self.process.poll() is None:
            return
        if self.process.returncode != 0:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
            reason = lines[-1].strip() if lines else f"exit code {self.process.returncode}"
            sys.stderr.write(f"{SAYS}no window for the dashboard ({reason}); its pictures are saved in {self.folder}\n")
            sys.stderr.flush()
        self.process = None

    def close(self) -> None:
        """Close the window at the end of the run; a process that does not end within 5 seconds is killed."""
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            try:
                self.process.wait(5.0)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.check()


def work(folder: Path, live: bool, stream: BinaryIO) -> bool:
    """Draw the frames that come by `stream` into ``folder/frames``; return whether the run reported its end.

    With `live`, the newest frame is also shown in a window.
    """
    import matplotlib as mpl

    mpl.rcdefaults()  # the same picture whatever the user's matplotlibrc says
    frames = folder / "frames"
    window = Window(folder) if live else None
    incoming = messages(stream)
    scene = next(incoming, None)
    if not isinstance(scene, Scene):
        return False
    picture, history = Picture(scene), earlier(frames)
    kept = len(history)  # number of readings that are stored in saved frames
    last = False
    for item in incoming:
        if isinstance(item, Frame):
            history.append(Reading.of(item))
            picture.show(item, history)
            picture.save(frames / f"step_{item.step:08d}.png", readings=history[kept:])
            kept, last = len(history), True
        elif isinstance(item, Reading):
            history.append(item)
        else:
            if last:
                picture.save(folder / "dashboard.png", SHARP)
            if window is not None:
                window.close()
            return True
        if window is not None:
            window.check()
    return False


def show(folder: Path) -> None:
    """Show the newest frame in a window until the user closes it or standard input ends.

    Raises:
        SystemExit: if no window can be opened.

    """
    if not interactive():
        os.environ.pop("MPLBACKEND")
    import matplotlib.pyplot as plt

    plt.rcParams["toolbar"] = "None"
    figure = plt.figure(figsize=(WIDTH * 0.8 / DPI, HEIGHT * 0.8 / DPI), dpi=DPI, facecolor="white")
    if figure.canvas.required_interactive_framework is None:
        raise SystemExit("no display can be reached, or matplotlib finds neither Qt, GTK, Tk nor wx")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    image = axes.imshow(np.full((HEIGHT, WIDTH, 3), 255, np.uint8), interpolation="antialiased")
    if figure.canvas.manager is not None:
        figure.canvas.manager.set_window_title("fewstep")
    plt.show(block=False)
    ended = threading.Event()

    def wait() -> None:
        while os.read(0, 1024):
            pass
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    shown = None
    with contextlib.suppress(Exception):  # a toolkit may raise anything when its window is closed, which is no error
        while not ended.is_set() and plt.fignum_exists(figure.number):
            pictures = step_pictures(folder / "frames")
            if pictures and pictures[-1] != shown:
                shown = pictures[-1]
                image.set_data(plt.imread(shown))
                figure.canvas.draw_idle()
            figure.canvas.start_event_loop(0.1)


def main(task: str, folder: Path, live: bool) -> int:
    """Run the drawing process, or with the `task` "show" the window's process, and return the exit code."""
    for name in ("SIGINT", "SIGHUP"):  # Ctrl-C and the closing of the terminal are handled by the training process
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(19)
    if task == "show":
        show(folder)
        return 0
    return 0 if work(folder, live, open(0, "rb", buffering=0, closefd=False)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[-1] == "window"))
