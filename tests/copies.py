"""Copies of this process, in which everything is imported: a process of its own that imports it again takes some 5 s of a core."""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """What became of processes."""

    code: int | None  # of the first of them, negative for a signal; None: one had to be killed
    out: str
    err: str


def begun(work: Callable[[], object], folder: Path, number: int = 0, **environment: str) -> int:
    """The id of a copy that does `work`, in a process group of its own, and writes what it says into `folder`."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        for name, descriptor in (("out", 1), ("err", 2)):
            with (folder / f"{number}.{name}").open("wb") as file:
                os.dup2(file.fileno(), descriptor)
            setattr(sys, f"std{name}", open(descriptor, "w", buffering=1, encoding="utf-8", closefd=False))  # noqa: SIM115
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has what it starts in the background ignore
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def ended(copies: list[int], folder: Path, seconds: float) -> Ended:
    """Of the `copies` that were begun in `folder`, after `seconds` at most; where one fails, the others soon follow or are killed."""
    codes: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < len(copies) and time.monotonic() < deadline:
        for number, child in enumerate(copies):
            if number not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[number] = os.waitstatus_to_exitcode(status)
                    if codes[number]:
                        deadline = min(deadline, time.monotonic() + 60)
        time.sleep(0.01)
    for number, child in enumerate(copies):
        with contextlib.suppress(ProcessLookupError):  # and what it has begun
            os.killpg(child, signal.SIGKILL)
        if number not in codes:
            os.waitpid(child, 0)
    said = ("".join((folder / f"{number}.{name}").read_text() for number in range(len(copies))) for name in ("out", "err"))
    return Ended(codes[0] if len(codes) == len(copies) else None, *said)


def in_a_copy(work: Callable[[], object], folder: Path, seconds: float = 300, **environment: str) -> Ended:
    """What becomes of a copy that does `work`, and says what it says in files of `folder`."""
    folder.mkdir(exist_ok=True)
    return ended([begun(work, folder, **environment)], folder, seconds)


def in_two(work: Callable[[], object], folder: Path, seconds: float = 300) -> Ended:
    """What becomes of two copies that do `work` together, as processes 0 and 1 of those that Fabric is told were started for it."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("", 0))
        port = str(free.getsockname()[1])
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0", "WORLD_SIZE": "2"}
    return ended([begun(work, folder, rank, LOCAL_RANK=str(rank), **told) for rank in (0, 1)], folder, seconds)


def in_a_child(work: Callable[[], object]) -> int:
    """Do `work` in a copy of this process; its exit status, negative for the signal that killed it."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
