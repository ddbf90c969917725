"""Progress of long work for the user: a progress bar on a terminal, and an occasional line elsewhere."""

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

FEW = 5_000  # items below which reading is too short to need a progress bar


class Layout(NamedTuple):
    """The contents of a progress line beside its title and the time to go: the bar's width in columns, and which numbers are shown."""

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
    """A progress bar of `total` steps called `title`, with the time to go; below it the text set by `show`, in as many lines as it needs.

    Where no bar can be drawn (a log file, CI, a terminal that is dumb or 0 columns wide), a line every `every` seconds says the same.
    A bar that begins while another is shown is drawn below it and vanishes at its end; an outermost bar stays on the screen. With `quiet`,
    meant for all processes but the first, nothing is shown.
    """

    def __init__(self, title: str, total: int, quiet: bool = False, every: float = 15.0) -> None:
        self.title, self.total, self.quiet, self.every = title, total, quiet, every
        self.text = ""
        self.is_shown = self.is_inner = False
        self.start = self.done = 0
        self.began = self.last = time.monotonic()

    def begin(self, start: int = 0) -> None:
        """Show the bar, with `start` steps done already."""
        self.start = self.done = start
        self.began = self.last = time.monotonic()
        if not self.quiet:
            self.is_shown, self.is_inner = True, bool(SCREEN.parts)
            SCREEN.add(self._lines)

    def advance(self, count: int = 1) -> None:
        """Record that `count` more steps are done, and update the bar."""
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
        """Set the text below the bar: phrases separated by commas, the most important first."""
        self.text = text
        if self.is_shown:
            SCREEN.refresh(now=True)

    def say(self, line: str) -> None:
        """Print `line` above the bar, where it stays."""
        if not self.quiet:
            SCREEN.say(line)

    @contextlib.contextmanager
    def nested(self, title: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show a second bar, for a part of this work with `total` items; the yielded function is called with the number of items just done.

        The second bar is drawn below this one inside the ``with`` block. Where no bar can be drawn, a part that is done within `every`
        seconds prints nothing.
        """
        piece = Progress(title, total, self.quiet, self.every)
        piece.begin()
        try:
            yield piece.advance
        finally:
            piece.close()

    def close(self) -> None:
        """End the bar: it stays on the screen as it is, or vanishes if it was drawn below another."""
        if self.is_shown:
            self.is_shown = False
            SCREEN.remove(self._lines, stays=not self.is_inner)

    def _lines(self, columns: int) -> list[str]:
        """Return the lines that the bar and its text take on a terminal of `columns` columns; only a long title is shortened."""
        indent = "  " * self.is_inner
        room = columns - 1 - len(indent)  # a full last column makes some terminals begin a new line
        lines = [indent + self._bar(room)]
        if self.text:
            whole = self.text.replace(" ", "\xa0").replace(",\xa0", ", ")  # lines are broken between phrases only
            wrapped = textwrap.wrap(whole, room - 2, break_on_hyphens=False)
            lines += [f"{indent}  {line}".replace("\xa0", " ") for line in wrapped]
        return lines

    def _bar(self, room: int) -> str:
        """Return the progress line in the richest layout that fits into `room` columns; the time to go is in all of them."""
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
        """Return the time that the remaining steps will take at the speed so far, in words."""
        done = self.done - self.start
        seconds = (time.monotonic() - self.began) / done * max(0, self.total - self.done) if done else None
        return f"{'?' if seconds is None else tqdm.format_interval(seconds)} to go"


@contextlib.contextmanager
def reading_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar while `total` items are read; the yielded function is called with the number of items just read.

    Nothing is shown for fewer than `FEW` items, or in any process but the first of a machine.
    """
    progress = Progress(title, total, quiet=total < FEW or os.environ.get("LOCAL_RANK", "0") != "0")
    progress.begin()
    try:
        yield progress.advance
    finally:
        progress.close()


def _short(title: str, room: int) -> str:
    """Return `title`, shortened in the middle where it is wider than `room` columns."""
    kept = len(title)
    short = title
    while disp_len(short) > room and kept:
        kept -= 1
        short = f"{title[: kept // 3]}...{title[len(title) - (kept - kept // 3) :]}"
    return short
