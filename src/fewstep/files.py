"""Write files and folders atomically: they are complete or absent.

New content is written beside its final path as ``.NAME.partial``, and moved to that path when it is complete. A process that is killed at
any moment leaves the old or the new content; a full disk or another error leaves the old content. A ``.partial`` that a killed process
leaves is never read as the file or folder itself, and the next process that writes to the same path removes it.
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

PARTIAL = ".partial"  # ending of the names of files and folders that are not complete yet
CHUNK = 1 << 20  # bytes that are read together


def at_home(path: str | Path) -> Path:
    """Return `path` with a leading ``~`` or ``~user`` replaced by the home folder, and unchanged where that user is not known here."""
    return Path(os.path.expanduser(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 checksum of a file, in hexadecimal; the file is read in chunks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def write_file(path: Path, content: bytes) -> str:
    """Write `content` to `path`, flush it to the disk, and return its SHA-256 checksum. Raises OSError, also for a full disk.

    The write is not atomic: it is for files in a folder that is moved to its final path as a whole.
    """
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically. Only one process at a time may write to the same path. Raises OSError."""
    partial = _beside(path)
    try:
        write_file(partial, content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write to, which is moved to `path` when the block ends, and removed if the block raises. Raises OSError.

    Each process writes to a temporary file of its own, so that several processes may write to the same path, as in a cache: the one that
    finishes last determines the content.
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
    """Write `content` to `path` atomically, for a command that continues where it was stopped. Raises UserError where writing fails."""
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); free some space, and give the same command again") from error


def check_free(out: Path) -> None:
    """Raise UserError unless `out`, given as ``--out``, is an empty folder or does not exist."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        kind = "a link" if out.is_symlink() else "a file"
        raise UserError(f"--out is {out}, which is {kind} and no folder; give the name of a new one")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"--out is {out}, which holds something already; give an empty folder, or the name of a new one")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Make a temporary folder to write into, which is moved to `path` when the block ends, and removed if the block raises.

    `path` must be new or empty (see `check_free`): content is never replaced, and OSError is raised if `path` has been filled meanwhile.
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
    """Make a temporary folder to write into, which replaces `path` when the block ends, and is removed if the block raises.

    The old folder is moved aside before the new one is moved to `path`. A process that is killed between these two moves leaves nothing at
    `path` and both folders beside it; `recover_folder`, which the next `replace_folder` calls, then moves the new one to `path`. Raises
    OSError.
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
    """Make a temporary folder, which is removed with its content when the block ends. Raises OSError."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def recover_folder(path: Path) -> None:
    """Finish a `replace_folder` that was killed between its moves: move the new folder to `path`, and remove the old one.

    It may only be called by the process that writes to `path`, and not while another process does. Raises OSError.
    """
    partial, old = _beside(path), _beside(path, ".old")
    if old.exists() and not path.exists():  # the old folder is moved aside only when the new one is complete
        (partial if partial.exists() else old).rename(path)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove incomplete files (``*.partial``) that killed processes left in `folder`; no process may be writing there. Raises OSError."""
    for path in folder.glob(f"*{PARTIAL}"):
        path.unlink()


_locks: set[int] = set()  # file descriptors of the folders that this process has locked


def _let_go() -> None:
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)  # else a child that outlives its parent would keep the parent's locks


@contextmanager
def held_folder(path: Path, doing: str = "training into", then: str = "use --resume") -> Iterator[None]:
    """Lock the folder `path` until the block ends, or until this process ends for any reason.

    Raises UserError where another process has locked it; the message says what that process is `doing`, and what to do `then`. Without
    support for locks, as on Windows and some network disks, nothing is locked.
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
        if descriptor in _locks:  # a forked child has closed it already
            _locks.discard(descriptor)
            os.close(descriptor)


def step_of(path: Path) -> int:
    """Return N of a file ``step_N.png``. Raises ValueError for other names."""
    return int(path.stem.removeprefix("step_"))


def step_pictures(folder: Path) -> list[Path]:
    """Return the files ``step_N.png`` in `folder` in the order of their steps; files of other names are the user's, and left alone."""
    return sorted((path for path in folder.glob("step_*.png") if path.stem.removeprefix("step_").isdecimal()), key=step_of)


def _beside(path: Path, mark: str = "") -> Path:
    return path.with_name(f".{path.name}{mark}{PARTIAL}")
