"""Whether two judges, which are feature networks, agree on which rows of results are better. Nothing here imports torch."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

FIRST, SECOND = "frechet_over_floor", "frechet_second_over_floor"
BOTH = "the lesser of both judges"  # how precision and recall are taken, in the words of a protocol
SHARED = {
    SECOND: ("second",),
    "precision": ("second", "manifold"),
    "recall": ("second", "manifold"),
    "prompt_agreement": ("clip",),
    "prompt_margin": ("clip",),
}  # figures, and the protocol's keys of the networks on which each depends
SURE = 1.05  # ratio of two distances below which their difference may come from the random samples alone


def not_shared(row: Mapping[str, Any], a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Return the figures of `row`, measured by the protocol `a`, that do not compare with those by `b`, for their judges differ."""
    return [key for key, parts in SHARED.items() if key in row and any(a.get(part) != b.get(part) for part in parts)]


def disagreement(rows: Mapping[str, Mapping[str, Any]], names: tuple[str, str] = ("the first judge", "the second")) -> str | None:
    """Return one sentence where the judges called `names` rank two of the `rows` of results differently, the floor aside; else None.

    Distances within 5% of each other count as equal.
    """
    known = {title: row for title, row in rows.items() if row.get("role") != "floor" and {FIRST, SECOND} <= row.keys()}
    judged = {title: (row[FIRST], row[SECOND]) for title, row in known.items()}
    pairs = list(combinations(judged, 2))
    split = []
    for a, b in pairs:
        first, second = (judged[a][k] / judged[b][k] for k in (0, 1))
        if first * SURE < 1 and second > SURE:
            split.append((a, b))
        elif second * SURE < 1 and first > SURE:
            split.append((b, a))
    if not split:
        return None
    a, b = split[0]
    many = f"{len(split)} of {len(pairs)} pairs of rows" if len(pairs) > 1 else "the two rows"
    told = (f"{judged[a][k]:.2f} and {judged[b][k]:.2f} to {name}" for k, name in enumerate(names))
    return f"the judges rank {many} differently: FD / floor of {a} and {b} is {', and '.join(told)}; which is better is not settled"
