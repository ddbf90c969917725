"""Where the items of a data set come from: what was looked at, what of it is left out and why, and how the parts were made."""

from collections.abc import Iterable
from dataclasses import dataclass

from fewstep.data.checks import SHOWN, Kind


@dataclass(frozen=True)
class LeftOut:
    """Items of one kind that are not used: how many, what they are (in that number), the first few by name, and what would change it."""

    count: int
    what: str
    names: tuple[str, ...]
    remedy: str

    @classmethod
    def of(cls, kind: Kind, places: Iterable[str]) -> "LeftOut":
        """All of `places`, for the reason `kind`."""
        places = list(places)
        several = len(places) > 1
        return cls(len(places), kind.what.format(s="s" * several, es="es" * several), tuple(places[:SHOWN]), kind.remedy)

    def __str__(self) -> str:
        """A sentence without its end."""
        more = f" and {self.count - len(self.names):,} more" if self.names and self.count > len(self.names) else ""
        names = f" ({', '.join(self.names)}{more})" if self.names else ""
        return f"left out: {self.count:,} {self.what}{names}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Origin:
    """Where a data set comes from, as its source tells.

    Attributes:
        place: what was looked at, as in "12 files found in PLACE".
        unit: what was counted there, "file", "row" or "point"; "" where nothing was.
        found: how many; None where nobody counted.
        left_out: what of it is not used.
        classes: what tells the classes, such as "the sub-folder"; or, without classes, why there are none.
        train, heldout: how each part was made.
        remarks: whole sentences on what else is worth knowing.

    """

    place: str
    unit: str = ""
    found: int | None = None
    left_out: tuple[LeftOut, ...] = ()
    classes: str = ""
    train: str = ""
    heldout: str = ""
    remarks: tuple[str, ...] = ()
