"""What a command ends with when it does not end well, through no fault of ours."""

import contextlib
from collections.abc import Iterator

RESUME = "go on with --resume"


class UserError(ValueError):
    """A mistake or mishap that a user can mend. Its message is shown alone, without a traceback, and the exit code is 2.

    The message says what was got, what is allowed, and what to change.
    """


class Interrupted(Exception):
    """The run was asked to stop, and has saved everything; the message says how to go on. The exit code is 130."""


@contextlib.contextmanager
def going_on() -> Iterator[None]:
    """Of a command that goes on by itself when it is called again, what is stopped says that, and not what `train` would need."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted(str(error).replace(RESUME, "the same command goes on from there")) from None


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
