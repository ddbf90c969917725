"""What a person sees while a run goes on: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

from tqdm import tqdm


class Progress:
    """A bar of `total` steps called `title`, with the time it will take and how it is going.

    Off a terminal (a log file, CI) it prints a line every `every` seconds instead. `quiet` shows nothing at all, for all
    processes but the first.
    """

    def __init__(self, title: str, total: int, quiet: bool = False, every: float = 15.0) -> None:
        self.title, self.total, self.quiet, self.every = title, total, quiet, every
        self.text = ""
        self.bar: Any = None
        self.start = self.done = 0
        self.began = self.last = time.monotonic()

    def begin(self, start: int = 0) -> None:
        """The first step, or the one after `start`, comes now: show the bar."""
        self.start = self.done = start
        self.began = self.last = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            layout = "{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
            shown = {"bar_format": layout, "dynamic_ncols": True, "mininterval": 0.2, "smoothing": 0.05}
            self.bar = tqdm(desc=self.title, total=self.total, initial=start, **shown)

    def advance(self, count: int = 1) -> None:
        """So many steps done."""
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif not self.quiet and time.monotonic() - self.last > self.every:
            self.last = time.monotonic()
            remaining = (self.last - self.began) / max(1, self.done - self.start) * (self.total - self.done)
            self.say(f"{self.title}: {self.done}/{self.total}, {remaining:.0f} s to go{self.text and '; ' + self.text}")

    def show(self, text: str) -> None:
        """How it is going, beside the bar from now on."""
        self.text = text
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)

    def say(self, line: str) -> None:
        """A line that stays."""
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        elif not self.quiet:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    def close(self) -> None:
        """The bar stays as it is."""
        if self.bar is not None:
            self.bar.close()
