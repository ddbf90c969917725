"""Where unseen real digits lie in the digit features, so that multiples of the floor can be read.

    python benchmarks/feature_calibration.py            about 2 minutes on one core

The shipped classifier has seen the train split. To see what that does, classifiers of the same kind are trained on 720 digits
(A) and the Frechet distance to 357 others (C) is taken from A itself, whose ratio is 1 by definition - the floor of that
split - and from 720 digits that the classifier has never seen (B). The ratio B / A is where a perfect generator would lie.
Writes results/feature_calibration.json.
"""

import json
import statistics
import sys
from pathlib import Path

import torch
from sklearn.model_selection import train_test_split

from fewstep.data import load_digits
from fewstep.evaluation import machine
from fewstep.metrics.features import extract
from fewstep.metrics.frechet import frechet_distance

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from train_features import EPOCHS, train_classifier

RESULTS = Path(__file__).parent / "results" / "feature_calibration.json"
SEEDS = range(5)


def main() -> None:
    """Train, measure, print, write."""
    torch.set_num_threads(1)
    data = load_digits()
    images = torch.cat([data.images("train"), data.images("heldout")])
    labels = torch.cat([data.labels("train"), data.labels("heldout")])
    ratios = []
    for seed in SEEDS:
        seen, rest = train_test_split(torch.arange(len(images)).numpy(), train_size=720, stratify=labels.numpy(), random_state=seed)
        unseen, heldout = train_test_split(rest, train_size=720, stratify=labels[rest].numpy(), random_state=seed)
        # half the images, so twice the epochs: as many updates as the shipped one had
        network = train_classifier(images[seen], labels[seen], epochs=2 * EPOCHS, seed=seed)
        a, b, c = (extract(network, images[part]) for part in (seen, unseen, heldout))
        ratios.append(frechet_distance(b, c) / frechet_distance(a, c))
        print(f"split {seed}: unseen real digits lie at {ratios[-1]:.2f} x the floor")
    print(f"median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
    RESULTS.write_text(
        json.dumps({"command": "python benchmarks/feature_calibration.py", "machine": machine(), "ratios": ratios}, indent=1)
    )


if __name__ == "__main__":
    main()
