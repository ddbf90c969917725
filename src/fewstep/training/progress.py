"""What a person sees while work goes on: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tqdm import tqdm
from tqdm.utils import disp_len

from fewstep.screen import SCREEN, size

FEW = 5_000  # items, of fewer of which reading takes no time that anybody would watch


class Layout(NamedTuple):
    """What the line of a bar holds beside its title and the time to go: columns of the bar itself, and what else is told."""

    bar: int = 0
    counts: bool = False
    speed: bool = False
    gone: bool = False


# the richest first
LAYOUTS = (
    Layout(24, True, True, True),
    Layout(12, True, True, True),
    Layout(12, True, True),
    Layout(6, True, True),
    Layout(0, True, True),
    Layout(0, True),
    Layout(),
)


class Progress:
    """A bar of `total` steps called `title`, with the time it will take; below it how it is going, in as many lines as that needs.

    Where no bar can be drawn (a log file, CI, a terminal that is dumb or 0 columns wide), a line every `every` seconds says the same.
    A bar that begins while another is shown stands below it and vanishes at its end; one that stood alone stays. `quiet` shows nothing
    at all, for all processes but the first.
    """

    def __init__(self, title: str, total: int, quiet: bool = False, every: float = 15.0) -> None:
        self.title, self.total, self.quiet, self.every = title, total, quiet, every
        self.text = ""
        self.is_shown = self.is_inner = False
        self.start = self.done = 0
        self.began = self.last = time.monotonic()

    def begin(self, start: int = 0) -> None:
        """The first step, or the one after `start`, comes now: show the bar."""
        self.start = self.done = start
        self.began = self.last = time.monotonic()
        if not self.quiet:
            self.is_shown, self.is_inner = True, bool(SCREEN.parts)
            SCREEN.add(self._lines)

    def advance(self, count: int = 1) -> None:
        """So many steps done."""
        self.done += count
        if not self.is_shown:
            return
        now = time.monotonic()
        if now - self.last > self.every and not size()[0]:
            self.last = now
            SCREEN.say(f"{self.title}: {self.done}/{self.total}, {self._time_to_go()}{self.text and '; ' + self.text}")
        else:
            SCREEN.refresh()

    def show(self, text: str) -> None:
        """How it is going, below the bar from now on: phrases with commas between, the most important first."""
        self.text = text
        if self.is_shown:
            SCREEN.refresh(now=True)

    def say(self, line: str) -> None:
        """A line that stays."""
        if not self.quiet:
            SCREEN.say(line)

    @contextlib.contextmanager
    def nested(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar for a piece of this work, of `total` items: what is yielded is called with the number of those just done.

        It stands below this one while the block lasts; where no bar can be drawn, a piece that is done within `every` seconds says nothing.
        """
        piece = Progress(title, total, self.quiet, self.every)
        piece.begin()
        try:
            yield piece.advance
        finally:
            piece.close()

    def close(self) -> None:
        """The bar stays as it is, or vanishes if it stood below another."""
        if self.is_shown:
            self.is_shown = False
            SCREEN.remove(self._lines, stays=not self.is_inner)

    def _lines(self, columns: int) -> list[str]:
        """What stands on a terminal of so many columns: never cut, but for a long title."""
        indent = "  " * self.is_inner
        room = columns - 1 - len(indent)  # a full last column makes some terminals begin a new line
        lines = [indent + self._bar(room)]
        if self.text:
            whole = self.text.replace(" ", "\xa0").replace(",\xa0", ", ")  # a line ends between phrases, not inside one
            wrapped = textwrap.wrap(whole, room - 2, break_on_hyphens=False)
            lines += [f"{indent}  {line}".replace("\xa0", " ") for line in wrapped]
        return lines

    def _bar(self, room: int) -> str:
        """The bar with as much beside it as there is room for: the time to go to the last."""
        title = _short(self.title, room // 3)
        lines = [*(self._line(title, layout) for layout in LAYOUTS), self._line("", LAYOUTS[-1]).lstrip()]
        return next((line for line in lines if disp_len(line) <= room), lines[-1])

    def _line(self, title: str, layout: Layout) -> str:
        elapsed, ended = time.monotonic() - self.began, self.done >= self.total
        told = [f"{self.done}/{self.total}"] * layout.counts
        if layout.speed and not self.text and self.done > self.start and elapsed > 0:
            rate = (self.done - self.start) / elapsed
            told.append(f"{rate:.0f}/s" if rate >= 10 else f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.1f} s each")
        if layout.gone and not ended:
            told.append(f"{tqdm.format_interval(elapsed)} gone")
        told.append(f"in {tqdm.format_interval(elapsed)}" if ended else self._time_to_go())
        form = (
            "{desc} {percentage:3.0f}%" + (f"|{{bar:{layout.bar}}}| " if layout.bar else " " if layout.counts else ", ") + ", ".join(told)
        )
        plain = "utf" not in (getattr(sys.stderr, "encoding", None) or "").lower()
        return tqdm.format_meter(min(self.done, self.total), max(1, self.total), elapsed, prefix=title, bar_format=form, ascii=plain)

    def _time_to_go(self) -> str:
        """What the rest will take at the speed so far."""
        done = self.done - self.start
        seconds = (time.monotonic() - self.began) / done * max(0, self.total - self.done) if done else None
        return f"{'?' if seconds is None else tqdm.format_interval(seconds)} to go"


@contextlib.contextmanager
def reading_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while `total` items are read, in the first process alone and not for `FEW`; what is yielded is told of those just done."""
    progress = Progress(title, total, quiet=total < FEW or os.environ.get("LOCAL_RANK", "0") != "0")
    progress.begin()
    try:
        yield progress.advance
    finally:
        progress.close()


def _short(title: str, room: int) -> str:
    """`title`, or where that is wider than `room` its beginning and its end."""
    kept = len(title)
    short = title
    while disp_len(short) > room and kept:
        kept -= 1
        short = f"{title[: kept // 3]}...{title[len(title) - (kept - kept // 3) :]}"
    return short
