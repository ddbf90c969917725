"""What the benchmarks of single steps share: the time of a call, taken in turns, and the peak memory of a process."""

import time
from collections.abc import Callable
from pathlib import Path

import torch


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call, with what it left running on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_mib() -> float:
    """Peak memory in MiB so far: of the device where there is one, else of this process (Linux)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage: after exec its maximum still holds the memory of the process that forked this one
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10
