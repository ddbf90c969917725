"""Where the items of a data set come from: what was found, what is left out and why, and how the parts were made."""

from collections.abc import Iterable
from dataclasses import dataclass

from fewstep.data.checks import SHOWN, Kind


@dataclass(frozen=True)
class LeftOut:
    """Items of one kind that are not used.

    Attributes:
        count: number of these items.
        what: kind of the items, in the singular or plural that `count` needs.
        names: the first few items by name.
        remedy: what to do in order to use them; "" if there is nothing to do.

    """

    count: int
    what: str
    names: tuple[str, ...]
    remedy: str

    @classmethod
    def of(cls, kind: Kind, places: Iterable[str]) -> "LeftOut":
        """Return the items at `places` as left out for the reason `kind`."""
        places = list(places)
        several = len(places) > 1
        return cls(len(places), kind.what.format(s="s" * several, es="es" * several), tuple(places[:SHOWN]), kind.remedy)

    def __str__(self) -> str:
        """Return a sentence without its full stop."""
        more = f" and {self.count - len(self.names):,} more" if self.names and self.count > len(self.names) else ""
        names = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"left out: {self.count:,} {self.what}{names}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, as reported by its source.

    Attributes:
        place: where items were looked for, such as PLACE in "12 files found in PLACE".
        unit: what was counted at that place, such as "file", "row" or "point"; "" if nothing was counted.
        found: number of units found; None if they were not counted.
        left_out: the units that are not used, by reason.
        classes: what determines the classes, such as "the sub-folder"; or, without classes, why there are none.
        train, heldout: how each part was made.
        remarks: further remarks, in whole sentences.

    """

    place: str
    unit: str = ""
    found: int | None = None
    left_out: tuple[LeftOut, ...] = ()
    classes: str = ""
    train: str = ""
    heldout: str = ""
    remarks: tuple[str, ...] = ()
