"""Measure where the time of a training step goes, by kind of operation.

    python benchmarks/profile_step.py [--steps 6] [--only mnist] [--method dmd2] [--precision 32-true] [--threads 1]

For the teacher and DMD2 at 28x28 (MNIST) and 32x32 (CIFAR-10), with the networks of the shipped recipes on random images of that shape,
torch.profiler records whole steps of the loop: data, losses, gradients, clipping, AdamW, exponential moving average, health. The time of an
operation counts for the nearest event around it that has a kind; time in which no operation runs is Python's. Times are of one device or
thread, and the profiler makes small operations look slower than they are: read the shares. Writes results/profile_step.json.
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fewstep.build import make_method
from fewstep.engine import make_fabric
from fewstep.machine import machine
from fewstep.methods.base import Method
from fewstep.recipe import Trainer, load_recipe
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from measuring import BATCH, SHAPES, data_for, recipe_name

RESULTS = Path(__file__).parent / "results" / "profile_step.json"
PARTS = ("loader", "health", "optimiser")  # parts of the loop, which `told_apart` marks
KINDS = {  # other kinds, by what the name of an operation contains, in this order
    "attention": ("scaled_dot_product", "scaleddotproduct", "flash_attention", "softmax", "bmm"),
    "convolution": ("conv",),
    "norm": ("group_norm", "groupnorm", "layer_norm", "layernorm"),
    "activation": ("silu", "gelu", "relu", "sigmoid"),
    "linear": ("addmm", "linear", "::mm", "mmbackward"),
    "resampling": ("upsample", "interpolate", "pixel_unshuffle", "pixel_shuffle"),
    "casts": ("::to", "_to_copy", "tocopy"),
}
ORDER = (*KINDS, *PARTS, "rest", "Python")


def kind_of(event: Any) -> str:
    """Return the kind of an event of the profiler: by its own name, or by that of the nearest event around it that has a kind."""
    around = []
    while event is not None:
        around.append(event.name)
        event = event.cpu_parent
    for name in around:  # every operation in a part of the loop counts for that part
        if name in PARTS:
            return name
    for name in around:
        for kind, words in KINDS.items():
            if any(word in name.lower() for word in words):
                return kind
    return "rest"


def told_apart(loop: Loop) -> None:
    """Make the profiler record the parts of the loop as events of their own."""

    def marked(part: str, call: Any) -> Any:
        def inside(*args: Any, **kwargs: Any) -> Any:
            with record_function(part):
                return call(*args, **kwargs)

        return inside

    loop._batches = marked("loader", loop._batches)  # type: ignore[method-assign]
    loop._update = marked("optimiser", loop._update)  # type: ignore[method-assign]
    loop.state.looks.look = marked("health", loop.state.looks.look)  # type: ignore[method-assign]


def method_for(network: str, name: str, folder: Path) -> Method:
    """Return the untrained teacher of `network`, or the method `name` with this teacher."""
    data = data_for(network)
    teacher = make_method(load_recipe(recipe_name("teacher", network)), data)
    if name == "teacher":
        return teacher
    RunFolder(folder).save_model(teacher.ship(teacher.networks["denoiser"], 0), folder)
    return make_method(load_recipe(recipe_name(name, network), (f"method.teacher={folder}",)), data)


def measure(network: str, name: str, steps: int, precision: str, batch: int) -> dict[str, Any]:
    """Return the milliseconds of a training step by kind of operation."""
    with tempfile.TemporaryDirectory() as folder:
        fabric = make_fabric(Trainer(accelerator="auto", precision=precision))
        settings = LoopSettings(steps=10**6, batch_size=batch)
        loop = Loop(method_for(network, name, Path(folder)), data_for(network), fabric, RunFolder(Path(folder)), settings)
        told_apart(loop)
        for _ in range(2):
            loop.advance()
        on_gpu = fabric.device.type == "cuda"
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
            began = time.perf_counter()
            for _ in range(steps):
                loop.advance()
            if on_gpu:
                torch.cuda.synchronize()
            wall = 1e3 * (time.perf_counter() - began) / steps
    spent: Counter[str] = Counter()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CPU:
            spent[kind_of(event)] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3 / steps
    spent["Python"] = max(0.0, wall - sum(spent.values()))
    shares = {kind: spent[kind] / wall for kind in ORDER}
    row = {"network": network, "recipe": recipe_name(name, network), "method": name, "batch": batch, "precision": precision, "steps": steps}
    return {**row, "threads": torch.get_num_threads(), "step_ms": wall, "ms": {kind: spent[kind] for kind in ORDER}, "shares": shares}


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6, help="steps that are profiled, after two that are not")
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--method", choices=("teacher", "dmd2"))
    parser.add_argument("--precision", default="32-true", choices=("32-true", "bf16-mixed"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="items of a batch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = []
    for network in [arguments.only] if arguments.only else SHAPES:
        for name in [arguments.method] if arguments.method else ("teacher", "dmd2"):
            rows.append(row := measure(network, name, arguments.steps, arguments.precision, arguments.batch or BATCH[network]))
            print(f"{row['recipe']}, batch {row['batch']}, {row['precision']}: {row['step_ms']:.0f} ms a step")
            for kind, share in sorted(row["shares"].items(), key=lambda item: -item[1]):
                print(f"  {kind:12} {share:6.1%} {row['ms'][kind]:9.1f} ms", flush=True)
    if not (arguments.only or arguments.method):
        command = f"python benchmarks/profile_step.py --steps {arguments.steps} --precision {arguments.precision}"
        RESULTS.write_text(json.dumps({"command": command, "machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
