"""What a shell offers after the tab key: recipes, keys of their settings, run folders. Nothing here imports torch.

A mistake while completing is no answer, and never a traceback in the user's prompt.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

Offer = tuple[str, str]  # what is offered, and a word about it

ABOUT = 60  # columns of what is said about an offer


def _quiet(complete: Callable[..., list[Offer]]) -> Callable[..., list[Offer]]:
    """`complete` with no offer in place of an error: at a prompt there is no place to tell of one."""

    @wraps(complete)
    def call(*arguments: Any, **named: Any) -> list[Offer]:
        try:
            return complete(*arguments, **named)
        except (Exception, SystemExit):  # whatever it is, the user is in the middle of a word
            return []

    return call


@_quiet
def recipes(incomplete: str) -> list[Offer]:
    """Shipped recipes that begin with `incomplete`, then folders and YAML files."""
    from fewstep.recipe.reading import parse_yaml, shipped_recipes

    shipped = {name: path for name, path in shipped_recipes().items() if name.startswith(incomplete)}
    return [*((name, _short(parse_yaml(path.read_text())["about"])) for name, path in shipped.items()), *paths(incomplete, ".yaml", ".yml")]


@_quiet
def shipped(incomplete: str) -> list[Offer]:
    """Shipped recipes alone."""
    from fewstep.recipe.reading import shipped_recipes

    return [offer for offer in recipes(incomplete) if offer[0] in shipped_recipes()]


@_quiet
def keys(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """``key=`` for every setting of the recipe that was named, with the recipe's value; runs and models after ``method.teacher=``."""
    from fewstep.recipe.older import leaves
    from fewstep.recipe.reading import load_recipe
    from fewstep.recipe.recipe import resolved

    key, equals, value = incomplete.partition("=")
    if equals:
        return [(f"{key}={path}", about) for path, about in runs(value)] if key in ("method.teacher", "trainer.init") else []
    given = {override.partition("=")[0] for override in ctx.params.get("overrides") or ()}
    settings = resolved(load_recipe(ctx.params["recipe"]))
    return [(f"{name}=", _short(f"now {now}")) for name, now in leaves(settings).items() if name.startswith(key) and name not in given]


@_quiet
def runs(incomplete: str) -> list[Offer]:
    """Run folders and model folders, and folders on the way to them."""
    return paths(incomplete)


@_quiet
def comparable(incomplete: str) -> list[Offer]:
    """Data sets that `fewstep compare` knows."""
    from fewstep.data.settings import DENSITY_NAMES

    return [(name, "") for name in ("digits", *(f"toys/{name}" for name in DENSITY_NAMES)) if name.startswith(incomplete)]


def paths(incomplete: str, *endings: str) -> list[Offer]:
    """Folders that begin with `incomplete`, runs and models named as such, and files with one of `endings`."""
    above, beginning = os.path.split(incomplete)
    found: list[Offer] = []
    if not os.path.isdir(os.path.expanduser(above) or "."):
        return found  # such as dmd2/ of a shipped recipe
    with os.scandir(os.path.expanduser(above) or ".") as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if not entry.name.startswith(beginning) or (entry.name.startswith(".") and not beginning):
                continue
            name = os.path.join(above, entry.name)
            if entry.is_dir():
                kind = _kind(entry.path)
                found.append((name if kind else f"{name}/", kind))
            elif endings and entry.name.endswith(endings):
                found.append((name, ""))
    return found


def _kind(folder: str) -> str:
    """What `folder` is, if it is a run or a model."""
    for file, kind in (("recipe.yaml", "a run"), ("config.json", "a model"), ("model_index.json", "a diffusers model")):
        if os.path.isfile(os.path.join(folder, file)):
            return kind
    return ""


def _short(text: str) -> str:
    return text if len(text) <= ABOUT else f"{text[: ABOUT - 3]}..."
