"""Files of text that the user names: JSON, lines of JSON, and what YAML is read from. None is read beyond its limit."""

import json
from pathlib import Path
from typing import Any

from fewstep.limits import JSON_BYTES, LINES_BYTES, check_size

REMEDY = "it is not one that fewstep wrote: take another copy"


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """A file of UTF-8 text. Raises OSError, UnicodeDecodeError, and TooLarge for one of more than `most` bytes."""
    check_size(path, most, REMEDY)
    return path.read_text(encoding="utf-8")


def read_json(path: Path, most: int = JSON_BYTES) -> Any:
    """What a JSON file holds. Raises OSError, ValueError, and TooLarge, a ValueError, for one of more than `most` bytes."""
    check_size(path, most, REMEDY)
    return parse_json(path.read_bytes())


def parse_json(content: bytes | str) -> Any:
    """What JSON stands for. Raises ValueError, also for what is nested too deep."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deep to be read") from None


def read_lines(path: Path) -> list[bytes]:
    """The lines of a file, without their ends; after the last end there is one more, empty or cut short. Raises OSError and TooLarge."""
    check_size(path, LINES_BYTES, REMEDY)
    return path.read_bytes().split(b"\n")
