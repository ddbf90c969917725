"""Measure the error of each figure where reference or generated items are few, from which its least numbers of items follow.

    python benchmarks/figure_errors.py          about 8 minutes on one core

Subsets of real data (digits; points of the ring and the grid) take the place of samples and are measured as an evaluation measures
samples: with few reference and many generated items, then the other way round. Each figure is also measured on the fault that it is meant
to show: visible noise for most figures; samples collapsed onto two images a class for recall, spacing and the spread within classes;
copies of the train split for the distance to it; wrong labels for the class asked for; half of the modes left out, or modes of twice the
variance, for points. An error is judged by its size beside the difference between truth and fault (`share_of`, and
`fewstep.metrics.least`). Writes results/figure_errors.json.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data import DENSITIES, load_digits
from fewstep.machine import machine
from fewstep.metrics.features import FeatureNetwork, named_features
from fewstep.metrics.point_suite import PointSuite
from fewstep.metrics.suite import Suite

RESULTS = Path(__file__).parent / "results" / "figure_errors.json"
SEED, DRAWS = 0, 16
SIZES = (5, 8, 12, 16, 24, 32, 50, 75, 100, 150, 200, 400)
MANY = 400  # items of the sides that do not vary
POINT_SIZES = (40, 60, 80, 120, 160, 240, 400, 1_000)
MANY_POINTS = 1_000
NOISE = 0.5  # standard deviation of the visible noise, of pixels in [-1, 1]
FAULTS = {
    "recall": "collapsed",
    "spacing": "collapsed",
    "within_class_std": "collapsed",
    "train_distance": "copies",
    "class_accuracy": "shuffled",
}
POINT_FAULTS = {"inside": "wide", "variance": "wide", "median_radius": "wide"}

Rows = list[Mapping[str, float]]


def draw_images(images: Tensor, label: Tensor, network: FeatureNetwork, sizes: Mapping[str, int], rng: torch.Generator) -> dict[str, Any]:
    """Return the figures of truth and of each fault for one draw of disjoint train, held-out and generated sets from real images."""
    order = torch.randperm(len(images), generator=rng)
    parts = dict(zip(("train", "heldout", "generated"), order.split([*sizes.values(), len(order) - sum(sizes.values())]), strict=False))
    suite = Suite(images[parts["train"]], images[parts["heldout"]], label[parts["train"]], label[parts["heldout"]], network)
    mine = parts["generated"]
    few = torch.cat([(label[parts["train"]] == k).nonzero().flatten()[:2] for k in range(10)])
    few = parts["train"][few[torch.arange(len(mine)) % len(few)]] if len(few) else mine
    again = parts["train"][torch.randint(len(parts["train"]), (len(mine),), generator=rng)]
    noisy = images[mine] + NOISE * torch.randn(images[mine].shape, generator=rng)
    made = {"truth": (images[mine], label[mine]), "noise": (noisy, label[mine])}
    made |= {"collapsed": (images[few], label[few]), "copies": (images[again], label[again])}
    made |= {"shuffled": (images[mine], (label[mine] + 1 + torch.arange(len(mine)) % 9) % 10)}
    return {kind: suite.measure(x, y) for kind, (x, y) in made.items()}


def draw_points(name: str, sizes: Mapping[str, int], rng: torch.Generator) -> dict[str, Any]:
    """Return the figures of truth and of each fault for one draw of reference and generated points of the density `name`."""
    density = DENSITIES[name]()
    modes = (density.modes, density.mode_stds, density.mode_weights)
    suite = PointSuite(density.sample(sizes["heldout"], rng), density.sample(sizes["heldout"], rng), modes)
    pool = density.sample(8 * sizes["generated"] + 200, rng)
    nearest = torch.cdist(pool.double(), density.modes.double()).argmin(1)
    half = pool[nearest < len(density.modes) // 2][: sizes["generated"]]
    truth = pool[: sizes["generated"]]
    wide = density.modes[nearest[: len(truth)]] + 2**0.5 * (truth - density.modes[nearest[: len(truth)]])
    return {kind: suite.measure(x) for kind, x in (("truth", truth), ("half", half), ("wide", wide))}


def summary(draws: Sequence[Mapping[str, Any]], faults: Mapping[str, str], usual: str) -> dict[str, Any]:
    """Return, for each figure, the mean and standard deviation over `draws` at one size, of the truth and of the figure's fault.

    A figure that is missing from a draw is left out. `faults` gives the fault of a figure, and `usual` that of all others.
    """
    found = {}
    for key in (key for key in draws[0]["truth"] if not key.endswith(("_error", "_of"))):
        row: dict[str, Any] = {"fault": faults.get(key, usual)}
        for kind, name in (("truth", "truth"), (row["fault"], "at_fault")):
            values = [draw[kind][key] for draw in draws if math.isfinite(draw[kind].get(key, math.nan))]
            if len(values) == len(draws):
                row |= {name: statistics.mean(values), f"{name}_std": statistics.stdev(values)}
        if {"truth", "at_fault"} <= row.keys():
            found[key] = row
    return found


def share_of(row: Mapping[str, float], many: Mapping[str, float]) -> float:
    """Return the error of a figure in its summary `row` as a share of the difference between truth and fault in `many`.

    `many` is the summary where items are many. Of the truth, chance and bias count together; of the fault, which by itself differs from
    draw to draw, only the bias counts. The larger of the two errors is taken.
    """
    truth = math.hypot(row["truth"] - many["truth"], row["truth_std"])
    return max(truth, abs(row["at_fault"] - many["at_fault"])) / abs(many["truth"] - many["at_fault"])


def few_and_many(side: str, sizes: Sequence[int], many: int, sides: Sequence[str], draw: Any) -> list[dict[str, Any]]:
    """Return, for each of `sizes` of `side` while the other `sides` have `many` items, the figures of `DRAWS` draws."""
    rows = []
    for size in sizes:
        rng = torch.Generator().manual_seed(SEED)
        try:
            draws = [draw({name: size if name == side else many for name in sides}, rng) for _ in range(DRAWS)]
        except ValueError as error:
            print(f"{side} {size}: {error}")
            continue
        rows.append({"size": size, "draws": draws})
    return rows


def study(name: str, sizes: Sequence[int], many: int, sides: Sequence[str], draw: Any, faults: Mapping[str, str], usual: str) -> list[Any]:
    """Return the rows of one kind of data: for each side and size, the summary of every figure and its error."""
    rows = []
    for side in sides:
        found = [(row["size"], summary(row["draws"], faults, usual)) for row in few_and_many(side, sizes, many, sides, draw)]
        for size, figures in found:
            for key, row in figures.items():
                row["share"] = share_of(row, found[-1][1][key])
            rows.append({"study": name, "side": side, "size": size, "many": many, "figures": figures})
            print(name, side, size, {key: round(row["share"], 3) for key, row in figures.items()}, flush=True)
    return rows


def main() -> None:
    """Measure images in two feature networks and points of two densities, print the errors and write them."""
    torch.set_num_threads(1)
    digits = load_digits()
    images, label = (torch.cat([get("train"), get("heldout")]) for get in (digits.images, digits.labels))
    rows: list[Any] = []
    for features in ("digits-v1", "pixels-8x8"):
        network = named_features(features)

        def draw(sizes: Mapping[str, int], rng: torch.Generator, network: FeatureNetwork = network) -> dict[str, Any]:
            return draw_images(images, label, network, sizes, rng)

        rows += study(features, SIZES, MANY, ("train", "heldout", "generated"), draw, FAULTS, "noise")
        save(rows)
    for density in ("ring", "grid25"):

        def draw(sizes: Mapping[str, int], rng: torch.Generator, density: str = density) -> dict[str, Any]:
            return draw_points(density, sizes, rng)

        rows += study(density, POINT_SIZES, MANY_POINTS, ("heldout", "generated"), draw, POINT_FAULTS, "half")
        save(rows)


def save(rows: Sequence[Any]) -> None:
    """Write `rows` to the results file."""
    content = {"command": "python benchmarks/figure_errors.py", "seed": SEED, "draws": DRAWS, "noise": NOISE, "machine": machine()}
    RESULTS.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
