"""The list of shipped recipes that `fewstep recipes` prints: those to start with, then the others by the data that they learn."""

import textwrap
from collections.abc import Mapping
from typing import Any

from fewstep.recipe.reading import parse_yaml, shipped_recipes

NAMES = 30  # width in columns of the recipes' names
# headings by the data set that a recipe names; all other recipes stand under LARGER
GROUPS = {"toy": "Points in the plane: seconds to minutes on one core", "digits": "8x8 digits: minutes on one core"}
LARGER = "Larger images: for a GPU, except the smallest"
START = "Start here"


def recipes_on(data: str) -> list[str]:
    """Return the names of the shipped recipes whose ``data.name`` is `data`, such as ``prompts``."""
    return [name for name, path in shipped_recipes().items() if parse_yaml(path.read_text())["data"]["name"] == data]


def listing(width: int) -> list[str]:
    """Return the lines of the list of shipped recipes, each with its ``about``, wrapped to about `width` columns."""
    trees = {name: parse_yaml(path.read_text()) for name, path in shipped_recipes().items()}
    groups: dict[str, list[str]] = {title: [] for title in (START, *GROUPS.values(), LARGER)}
    for name, tree in trees.items():
        groups[_group(tree)].append(name)
    groups[START].sort(key=lambda name: trees[name]["start_here"])
    lines: list[str] = []
    for title, names in groups.items():
        lines += ["", f"{title}:"] if lines else [f"{title}:"]
        for name in names:
            text = textwrap.wrap(trees[name]["about"], max(24, width - NAMES), break_long_words=False, break_on_hyphens=False)
            lines += [f"  {name if number == 0 else '':{NAMES - 2}}{part}" for number, part in enumerate(text)]
    return lines


def _group(tree: Mapping[str, Any]) -> str:
    return START if "start_here" in tree else GROUPS.get(tree["data"]["name"], LARGER)
