"""Train and measure recipes for equal CPU time on one thread; shared by the benchmarks that compare at equal training time."""

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from fewstep.generator import Generator, load
from fewstep.machine import machine
from fewstep.measurement import measure, usual_samples
from fewstep.metrics.suite import Suite
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.loop import Loop

TRIED, FIRST = 40, 10  # steps of the trial run, and how many of its first steps are left out


def steps_within(seconds: float, source: str, *overrides: str) -> int:
    """Return how many steps of the recipe `source` with `overrides` take `seconds` of CPU, without the work that a run does once.

    The time of a step is the mean over some steps after the first ones, without the slowest tenth, which other work on the machine delays.
    """
    spent, advance = [], Loop.advance

    def timed(loop: Loop, *given: Any, **more: Any) -> Any:
        began = time.process_time()
        try:
            return advance(loop, *given, **more)
        finally:
            spent.append(time.process_time() - began)

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Loop, "advance", timed):
        train_recipe(load_recipe(source, [*overrides, f"steps={TRIED}"]), Path(folder) / "tried", title="timing")
    usual = sorted(spent[FIRST:])[: math.ceil(0.9 * (TRIED - FIRST))]
    return max(TRIED, round(seconds / statistics.mean(usual)))


def trained_for(seconds: float, source: str, folder: Path, *overrides: str) -> tuple[int, float]:
    """Train `source` in `folder` for `seconds` of CPU, and return (steps, CPU seconds that the whole run took)."""
    steps = steps_within(seconds, source, *overrides)
    began = time.process_time()
    train_recipe(load_recipe(source, [*overrides, f"steps={steps}"]), folder, title=folder.name)
    return steps, time.process_time() - began


def figures(suite: Suite, generator: Generator, samplings: int) -> dict:
    """Return the mean figures over `samplings` sets of samples, and the standard deviation of FD / floor between the sets."""
    rows = [measure(suite, generator, usual_samples(False), sampling, speed=False) for sampling in range(samplings)]
    row = {key: statistics.mean(row[key] for row in rows) for key, value in rows[0].items() if not isinstance(value, str)}
    return {"row": row, "frechet_over_floor_spread": statistics.stdev(row["frechet_over_floor"] for row in rows)}


def studied(
    results: Path,
    command: str,
    title: str,
    seed: int,
    seconds: float,
    source: str,
    folder: Path,
    suite: Suite,
    samplings: int,
    overrides: tuple[str, ...],
    local: tuple[str, ...] = (),
    **told: str,
) -> None:
    """Train `source` with `overrides` for `seconds` of CPU, measure it, and add it to the file `results`, unless that holds it already.

    `local` are overrides with paths of this machine, which are not recorded; the keywords `told` are recorded with the run.
    """
    runs = json.loads(results.read_text())["runs"] if results.exists() else []
    if any((run["title"], run["training_seed"], run["asked_seconds"]) == (title, seed, seconds) for run in runs):
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an interrupted run has left
    steps, spent = trained_for(seconds, source, folder, *overrides, *local, f"seed={seed}")
    found = figures(suite, load(folder), samplings)
    runs.append(
        {
            "title": title,
            "recipe": source,
            "overrides": list(overrides),
            **told,
            "training_seed": seed,
            "training_steps": steps,
            "asked_seconds": seconds,
            "seconds": spent,
            "n": usual_samples(False),
            "seeds": list(range(samplings)),
            "floor": suite.floor,
            **found,
            "machine": {**machine(), "load": os.getloadavg()[0]},
        }
    )
    results.write_text(json.dumps({"command": command, "runs": runs}, indent=1) + "\n")
    row = found["row"]
    print(
        f"{title}, seed {seed}: {steps} steps in {spent:.0f} CPU s; FD / floor {row['frechet_over_floor']:.3f}, "
        f"class {row['class_accuracy']:.1%}, recall {row['recall']:.2f}, std {row['within_class_std']:.0%}, "
        f"to train {row['train_distance']:.0%}",
        flush=True,
    )
