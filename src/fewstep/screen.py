"""The foot of the terminal on stderr: lines that are drawn over as work goes on, below those that stay.

Whatever is shown there shares one `SCREEN`: bars inside bars stand under each other, and a line that is said goes above them all. Where
no terminal can show it, nothing is drawn, and lines are said as they come. In a notebook they stand in the output of the cell, which is
replaced as work goes on, and not on stderr, which notebooks show as a fault.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

NARROWEST = 30  # columns below which nothing can be drawn that tells anything
OFTEN = 0.2  # seconds between two drawings
CELL = (100, 50)  # columns and lines of a notebook's cell
Part = Callable[[int], list[str]]


def in_notebook() -> bool:
    """Whether stderr goes into the cell of a notebook."""
    return type(sys.stderr).__module__ == "ipykernel.iostream"


def size() -> tuple[int, int]:
    """(columns, lines) of the terminal on stderr, or of a notebook's cell; (0, 0) where there is neither, or one that cannot be drawn on.

    It is asked each time: a terminal may be resized, and one in a container may say 0 at first, or for ever.
    """
    if in_notebook():
        return CELL
    try:
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return 0, 0
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return 0, 0
    return (columns, lines or 24) if columns >= NARROWEST else (0, 0)


class Cell:
    """An output of a notebook's cell: the lines that were said while parts stood there, and below them the parts as they are now."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.output: Any = None

    def draw(self, said: Sequence[str], block: Sequence[str]) -> None:
        """Show what was `said` since the last drawing, and `block`, the lines of the parts; when there are none the output stays."""
        from IPython.display import display

        if not block and self.output is None:
            sys.stdout.write("".join(f"{line}\n" for line in said))
            return
        self.said += said
        shown = {"text/plain": "\n".join([*self.said, *block])}
        if self.output is None:
            self.output = display(shown, raw=True, display_id=True)
        else:
            self.output.update(shown, raw=True)
        if not block:
            self.said, self.output = [], None


class Screen:
    """Parts, each a function from the number of columns to its lines, drawn under each other in the order in which they came."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.said: deque[str] = deque()
        self.height = 0  # lines that stand there now, the cursor at the end of the last
        self.drawn_at = -OFTEN
        self.lock = threading.Lock()
        self.cell = Cell()

    def add(self, part: Part) -> bool:
        """Show `part` from now on, below the others; whether it is the first."""
        self.parts.append(part)
        self.refresh(now=True)
        return len(self.parts) == 1

    def remove(self, part: Part, stays: bool = False) -> None:
        """Show `part` no longer; what `stays` is as a line that was said."""
        self.parts.remove(part)
        columns, _ = size()
        self.said.extend(part(columns) if stays and columns else ())
        self.refresh(now=True)

    def say(self, line: str) -> None:
        """A line that stays, above all parts."""
        self.said.append(line)
        self.refresh(now=True)

    def refresh(self, now: bool = False) -> None:
        """Draw all parts as they are, unless that was done a moment ago; `now` in any case."""
        if not now and time.monotonic() - self.drawn_at < OFTEN:
            return
        # a signal, or another thread, may come while a drawing is under way: whoever draws then says their lines, too
        while self.lock.acquire(blocking=False):
            try:
                self._draw()
            finally:
                self.lock.release()
            if not self.said:
                break

    def _draw(self) -> None:
        self.drawn_at = time.monotonic()
        columns, lines = size()
        said = [self.said.popleft() for _ in range(len(self.said))]
        block = [line for part in self.parts for line in part(columns)][: max(1, lines - 1)] if columns else []
        if in_notebook():
            self.cell.draw(said, block)
            return
        start, clear = "", ""
        if columns or self.height:
            up = f"\x1b[{self.height - 1}A" if self.height > 1 else ""
            start, clear = ("\r" + up if self.height else ""), "\x1b[K"  # each line is drawn over and its rest wiped: nothing flickers
        text = start + "".join(f"{line}{clear}\n" for line in said) + f"{clear}\n".join(block) + ("\x1b[J" if clear else "")
        self.height = len(block)
        with contextlib.suppress(OSError, ValueError):  # a terminal that is gone must not end the work
            sys.stderr.write(text)
            sys.stderr.flush()


SCREEN = Screen()
