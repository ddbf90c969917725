"""The smallest numbers of items from which each figure is reported. Nothing here imports torch.

With few real images the balls of precision are so wide that noise lies inside them, and a Frechet distance to the covariance of few images
depends more on their number than on the samples. ``python benchmarks/figure_errors.py`` measures the error of each figure, by chance and by
bias, where either side has few items, on real digits in two feature networks and on points (docs/alarms.md has its table). A figure is
reported from the smallest number at which, in both feature networks, its error is at most

* `ALLOWED` of the difference between true samples and the fault that the figure is there to show, so that the two cannot be confused; or
* `BIASED` of that difference for Frechet distances, whose bias the floor beside them shows: the fault then lies at twice the truth.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.rows import row_roles

ALLOWED, BIASED = 0.25, 1.0
NEEDS = " needs at least "


class Least(NamedTuple):
    """The least numbers of items for a figure: real ones in each set that it is measured against, and generated ones.

    `at_mode` is the least number of generated items that a true set has, in expectation, at the mode of least weight, or of each class.
    """

    reference: int = 0
    generated: int = 0
    at_mode: float = 0


SHARE = 25  # items of which any share has a standard error of at most .1
LEAST: Mapping[str, Least] = {
    "frechet": Least(50, 50),
    "frechet_over_floor": Least(50, 50),
    "frechet_mean": Least(50, 50),
    "frechet_train": Least(50, 50),
    "frechet_bias": Least(50, 50),
    "kernel": Least(150, 150),  # in the digit features; in pixels the figure does not show noise
    "frechet_second_over_floor": Least(50, 50),  # as in the first judge
    "class_accuracy": Least(0, SHARE),
    "least_class_accuracy": Least(0, 0, at_mode=SHARE),
    "precision": Least(75, SHARE),
    "recall": Least(SHARE, 100),
    "within_class_std": Least(50, 50),
    "least_class_std": Least(50, 0, at_mode=SHARE),
    "spacing": Least(32, 50),
    "train_distance": Least(5, 5),  # the fewest that were tried
    "copies": Least(0, SHARE),
    "near_copies": Least(5, SHARE),
    # points: their standard errors need 40 of each side, see `fewstep.metrics.two_sample`
    "energy": Least(40, 40),
    "mmd": Least(40, 40),
    "sliced_wasserstein": Least(60, 40),
    "modes": Least(0, 40, at_mode=2.4),
    "weight_tv": Least(0, 40, at_mode=7.5),
    "inside": Least(0, 40),
    "variance": Least(0, 80),
    "median_radius": Least(0, 80),
}
# OF_REFERENCE: figures whose real items are those of the reference; WORDS: what the items of a protocol's reference are called
OF_REFERENCE = {"frechet", "frechet_over_floor", "frechet_mean", "frechet_bias", "frechet_second_over_floor", "kernel"}
OF_REFERENCE |= {"precision", "recall"}
AT_MODE = "expected at the mode of least weight"
WORDS = {"held-out split": "held-out images", "train split": "training images", "a file of statistics": "images in the statistics"}


class Lack(NamedTuple):
    """What a figure lacks: there are `num` items of the kind `what`, and the figure needs `least`."""

    num: float
    what: str
    least: float

    def reason(self, key: str) -> str:
        """Return why the figure `key` is not reported."""
        return f"{self.num:,.10g} {self.what}; {BY_KEY[key].heading}{NEEDS}{self.least:,.10g}"


def lack(
    key: str,
    real: Mapping[str, int | None],
    generated: int,
    made: str = "samples",
    at_mode: float | None = None,
    where: str = AT_MODE,
) -> Lack | None:
    """Return what the figure `key` lacks; None where it can be reported.

    `real` maps the name of each set of real items that the figure is measured against to its size (None where it is not known).
    `generated` is the number of measured items, which are called `made`; `at_mode` is how many of them a true set has in expectation
    `where` it has fewest: at a mode, or of a class.
    """
    least = LEAST.get(key, Least())
    for what, num in real.items():
        if num is not None and num < least.reference:
            return Lack(num, what, least.reference)
    if generated < least.generated:
        return Lack(generated, made, least.generated)
    if at_mode is not None and at_mode < least.at_mode:
        return Lack(math.floor(10 * at_mode) / 10, f"{made} {where}", least.at_mode)
    return None


def without(row: Mapping[str, Any], lacks: Mapping[str, Lack]) -> dict[str, Any]:
    """Return `row` of results without the figures in `lacks`; under its key ``too_few`` stands why each of these is left out."""
    kept = {key: value for key, value in row.items() if key.removesuffix("_error").removesuffix("_blocks").removesuffix("_of") not in lacks}
    reasons = {key: found.reason(key) for key, found in lacks.items() if key in row}
    return {**kept, "too_few": {**row.get("too_few", {}), **reasons}} if reasons else kept


def summed_up(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what to tell a reader about figures that `rows` leave out: one phrase for each kind of items of which there are too few."""
    few: dict[str, dict[str, list[str]]] = {}
    for reason in dict.fromkeys(reason for row in rows for reason in row.get("too_few", {}).values()):
        items, needs = reason.split("; ", 1)
        name, least = needs.split(NEEDS)
        few.setdefault(items, {}).setdefault(least, []).append(name)
    told = {items: "; ".join(f"{', '.join(names)} ({least} needed)" for least, names in needs.items()) for items, needs in few.items()}
    return [f"{items}, too few for {which}: not given" for items, which in told.items()]


def carried(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return `results` of results.json, of this or an earlier version, without figures for which it has too few items."""
    if not isinstance(results.get("rows"), Mapping):
        return dict(results)
    real, num = _real_items(results), results.get("n")
    rows = {}
    for title, row in results["rows"].items():
        rows[title] = row
        if isinstance(row, Mapping):
            # how many real images take the place of samples in the floor's row is not known
            made = num if isinstance(num, int) and row_roles(results)[title] != "floor" else max(each.generated for each in LEAST.values())
            lacks = {key: lack(key, real if key in OF_REFERENCE else {}, made) for key in row.keys() & LEAST.keys()}
            rows[title] = without(row, {key: few for key, few in lacks.items() if few is not None})
    return {**results, "rows": rows}


def _real_items(results: Mapping[str, Any]) -> dict[str, int | None]:
    """Return what images were measured against, and how many these are: by the protocol or, in early versions, by the text in its place."""
    protocol, words = results.get("protocol"), re.match(r"([\d,]+) (held-out|training) images", str(results.get("reference")))
    reference = protocol.get("reference") if isinstance(protocol, Mapping) else None
    if isinstance(reference, Mapping) and isinstance(reference.get("num"), int):
        return {WORDS.get(str(reference.get("what")), "items of the reference"): reference["num"]}
    return {f"{words[2]} images": int(words[1].replace(",", ""))} if words else {}
