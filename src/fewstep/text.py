"""Read text files that the user names (JSON, lines of JSON, YAML) up to a limit on their size."""

import json
from pathlib import Path
from typing import Any

from fewstep.limits import JSON_BYTES, LINES_BYTES, check_size

REMEDY = "it is not one that fewstep wrote: take another copy"


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """Return the text of a UTF-8 file. Raises OSError, UnicodeDecodeError, and TooLarge for a file of more than `most` bytes."""
    check_size(path, most, REMEDY)
    return path.read_text(encoding="utf-8")


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Return the value in a JSON file. Raises OSError, ValueError, and TooLarge (a ValueError) for a file of more than `most` bytes."""
    check_size(path, most, REMEDY)
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """Return the value in JSON text. Raises ValueError where it is not valid JSON, or is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep to be read") from None


def read_lines(path: Path) -> list[bytes]:
    """Return the lines of a file without their line ends. Raises OSError and TooLarge.

    The last entry is what follows the last line end: empty, or an incomplete line.
    """
    check_size(path, LINES_BYTES, REMEDY)
    return path.read_bytes().split(b"\n")
