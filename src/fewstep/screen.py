"""Draw progress bars at the bottom of the terminal, on stderr: lines that are redrawn as work proceeds, below lines that stay.

All bars share one `SCREEN`: nested bars are drawn below each other, and messages are printed above all bars. Without a terminal that can
show them, bars are not drawn, and messages are printed as they come. In a notebook both go to the output of the cell, which is updated as
work proceeds, and not to stderr, which notebooks show like an error.
"""

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

NARROWEST = 30  # columns of a terminal below which no bars are drawn
OFTEN = 0.2  # least seconds between two drawings
CELL = (100, 50)  # columns and lines assumed for a notebook's cell
Part = Callable[[int], list[str]]


def in_notebook() -> bool:
    """Return whether stderr goes into the cell of a notebook."""
    return type(sys.stderr).__module__ == "ipykernel.iostream"


def size() -> tuple[int, int]:
    """Return (columns, lines) of the terminal on stderr, or of a notebook's cell; (0, 0) without a terminal on which bars can be drawn.

    The terminal is asked at every call, as it may be resized, and in a container may report 0 at first or always.
    """
    if in_notebook():
        return CELL
    try:
        if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
            return 0, 0
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):  # stderr is closed or is not a file
        return 0, 0
    return (columns, lines or 24) if columns >= NARROWEST else (0, 0)


class Cell:
    """An output of a notebook's cell: the messages printed while bars are shown, and below them the current lines of the bars."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.output: Any = None

    def draw(self, said: Sequence[str], block: Sequence[str]) -> None:
        """Show the messages `said` since the last drawing, and `block`, the lines of the bars; an empty `block` ends the output."""
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
    """Draws parts, such as progress bars, below each other in the order in which they were added.

    A part is a function from the number of columns to its lines of text.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.said: deque[str] = deque()
        self.height = 0  # number of lines of the parts on the terminal, with the cursor at the end of the last
        self.drawn_at = -OFTEN
        self.lock = threading.Lock()
        self.cell = Cell()

    def add(self, part: Part) -> bool:
        """Add `part` below the other parts, and return whether it is the only one."""
        self.parts.append(part)
        self.refresh(now=True)
        return len(self.parts) == 1

    def remove(self, part: Part, stays: bool = False) -> None:
        """Remove `part`; if it `stays`, its current lines are printed like messages."""
        self.parts.remove(part)
        columns, _ = size()
        self.said.extend(part(columns) if stays and columns else ())
        self.refresh(now=True)

    def say(self, line: str) -> None:
        """Print `line` as a message, which stays, above all parts."""
        self.said.append(line)
        self.refresh(now=True)

    def refresh(self, now: bool = False) -> None:
        """Draw all parts, but not within `OFTEN` seconds after the last drawing unless `now` is true."""
        if not now and time.monotonic() - self.drawn_at < OFTEN:
            return
        # a signal handler or another thread may call this during a drawing: the one that is drawing then prints its messages, too
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
            start, clear = ("\r" + up if self.height else ""), "\x1b[K"  # each line is overwritten and its rest cleared, to avoid flicker
        text = start + "".join(f"{line}{clear}\n" for line in said) + f"{clear}\n".join(block) + ("\x1b[J" if clear else "")
        self.height = len(block)
        with contextlib.suppress(OSError, ValueError):  # a closed terminal must not end the run
            sys.stderr.write(text)
            sys.stderr.flush()


SCREEN = Screen()
