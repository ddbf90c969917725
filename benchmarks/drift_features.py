"""Compare drift on real digits in pixels and in several feature spaces, with three fields, at equal training time.

    python benchmarks/drift_features.py                                   every arm, 3 seeds; 100 CPU seconds a run, on one thread
    python benchmarks/drift_features.py --features none teacher --seeds 0
    python benchmarks/drift_features.py --seconds 20 --results /tmp/short.json

Each arm is drift/digits with a field of `FIELDS` in one of the feature spaces of `FEATURES`, trained for as many steps as take --seconds
of CPU; "teacher" is the bottleneck of teacher/digits, trained once for each seed. FD is measured in the evaluator's features, and
therefore flatters runs that were trained in these. Figures are means over `SAMPLINGS` sets of 2,000 samples. Writes
results/drift_features.json after each run; a run that the file holds with the same --seconds is skipped.
"""

import argparse
from pathlib import Path

import torch

from dmd2 import train
from equal_time import studied
from fewstep.build import load_data
from fewstep.measurement import suite_for
from fewstep.recipe import load_recipe

SAMPLINGS = 4
RESULTS = Path(__file__).parent / "results" / "drift_features.json"
FEATURES = {"none": "pixels", "random": "random network", "teacher": "trained teacher", "evaluator": "evaluator"}
DISTANCE = "method.temperature_unit=distance"
SOON = "method.optimizer.warmup=20"  # a short learning-rate warm-up, for runs may be short
FIELDS = {
    "gaussian": ("method.field=strict", DISTANCE, "method.temperatures=[0.07, 0.2, 0.7]"),
    "drifting": ("method.field=drifting", "method.temperatures=[0.02, 0.05, 0.2]"),
    "wasserstein": ("method.field=wasserstein", DISTANCE, "method.temperatures=[0.1, 0.3]"),
}


def main() -> None:
    """Train and measure every arm that is asked for, and write the results."""
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
                named = arguments.folder / f"teacher_{seed}" if features == "teacher" else features
                studied(
                    arguments.results,
                    "python benchmarks/drift_features.py",
                    f"{FEATURES[features]}, {field}",
                    seed,
                    arguments.seconds,
                    "drift/digits",
                    arguments.folder / f"{features}_{field}_{seed}",
                    suite,
                    SAMPLINGS,
                    (*FIELDS[field], SOON),
                    (f"method.features={named}",),
                    trained_in_features=features,
                )


if __name__ == "__main__":
    main()
