"""Files and folders that are there whole or not at all.

What is being written stands beside its place as ``.NAME.partial`` and is moved there when all of it is written. Killed at any moment, a
process leaves the old or the new; a full disk or another error leaves the old. What a killed process leaves besides is never taken for
the thing itself, and whoever writes there next sweeps it away.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fewstep.errors import UserError

PARTIAL = ".partial"  # how the name of what is not whole yet ends
CHUNK = 1 << 20  # bytes read at once


def at_home(path: str | Path) -> Path:
    """`path` with the home folder in place of a ``~``; one of a user who is not known here stays as it is, a name like others."""
    return Path(os.path.expanduser(path))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file of any size, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: Path, content: bytes) -> str:
    """Write `content` through to the disk and return its SHA-256. Raises OSError, also for a disk that is full.

    Nothing stands in for `path` meanwhile: it is for files of a folder that is moved into place as a whole.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path`, where it is whole or not at all. One process at a time may do so. Raises OSError."""
    partial = _beside(path)
    try:
        write_file(partial, content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is at `path` when the block ends, and nowhere if it raises. Raises OSError.

    Each process writes under a name of its own, so that several may write the same file at once, as in a cache: the last one stays.
    """
    partial = _beside(path, f".{os.getpid()}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_part(path: Path, content: bytes) -> None:
    """Write a file of something that goes on where it was stopped, whole or not at all. Raises UserError for a disk that is full."""
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room, and give the same command again") from error


def check_free(out: Path) -> None:
    """Raise UserError where `out`, given as ``--out``, is neither an empty folder nor the name of a new one."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        kind = "a link" if out.is_symlink() else "a file"
        raise UserError(f"--out is {out}, which is {kind} and no folder; give the name of a new one")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out is {out}, which holds something already; give an empty folder, or the name of a new one")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which is `path` when the block ends, and is gone if it raises.

    `path` is new or empty (see `check_free`): nothing there is ever replaced, and OSError is raised where something has come meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rmdir()
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `path` when the block ends, and is gone if it raises. Raises OSError.

    The old folder is moved aside, not emptied, before the new one is moved in. Killed between the two a process leaves nothing at
    `path`, but both beside it; `recover_folder` then brings the new one, and so does the next `replace_folder`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    partial, old = _beside(path), _beside(path, ".old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def passing_folder() -> Iterator[Path]:
    """A folder for what nobody keeps, gone when the block ends. Raises OSError."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def recover_folder(path: Path) -> None:
    """End what `replace_folder` had not when it was killed: bring to `path` what was to replace it, and sweep the old one.

    It is for whoever writes there, or is about to, and for no one while another process writes. Raises OSError.
    """
    partial, old = _beside(path), _beside(path, ".old")
    if old.exists() and not path.exists():  # the old one is moved aside only when the new one is whole
        (partial if partial.exists() else old).rename(path)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the files in `folder` that killed writers had not finished; no one may be writing there. Raises OSError."""
    for path in folder.glob(f"*{PARTIAL}"):
        path.unlink()


_locks: set[int] = set()  # descriptors of folders that this process holds


def _let_go() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # a child that lives longer would hold what its parent held


@contextmanager
def held_folder(path: Path, doing: str = "training into", then: str = "use --resume") -> Iterator[None]:
    """Inside, no other process holds `path`. What holds it is let go when its process ends, however that ends.

    Raises UserError where another process holds it, which says what that one is `doing`, and what to do `then`. Where the disk knows no
    locks, as some network disks do not, nothing is held.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    _locks.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is {doing} {path}; wait for it or stop it, and then {then}, or give another folder") from None
        except OSError:
            pass
        yield
    finally:
        if descriptor in _locks:  # a child has let go already
            _locks.discard(descriptor)
            os.close(descriptor)


def _beside(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name}{mark}{PARTIAL}")
