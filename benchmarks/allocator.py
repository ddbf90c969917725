"""What it brings to keep the memory that a training step frees (`fewstep.allocator`), on a CPU with glibc.

    python benchmarks/allocator.py [--repeats 15]

For the networks of digits, MNIST and CIFAR-10: a forward and backward pass with freed memory kept, over one with glibc's usual settings,
alternately in one process; CPU seconds of the process (user and system), medians, and the median of the pairwise ratios. Writes
results/allocator.json.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch

from fewstep.allocator import keep_freed_memory
from fewstep.evaluation import machine
from fewstep.networks import make_network
from fewstep.recipe import load_recipe
from measuring import peak_mib

RESULTS = Path(__file__).parent / "results" / "allocator.json"
SHAPES = {"teacher/digits": (1, 8, 8), "teacher/mnist": (1, 28, 28), "teacher/cifar10_cpu": (3, 32, 32)}
BATCH = 64


def cpu_seconds() -> float:
    """Of this process so far."""
    return sum(os.times()[:2])


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    rows = {}
    for source, shape in SHAPES.items():
        settings = load_recipe(source).network.model_dump(exclude={"sigma_data"})
        network = make_network(settings, shape, 10)
        x, c_noise, label = torch.randn(BATCH, *shape), torch.randn(BATCH), torch.randint(0, 10, (BATCH,))
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(repeats + 1):
            for keep in (False, True):
                if not keep_freed_memory(keep):
                    raise SystemExit("glibc could not be told; this needs Linux, and none of its variables set")
                for part in ("warm", "timed"):
                    began = cpu_seconds()
                    network(x, c_noise, label).square().mean().backward()
                    if part == "timed":
                        seconds[keep].append(cpu_seconds() - began)
        pairs = list(zip(seconds[True], seconds[False], strict=True))[1:]
        rows[source] = {
            "usual": statistics.median(usual for _, usual in pairs),
            "kept": statistics.median(kept for kept, _ in pairs),
            "ratio": statistics.median(kept / usual for kept, usual in pairs),
            "peak_mib": peak_mib(),
        }
        print(f"{source:20} kept / usual {rows[source]['ratio']:.3f}")
    content = {"command": "python benchmarks/allocator.py", "machine": machine(), "batch_size": BATCH, "repeats": repeats, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
