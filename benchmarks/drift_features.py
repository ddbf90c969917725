"""Drift on real digits in pixels and in features, by three fields, at equal training time.

    python benchmarks/drift_features.py                                   every arm, 3 seeds; 100 CPU seconds a run, on one thread
    python benchmarks/drift_features.py --features none teacher --seeds 0
    python benchmarks/drift_features.py --seconds 20 --results /tmp/short.json

Each arm is drift/digits with a field of `FIELDS` on one of the features of `FEATURES`, for so many steps as take --seconds of CPU;
"teacher" is the bottleneck of teacher/digits, one a seed. FD is measured in the evaluator's features, and flatters runs that acted on
them. Figures are means over `SAMPLINGS` sets of 2,000 samples. Writes results/drift_features.json after each run; a run of as many
seconds that is in there is not done again.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

import torch

from dmd2 import train
from equal_time import figures, trained_for
from fewstep.build import load_data
from fewstep.evaluation import machine
from fewstep.generator import load
from fewstep.measurement import suite_for, usual_samples
from fewstep.recipe import load_recipe

SAMPLINGS = 4
RESULTS = Path(__file__).parent / "results" / "drift_features.json"
FEATURES = {"none": "pixels", "random": "random network", "teacher": "trained teacher", "evaluator": "evaluator"}
DISTANCE = "method.temperature_unit=distance"
SOON = "method.optimizer.warmup=20"  # runs may be short
FIELDS = {
    "gaussian": ("method.field=strict", DISTANCE, "method.temperatures=[0.07, 0.2, 0.7]"),
    "drifting": ("method.field=drifting", "method.temperatures=[0.02, 0.05, 0.2]"),
    "wasserstein": ("method.field=wasserstein", DISTANCE, "method.temperatures=[0.1, 0.3]"),
}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", nargs="+", choices=list(FEATURES), default=list(FEATURES))
    parser.add_argument("--fields", nargs="+", choices=list(FIELDS), default=list(FIELDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--folder", type=Path, default=Path("runs/drift_features"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite = suite_for(load_data(load_recipe("drift/digits").data))
    for seed in arguments.seeds:
        if "teacher" in arguments.features:
            train("teacher/digits", arguments.folder / f"teacher_{seed}", f"seed={seed}")
        for features in arguments.features:
            for field in arguments.fields:
                runs = json.loads(arguments.results.read_text())["runs"] if arguments.results.exists() else []
                title = f"{FEATURES[features]}, {field}"
                if any((run["title"], run["training_seed"], run["asked_seconds"]) == (title, seed, arguments.seconds) for run in runs):
                    continue
                folder = arguments.folder / f"{features}_{field}_{seed}"
                shutil.rmtree(folder, ignore_errors=True)  # of a run that was cut short
                named = arguments.folder / f"teacher_{seed}" if features == "teacher" else features
                steps, seconds = trained_for(
                    arguments.seconds, "drift/digits", folder, *FIELDS[field], SOON, f"method.features={named}", f"seed={seed}"
                )
                found = figures(suite, load(folder), SAMPLINGS)
                runs.append(
                    {
                        "title": title,
                        "recipe": "drift/digits",
                        "overrides": [*FIELDS[field], SOON, f"method.features={features}"],
                        "trained_in_features": features,
                        "training_seed": seed,
                        "training_steps": steps,
                        "asked_seconds": arguments.seconds,
                        "seconds": seconds,
                        "n": usual_samples(False),
                        "seeds": list(range(SAMPLINGS)),
                        "floor": suite.floor,
                        **found,
                        "machine": {**machine(), "load": os.getloadavg()[0]},
                    }
                )
                command = {"command": "python benchmarks/drift_features.py", "runs": runs}
                arguments.results.write_text(json.dumps(command, indent=1) + "\n")
                row = found["row"]
                print(
                    f"{title}, seed {seed}: {steps} steps in {seconds:.0f} CPU s; FD / floor {row['frechet_over_floor']:.3f}, "
                    f"class {row['class_accuracy']:.1%}, recall {row['recall']:.2f}, std {row['within_class_std']:.0%}, "
                    f"to train {row['train_distance']:.0%}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
