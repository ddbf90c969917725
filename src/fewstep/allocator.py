"""Have the C library keep the memory that CPU tensors free, so that later tensors can reuse it.

glibc returns large blocks to the system as soon as they are freed, and every training step asks for them again, so that the system clears
and maps all their pages again in every step. With the blocks kept, a step of the package's U-Nets takes up to a third less time
(``benchmarks/levers.py``). Peak memory is the same, but between steps the freed memory is not available to other programs.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # numbers of mallopt's parameters, from malloc.h
USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 128 * 1024, TRIM_THRESHOLD: 128 * 1024}  # glibc's defaults
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: 2**31 - 1}
ITS_OWN = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(keep: bool = True) -> bool:
    """Have the C library keep freed memory, or with `keep` False return it to the system as by default; return whether it was set so.

    Nothing is changed, and False is returned, on systems other than Linux with glibc, and where the user has set one of the environment
    variables in `ITS_OWN`, by which glibc is configured.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ITS_OWN):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries do not have this function
        done = [library.mallopt(parameter, value) for parameter, value in (KEPT if keep else USUAL).items()]
        if not keep:
            library.malloc_trim(0)
    except (OSError, AttributeError):
        return False
    return all(done)
