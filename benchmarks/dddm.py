"""Measure distributional diffusion (DDDM): quality by the number of sampling steps, beside plain diffusion at equal compute.

    python benchmarks/dddm.py                             every study, 3 seeds; some hours on one core
    python benchmarks/dddm.py --studies ring output       some of the studies
    python benchmarks/dddm.py --seeds 0

Each study trains shipped recipes with the overrides listed in `STUDIES`, measures the result at every number of steps of
`fewstep compare`, and writes results/dddm_STUDY.json after each run; a run that the file holds already is skipped. Plain diffusion is the
same recipe with lambda 0, beta 2 and m 1. It is given as many network passes as DDDM, by m times as many training steps or by m times as
many items in a batch (dddm/ring has m 8, dddm/digits m 2).
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from fewstep.build import load_data
from fewstep.comparison import COUNTS
from fewstep.data import Mixture, PointData
from fewstep.denoisers import DistributionalDenoiser, MixturePosterior
from fewstep.evaluation import run_recipe
from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.maths.energy import particle_distances
from fewstep.measurement import suite_for, usual_samples
from fewstep.methods.dddm.settings import DDDMSettings
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
CONTROL = next(stands.overrides for stands in DDDMSettings.compared if stands.title == "plain diffusion")
TIMES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)

# study -> title -> (recipe, overrides, factor on the recipe's steps)
Arm = tuple[str, tuple[str, ...], float]
STUDIES: dict[str, dict[str, Arm]] = {
    "ring": {
        **{f"beta {beta}": ("dddm/ring", () if beta == 1 else (f"method.beta={beta}",), 1) for beta in (0.1, 0.5, 1, 1.5)},
        "plain diffusion, 8 x the steps": ("dddm/ring", CONTROL, 8),
        "plain diffusion, 8 x the batch": ("dddm/ring", (*CONTROL, "batch_size=4096"), 1),
    },
    "output": {
        "the network gives x0": ("dddm/ring", (), 1),
        "EDM's preconditioning": ("dddm/ring", ("method.output=edm",), 1),
    },
    "digits_output": {
        "the network gives x0": ("dddm/digits", (), 0.4),
        "EDM's preconditioning": ("dddm/digits", ("method.output=edm",), 0.4),
    },
    "particles": {f"m {m}": ("dddm/ring", () if m == 8 else (f"method.m={m}",), 8 / m) for m in (2, 4, 8, 16)},
    "digits_particles": {f"m {m}, batch {256 // m}": ("dddm/digits", (f"method.m={m}", f"batch_size={256 // m}"), 0.3) for m in (2, 4, 8)},
    "bimodal": {"beta 0.1 (published)": ("dddm/bimodal", ("method.beta=0.1",), 1), "beta 1": ("dddm/bimodal", (), 1)},
    "digits": {
        "dddm/digits": ("dddm/digits", (), 1),
        **{f"plain diffusion, {part:g} of the compute": ("dddm/digits", CONTROL, part * 2) for part in (0.25, 0.5, 1.0)},
    },
}


def main() -> None:
    """Train and measure every arm of the studies that are asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/dddm"))
    arguments = parser.parse_args()
    for study in arguments.studies:
        path = RESULTS / f"dddm_{study}.json"
        runs = json.loads(path.read_text())["runs"] if path.exists() else []
        for seed in arguments.seeds:
            for title, arm in STUDIES[study].items():
                if any((run["title"], run["training_seed"]) == (title, seed) for run in runs):
                    continue
                name = "_".join([*(part.replace("/", "_") for part in (arm[0], *arm[1])), f"{arm[2]:g}", str(seed)])  # studies share runs
                runs.append({"title": title, "training_seed": seed, **train_and_measure(arm, arguments.folder / name, seed)})
                path.write_text(json.dumps({"command": f"python benchmarks/dddm.py --studies {study}", "runs": runs}, indent=1) + "\n")
                run = runs[-1]
                figures = (f"{steps}: {row.get('energy', row.get('frechet_over_floor')):.4f}" for steps, row in run["rows"].items())
                print(f"{title}, seed {seed}: {run['cpu_seconds']:.0f} CPU s;", *figures, flush=True)


def train_and_measure(arm: Arm, folder: Path, seed: int) -> dict[str, Any]:
    """Train `arm` in `folder`, or resume it, and return its figures at each number of sampling steps."""
    name, overrides, factor = arm
    recipe = load_recipe(name, (*overrides, f"seed={seed}"))
    recipe = recipe.model_copy(update={"steps": round(recipe.steps * factor)})
    cpu, run = time.process_time(), RunFolder(folder)
    spent = folder / "cpu_seconds.json"
    if run.model_step() != recipe.steps:
        train_recipe(recipe, folder, resume=run.recipe_file.exists(), title=folder.name)
        before = json.loads(spent.read_text()) if spent.exists() else 0.0
        spent.write_text(json.dumps(before + time.process_time() - cpu))
    generator, data = load(folder), load_data(run_recipe(folder).data, seed)
    suite = suite_for(data)
    num = usual_samples(isinstance(data, PointData))
    rows = {}
    for steps in COUNTS:
        label = generator.labels(num)
        rows[steps] = suite.measure(generator.sample(num, label, 0, steps), label)
    last = run.metrics()[-1]
    found = {
        "recipe": name,
        "overrides": list(overrides),
        "steps": recipe.steps,
        "batch_size": recipe.batch_size,
        "cpu_seconds": round(json.loads(spent.read_text()), 1),
        "seconds": last["seconds"],
        "calibration": last.get("denoiser.calibration"),
        "n": num,
        "seed": 0,
        "floor": suite.floor_row(),
        "rows": rows,
        "machine": {**machine(), "load": os.getloadavg()[0]},
    }
    if isinstance(data, PointData) and isinstance(data.density, Mixture):
        found["posterior"] = posterior_error(generator, data.density)
    return found


def posterior_error(generator: Generator, density: Mixture, items: int = 400, draws: int = 200) -> dict[str, float]:
    """Return, for each t in `TIMES`, the energy distance between the generator's draws of ``x0 | x_t`` and exact draws.

    It is averaged over `items` noised points x_t, with `draws` draws of x0 for each.
    """
    rng = torch.Generator().manual_seed(0)
    exact = MixturePosterior(density.modes.float(), density.mode_stds.float(), density.mode_weights.float())
    x0 = density.sample(items, rng)
    found = {}
    for t in TIMES:
        x_t, now = (1 - t) * x0 + t * torch.randn(x0.shape, generator=rng), torch.tensor(t)

        def drawn(denoiser: DistributionalDenoiser | MixturePosterior, x_t: torch.Tensor = x_t, now: torch.Tensor = now) -> torch.Tensor:
            with torch.no_grad():
                return denoiser(x_t, now, None, torch.randn(items, draws, *denoiser.xi_shape, generator=rng))

        ours, ours_exact, other = drawn(generator.denoiser), drawn(exact), drawn(exact)
        between = torch.cdist(ours, other).mean((1, 2))
        _, within = particle_distances(ours[:, 0], ours)
        _, within_exact = particle_distances(ours_exact[:, 0], ours_exact)
        unbiased = draws / (draws - 1)
        found[str(t)] = (2 * between - unbiased * (within.mean((1, 2)) + within_exact.mean((1, 2)))).mean().item()
    return found


if __name__ == "__main__":
    main()
