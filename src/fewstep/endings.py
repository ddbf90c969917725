"""End a command: errors that the user can correct are shown in one message, all others are bugs and keep their traceback."""

import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from fewstep.errors import Interrupted, UserError

# codes of OSError that the user can correct: those of full or faulty disks, permissions, names and limits
REFUSALS = "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS EIO ENAMETOOLONG ELOOP ENOTDIR EISDIR EEXIST EMFILE ENFILE ESTALE"
DISK = {getattr(errno, name) for name in REFUSALS.split() if hasattr(errno, name)}
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


def ended(command: Callable[[], Any]) -> None:
    """Run `command`; end the process with exit code 2 for an error that the user can correct, and with 130 if it was interrupted."""
    try:
        command()
    except UserError as error:
        _end(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in DISK:
            raise
        advice = "Give a folder that you may write to"
        if error.errno in FULL:
            advice = (
                "The unfinished output is removed, all else is untouched; free some space, and run this again (training: with --resume)"
            )
        _end(f"error: {error.strerror}{': ' + str(error.filename) if error.filename else ''}. {advice}", 2)
    except Interrupted as error:
        _end(str(error), 130)
    except KeyboardInterrupt:
        _end("stopped", 130)


def _end(message: str, code: int) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # by one process of each machine
        sys.stderr.write(f"{message}\n")
    sys.exit(code)
