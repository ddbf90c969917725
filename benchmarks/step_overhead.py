"""Measure what a training step costs beyond its bare network passes.

    python benchmarks/step_overhead.py [--repeats 15] [--only digits]

For each turn (teacher, generator, fake) and each network (digits; the 32x32 one of photos; those of the recipes for MNIST at
28x28 and CIFAR-10 at 32x32, on random images of that shape, so that no data set is needed), it takes the ratio of the time of the whole
step in the loop - data, noise, loss, clipping, AdamW, EMA, logging - to that of the bare forward and backward passes. Step and passes
alternate in one process; the figure is the median of the pairwise ratios. Peak memory is read in a process of its own for
each. Writes results/step_overhead.json after each network.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fewstep.build import make_method
from fewstep.engine import choose_threads, make_fabric
from fewstep.machine import machine
from fewstep.methods.dmd2 import DMD2
from fewstep.recipe import Trainer, load_recipe
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder
from measuring import BATCH, data_for, peak_mib, recipe_name, timed

RESULTS = Path(__file__).parent / "results" / "step_overhead.json"
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TURNS = ("teacher", "generator dmd", "generator sid", "fake")


def setting(network: str, turn: str, folder: Path, precision: str = "32-true") -> tuple[Callable[[], None], Callable[[], None]]:
    """Return (whole training step, bare forward and backward passes) of one turn, as functions to time."""
    recipe, data = load_recipe(recipe_name("teacher", network), ("method.label_dropout=0", "method.guidance_scale=1")), data_for(network)
    teacher = make_method(recipe, data)
    torch.set_num_threads(choose_threads("auto", teacher.networks["denoiser"], data.shape))
    method = teacher
    if turn != "teacher":
        settings = load_recipe(recipe_name("dmd2", network), (f"method.teacher={folder}", "method.guidance_scale=1"))
        RunFolder(folder).save_model(teacher.ship(teacher.networks["denoiser"], 0), folder)
        settings.method.loss = "sid" if turn.endswith("sid") else "dmd"
        method = make_method(settings, data)
        assert isinstance(method, DMD2)
        method.turns = tuple(t for t in method.turns if t.name == ("guidance" if turn == "fake" else "generator"))
        method.turns = (type(method.turns[0])(method.turns[0].name, method.turns[0].trains, method.turns[0].optimizer, every=1),)
    fabric = make_fabric(Trainer(precision=precision))
    loop = Loop(method, data, fabric, RunFolder(folder), LoopSettings(steps=10**6, batch_size=BATCH[network]))
    bare = {name: module.network for name, module in method.networks.items()}
    x = torch.randn(BATCH[network], *data.shape, device=fabric.device)
    c_noise = torch.randn(len(x), device=fabric.device)
    label = torch.randint(data.num_classes or 1, (len(x),), device=fabric.device)

    def passes() -> None:
        for module in bare.values():
            module.requires_grad_(False)
        with fabric.autocast():
            if turn == "teacher":
                bare["denoiser"].requires_grad_(True)(x, c_noise, label).mean().backward()
            elif turn == "fake":
                with torch.no_grad():
                    bare["generator"](x, c_noise, label)
                bare["fake"].requires_grad_(True)(x, c_noise, label).mean().backward()
            else:
                made = bare["generator"].requires_grad_(True)(x, c_noise, label)
                if turn.endswith("sid"):
                    (bare["teacher"](made, c_noise, label) + bare["fake"](made, c_noise, label)).mean().backward()
                else:
                    with torch.no_grad():
                        bare["teacher"](x, c_noise, label)
                        bare["fake"](x, c_noise, label)
                    made.mean().backward()
        for module in bare.values():
            module.zero_grad(set_to_none=True)

    return loop.advance, passes


def measure(network: str, turn: str, repeats: int, precision: str, clock: str) -> dict:
    """Return the overhead of one turn, and the peak memory of a process that does only the step or only the passes."""
    with tempfile.TemporaryDirectory() as folder:
        step, passes = setting(network, turn, Path(folder), precision)
        for call in (step, passes, step, passes):
            call()
        pairs = [(timed(step, CLOCKS[clock]), timed(passes, CLOCKS[clock])) for _ in range(repeats)]
    ratio = statistics.median(a / b for a, b in pairs)
    row = {
        "network": network,
        "turn": turn,
        "batch": BATCH[network],
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "clock": clock,
        "ratio": ratio,
    }
    row |= {"step_ms": 1e3 * statistics.median(a for a, _ in pairs), "passes_ms": 1e3 * statistics.median(b for _, b in pairs)}
    for kind in ("step", "passes"):
        command = [sys.executable, __file__, "--memory", kind, "--only", network, "--turn", turn, "--precision", precision]
        row[f"{kind}_peak_mib"] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    return row


def peak(network: str, turn: str, kind: str, precision: str) -> float:
    """Return the peak memory in MiB after three calls: of the GPU if there is one, else of this process (Linux)."""
    with tempfile.TemporaryDirectory() as folder:
        step, passes = setting(network, turn, Path(folder), precision)
        for _ in range(3):
            (step if kind == "step" else passes)()
    return peak_mib()


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", choices=list(BATCH))
    parser.add_argument("--turn", choices=TURNS)
    parser.add_argument("--precision", default="32-true", help="bf16-mixed on a GPU")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: processor seconds of this process, for a busy machine")
    parser.add_argument("--memory", choices=("step", "passes"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak(arguments.only, arguments.turn, arguments.memory, arguments.precision))
        return
    rows = []
    print(f"{'network':8} {'turn':14} {'ratio':>6} {'step ms':>9} {'passes ms':>9} {'step MiB':>9} {'passes MiB':>10}")
    for network in [arguments.only] if arguments.only else BATCH:
        for turn in [arguments.turn] if arguments.turn else TURNS:
            repeats = arguments.repeats if network == "digits" else max(7, arguments.repeats // 3)
            row = measure(network, turn, repeats, arguments.precision, arguments.clock)
            rows.append(row)
            print(
                f"{network:8} {turn:14} {row['ratio']:6.3f} {row['step_ms']:9.1f} {row['passes_ms']:9.1f} "
                f"{row['step_peak_mib']:9.0f} {row['passes_peak_mib']:10.0f}",
                flush=True,
            )
        if not arguments.turn:
            write(network, [row for row in rows if row["network"] == network])


def write(network: str, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of `network` in the results by `rows`."""
    on = "" if not torch.cuda.is_available() else f"_{torch.cuda.get_device_name().replace(' ', '_')}"
    file = RESULTS.with_name(f"step_overhead{on}.json")
    others = json.loads(file.read_text())["rows"] if file.exists() else []
    both = [*(row for row in others if row["network"] != network), *rows]
    both.sort(key=lambda row: list(BATCH).index(row["network"]))
    file.write_text(json.dumps({"command": "python benchmarks/step_overhead.py", "machine": machine(), "rows": both}, indent=1))


if __name__ == "__main__":
    main()
