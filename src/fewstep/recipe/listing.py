"""The shipped recipes as `fewstep recipes` lists them: where to start, and then by what they learn."""

import textwrap
from collections.abc import Mapping
from typing import Any

from fewstep.recipe.reading import parse_yaml, shipped_recipes

NAMES = 30  # columns of a name
# by the data set that a recipe names; all others are larger images
GROUPS = {"toy": "Points in the plane: seconds to minutes on one core", "digits": "8x8 digits: minutes on one core"}
LARGER = "Larger images: a GPU's work, but for the smallest"
START = "Start here"


def recipes_on(data: str) -> list[str]:
    """The names of the shipped recipes that learn from data of that name, such as ``prompts``."""
    return [name for name, path in shipped_recipes().items() if parse_yaml(path.read_text())["data"]["name"] == data]


def listing(width: int) -> list[str]:
    """All shipped recipes with what each is and costs, in lines of at most `width` columns; nothing is cut."""
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
