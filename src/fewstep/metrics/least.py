"""Of how few items a figure can be given. Nothing here imports torch.

Of few real images the balls that precision counts in are so wide that noise lies inside them; a Frechet distance to a covariance of
few says more of their number than of the samples. ``python benchmarks/figure_errors.py`` measures how far each figure is off, by chance
and by bias, where either side is few, on real digits in two feature networks and on points (docs/alarms.md has its table). A figure is
given from the smallest number on at which, in both, that error is at most

* `ALLOWED` of what lies between true samples and the fault that the figure is there to tell, so that the two cannot be taken for each
  other; or
* `BIASED` of it for Frechet distances, whose bias the floor beside them shows: the fault then lies at twice the truth.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fewstep.metrics.figures import BY_KEY

ALLOWED, BIASED = 0.25, 1.0
NEEDS = " needs at least "


class Least(NamedTuple):
    """The least numbers of items: real ones that a figure is held against (each set of them), generated ones, those at a mode."""

    reference: int = 0
    generated: int = 0
    at_mode: int = 0


MEASURED = 5  # the fewest that were tried: a figure that stands then needs no more
SHARE = 25  # of which a share has a standard error of at most .1, whatever it is
LEAST: Mapping[str, Least] = {
    "frechet": Least(50, 50),
    "frechet_over_floor": Least(50, 50),
    "frechet_mean": Least(50, 50),
    "frechet_train": Least(50, 50),
    "frechet_bias": Least(50, 50),
    "kernel": Least(150, 100),  # in the digit features; in pixels it does not see the noise
    "class_accuracy": Least(0, SHARE),
    "precision": Least(75, SHARE),
    "recall": Least(SHARE, 100),
    "within_class_std": Least(50, 50),
    "spacing": Least(32, 50),
    "train_distance": Least(MEASURED, MEASURED),
}
# those whose real items are the ones that distances are to, and what these are called by their name in a protocol
OF_REFERENCE = {"frechet", "frechet_over_floor", "frechet_mean", "frechet_bias", "kernel", "precision", "recall"}
WORDS = {"held-out split": "held-out images", "train split": "training images", "a file of statistics": "images in the statistics"}


class Lack(NamedTuple):
    """`num` items of the kind `what`, and `least` that a figure needs of them."""

    num: int
    what: str
    least: int

    def reason(self, key: str) -> str:
        """Why the figure `key` is not given."""
        return f"{self.num:,} {self.what}; {name_of(key)}{NEEDS}{self.least:,}"


def name_of(key: str) -> str:
    """The figure `key` in the words of a table's heading."""
    return BY_KEY[key].heading if key in BY_KEY else key


def lack(key: str, real: Mapping[str, int | None], generated: int, made: str = "samples", at_mode: float | None = None) -> Lack | None:
    """What the figure `key` lacks; None where it can be given.

    `real` are the sets of real items that it is held against, by what they are called, and how many they are (None where that is not
    known); `generated` is how many are held against them, called `made`; `at_mode` how many of these a true set has at its lightest mode.
    """
    least = LEAST.get(key, Least())
    for what, num in real.items():
        if num is not None and num < least.reference:
            return Lack(num, what, least.reference)
    if generated < least.generated:
        return Lack(generated, made, least.generated)
    if at_mode is not None and at_mode < least.at_mode:
        return Lack(int(at_mode), f"{made} at the lightest mode", least.at_mode)
    return None


def without(row: Mapping[str, Any], lacks: Mapping[str, Lack]) -> dict[str, Any]:
    """`row` of results without the figures in `lacks`; ``too_few`` says why each of those is not there."""
    kept = {key: value for key, value in row.items() if key.removesuffix("_error").removesuffix("_blocks") not in lacks}
    reasons = {key: found.reason(key) for key, found in lacks.items() if key in row}
    return {**kept, "too_few": {**row.get("too_few", {}), **reasons}} if reasons else kept


def summed_up(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the reader of `rows` is told of the figures that they do not give: a phrase for each kind of items that is too few."""
    few: dict[str, dict[str, list[str]]] = {}
    for reason in dict.fromkeys(reason for row in rows for reason in row.get("too_few", {}).values()):
        items, needs = reason.split("; ", 1)
        name, least = needs.split(NEEDS)
        few.setdefault(items, {}).setdefault(least, []).append(name)
    told = {items: ", ".join(f"{' and '.join(names)} ({least} needed)" for least, names in needs.items()) for items, needs in few.items()}
    return [f"{items}, too few for {which}: not given" for items, which in told.items()]


def carried(results: Mapping[str, Any]) -> dict[str, Any]:
    """`results` of results.json, by this or an earlier version, without figures that the numbers in its protocol cannot carry."""
    protocol = results.get("protocol")
    if not isinstance(protocol, Mapping) or not isinstance(results.get("rows"), Mapping):
        return dict(results)
    reference, num = protocol.get("reference"), protocol.get("n")
    known = reference.get("num") if isinstance(reference, Mapping) else None
    what = WORDS.get(str(reference.get("what")), "items of the reference") if isinstance(reference, Mapping) else ""
    rows = {}
    for title, row in results["rows"].items():
        if not isinstance(row, Mapping):
            rows[title] = row
            continue
        lacks = {}
        for key in row.keys() & LEAST.keys():
            real = {what: known} if isinstance(known, int) and key in OF_REFERENCE else {}
            made = num if isinstance(num, int) and row.get("role") != "floor" else max(each.generated for each in LEAST.values())
            if (found := lack(key, real, made)) is not None:
                lacks[key] = found
        rows[title] = without(row, lacks)
    return {**results, "rows": rows}
