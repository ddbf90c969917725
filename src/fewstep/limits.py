"""Memory and cores of this machine, and limits on the files that are read.

The size of a file's content in memory or on the disk is known from its header, and is checked against these limits before it is read.
"""

import os
from pathlib import Path

from fewstep.errors import UserError

GRID_PIXELS = 80_000_000  # of a picture that is written; Pillow and other programs refuse larger ones as possible attacks
IMAGE_PIXELS = 2**27  # of one training image; cameras have up to 108 million
IMAGE_BYTES = 2**30  # of the file of one training image
PIXEL_BYTES = 20  # memory for each pixel while an image is decoded and resized
ROWS = 50_000_000  # rows of a table whose images are held in memory
WORD = 100_000  # characters of a label, or numbers of a one-hot label
COLUMN_BYTES = 2**28  # of a column in one row group of a table, if it is more than EXPANSION times as large as in the file
BATCH_BYTES = 2**27  # of values that are read from a table together
EXPANSION = 100  # ratio of unpacked to packed size that no file of images, weights or numbers reaches
ARCHIVE_BYTES = 2**28  # unpacked size that is allowed for every archive
ARRAY_BYTES = 2**32  # of all arrays read from one .npz
POINT_BYTES = 32  # memory for each number of a .npy while it is read
JSON_BYTES = 2**25  # of a JSON file, such as config.json or results.json
YAML_BYTES = 2**18  # of a recipe
YAML_NODES = 20_000  # nodes of a recipe with all aliases expanded
LINES_BYTES = 2**28  # of metrics.jsonl


class TooLarge(UserError):
    """A file is larger than allowed; the message names the file, the size it claims, the limit, and what to do."""


def memory() -> int:
    """Return the bytes of memory that this process may use: the machine's, or a container's or process's limit below that.

    Where none of these is known, 2**60 is returned.
    """
    found = 2**60
    for ask in (_machine, _container, _process):
        try:
            found = min(found, ask())
        except (ValueError, OSError, AttributeError, ImportError):  # not available, as on Windows, or no limit set
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
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS has no affinity


def image_pixels() -> int:
    """Return the largest number of pixels allowed for one image on this machine."""
    return min(IMAGE_PIXELS, memory() // PIXEL_BYTES)


def in_units(size: float) -> str:
    """Return `size`, a number of bytes, as text with a unit, such as ``1.5 MiB``."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if size < 1024 or unit == "PiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def check_size(path: Path, most: int, remedy: str) -> None:
    """Raise TooLarge where the file at `path` has more than `most` bytes, and OSError where there is none, or it is not a regular file.

    The message of TooLarge ends with `remedy`.
    """
    if not path.is_file() and path.exists():
        raise OSError(f"{path} is no plain file")
    if (size := path.stat().st_size) > most:
        raise TooLarge(f"{path} has {in_units(size)}, and at most {in_units(most)} of it are read; {remedy}")


def check_expansion(name: str, size: int, expanded: int, remedy: str, room: int | None = None) -> None:
    """Raise TooLarge where a file of `size` bytes would unpack to `expanded` bytes, more than is plausible or than there is room for.

    More than both `ARCHIVE_BYTES` and `EXPANSION` times `size` is not plausible. `room` is in bytes, None for the memory. The message names
    the file by `name` and ends with `remedy`.
    """
    most = min(max(ARCHIVE_BYTES, EXPANSION * size), memory() if room is None else room)
    if expanded > most:
        raise TooLarge(f"{name} has {in_units(size)} and unpacks to {in_units(expanded)}, where {in_units(most)} are allowed; {remedy}")
