"""Cache the figures measured for a teacher, and find them again for the same model, protocol, data, machine and code of the package.

Each cache file is JSON with the ``key``, the ``row`` of figures, and the ``sha256`` checksum of the row. A file that is damaged or has
another key is ignored, and a cache that cannot be read or written raises no error.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.files import replace_file, sha256_of
from fewstep.metrics.inception import cache_folder
from fewstep.text import read_json
from fewstep.weights import weight_file

FOLDER = "figures"


def figures_folder() -> Path:
    """Return the folder of the cached figures."""
    return cache_folder() / FOLDER


def model_sha256(folder: Path) -> list[str]:
    """Return the SHA-256 checksums of a model folder's config.json and weight file. Raises OSError, and ValueError for invalid JSON."""
    file = weight_file(read_json(folder / "config.json"))  # None for weights in a pipeline, whose checksum is in config.json
    return [sha256_of(folder / name) for name in ("config.json", file) if name is not None]


@cache
def package_sha256() -> str:
    """Return a SHA-256 checksum of the package's code and feature networks, as any change to them may change the figures."""
    root, found = Path(__file__).parent, hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.safetensors")]):
        found.update(f"{file.relative_to(root).as_posix()}\n{sha256_of(file)}\n".encode())
    return found.hexdigest()


def kept_row(key: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the figures cached under `key`; None where there are none, or their file is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = read_json(_file(key))
        row = found["row"]
        if isinstance(row, dict) and found["key"] == _plain(key) and found["sha256"] == _sha256(row):
            return row
    return None


def keep_row(key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Cache the figures `row` under `key`, if the cache can be written."""
    path = _file(key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, json.dumps({"key": _plain(key), "row": row, "sha256": _sha256(row)}, indent=1).encode())


def _file(key: Mapping[str, Any]) -> Path:
    return figures_folder() / f"{_sha256(_plain(key))[:40]}.json"


def _plain(key: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps({"package": package_sha256(), **key}))


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
