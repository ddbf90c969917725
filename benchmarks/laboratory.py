"""Measure the 2D laboratory: whether drift ends at p^gamma, with which generators, and what the strict presets do.

    python benchmarks/laboratory.py                          every study, 3 seeds; about 40 minutes on one core
    python benchmarks/laboratory.py --studies ring presets   some of the studies
    python benchmarks/laboratory.py --seeds 0

Each study trains shipped recipes with the overrides listed in `STUDIES`, evaluates 10,000 samples against exact ones, and writes
results/laboratory_STUDY.json. A run that is already in --folder is resumed, not begun again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fewstep.evaluation import evaluate
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
GAMMAS = (0.5, 1.0, 1.5, 2.0)


def powers(recipe: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (title, recipe, overrides) for `recipe` at each gamma."""
    return [(f"{recipe}, gamma {gamma:g}", recipe, (f"method.gamma={gamma}",)) for gamma in GAMMAS]


STUDIES: dict[str, list[tuple[str, str, tuple[str, ...]]]] = {
    "gaussian": [(f"one Gaussian, gamma {g:g}", "drift/ring", ("data.density=gaussian", f"method.gamma={g}")) for g in GAMMAS],
    "ring": powers("drift/ring"),
    "grid25": powers("drift/grid25"),
    "unequal": powers("drift/unequal"),
    "mixture8d": [(f"drift/mixture8d, gamma {g:g}", "drift/mixture8d", (f"method.gamma={g}",)) for g in (1.0, 2.0)],
    "continuous": [("drift/ring_continuous", "drift/ring_continuous", ())],
    "dmd2": [("dmd2/ring, exact teacher", "dmd2/ring", ())],
    "fields": [
        ("strict field, T .1", "drift/ring", ("method.temperatures=[0.1]", "method.gamma=1.5", "method.gamma_by=field")),
        (
            "two temperatures, T .1",
            "drift/ring",
            ("method.temperatures=[0.1]", "method.gamma=1.5", "method.gamma_by=field", "method.field=two_temperature"),
        ),
        (
            "two temperatures, unequal modes",
            "drift/unequal",
            ("method.temperatures=[0.1]", "method.gamma=1.5", "method.gamma_by=field", "method.field=two_temperature"),
        ),
    ],
    "digits": [
        ("drift/digits", "drift/digits", ()),
    ],
    "floor": [
        ("field drifting, no floor", "drift/digits", ("method.field=drifting", "method.temperatures=[0.02,0.05,0.2]", "steps=1500")),
        (
            "field drifting, floor 1e-3 (as released)",
            "drift/digits",
            ("method.field=drifting", "method.temperatures=[0.02,0.05,0.2]", "method.affinity_floor=0.001", "steps=1500"),
        ),
    ],
    # a twentieth of the presets' default steps; whatever the presets lose, they have lost by then
    "presets": [
        (f"drift/{name}", f"drift/{name}", ("steps=5000",)) for name in ("vanilla", "vanilla_temperature", "stable_gamma", "large_gamma")
    ],
}


def main() -> None:
    """Train and evaluate every run of the studies that are asked for, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/laboratory"))
    arguments = parser.parse_args()
    for study in arguments.studies:
        runs = []
        for title, recipe, overrides in STUDIES[study]:
            for seed in arguments.seeds:
                folder = arguments.folder / f"{title.replace('/', '_').replace(', ', '_').replace(' ', '_')}_{seed}"
                runs.append({"title": title, **run(recipe, folder, *overrides, f"seed={seed}")})
                row = runs[-1]["row"]
                print(f"{title}, seed {seed}: {runs[-1]['seconds']:.0f} s", *(f"{k} {row[k]:.4f}" for k in SHOWN if k in row), flush=True)
        content = {"command": f"python benchmarks/laboratory.py --studies {study}", "runs": runs}
        (RESULTS / f"laboratory_{study}.json").write_text(json.dumps(content, indent=1))


SHOWN = ("energy", "modes", "weight_tv", "inside", "variance", "median_radius", "frechet_over_floor", "class_accuracy", "spacing")


def run(recipe: str, folder: Path, *overrides: str) -> dict[str, Any]:
    """Train or finish one run, evaluate it, and return what a table needs."""
    done = RunFolder(folder)
    train_recipe(load_recipe(recipe, overrides), folder, resume=done.recipe_file.exists(), title=folder.name)
    results = json.loads(done.results_file.read_text()) if done.results_file.exists() else evaluate(folder)
    rows = list(results["rows"].values())
    return {
        "overrides": list(overrides),
        "seconds": done.metrics()[-1]["seconds"],
        "training_seed": results["training_seed"],
        "n": results["n"],
        "reference": results["reference"],
        "floor": rows[0],
        "row": rows[-1],
        "machine": results["machine"],
    }


if __name__ == "__main__":
    main()
