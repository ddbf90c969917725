"""Time an evaluation of 10,000 images of CIFAR-10's size, without drawing them, and each of its parts.

    python benchmarks/evaluation_speed.py                      a few minutes on two cores
    python benchmarks/evaluation_speed.py --num 500 --train 2000

Random bytes stand for 50,000 training images, 10,000 held out, and as many samples; the feature networks are those of CIFAR-10. The suite
is made twice, first with an empty cache and then with what the first evaluation has cached. Writes results/evaluation_speed.json.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.machine import machine
from fewstep.metrics import suite as suite_module
from fewstep.metrics.features import named_features
from fewstep.metrics.suite import Suite

RESULTS = Path(__file__).parent / "results" / "evaluation_speed.json"
# functions of the suite's module whose share of the time is reported
PARTS = (
    "describe",
    "gaussian_distance",
    "kernel_distance",
    "kernel_distance_subsets",
    "precision_recall",
    "nearest_two",
    "nearest_distance",
    "class_variances",
    "expected_bias",
    "real_features",
)


def timed_parts(spent: dict[str, float]) -> Callable[[], None]:
    """Make the functions `PARTS` of the suite's module add their seconds to `spent`, and return a function that restores them."""
    kept = {name: getattr(suite_module, name) for name in PARTS}

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **options)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        return call

    for name, function in kept.items():
        setattr(suite_module, name, counted(name, function))

    def back() -> None:
        for name, function in kept.items():
            setattr(suite_module, name, function)

    return back


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = torch.Generator().manual_seed(0)
    sizes = (arguments.train, 10_000, arguments.num)
    train, heldout, made = (torch.randint(256, (n, 3, 32, 32), generator=rng, dtype=torch.uint8) for n in sizes)
    labels = [torch.arange(len(x)) % 10 for x in (train, heldout, made)]
    first, second = named_features("cifar10"), named_features("cifar10-second")
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        for title in ("first evaluation", "with the cache"):
            spent: dict[str, float] = {}
            back = timed_parts(spent)
            began, cpu = time.perf_counter(), time.process_time()
            suite = Suite(train, heldout, labels[0], labels[1], first, 127.5, cache=Path(cache), num=len(made), second=second)
            setting_up = time.perf_counter() - began
            suite.floor_row()
            floor = time.perf_counter() - began - setting_up
            row = suite.measure_batches((x.float() / 127.5 - 1 for x in made.split(2_500)), labels[2], slow=True)
            whole, cpu = time.perf_counter() - began, time.process_time() - cpu
            back()
            rows[title] = {"seconds": whole, "cpu_seconds": cpu, "suite": setting_up, "floor": floor, "parts": spent, "figures": len(row)}
            print(f"{title}: {whole:.0f} s ({cpu:.0f} s of a core): the suite {setting_up:.0f}, the floor's row {floor:.0f}")
            for name, seconds in sorted(spent.items(), key=lambda part: -part[1]):
                print(f"  {name:<24} {seconds:7.1f} s {seconds / whole:6.1%}")
    content = {"num": arguments.num, "train": arguments.train, "threads": arguments.threads, "machine": machine(), "rows": rows}
    arguments.out.write_text(json.dumps({"command": "python benchmarks/evaluation_speed.py", **content}, indent=1) + "\n")


if __name__ == "__main__":
    main()
