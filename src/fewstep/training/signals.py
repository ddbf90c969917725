"""Handling of the signals that ask a run to stop: it stops at the end of the step, or at once while no work can be lost."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PASSED_ON = 1.0  # seconds within which a second, different signal counts as the same request, passed on by a launcher


class StopNow(BaseException):
    """Raised to abandon work in progress when the user asks to stop; a BaseException, so that no ``except Exception`` catches it."""


class StopRequest:
    """The user's request to stop a run, made by a signal; `say` is called with a line that tells what the request does.

    Attributes:
        asked: whether a request has been made.
        now: whether a request raises `StopNow` at once; see `at_once`.

    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.asked, self.now, self.say = False, False, say
        self._first: tuple[int, float] = (0, 0.0)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as requests inside the ``with`` block; a second signal raises KeyboardInterrupt.

        SIGTERM and SIGHUP stay ignored where they are ignored already, as SIGHUP is under nohup.
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
            self.say("finishing this step and saving; interrupt once more to stop at once")

        before = {}
        with contextlib.suppress(ValueError):  # raised outside the main thread, which alone may handle signals
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
        """Let a request raise `StopNow` at once inside the ``with`` block, whose work may be abandoned at any point, if `here` is True."""
        self.now = here
        try:
            yield
        finally:
            self.now = False
