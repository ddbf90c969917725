"""What this machine has, and what is too much to ask of it."""

import os

GRID_PIXELS = 80_000_000  # above which Pillow, and others, take a picture for an attack


def memory() -> int:
    """Bytes of this machine's memory; where it does not say, what no machine has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not on Windows
        return 2**60


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former not on macOS
