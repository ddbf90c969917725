"""What this machine has, and what is too much to ask of it.

What a file would become in memory or on the disk is known from its header. It is held against these limits before any of it is taken.
"""

import os
from pathlib import Path

from fewstep.errors import UserError

GRID_PIXELS = 80_000_000  # above which Pillow, and others, take a picture for an attack
IMAGE_PIXELS = 2**27  # of one image to be learned from: a camera has up to 108 million
IMAGE_BYTES = 2**30  # of its file
PIXEL_BYTES = 20  # that one pixel may take while an image is turned into the pixels that are learned
ROWS = 50_000_000  # of a table whose images are held in memory
WORD = 100_000  # characters of a label, or numbers of a one-hot one
COLUMN_BYTES = 2**28  # of a column in one row group of a table, where they are more than EXPANSION times what lies in the file
BATCH_BYTES = 2**27  # of the values that are read from a table at once
EXPANSION = 100  # times its own size, which a file of images, weights or numbers never comes to
ARCHIVE_BYTES = 2**28  # that an archive may always be unpacked to
ARRAY_BYTES = 2**32  # of the arrays in one .npz
POINT_BYTES = 32  # that one number of a .npy may take while it is read
JSON_BYTES = 2**25  # of config.json, results.json and their like
YAML_BYTES = 2**18  # of a recipe
YAML_NODES = 20_000  # of a recipe, every alias written out
LINES_BYTES = 2**28  # of metrics.jsonl


class TooLarge(UserError):
    """A file that would take more than is allowed; the message names it, what it claims, the limit, and what to do."""


def memory() -> int:
    """Bytes of memory that this process may have: the machine's, or less where a limit is set; where none says, what no machine has."""
    found = 2**60
    for ask in (_machine, _container, _process):
        try:
            found = min(found, ask())
        except (ValueError, OSError, AttributeError, ImportError):  # not on Windows, or no such limit
            continue
    return found


def _machine() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container() -> int:
    return int(Path("/sys/fs/cgroup/memory.max").read_text())  # "max" where there is none


def _process() -> int:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit in (resource.RLIM_INFINITY, -1):
        return 2**60
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    return max(0, limit - taken)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former not on macOS


def image_pixels() -> int:
    """The most pixels that one image may have here."""
    return min(IMAGE_PIXELS, memory() // PIXEL_BYTES)


def in_units(size: float) -> str:
    """Bytes as people read them."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def check_size(path: Path, most: int, remedy: str) -> None:
    """Raise TooLarge where a file has more than `most` bytes, and OSError where it is not there, or is no plain file."""
    if not path.is_file() and path.exists():
        raise OSError(f"{path} is no plain file")
    if (size := path.stat().st_size) > most:
        raise TooLarge(f"{path} has {in_units(size)}, and at most {in_units(most)} of it are read; {remedy}")


def check_expansion(name: str, size: int, expanded: int, remedy: str, room: int | None = None) -> None:
    """Raise TooLarge where a file of `size` bytes claims to become `expanded`, more than `room` (the memory) or than such files become."""
    most = min(max(ARCHIVE_BYTES, EXPANSION * size), memory() if room is None else room)
    if expanded > most:
        raise TooLarge(f"{name} has {in_units(size)} and unpacks to {in_units(expanded)}, where {in_units(most)} are allowed; {remedy}")
