"""Starting the drawing process, deciding whether a window may be opened, and printing messages about the dashboard."""

import os
import subprocess
import sys
from typing import Any

from fewstep.screen import SCREEN

SAYS = "fewstep: "


def start(*arguments: str, stderr: Any) -> "subprocess.Popen[bytes]":
    """Start the worker as a separate program, on one thread, with this process's import path and a pipe to its standard input."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "fewstep.viz.dashboard.worker", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=stderr,
        env={**os.environ, **threads, "PYTHONPATH": paths, "PYTHONSAFEPATH": "1"},
        creationflags=getattr(subprocess, "IDLE_PRIORITY_CLASS", 0),
    )  # fmt: skip


def window_wanted() -> bool:
    """Return whether there is a display, and MPLBACKEND does not choose a backend without windows."""
    display = sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return display and interactive()


def interactive() -> bool:
    """Return whether MPLBACKEND allows a window: it is unset, or names a backend with windows."""
    backend = os.environ.get("MPLBACKEND", "").lower()
    return backend not in ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template") and "inline" not in backend


def say(sentence: str) -> None:
    """Print `sentence` on stderr, above the progress bar if there is one."""
    SCREEN.say(SAYS + sentence)
