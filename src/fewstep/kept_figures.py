"""Figures of a teacher that were measured before: kept in the cache, and used again for the same model, protocol, data and machine.

A file of them is JSON: the ``key`` that they belong to, the ``row``, and the SHA-256 of the latter. One that is damaged, or of another
key, is as good as none; a cache that cannot be read or written does no harm.
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
    """Where they are kept."""
    return cache_folder() / FOLDER


def model_sha256(folder: Path) -> list[str]:
    """What tells the model in a model folder from any other. Raises OSError and ValueError."""
    file = weight_file(read_json(folder / "config.json"))  # the config tells the weights of a model that stands on another's
    return [sha256_of(folder / name) for name in ("config.json", file) if name is not None]


@cache
def package_sha256() -> str:
    """What tells this package's code and feature files from any other, of its version or not: what is changed may measure otherwise."""
    root, found = Path(__file__).parent, hashlib.sha256()
    for file in sorted([*root.rglob("*.py"), *root.rglob("*.safetensors")]):
        found.update(f"{file.relative_to(root).as_posix()}\n{sha256_of(file)}\n".encode())
    return found.hexdigest()


def kept_row(key: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures that were kept under `key`; None where there are none, or none that are whole."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = read_json(_file(key))
        row = found["row"]
        if isinstance(row, dict) and found["key"] == _plain(key) and found["sha256"] == _sha256(row):
            return row
    return None


def keep_row(key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
    """Keep `row` under `key`, if the cache can be written."""
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
