"""Time a training pass on one CPU thread and on all cores, on an idle machine and on a busy one.

    python benchmarks/threads.py

A pass (forward and backward) of the digits network at batch 128 is timed with each number of threads in turn, first alone and then beside
one busy process for each core. Prints the medians and writes results/threads.json.
"""

import json
import multiprocessing
import os
import statistics
import time
from pathlib import Path

import torch

from fewstep.build import load_data, make_method
from fewstep.machine import machine
from fewstep.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "threads.json"


def spin() -> None:
    """Keep one core busy."""
    while True:
        pass


def milliseconds(threads: tuple[int, ...], repeats: int = 9) -> dict[int, float]:
    """Return the median milliseconds of a pass for each number of threads, taken in turn."""
    recipe = load_recipe("teacher/digits")
    data = load_data(recipe.data)
    network = make_method(recipe, data).generator.denoiser.network
    x, c_noise, label = torch.randn(128, *data.shape), torch.randn(128), torch.randint(10, (128,))
    times: dict[int, list[float]] = {number: [] for number in threads}
    for _ in range(repeats):
        for number in threads:
            torch.set_num_threads(number)
            network(x, c_noise, label).mean().backward()  # an untimed pass, in which the pool of threads settles
            began = time.perf_counter()
            network(x, c_noise, label).mean().backward()
            times[number].append(1e3 * (time.perf_counter() - began))
    return {number: statistics.median(values) for number, values in times.items()}


def main() -> None:
    """Measure, print, write."""
    cores = len(os.sched_getaffinity(0))
    rows = {"idle": milliseconds((1, cores))}
    busy = [multiprocessing.Process(target=spin, daemon=True) for _ in range(cores)]
    for process in busy:
        process.start()
    rows["busy"] = milliseconds((1, cores))
    for process in busy:
        process.kill()
    for state, times in rows.items():
        print(f"{state:5} " + ", ".join(f"{number} thread(s) {value:.0f} ms" for number, value in times.items()))
    RESULTS.write_text(json.dumps({"command": "python benchmarks/threads.py", "machine": machine(), "milliseconds": rows}, indent=1))


if __name__ == "__main__":
    main()
