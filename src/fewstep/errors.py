"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A mistake or mishap that a user can mend. Its message is shown alone, without a traceback, and the exit code is 2.

    The message says what was got, what is allowed, and what to change.
    """
