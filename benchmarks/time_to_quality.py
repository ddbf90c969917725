"""Measure the training time until one-step samples reach 1.6 times the floor: the shipped settings against the published ones.

    python benchmarks/time_to_quality.py [--teacher runs/quality/teacher_0] [--turn 4] [--factor 5]
    python benchmarks/time_to_quality.py --set mnist --data ../shared/data/mnist --teacher runs/images/mnist/teacher_0 --target 4 --turn 60

All arms share network, teacher, batch and data. They train in turns of a few seconds in one process, so that a machine whose speed drifts
treats them alike, and are measured (2,000 samples of the averaged generator) after each turn; measuring does not count as training time.
The published arms use DMD2's loss and optimizer (arXiv 2405.14867, edm folder of its release) at ratios 10 and 5 and learning rates 2e-6
and 2e-5. The study ends when every arm has reached the target, or has trained `factor` times as long as the shipped arm took to reach it.
Writes results/time_to_quality.json, or time_to_quality_SET.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from lightning_fabric import Fabric

from fewstep.build import load_data, make_method
from fewstep.machine import machine
from fewstep.measurement import suite_for
from fewstep.metrics.features import extract
from fewstep.metrics.frechet import frechet_distance
from fewstep.recipe import load_recipe
from fewstep.training.loop import Loop, LoopSettings
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
SAMPLES = 2000
PUBLISHED = [
    "method.loss=dmd",
    "method.conditioning_sigma=80",
    "method.generator_optimizer.warmup=0",
    "method.generator_optimizer.decay_from=1",
    "method.generator_optimizer.final=1",
    "method.generator_optimizer.beta2=0.999",
    "method.guidance_optimizer.beta2=0.999",
    "method.reuse_generator_batch=false",
]
ARMS = {
    "shipped": [],
    **{
        f"published, ratio {ratio}, lr {lr}": [
            *PUBLISHED,
            f"method.dfake_gen_update_ratio={ratio}",
            f"method.generator_optimizer.lr={lr}",
            f"method.guidance_optimizer.lr={lr}",
        ]
        for ratio in (10, 5)
        for lr in ("2e-6", "2e-5")
    },
}


class Arm:
    """One arm in training: its loop, its training seconds so far, and its curve of FD / floor."""

    def __init__(self, source: str, overrides: list[str], folder: Path, target: float) -> None:
        recipe, self.target = load_recipe(source, overrides), target
        self.data = load_data(recipe.data)
        self.method = make_method(recipe, self.data)
        settings = LoopSettings(
            recipe.steps, recipe.batch_size, recipe.seed, ema_decay=recipe.method.ema_decay, ema_warmup=recipe.method.ema_warmup
        )
        self.loop = Loop(self.method, self.data, Fabric(accelerator="cpu", devices=1), RunFolder(folder), settings)
        self.seconds, self.curve = 0.0, []

    def train(self, seconds: float) -> None:
        """Train for about `seconds`."""
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            self.loop.advance()
        self.seconds += passed

    def arrived(self) -> float | None:
        """Return the training seconds at the first measurement at or below the target; None if there is none."""
        return next((seconds for seconds, _, value in self.curve if value <= self.target), None)


def main() -> None:
    """Train the arms in turns until each has reached the target or its time is over, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=["digits", "mnist"], default="digits")
    parser.add_argument("--data", type=Path, help="folder of MNIST, with --set mnist")
    parser.add_argument("--target", type=float, default=1.6, help="FD / floor that an arm has to reach")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--teacher", type=Path, default=Path("runs/quality/teacher_0"))
    parser.add_argument("--turn", type=float, default=4.0, help="seconds of training between measurements")
    parser.add_argument("--factor", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shared = [f"method.teacher={json.dumps(str(arguments.teacher))}", f"seed={arguments.seed}"]
        if arguments.data is not None:
            shared.append(f"data.dir={json.dumps(str(arguments.data))}")
        source = f"dmd2/{arguments.set}"
        arms = {name: Arm(source, [*ARMS[name], *shared], Path(folder), arguments.target) for name in arguments.arms}
        suite = suite_for(next(iter(arms.values())).data, num=SAMPLES)

        def measure(arm: Arm) -> float:
            samples = arm.loop.state.shipped().sample(SAMPLES, seed=0)
            return frechet_distance(extract(suite.network, samples), suite.heldout_features) / suite.floor

        limit = float("inf")
        while any(arm.arrived() is None and arm.seconds < limit for arm in arms.values()):
            for name, arm in arms.items():
                if arm.arrived() is None and arm.seconds < limit:
                    arm.train(arguments.turn)
                    arm.curve.append((arm.seconds, arm.loop.state.step, measure(arm)))
                    print(f"{name:30} {arm.seconds:7.1f} s, step {arm.loop.state.step:6}, {arm.curve[-1][2]:6.2f} x the floor", flush=True)
            if "shipped" in arms and (shipped := arms["shipped"].arrived()) is not None:
                limit = arguments.factor * shipped
    rows = []
    for name, arm in arms.items():
        arrived = arm.arrived()
        rows.append(
            {
                "arm": name,
                "arrived": arrived,
                "trained": arm.seconds,
                "steps": arm.loop.state.step,
                "stood_at": arm.curve[-1][2],
                "curve": arm.curve,
            }
        )
        verdict = f"{arrived:.1f} s" if arrived else f"not in {arm.seconds:.0f} s (stood at {arm.curve[-1][2]:.2f})"
        print(f"{name:30} {verdict}")
    content = {
        "command": "python benchmarks/time_to_quality.py" + (f" --set {arguments.set}" if arguments.set != "digits" else ""),
        "target": arguments.target,
        "n": SAMPLES,
        "seed": arguments.seed,
        "machine": machine(),
    }
    name = "time_to_quality" if arguments.set == "digits" else f"time_to_quality_{arguments.set}"
    (RESULTS / f"{name}.json").write_text(json.dumps({**content, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
