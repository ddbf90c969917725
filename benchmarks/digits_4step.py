"""Compare settings of DMD2 with several steps on digits, to find why four steps were no better than one.

    python benchmarks/digits_4step.py                                 every arm, seed 0; 5 to 10 minutes a run on one idle core
    python benchmarks/digits_4step.py --arms "5, 1.9, 0.72, 0.27" --seeds 0 1 2
    python benchmarks/digits_4step.py --arms "80, 16.8, 2.24, 0.131" --noise 1 0.8      sample a trained run with less noise between steps

Each arm is dmd2/digits_4step (dmd2/digits if the title says 1 step) with the overrides in `ARMS`; all arms of a seed share one teacher.
Figures are means over `SAMPLINGS` sets of 2,000 samples; FD / floor of one set varies by about 0.05 with its sampling seed. The figures
after each step are recorded as well. Writes results/digits_4step_sweep.json after each run; a run that the file holds already is skipped.
Runs on one thread.

With --noise, a student that has been trained is sampled again with only that share of the noise that its steps add, and the run's row
gains ``noise``: FD / floor after each step, the mean over `NOISY` sets.
"""

import argparse
import itertools
import json
import os
import re
import statistics
from pathlib import Path

import torch

from dmd2 import after_each_step, train
from fewstep.build import load_data
from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for, usual_samples
from fewstep.metrics.suite import Suite
from fewstep.recipe import load_recipe

SAMPLINGS, NOISY = 8, 4
RESULTS = Path(__file__).parent / "results" / "digits_4step_sweep.json"
ONE, FOUR = "dmd2/digits", "dmd2/digits_4step"
AS_BEFORE = ("method.conditioning_sigma=80", "method.sampler_sigmas=null")


def levels(*sigmas: float) -> tuple[str, ...]:
    """Return overrides for a student whose sampling steps are at the noise levels `sigmas`."""
    return (f"method.conditioning_sigma={sigmas[0]}", f"method.sampler_sigmas=[{', '.join(map(str, sigmas))}]")


SHORT = ("steps=400",)
# title -> recipe and overrides
ARMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "short: 80, 16.8, 2.24, 0.131": (FOUR, (*AS_BEFORE, *SHORT)),
    "short: 5, 1.9, 0.72, 0.27": (FOUR, (*levels(5.0, 1.9, 0.72, 0.27), *SHORT)),
    "short: 10, 1.6, 0.7, 0.29": (FOUR, (*levels(10.0, 1.6, 0.7, 0.29), *SHORT)),
    "short: 80, 5, 1.2, 0.3": (FOUR, (*levels(80.0, 5.0, 1.2, 0.3), *SHORT)),
    "short: 1 step": (ONE, SHORT),
    "short: 1 step from 5": (ONE, ("method.conditioning_sigma=5", *SHORT)),
    "short: 16.8, 2.24, 0.131": (FOUR, ("method.sampler_steps=3", *levels(16.8, 2.24, 0.131), *SHORT)),
    "short: 16.8, 4, 0.8, 0.131": (FOUR, (*levels(16.8, 4.0, 0.8, 0.131), *SHORT)),
    "short: 5, 2.41, 0.988, 0.313": (FOUR, (*levels(5.0, 2.4112654, 0.9876543, 0.3125), *SHORT)),  # which a diffusers scheduler can take
    "short: 2 steps": (FOUR, ("method.sampler_steps=2", *SHORT)),
    "short: 80, 16.8, 2.24, 0.5": (FOUR, (*levels(80.0, 16.8, 2.24, 0.5), *SHORT)),
    "short: one fake network": (FOUR, ("method.fake_per_step=false", *SHORT)),
    "short: noised data": (FOUR, ("method.inputs=noised_data", *SHORT)),
    "short: rate halved": (FOUR, ("method.generator_optimizer.lr=1e-4", *SHORT)),
    "short: fake network learns 4 times an update": (FOUR, ("method.dfake_gen_update_ratio=4", *SHORT)),
    "short: EMA 0.99": (FOUR, ("method.ema_decay=0.99", *SHORT)),
    "short: batch 256": (FOUR, ("batch_size=256", *SHORT)),  # each of the four steps sees as many items as the one step does
    "1 step": (ONE, ()),
    "80, 16.8, 2.24, 0.131": (FOUR, AS_BEFORE),
    "5, 1.9, 0.72, 0.27": (FOUR, levels(5.0, 1.9, 0.72, 0.27)),
    "10, 1.6, 0.7, 0.29": (FOUR, levels(10.0, 1.6, 0.7, 0.29)),
    "5600 steps": (FOUR, ("steps=5600",)),
    "DMD loss, GAN": (FOUR, ("method.loss=dmd", "method.gan=true", "method.gan_weight_generator=auto")),
}


@torch.no_grad()
def with_less_noise(generator: Generator, suite: Suite, num: int, share: float) -> list[float]:
    """Return FD / floor after each step, the mean over `NOISY` sets, if steps after the first add only `share` of their noise.

    The network is still given the full noise level of the step.
    """
    label, sums = generator.labels(num), torch.zeros(len(generator.sigmas()))
    for seed in range(NOISY):
        rng, x = torch.Generator().manual_seed(100 + seed), torch.zeros(num, *generator.shape)
        for i, sigma in enumerate(generator.sigmas().float()):
            x = generator.denoiser(x + (share if i else 1) * sigma * torch.randn(x.shape, generator=rng), sigma, label)
            sums[i] += suite.measure(x.clamp(-1, 1), label)["frechet_over_floor"]
    return (sums / NOISY).tolist()


@torch.no_grad()
def kept_by_each_step(generator: Generator, num: int = 1000) -> list[float]:
    """Return, for each step after the first, the correlation of its samples with those of the step before.

    It is the correlation of pixels less their class means, and says how much of the earlier samples a step keeps.
    """
    sigmas, label, rng = generator.sigmas().float(), generator.labels(num), torch.Generator().manual_seed(0)
    made, x = [], torch.zeros(num, *generator.shape)
    for sigma in sigmas:
        x = generator.denoiser(x + sigma * torch.randn(x.shape, generator=rng), sigma, label)
        centred = x.flatten(1).clone()
        for k in label.unique():
            centred[label == k] -= centred[label == k].mean(0)
        made.append(centred)
    return [((a * b).sum() / (a.norm() * b.norm())).item() for a, b in itertools.pairwise(made)]


def write(path: Path, runs: list[dict]) -> None:
    """Write `runs` to the results file `path`."""
    path.write_text(json.dumps({"command": "python benchmarks/digits_4step.py", "runs": runs}, indent=1) + "\n")


def main() -> None:
    """Train and measure every arm that is asked for, or with --noise sample the trained ones again, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/digits_4step"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--noise", type=float, nargs="+", help="sample trained students with these shares of their steps' noise, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite, num = suite_for(load_data(load_recipe(ONE).data)), usual_samples(False)
    for seed in arguments.seeds:
        teacher = arguments.folder / f"teacher_{seed}"
        train("teacher/digits", teacher, f"seed={seed}")
        for arm in arguments.arms:
            runs = json.loads(arguments.results.read_text())["runs"] if arguments.results.exists() else []
            recipe, overrides = ARMS[arm]
            folder = arguments.folder / f"{re.sub('[^0-9a-z.]+', '_', arm)}_{seed}"
            if arguments.noise:
                for share in arguments.noise:
                    found = with_less_noise(load(folder), suite, num, share)
                    print(
                        f"{arm}, seed {seed}, noise {share:g}: FD / floor after each step", *(f"{value:.3f}" for value in found), flush=True
                    )
                    runs = json.loads(arguments.results.read_text())["runs"]
                    run = next(run for run in runs if (run["title"], run["training_seed"]) == (arm, seed))
                    run.setdefault("noise", {})[f"{share:g}"] = found
                    write(arguments.results, runs)
                continue
            if any((run["title"], run["training_seed"]) == (arm, seed) for run in runs):
                continue
            seconds = train(recipe, folder, *overrides, f"method.teacher={teacher}", f"seed={seed}")
            generator = load(folder)
            rows = [measure(suite, generator, num, sampling, speed=False) for sampling in range(SAMPLINGS)]
            row = {key: statistics.mean(row[key] for row in rows) for key, value in rows[0].items() if not isinstance(value, str)}
            steps = [
                {key: step[key] for key in ("sigma", "frechet_over_floor", "within_class_std", "train_distance", "class_accuracy")}
                for step in after_each_step(generator, suite, num)
            ]
            runs.append(
                {
                    "title": arm,
                    "recipe": recipe,
                    "overrides": list(overrides),
                    "training_seed": seed,
                    "training_steps": load_recipe(recipe, overrides).steps,
                    "seconds": seconds,
                    "n": num,
                    "seeds": list(range(SAMPLINGS)),
                    "frechet_over_floor_spread": statistics.stdev(row["frechet_over_floor"] for row in rows),
                    "floor": suite.floor,
                    "row": row,
                    "steps": steps,
                    "kept": kept_by_each_step(generator),
                    "machine": {**machine(), "load": os.getloadavg()[0]},
                }
            )
            write(arguments.results, runs)
            after = ", ".join(f"{step['frechet_over_floor']:.2f}" for step in steps)
            print(
                f"{arm}, seed {seed}: {seconds:.0f} s; FD / floor {row['frechet_over_floor']:.3f}"
                + (f" (after each step {after})" if steps else "")
                + f"; class {row['class_accuracy']:.1%}, std {row['within_class_std']:.0%}, recall {row['recall']:.2f}, "
                f"to train {row['train_distance']:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
