"""Measure consistency models and flow maps on real digits and on the ring, from a teacher and from scratch, by network evaluations.

    python benchmarks/flows.py                                 every arm, 3 seeds; 1 to 7 minutes a run on one idle core
    python benchmarks/flows.py --arms "flow map, ring" --seeds 0
    python benchmarks/flows.py --seeds 1 --results /tmp/1.json   one of several processes; then: --merge /tmp/1.json /tmp/2.json

Each arm is a shipped recipe, unchanged; arms from a teacher distil teacher/digits, trained once for each seed. The noise levels of
sampling are the recipe's. Figures of digits are means over `SAMPLINGS` sets of 2,000 samples, because FD / floor of one set varies by
about 0.05 with its sampling seed; figures of the ring are of one set of 10,000. Seconds are the CPU time of the whole training process,
on one thread. Writes results/flows.json after each run; a run that the file holds already is skipped.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

from fewstep.build import load_data
from fewstep.generator import load
from fewstep.machine import machine
from fewstep.measurement import measure, suite_for, usual_samples
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

SAMPLINGS = 8
RESULTS = Path(__file__).parent / "results" / "flows.json"
# title -> recipe, whether it distils the teacher, and the numbers of evaluations at which it is measured
ARMS: dict[str, tuple[str, bool, tuple[int, ...]]] = {
    "consistency, from the teacher": ("consistency/digits", True, (1, 2)),
    "flow map, from the teacher": ("flow_map/digits", True, (1, 2, 4)),
    "consistency, from scratch": ("consistency/digits_scratch", False, (1, 2)),
    "flow map, from scratch": ("flow_map/digits_scratch", False, (1, 2, 4)),
    "consistency, ring": ("consistency/ring", False, (1, 2)),
    "flow map, ring": ("flow_map/ring", False, (1, 2)),
}


def train(source: str, folder: Path, *overrides: str) -> float:
    """Train the recipe `source` in `folder`, or resume it, and return the CPU seconds that its training took over all calls."""
    run, recipe = RunFolder(folder), load_recipe(source, overrides)
    spent = folder / "cpu_seconds.json"
    if run.model_step() != recipe.steps:
        began = time.process_time()
        train_recipe(recipe, folder, resume=run.recipe_file.exists(), title=folder.name)
        before = json.loads(spent.read_text()) if spent.exists() else 0.0
        spent.write_text(json.dumps(before + time.process_time() - began))
    return json.loads(spent.read_text())


def measured(arm: str, seed: int, folder: Path) -> dict:
    """Train one arm with one seed, measure it, and return its row of the results."""
    recipe, taught, counts = ARMS[arm]
    overrides = [f"seed={seed}"]
    if taught:
        teacher = folder / f"teacher_{seed}"
        train("teacher/digits", teacher, f"seed={seed}")
        overrides.append(f"method.teacher={teacher}")
    run = folder / f"{arm.replace(' ', '_').replace(',', '')}_{seed}"
    seconds = train(recipe, run, *overrides)
    generator, settings = load(run), load_recipe(recipe)
    points = len(generator.shape) == 1
    suite, num = suite_for(load_data(settings.data, 0)), usual_samples(points)
    rows = {}
    for count in counts:
        found = [measure(suite, generator, num, sampling, count, speed=False) for sampling in range(1 if points else SAMPLINGS)]
        rows[str(count)] = {
            key: statistics.mean(row[key] for row in found) for key, value in found[0].items() if not isinstance(value, str)
        }
        if not points:
            rows[str(count)]["frechet_over_floor_spread"] = statistics.stdev(row["frechet_over_floor"] for row in found)
    return {
        "title": arm,
        "recipe": recipe,
        "training_seed": seed,
        "cpu_seconds": seconds,
        "steps": settings.steps,
        "n": num,
        "seeds": list(range(1 if points else SAMPLINGS)),
        "floor": suite.floor,
        "rows": rows,
        "machine": {**machine(), "load": os.getloadavg()[0]},
    }


def main() -> None:
    """Train and measure every arm that is asked for, or merge results files, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/flows"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--merge", type=Path, nargs="+", help="add the runs of these results files to --results, and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def known() -> list[dict]:
        return json.loads(arguments.results.read_text())["runs"] if arguments.results.exists() else []

    def write(runs: list[dict]) -> None:
        runs.sort(key=lambda run: (list(ARMS).index(run["title"]), run["training_seed"]))
        arguments.results.write_text(json.dumps({"command": "python benchmarks/flows.py", "runs": runs}, indent=1) + "\n")

    if arguments.merge:
        found = {(run["title"], run["training_seed"]): run for path in arguments.merge for run in json.loads(path.read_text())["runs"]}
        write(list({**{(run["title"], run["training_seed"]): run for run in known()}, **found}.values()))
        return
    for seed in arguments.seeds:
        for arm in arguments.arms:
            if any((run["title"], run["training_seed"]) == (arm, seed) for run in known()):
                continue
            run = measured(arm, seed, arguments.folder)
            write([*known(), run])
            key = "energy" if "energy" in run["rows"]["1"] else "frechet_over_floor"
            figures = ", ".join(
                f"{count}: {row[key]:.4g}" + (f" (inside {row['inside']:.3f})" if key == "energy" else "")
                for count, row in run["rows"].items()
            )
            print(f"{arm}, seed {seed}: {run['cpu_seconds']:.0f} CPU s; {key} at evaluations {figures}", flush=True)


if __name__ == "__main__":
    main()
