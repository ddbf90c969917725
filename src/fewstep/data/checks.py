"""Mistakes of a data set, told together: all of one kind in one sentence, with the first three places and their number."""

from collections.abc import Iterable
from dataclasses import dataclass

from fewstep.data.errors import DataError

SHOWN = 3


def printable(text: str) -> str:
    """`text` in one line, with what a screen would obey, or cannot show, as Python writes it: a name may hold anything."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


@dataclass(frozen=True)
class Kind:
    """A kind of mistake: what is found, with ``{s}`` and ``{es}`` where a plural ends otherwise, and what mends it."""

    what: str
    remedy: str


class Mistakes:
    """What is wrong with the data set that `source` names, such as ``data.path is 'photos'``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: dict[Kind, list[str]] = {}
        self.notes: list[str] = []  # what is no mistake, but was taken for granted

    def add(self, kind: Kind, place: str, detail: str = "") -> None:
        """A mistake at `place` (a file, or a row); `detail` says what was found there."""
        self.found.setdefault(kind, []).append(f"{place} ({detail})" if detail else place)

    def add_all(self, kind: Kind, places: Iterable[str]) -> None:
        """The same mistake at each of `places`."""
        for place in places:
            self.add(kind, place)

    def check(self) -> None:
        """Raise DataError where there is any: a sentence a kind, in the order in which they were found."""
        if self.found:
            raise DataError("\n".join(self._sentence(kind, places) for kind, places in self.found.items()))

    def _sentence(self, kind: Kind, places: list[str]) -> str:
        several = len(places) > 1
        what = kind.what.format(s="s" * several, es="es" * several)
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return f"{self.source}: {len(places)} {what}: {', '.join(places[:SHOWN])}{more}; {kind.remedy}"
