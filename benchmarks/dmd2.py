"""Measure the parts of DMD2 on real digits: one step and four, discriminators, divergences, and the inputs that later steps learn from.

    python benchmarks/dmd2.py                           every arm, 3 seeds; 3 to 6 minutes a run on one idle core
    python benchmarks/dmd2.py --arms "1 step" "4 steps"
    python benchmarks/dmd2.py --seeds 0 --folder runs/dmd2

Each arm is a shipped recipe with the overrides listed in `ARMS`; all arms of a seed are distilled from the same teacher (teacher/digits).
Figures are means over `SAMPLINGS` sets of 2,000 samples, because FD / floor of one set varies by about 0.05 with its sampling seed; for
students of several steps, the figures after each step are recorded as well. Writes results/dmd2_digits.json after each run; a run that
the file holds already is skipped.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import torch

from fewstep.build import load_data
from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for, usual_samples
from fewstep.metrics.suite import Suite
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

SAMPLINGS = 8
RESULTS = Path(__file__).parent / "results" / "dmd2_digits.json"
DMD = ("method.loss=dmd",)
GAN = ("method.gan=true", "method.gan_weight_generator=auto")
TEACHER = ("method.gan_features=teacher", "method.gan_levels=2", "method.r1_weight=100")
# title -> recipe and overrides
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "1 step": ("dmd2/digits", ()),
    "4 steps": ("dmd2/digits_4step", ()),
    "4 steps, one fake network": ("dmd2/digits_4step", ("method.fake_per_step=false",)),
    "4 steps, noised data": ("dmd2/digits_4step", ("method.inputs=noised_data",)),
    "1 step, GAN": ("dmd2/digits", GAN),
    "1 step, GAN, weight 0.003": ("dmd2/digits", ("method.gan=true",)),
    "1 step, GAN at 2 levels of the teacher, R1": ("dmd2/digits", (*GAN, *TEACHER)),
    "1 step, DMD loss": ("dmd2/digits", DMD),
    "1 step, DMD loss, GAN": ("dmd2/digits", (*DMD, *GAN)),
    "1 step, DMD loss, GAN, js": ("dmd2/digits", (*DMD, *GAN, "method.f_divergence=js")),
}


def train(source: str, folder: Path, *overrides: str) -> float:
    """Train the recipe `source` in `folder`, or resume it, and return the seconds that its training took."""
    run, recipe = RunFolder(folder), load_recipe(source, overrides)
    if run.model_step() != recipe.steps:
        train_recipe(recipe, folder, resume=run.recipe_file.exists(), title=folder.name)
    return run.metrics()[-1]["seconds"]


@torch.no_grad()
def after_each_step(generator: Generator, suite: Suite, num: int) -> list[dict[str, float]]:
    """Return the figures of the samples after each step of a generator with several steps; an empty list for a one-step generator."""
    sigmas, label, rng = generator.sigmas().float(), generator.labels(num), torch.Generator().manual_seed(0)
    rows, x = [], torch.zeros(num, *generator.shape)
    for sigma in sigmas:
        x = generator.denoiser(x + sigma * torch.randn(x.shape, generator=rng), sigma, label)
        rows.append({"sigma": sigma.item(), **suite.measure(x.clamp(-1, 1), label)})
    return rows if len(rows) > 1 else []


def main() -> None:
    """Train and measure every arm that is asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/dmd2"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    data = load_data(load_recipe("dmd2/digits").data)
    suite, num = suite_for(data), usual_samples(False)
    for seed in arguments.seeds:
        teacher = arguments.folder / f"teacher_{seed}"
        train("teacher/digits", teacher, f"seed={seed}")
        for arm in arguments.arms:
            runs = json.loads(arguments.results.read_text())["runs"] if arguments.results.exists() else []
            if any((run["title"], run["training_seed"]) == (arm, seed) for run in runs):
                continue
            folder = arguments.folder / f"{arm.replace(' ', '_').replace(',', '')}_{seed}"
            recipe, overrides = ARMS[arm]
            seconds = train(recipe, folder, *overrides, f"method.teacher={teacher}", f"seed={seed}")
            generator = load(folder)
            rows = [measure(suite, generator, num, sampling, speed=False) for sampling in range(SAMPLINGS)]
            frechet = [row["frechet_over_floor"] for row in rows]
            row = {key: statistics.mean(row[key] for row in rows) for key, value in rows[0].items() if not isinstance(value, str)}
            runs.append(
                {
                    "title": arm,
                    "recipe": recipe,
                    "overrides": list(overrides),
                    "training_seed": seed,
                    "seconds": seconds,
                    "n": num,
                    "seeds": list(range(SAMPLINGS)),
                    "frechet_over_floor_spread": statistics.stdev(frechet),
                    "floor": suite.floor,
                    "row": row,
                    "steps": after_each_step(generator, suite, num),
                    "machine": {**machine(), "load": os.getloadavg()[0]},
                }
            )
            arguments.results.write_text(json.dumps({"command": "python benchmarks/dmd2.py", "runs": runs}, indent=1) + "\n")
            figures = (f"{key} {row[key]:.3f}" for key in ("frechet_over_floor", "class_accuracy", "recall", "within_class_std", "spacing"))
            print(f"{arm}, seed {seed}: {seconds:.0f} s;", *figures, f"to train {row['train_distance']:.3f}", flush=True)


if __name__ == "__main__":
    main()
