"""The audit of a data set: what was found, what is used, what is left out and why, its classes, and its split, to be printed and stored.

A source (a folder, a table, a density) describes where its items come from in an `Origin`; `audit` adds the number of items in each part
and each class.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fewstep.data.checks import printable
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin
from fewstep.data.points import PointData
from fewstep.data.protocol import Data

MOST_CLASSES = 12  # classes listed in a line


@dataclass(frozen=True)
class ClassCount:
    """A class: its number, its name, and how many of its items are in each part (None if they were not counted)."""

    number: int
    name: str
    train: int | None
    heldout: int | None


@dataclass(frozen=True)
class Part:
    """A part of a data set, "train" or "heldout": how many items it has (None if that is unknown), and how it was made.

    `digest` is a checksum of the items in memory and of their labels, in their order; None if items are read on request.
    """

    name: str
    count: int | None
    how: str
    digest: str | None = None


@dataclass(frozen=True)
class Audit:
    """What became of the items of a data set.

    Attributes:
        name: name of the data set.
        items: kind of item, "images" or "points".
        origin: where the items come from.
        parts: the part that is trained on, and the held-out part.
        classes: one entry per class, in the order of their numbers; empty without classes.

    """

    name: str
    items: str
    origin: Origin
    parts: tuple[Part, Part]
    classes: tuple[ClassCount, ...]

    @property
    def used(self) -> int | None:
        """Number of items in both parts together; None if that is unknown."""
        counts = [part.count for part in self.parts]
        return None if None in counts else sum(count for count in counts if count is not None)

    @property
    def config(self) -> dict[str, Any]:
        """The audit as plain values, for JSON."""
        return {**asdict(self), "used": self.used}

    def lines(self, most: int = MOST_CLASSES) -> list[str]:
        """Return sentences on the items found and used, each reason for leaving items out, the classes (at most `most`), and the split."""
        origin = self.origin
        lines = [
            self._found(),
            *(f"{entry}." for entry in map(str, origin.left_out)),
            *origin.remarks,
            self._classes(most),
            "; ".join(self._part(part) for part in self.parts) + ".",
        ]
        return [printable(line) for line in lines]

    def _found(self) -> str:
        origin, used = self.origin, self.used
        if origin.found is None or not origin.unit:
            return f"{self.name}: {origin.place}."
        many = f"{origin.found:,} {origin.unit}{'s' * (origin.found != 1)} found in {origin.place}"
        out = sum(entry.count for entry in origin.left_out)
        if used is None:
            return f"{self.name}: {many}."
        return f"{self.name}: {many}, {'all' if not out else f'{used:,}'} used{f', {out:,} left out' if out else ', none left out'}."

    def _classes(self, most: int) -> str:
        if not self.classes:
            return f"no classes{f': {self.origin.classes}' if self.origin.classes else ''}."
        first, known = self.classes[:most], self.classes[0].train is not None
        shown = ", ".join(
            f"{entry.number} = {entry.name}" + (f" ({entry.train:,} + {entry.heldout:,})" if known else "") for entry in first
        )
        more = f" and {len(self.classes) - most:,} more" if len(self.classes) > most else ""
        by = f" by {self.origin.classes}" if self.origin.classes else ""
        counts = " (items trained on + held out)" if known else ""
        many = f"{len(self.classes):,} class{'es' * (len(self.classes) > 1)}"
        return f"{many}{by}, number = name{counts}: {shown}{more}."

    def _part(self, part: Part) -> str:
        count = "not counted" if part.count is None else f"{part.count:,}"
        how = f" ({part.how})" if part.how else ""
        return f"{'trained on' if part.name == 'train' else 'held out'}: {count}{how}"


def audit(data: Data) -> Audit:
    """Return the audit of `data`, without reading any item that is not in memory.

    The classes of a data set whose items are read on request are therefore not counted.
    """
    origin: Origin = getattr(data, "origin", None) or Origin("made in Python")
    labels = [_labels(data, split) for split in ("train", "heldout")]
    counts: list[list[int] | None] = [None if one is None else one.bincount(minlength=len(data.class_names)).tolist() for one in labels]
    classes = tuple(
        ClassCount(number, name, *(None if one is None else one[number] for one in counts)) for number, name in enumerate(data.class_names)
    )
    digests = [_digest(data, split) for split in ("train", "heldout")]
    parts = (Part("train", data.train_size, origin.train, digests[0]), Part("heldout", data.heldout_size, origin.heldout, digests[1]))
    return Audit(data.name, "images" if len(data.shape) == 3 else "points", origin, parts, classes)


def _labels(data: Data, split: str) -> Any:
    labels = getattr(data, "labels", None)
    return None if labels is None or not data.class_names else labels(split)


def _digest(data: Data, split: str) -> str | None:
    if not isinstance(data, ImageData | PointData):
        return None
    found, label = hashlib.blake2b(digest_size=16), data.labels(split)
    for one in (data.train if split == "train" else data.heldout, *(() if label is None else (label,))):
        found.update(one.cpu().contiguous().numpy().data)
    return found.hexdigest()


def changes(before: Mapping[str, Any], now: Audit) -> list[str]:
    """Return a phrase for each part whose items differ between an earlier audit and `now`, in number or otherwise; empty if none does.

    `before` is the `config` of the earlier audit; one of an older version has no checksums, and only numbers are compared then.
    """
    found = []
    for old, new in zip(before.get("parts", ()), now.parts, strict=False):
        part = "trained on" if new.name == "train" else "held out"
        if old.get("count") != new.count:
            found.append(f"{old.get('count')} {now.items} were {part}, now {new.count}")
        elif None not in (old.get("digest"), new.digest) and old["digest"] != new.digest:
            found.append(f"the {new.count} {now.items} {part} are not those of then, or are labelled or read otherwise")
    return found
