"""A signal that asks a run to stop is heard at once, and heeded at the end of a step, or at once while nothing can be lost."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PASSED_ON = 1.0  # seconds in which a signal of another kind is the same request, that a launcher passes on


class StopNow(BaseException):
    """Somebody asked to stop while nothing can be lost: what is going on is given up. No ``except Exception`` takes it for a fault."""


class StopRequest:
    """Whether somebody has asked to stop; `say` is told what comes of it.

    Attributes:
        asked: whether somebody has.
        now: whether the next one to ask is heeded at once, by `StopNow`; see `at_once`.

    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked, self.now, self.say = False, False, say
        self._first: tuple[int, float] = (0, 0.0)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, SIGINT, SIGTERM and SIGHUP ask; a second signal raises KeyboardInterrupt at once.

        A SIGHUP that is ignored when this begins, as under nohup, stays ignored.
        """

        def ask(number: int, frame: FrameType | None) -> None:
            if self.asked:
                first, moment = self._first
                if number != first and time.monotonic() - moment < PASSED_ON:
                    return
                raise KeyboardInterrupt
            self.asked, self._first = True, (number, time.monotonic())
            if self.now:
                raise StopNow
            self.say("finishing this step and saving; once more to stop at once")

        before = {}
        with contextlib.suppress(ValueError):  # not the main thread: signals are somebody else's
            for number in SIGNALS:
                if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                    before[number] = signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self, here: bool = True) -> Iterator[None]:
        """Inside, with `here`, a request raises `StopNow`: what goes on may be given up at any place."""
        self.now = here
        try:
            yield
        finally:
            self.now = False
