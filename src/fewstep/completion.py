"""Shell completion (the tab key) of recipes, keys of their settings, and run folders. Nothing here imports torch.

An error during completion gives no completions instead of a traceback in the user's prompt.
"""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import typer

Offer = tuple[str, str]  # a completion, and a short text about it

ABOUT = 60  # largest length, in characters, of the text about a completion


def _quiet(complete: Callable[..., list[Offer]]) -> Callable[..., list[Offer]]:
    """Wrap `complete` so that it returns no completions where it would raise, as a prompt has no place to show errors."""

    @wraps(complete)
    def call(*arguments: Any, **named: Any) -> list[Offer]:
        try:
            return complete(*arguments, **named)
        except (Exception, SystemExit):  # whatever the error is, the user is in the middle of typing
            return []

    return call


@_quiet
def recipes(incomplete: str) -> list[Offer]:
    """Return the shipped recipes that begin with `incomplete`, then folders and YAML files."""
    from fewstep.recipe.reading import parse_yaml, shipped_recipes

    shipped = {name: path for name, path in shipped_recipes().items() if name.startswith(incomplete)}
    return [*((name, _short(parse_yaml(path.read_text())["about"])) for name, path in shipped.items()), *paths(incomplete, ".yaml", ".yml")]


@_quiet
def shipped(incomplete: str) -> list[Offer]:
    """Return only the shipped recipes that begin with `incomplete`."""
    from fewstep.recipe.reading import shipped_recipes

    return [offer for offer in recipes(incomplete) if offer[0] in shipped_recipes()]


@_quiet
def keys(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return ``key=`` for every setting of the recipe on the command line, with its value in the recipe.

    After ``method.teacher=`` and ``trainer.init=`` folders of runs and models are returned.
    """
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
    """Return run folders and model folders that begin with `incomplete`, and other folders, which may contain them."""
    return paths(incomplete)


@_quiet
def comparable(incomplete: str) -> list[Offer]:
    """Return the data sets of `fewstep compare` that begin with `incomplete`."""
    from fewstep.data.settings import DENSITY_NAMES

    return [(name, "") for name in ("digits", *(f"toys/{name}" for name in DENSITY_NAMES)) if name.startswith(incomplete)]


def paths(incomplete: str, *endings: str) -> list[Offer]:
    """Return folders that begin with `incomplete`, runs and models marked as such, and files whose name ends in one of `endings`."""
    above, beginning = os.path.split(incomplete)
    found: list[Offer] = []
    if not os.path.isdir(os.path.expanduser(above) or "."):
        return found  # no such folder, as for the dmd2/ that begins the name of a shipped recipe
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
    """Return "a run", "a model" or "a diffusers model" where `folder` is one, by the files in it; else ""."""
    for file, kind in (("recipe.yaml", "a run"), ("config.json", "a model"), ("model_index.json", "a diffusers model")):
        if os.path.isfile(os.path.join(folder, file)):
            return kind
    return ""


def _short(text: str) -> str:
    return text if len(text) <= ABOUT else f"{text[: ABOUT - 3]}..."
