"""Conversion of recipes of older formats: keys that have moved are put in their new places, and each move is reported."""

from collections.abc import Iterable, Mapping
from typing import Any

from fewstep import registry
from fewstep.errors import UserError

KINDS = {"method": "methods", "network": "networks", "data": "data"}


def moved_keys(section: str, name: Any) -> Mapping[str, tuple[str, ...]]:
    """Return the new places of the moved keys of `section` ("method", "network" or "data"), by their older key.

    `name` is the section's ``name``; the result is empty where it is not known.
    """
    if section not in KINDS or not isinstance(name, str):
        return {}
    try:
        return getattr(registry.settings(KINDS[section], name), "moved", {})
    except UserError:  # reported when the section itself is read
        return {}


def bring_forward(tree: dict[str, Any]) -> list[str]:
    """Move the keys of an older recipe `tree` to their new places, modifying it; return a text ``old -> new`` for each move."""
    said = []
    for section in KINDS:
        inner = tree.get(section)
        if not isinstance(inner, dict):
            continue
        for old, new in moved_keys(section, inner.get("name")).items():
            if old in inner:
                value = inner.pop(old)
                for path in new:
                    put(inner, path.split("."), value)
                said.append(_moved(f"{section}.{old}", [f"{section}.{path}" for path in new]))
    trainer = tree.get("trainer")
    if isinstance(trainer, dict) and trainer.get("precision") == "16-mixed":
        trainer["precision"] = "bf16-mixed"  # float16 is not offered: it needs loss scaling, whose scale no checkpoint holds
        said.append(_moved("trainer.precision 16-mixed", ["bf16-mixed"]))
    return said


def forward_key(key: str, tree: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the dotted keys that an override's `key` sets in the recipe `tree`, and a text ``old -> new`` if the key has moved."""
    section, _, rest = key.partition(".")
    inner = tree.get(section)
    new = moved_keys(section, inner.get("name")).get(rest) if isinstance(inner, Mapping) else None
    if new is None:
        return [key], []
    paths = [f"{section}.{path}" for path in new]
    return paths, [_moved(key, paths)]


def _moved(old: str, new: list[str]) -> str:
    return f"{old} -> {' and '.join(new)}"


def put(tree: dict[str, Any], path: Iterable[str], value: Any) -> str | None:
    """Set the value at `path` in nested mappings; return None, or the first name on the path whose value is not a mapping."""
    *outer, last = path
    node: Any = tree
    for part in outer:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            return part
    node[last] = value
    return None


def at(tree: Mapping[str, Any], key: str) -> Any:
    """Return the value at the dotted `key` in nested mappings; None where there is none."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def leaves(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Return all settings in nested mappings by their dotted keys; an empty mapping counts as a setting."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{before}{key}.") if isinstance(value, Mapping) and value else {f"{before}{key}": value}
    return found
