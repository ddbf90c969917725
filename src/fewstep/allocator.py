"""How memory that tensors free on a CPU is kept for the next ones.

glibc gives large blocks back to the system as soon as they are free, and a training step asks for all of them anew: each page of theirs is
then cleared and mapped again, every step. Kept, a step of the U-Nets here takes up to a third less time (``benchmarks/levers.py``). The
peak of memory stays; between steps it is not handed to other programs.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # parameters of mallopt, in malloc.h
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 128 * 1024, TRIM_THRESHOLD: 128 * 1024}  # glibc's own
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
ITS_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(keep: bool = True) -> bool:
    """Have the C library keep what is freed, or give it back as it usually does; whether it could be told.

    Nothing is done on other systems than Linux with glibc, and where the user has set one of glibc's variables for it.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ITS_OWN):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - not there in other C libraries
        done = [library.mallopt(parameter, value) for parameter, value in (KEPT if keep else USUAL).items()]
        if not keep:
            library.malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return all(done)
