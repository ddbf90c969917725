"""Time a distributional training step with m = 8 particles against a step with m = 1 and against its bare network passes.

    python benchmarks/dddm_step.py [--repeats 15] [--only ring]

For the fully connected network of dddm/ring, the network of dddm/digits and the DiT of dddm/cifar10 (with random images and a small batch)
it times the whole step of the training loop - data, noise, score, clipping, AdamW, EMA, logging - with m = 8, the same with m = 1 and
lambda 0 (which is plain diffusion), and the bare forward and backward passes with m = 8. The three alternate in one process; the figures
are medians of ratios. Writes results/dddm_step.json (with the GPU's name where there is one).
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric

from fewstep.build import Data, load_data, make_method
from fewstep.data import ImageData
from fewstep.engine import choose_threads
from fewstep.machine import machine
from fewstep.recipe import load_recipe
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from measuring import timed

RESULTS = Path(__file__).parent / "results"
CASES = {"ring": "dddm/ring", "digits": "dddm/digits", "cifar10": "dddm/cifar10"}
CPU_BATCH = 8  # batch size of cifar10 on a CPU; the recipe's is meant for a GPU
M = 8


def setting(name: str, m: int, folder: Path, precision: str, compiled: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return (whole training step, bare forward and backward passes) of the case `name` with `m` particles, as functions to time."""
    overrides = ["method.label_dropout=0", f"method.m={m}", *(["method.lam=0"] if m == 1 else [])]
    recipe = load_recipe(CASES[name], overrides)
    gpu = torch.cuda.is_available()
    if name == "cifar10":
        images = torch.randint(0, 256, (512, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        label = torch.arange(len(images)) % 10
        data: Data = ImageData("random", images, images[:64], label, label[:64], 127.5, tuple(map(str, range(10))))
        batch = recipe.batch_size if gpu else CPU_BATCH
    else:
        data, batch = load_data(recipe.data), recipe.batch_size
    method = make_method(recipe, data)
    if not gpu:
        torch.set_num_threads(choose_threads("auto", method.networks["denoiser"], data.shape))
    network = method.networks["denoiser"].network
    if compiled:
        network.compile()
    fabric = Fabric(accelerator="auto", devices=1, precision=precision)
    loop = Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=10**6, batch_size=batch))
    x = torch.randn(batch, *data.shape, device=fabric.device)
    t = torch.rand(batch, device=fabric.device)
    xi = torch.randn(batch, m, *network.xi_shape, device=fabric.device)
    classes = None if data.num_classes is None else torch.randint(data.num_classes, (batch,), device=fabric.device)

    def passes() -> None:
        with fabric.autocast():
            network(x, t, classes, xi=xi).mean().backward()
        network.zero_grad(set_to_none=True)

    return loop.advance, passes


def measure(name: str, repeats: int, precision: str, compiled: bool) -> dict:
    """Return the median times of a step with m = 8, of its bare passes and of a step with m = 1, and the medians of their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        many, passes = setting(name, M, Path(folder) / "many", precision, compiled)
        one, _ = setting(name, 1, Path(folder) / "one", precision, compiled)
        calls = (many, passes, one)
        for call in calls * 2:
            call()
        times = [tuple(timed(call) for call in calls) for _ in range(repeats)]
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "name": name,
        "m": M,
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "compiled": compiled,
        "step_over_passes": statistics.median(a / b for a, b, _ in times),
        "many_over_one": statistics.median(a / c for a, _, c in times),
        **dict(zip(("step_ms", "passes_ms", "one_ms"), medians, strict=True)),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--precision", default="32-true", help="bf16-mixed on a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network")
    arguments = parser.parse_args()
    rows = []
    print(f"{'case':8} {'step / passes':>13} {'m=8 / m=1':>9} {'step ms':>9} {'passes ms':>9} {'m=1 ms':>9}")
    for name in [arguments.only] if arguments.only else CASES:
        repeats = max(5, arguments.repeats // 3) if name == "cifar10" else arguments.repeats
        row = measure(name, repeats, arguments.precision, arguments.compile)
        rows.append(row)
        print(
            f"{name:8} {row['step_over_passes']:13.3f} {row['many_over_one']:9.2f} "
            f"{row['step_ms']:9.1f} {row['passes_ms']:9.1f} {row['one_ms']:9.1f}",
            flush=True,
        )
    if not arguments.only:
        place = f"_{torch.cuda.get_device_name().replace(' ', '_')}" if torch.cuda.is_available() else ""
        path = RESULTS / f"dddm_step{place}.json"
        path.write_text(json.dumps({"command": "python benchmarks/dddm_step.py", "machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
