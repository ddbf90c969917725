"""Exceptions that end a command without being bugs: errors that the user can correct, and interruptions."""

import contextlib
from collections.abc import Iterator

RESUME = "go on with --resume"


class UserError(ValueError):
    """An error that the user can correct. The command line shows its message without a traceback, and exits with code 2.

    The message says what was given, what is allowed, and what to change.
    """


class Refused(UserError):
    """Settings that do not go together, or not with the data or the teacher. Older versions may have allowed them."""


class Interrupted(Exception):
    """The command was stopped by a signal and left its files in order; the message says how to continue. The exit code is 130."""


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Replace, in the message of an `Interrupted` raised inside, the advice to use --resume by the advice to give the command again."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(str(error).replace(RESUME, "the same command goes on from there")) from None


def first_line(error: BaseException) -> str:
    """Return the first line of the message of `error`, or the name of its type if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
