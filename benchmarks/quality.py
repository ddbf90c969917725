"""Measure the quality of the shipped recipes of real digits, teacher and student, over several training seeds.

    python benchmarks/quality.py                 three seeds, about 8 minutes each on one core
    python benchmarks/quality.py --seeds 0 1 --folder runs/quality

Trains teacher/digits and dmd2/digits as shipped, evaluates both (2,000 samples), and writes results/quality.json. A run that
is already in the folder is resumed, not begun again.
"""

import argparse
import json
from pathlib import Path

from fewstep.evaluation import evaluate
from fewstep.recipe import load_recipe
from fewstep.run import train_recipe
from fewstep.training.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results" / "quality.json"


def train(source: str, folder: Path, *overrides: str) -> float:
    """Train the recipe `source` in `folder`, or resume it, and return the seconds that its training took."""
    run = RunFolder(folder)
    train_recipe(load_recipe(source, overrides), folder, resume=run.recipe_file.exists(), title=f"{source} {folder.name}")
    return run.metrics()[-1]["seconds"]


def main() -> None:
    """Train and evaluate teacher and student of each seed, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        teacher, student = arguments.folder / f"teacher_{seed}", arguments.folder / f"student_{seed}"
        seconds = {"teacher": train("teacher/digits", teacher, f"seed={seed}")}
        seconds["student"] = train("dmd2/digits", student, f"seed={seed}", f"method.teacher={teacher}")
        results = evaluate(student) if not (student / "results.json").exists() else json.loads((student / "results.json").read_text())
        runs.append({**results, "seconds": seconds})
        for name, row in results["rows"].items():
            print(f"seed {seed}  {name:28} {row['frechet_over_floor']:.3f} x the floor, accuracy {row.get('class_accuracy', 0):.2%}")
    RESULTS.write_text(json.dumps({"command": "python benchmarks/quality.py", "runs": runs}, indent=1))
    print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
