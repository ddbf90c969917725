"""How far a figure of images is off when few images are measured, or are measured against few: where `fewstep.metrics.figures` stops.

    python benchmarks/figure_errors.py                 a minute on one core

Digits in their own features. Sets that are known to be sound (real images of the train split) and ill (the same with noise that anyone
sees, standard deviation .5 in [-1, 1]) are measured with n generated against n reference images, `DRAWS` random choices each; beside it
stands what the same figure is of all images. A figure can be printed from the n on at which its error, bias and two standard deviations
together, is less than half of what is between sound and ill. Writes results/figure_errors.json.
"""

import json
import statistics
from pathlib import Path

import torch

from fewstep.build import load_data
from fewstep.evaluation import machine
from fewstep.metrics.features import feature_network
from fewstep.metrics.frechet import frechet_distance
from fewstep.metrics.kernel_mmd import kernel_distance
from fewstep.metrics.manifold import precision_recall
from fewstep.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "figure_errors.json"
COUNTS = (8, 12, 16, 25, 50, 100, 200, 360)
DRAWS = 20
NOISE = 0.5


def figures(made: torch.Tensor, label: torch.Tensor, real: torch.Tensor, classify) -> dict[str, float]:
    """Of features made [n, D] of classes [n], and real [m, D]."""
    precision, recall = precision_recall(real, made)
    return {
        "precision": precision,
        "recall": recall,
        "class_accuracy": (classify(made).argmax(1) == label).double().mean().item(),
        "frechet": frechet_distance(made, real),
        "kernel": kernel_distance(made, real),
    }


def main() -> None:
    """Draw, measure, write, print."""
    torch.set_num_threads(1)
    data = load_data(load_recipe("teacher/digits").data, 0)
    network = feature_network(data.name)
    rng = torch.Generator().manual_seed(0)
    train, label = (data.train / data.half - 1 if data.half else data.train).float(), data.labels("train")
    held = (data.heldout / data.half - 1 if data.half else data.heldout).float()
    with torch.no_grad():
        sets = {"sound": network(train), "ill": network(train + NOISE * torch.randn(train.shape, generator=rng))}
        real = network(held)
    whole = {name: figures(made[:1000], label[:1000], real, network.classify) for name, made in sets.items()}
    rows = []
    for num in (n for n in COUNTS if n <= len(real)):
        row = {"n": num, "figures": {}}
        found = {name: [] for name in sets}
        for _ in range(DRAWS):
            against = real[torch.randperm(len(real), generator=rng)[:num]]
            for name, made in sets.items():
                chosen = torch.randperm(len(made), generator=rng)[:num]
                found[name].append(figures(made[chosen], label[chosen], against, network.classify))
        for key in whole["sound"]:
            between = abs(whole["ill"][key] - whole["sound"][key])
            values = {name: [measured[key] for measured in group] for name, group in found.items()}
            cells = {name: (statistics.mean(x), statistics.stdev(x)) for name, x in values.items()}
            error = max(abs(mean - whole[name][key]) + 2 * std for name, (mean, std) in cells.items())
            row["figures"][key] = {**cells, "whole": {name: whole[name][key] for name in sets}, "error_over_difference": error / between}
        rows.append(row)
        print(num, {k: (round(v["sound"][0], 3), round(v["ill"][0], 3), round(v["error_over_difference"], 2)) for k, v in row["figures"].items()})
    content = {"command": "python benchmarks/figure_errors.py", "machine": machine(), "seed": 0, "draws": DRAWS, "noise": NOISE, "rows": rows}
    RESULTS.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
