"""Mistakes in a data set, reported together: one sentence for each kind, with the number of places and the first three of them."""

from collections.abc import Iterable
from dataclasses import dataclass

from fewstep.data.errors import DataError

SHOWN = 3


def printable(text: str) -> str:
    """Return `text` in one line, with unprintable characters written as Python escapes; a file name may contain any character."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


@dataclass(frozen=True)
class Kind:
    """A kind of mistake: what is wrong, with ``{s}`` and ``{es}`` where a plural ending goes, and the remedy."""

    what: str
    remedy: str


class Mistakes:
    """A collection of mistakes in one data set, which messages call `source`, such as ``data.path is 'photos'``."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.found: dict[Kind, list[str]] = {}
        self.notes: list[str] = []  # assumptions that were made, to be shown to the user

    def add(self, kind: Kind, place: str, detail: str = "") -> None:
        """Record a mistake at `place` (a file, or a row); `detail` says what was found at that place."""
        self.found.setdefault(kind, []).append(f"{place} ({detail})" if detail else place)

    def add_all(self, kind: Kind, places: Iterable[str]) -> None:
        """Record a mistake of the same kind at each of `places`."""
        for place in places:
            self.add(kind, place)

    def check(self) -> None:
        """Raise DataError if any mistake was recorded: one sentence for each kind, in the order in which the kinds were first found."""
        if self.found:
            raise DataError("\n".join(self._sentence(kind, places) for kind, places in self.found.items()))

    def _sentence(self, kind: Kind, places: list[str]) -> str:
        several = len(places) > 1
        what = kind.what.format(s="s" * several, es="es" * several)
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return f"{self.source}: {len(places)} {what}: {', '.join(places[:SHOWN])}{more}; {kind.remedy}"
