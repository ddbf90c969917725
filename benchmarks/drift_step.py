"""Time a drift step, and the drift field alone for many samples, against the plain form of the strict field.

    python benchmarks/drift_step.py              about 5 minutes on an otherwise idle machine
    python benchmarks/drift_step.py --threads 1

The plain form is eager torch, as one would write it down: all differences x_i - y_j in one tensor, their squares, two softmaxes, two
matrix products. A second plain form takes its distances from torch.cdist. Calls are timed in turns, in one process; ratios are medians of
the ratios of neighbouring calls. Peak memory is that of a process that evaluates one field, less that of a process that only makes the
samples. Writes results/drift_step.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from fewstep.build import make_method, training_data
from fewstep.machine import machine
from fewstep.maths.matching import drift_field
from fewstep.methods import Batch
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder
from measuring import peak_mib, timed

RESULTS = Path(__file__).parent / "results"
SIZES = (512, 2048, 4096, 16384, 65536)
PLAIN_UP_TO = 16384  # larger N x N matrices do not fit into memory
TEMPERATURE = 0.1


def plain_field(x: Tensor, y: Tensor, temperature: float, cdist: bool = False) -> Tensor:
    """Return the field V(x) [N, D] of the strict field at gamma 1, with all N x N differences or distances in memory together."""

    def squares(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a, b).square() if cdist else (a[:, None] - b[None]).square().sum(2)

    own = squares(x, x)
    own.fill_diagonal_(torch.inf)
    real = torch.softmax(-squares(x, y) / temperature, 1) @ y - x
    return real - (torch.softmax(-own / temperature, 1) @ x - x)


def alternate(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each of `calls`, which run in turns `repeats` times, after one round that is not timed."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(timed(call))
    return times


def steps(repeats: int, device: str) -> dict[str, float]:
    """Return median times of a step of drift/vanilla, N = 512: ours, and the same network and optimizer with the plain fields or none."""
    recipe = load_recipe("drift/vanilla", ["data.size=20000"])
    data = training_data(recipe)
    rng = torch.Generator(device).manual_seed(0)
    batch = Batch(data.train[: recipe.batch_size].to(device))
    ours, plain = (make_method(recipe, data) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {}
    for name, method in {"ours": ours, "plain": plain, "plain_cdist": plain, "network": plain}.items():
        network = method.networks["generator"].to(device)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.0, fused=True)

        def step(name: str = name, method: object = method, network: torch.nn.Module = network, optimizer: object = optimizer) -> None:
            if name == "ours":
                loss = method.loss("generator", method.networks, batch, rng, {}).loss
                method.after_update("generator")
            else:
                x = network(torch.randn(len(batch.x), 16, generator=rng, device=device))
                with torch.no_grad():
                    v = plain_field(x, batch.x, TEMPERATURE, name == "plain_cdist") if name != "network" else -x
                loss = (x - (x + v).detach()).square().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        calls[name] = step
    times = alternate(calls, repeats)
    row = {f"{name}_ms": 1e3 * statistics.median(values) for name, values in times.items()}
    for name in ("plain", "plain_cdist"):
        row[f"{name}_over_ours"] = statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True))
    return row


def dashboard(repeats: int) -> dict[str, float]:
    """Return the training time of drift/ring, 1,000 steps, with frames at the default cadence (40 a run) over that with one at the end."""
    seconds: dict[int, list[float]] = {25: [], 1000: []}
    for _ in range(repeats):
        for cadence, took in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                run = RunFolder(Path(folder) / "run")
                overrides = ["steps=1000", f"trainer.sample_every={cadence}", "trainer.log_every=50"]
                train_recipe(load_recipe("drift/ring", overrides), run.path)
                took.append(run.metrics()[-1]["seconds"])
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return {"ratio": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios), "repeats": repeats}


def points(num: int, dims: int, device: str) -> tuple[Tensor, Tensor, float]:
    """Two sets of samples [num, dims] of a standard Gaussian, and a temperature that suits the dimension."""
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(num, dims, generator=rng).to(device) for _ in range(2))
    return x, y, TEMPERATURE * dims


def fields(num: int, dims: int, repeats: int, device: str) -> dict[str, float]:
    """Return time and memory of the field alone, streamed and in the plain forms.

    The plain form by differences is left out where its N x N x D numbers are too many.
    """
    x, y, temperature = points(num, dims, device)
    calls: dict[str, Callable[[], object]] = {"ours": lambda: drift_field(x, y, x, temperature)}
    if num <= PLAIN_UP_TO:
        calls["plain_cdist"] = lambda: plain_field(x, y, temperature, cdist=True)
        if num * num * dims <= 2**26:
            calls["plain"] = lambda: plain_field(x, y, temperature)
    times = alternate(calls, max(1, repeats * 10 if num <= 512 else repeats if num <= 4096 else repeats // 5) if num < 65536 else 1)
    row: dict[str, float] = {"num": num, "dims": dims}
    for name, values in times.items():
        row[f"{name}_ms"] = 1e3 * statistics.median(values)
        if name != "ours":
            row[f"{name}_over_ours"] = statistics.median(a / b for a, b in zip(values, times["ours"], strict=True))
    for kind in ["ours", "plain"] if num <= PLAIN_UP_TO else ["ours"]:
        row[f"{kind}_mib"] = memory(num, dims, kind) - memory(num, dims, "none")
    return row


def memory(num: int, dims: int, kind: str) -> float:
    """Return the peak memory in MiB of a fresh process that evaluates the field once in the form `kind`; see `peak`."""
    command = [sys.executable, __file__, "--memory", kind, "--num", str(num), "--dims", str(dims)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def peak(num: int, dims: int, kind: str) -> float:
    """Return the peak memory in MiB of this process, or of the GPU if there is one, after one evaluation of the field.

    `kind` is "ours", "plain", or "none" for a process that only makes the samples.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y, temperature = points(num, dims, device)
    drift_field(x[:64], y[:64], x[:64], temperature)  # torch loads its libraries at first use
    if kind == "ours":
        drift_field(x, y, x, temperature)
    elif kind == "plain":
        plain_field(x, y, temperature, cdist=True)
    return peak_mib()


def main() -> None:
    """Measure, print, write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--no-dashboard", action="store_true", help="do not measure the cost of the dashboard")
    parser.add_argument("--memory", choices=("ours", "plain", "none"), help=argparse.SUPPRESS)
    parser.add_argument("--num", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--dims", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        print(peak(arguments.num, arguments.dims, arguments.memory))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    step = steps(10 * arguments.repeats, device)
    print("step, N = 512:", {name: round(value, 2) for name, value in step.items()}, flush=True)
    rows = []
    for dims in (2, 64):
        for num in arguments.sizes:
            rows.append(fields(num, dims, arguments.repeats, device))
            print({name: round(value, 2) for name, value in rows[-1].items()}, flush=True)
    name = "drift_step.json" if device == "cpu" else f"drift_step_{torch.cuda.get_device_name().replace(' ', '_')}.json"
    drawing = None if arguments.no_dashboard else dashboard(3)
    if drawing:
        print("dashboard, training time with over without:", {name: round(value, 3) for name, value in drawing.items()})
    content = {"command": "python benchmarks/drift_step.py", "machine": machine(), "step": step, "rows": rows, "dashboard": drawing}
    (RESULTS / name).write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
