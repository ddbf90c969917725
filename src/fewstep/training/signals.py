"""A signal that asks a run to stop is heard at once and heeded at the end of a step."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class StopRequest:
    """Whether somebody has asked to stop; `say` is told what comes of it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked, self.say = False, say

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM ask; a second SIGINT raises KeyboardInterrupt at once."""

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True
            self.say("finishing this step and saving; once more to stop at once")

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not the main thread: signals are somebody else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
