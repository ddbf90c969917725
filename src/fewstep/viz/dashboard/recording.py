"""The training process's side of the dashboard: frames are handed to a thread, which sends them to the drawing process."""

import contextlib
import io
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewstep import files
from fewstep.files import step_of, step_pictures
from fewstep.viz.dashboard.animation import make_gif
from fewstep.viz.dashboard.messages import pack
from fewstep.viz.dashboard.process import SAYS, say, start, window_wanted
from fewstep.viz.dashboard.scene import Frame, Reading, Scene

WAITING = 32  # largest number of frames that wait to be drawn
PATIENCE = 180.0  # seconds without a new frame after which `Dashboard.close` kills the worker
SAMPLES, LOSSES = 4000, 2000  # largest numbers of samples and of loss values that are drawn: more cannot be told apart


class Dashboard:
    """The pictures of a run in `folder`: ``frames/step_00000100.png`` etc. during the run, ``dashboard.gif`` and ``.png`` at its end.

    Args:
        folder: the folder of the pictures. Frames that it already holds are those of an earlier part of the run; see `forget_after`.
        scene: the data that all frames share.
        live: whether the newest frame is also shown in a window; None shows it where there is a display.

    """

    def __init__(self, folder: Path, scene: Scene, live: bool | None = None) -> None:
        self.folder, self.frames = folder, folder / "frames"
        self.frames.mkdir(parents=True, exist_ok=True)
        self.scene, self.live = scene, window_wanted() if live is None else live
        self.waiting: deque[Frame | Reading] = deque()
        self.ready = threading.Condition()
        self.ending = self.finished = False
        self.reason = self.last_words = ""
        self.thread: threading.Thread | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def forget_after(self, step: int) -> None:
        """Remove the frames later than `step`, which a run that resumes at `step` draws again; -1 removes all, for a new run.

        It must be called before the first `record`.
        """
        assert self.thread is None, "forget_after comes before the first record"
        stale = [path for path in step_pictures(self.frames) if step_of(path) > step]
        for path in stale:
            path.unlink()
        files.sweep(self.frames)
        if stale:
            for name in ("dashboard.gif", "dashboard.png"):
                (self.folder / name).unlink(missing_ok=True)

    def has(self, step: int) -> bool:
        """Return whether the frame of `step` has been drawn and saved."""
        return any(step_of(path) == step for path in step_pictures(self.frames))

    def record(self, frame: Frame) -> None:
        """Queue `frame` to be drawn, and return at once. Its arrays are copied. Steps must increase from call to call.

        When more than `WAITING` frames wait because drawing is slower than training, every second one, counted from the newest, is dropped,
        which bounds the memory and keeps the rest evenly spaced. The readings of dropped frames are kept for the curves.
        """
        assert not self.ending, "the dashboard is closed"
        kept = replace(
            frame,
            samples=np.array(thinned(frame.samples, SAMPLES), np.float32),
            points=np.array(frame.points, np.float32),
            field=np.array(frame.field, np.float32),
            loss=np.stack([np.array(thinned(values, LOSSES), np.float64) for values in frame.loss]),  # type: ignore[arg-type]
            shares=None if frame.shares is None else np.array(frame.shares, np.float64),
        )
        with self.ready:
            if self.reason:
                return
            self.waiting.append(kept)
            pictures = [i for i, item in enumerate(self.waiting) if isinstance(item, Frame)]
            if len(pictures) > WAITING:
                for i in pictures[-2::-2]:
                    dropped = self.waiting[i]
                    assert isinstance(dropped, Frame)
                    self.waiting[i] = Reading.of(dropped)
            self.ready.notify()
        if self.thread is None:
            self.thread = threading.Thread(target=self._work, name="dashboard", daemon=True)
            self.thread.start()

    def close(self) -> tuple[Path, Path]:
        """Wait until all frames are drawn, make the animated GIF and the last picture, and return their paths (GIF, PNG).

        Failures are reported on stderr and not raised. A worker that draws nothing for `PATIENCE` seconds is killed.
        """
        gif, png = self.folder / "dashboard.gif", self.folder / "dashboard.png"
        if self.ending:
            return gif, png
        with self.ready:
            self.ending = True
            self.ready.notify()
        if self.thread is not None:
            self._wait(self.thread)
        try:
            pictures = step_pictures(self.frames)
            if pictures:
                make_gif(pictures, gif)
                if not self.finished and (self.thread is not None or not png.exists()):
                    shutil.copyfile(pictures[-1], png)
        except OSError as error:
            self.reason = self.reason or f"{error}"
        if self.reason:
            say(f"the dashboard's pictures are not complete: {self.reason}. Training was not affected; what was drawn is in {self.folder}")
        return gif, png

    def _wait(self, thread: threading.Thread) -> None:
        """Wait until `thread` ends, or kill the worker after `PATIENCE` seconds without a new frame.

        There is no limit on the whole time: the worker has the lowest priority, and is slow on a busy machine.
        """
        drawn, since = -1, time.monotonic()
        while thread.is_alive():
            thread.join(0.1)
            now = len(step_pictures(self.frames))
            if now != drawn:
                drawn, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                self.reason = f"nothing was drawn for {PATIENCE:.0f} s"
                if self.worker is not None:
                    self.worker.kill()
                thread.join(5.0)
                return

    def _work(self) -> None:
        """Start the worker, send it the queued items, and wait for it to end. This is the function that the thread runs."""
        if hasattr(signal, "pthread_sigmask"):  # the worker inherits the mask: these signals are for the training process
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGHUP])
        reason = ""
        try:
            self.worker = start("draw", str(self.folder), "window" if self.live else "frames", stderr=subprocess.PIPE)
            listener = threading.Thread(target=self._listen, daemon=True)
            listener.start()
            with contextlib.suppress(OSError), self.worker.stdin as pipe:  # type: ignore[union-attr]  # a broken pipe: see the exit code
                pipe.write(pack(self.scene))
                while True:
                    with self.ready:
                        self.ready.wait_for(lambda: self.waiting or self.ending)
                        item = self.waiting.popleft() if self.waiting else None
                    pipe.write(pack(item))
                    pipe.flush()
                    if item is None:
                        break
            code = self.worker.wait()
            listener.join(1.0)
            if code < 0:
                reason = f"the process that draws was killed by signal {-code}"
            elif code > 0:
                reason = f"the process that draws failed ({self.last_words or f'exit code {code}'})"
        except OSError as error:
            reason = f"the process that draws could not be started ({error})"
        with self.ready:
            self.finished = not reason
            self.reason = self.reason or reason
            self.waiting.clear()

    def _listen(self) -> None:
        """Print the worker's messages, and keep the last other line of its stderr, which names the cause if it fails."""
        assert self.worker is not None
        assert self.worker.stderr is not None
        for line in io.TextIOWrapper(self.worker.stderr, errors="replace"):
            if line.startswith(SAYS):
                say(line[len(SAYS) :].strip())
            elif line.strip():
                self.last_words = line.strip()


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of `values`, evenly spaced."""
    return values if len(values) <= most else values[np.linspace(0, len(values) - 1, most).round().astype(int)]
