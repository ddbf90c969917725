"""Settings of a recipe that are given and have no effect, because of other settings; a run says so of each in one line."""

from collections.abc import Iterator
from typing import Any

from fewstep.recipe.recipe import Recipe
from fewstep.sections import Section


def idle(recipe: Recipe) -> list[str]:
    """Return a sentence for each setting of `recipe` that other settings leave without effect, and whose value is not its default.

    A run folder holds all settings, those with their defaults included: which of them somebody wrote cannot be told.
    """
    trainer = recipe.trainer
    around = (
        (trainer.evaluate_every is None, "nothing is measured while training without trainer.evaluate_every", ("evaluate_samples",)),
        (trainer.tracker != "wandb", f"trainer.tracker is {trainer.tracker!r}", ("wandb",)),
    )
    sections: tuple[tuple[str, Any, Any], ...] = (("method", recipe.method, recipe.method.idle()), ("trainer", trainer, around))
    found: dict[str, str] = {}
    for name, section, cases in sections:
        for is_idle, why, keys in cases:
            for key in keys if is_idle else ():
                for path, value in _set(section, key):
                    found.setdefault(f"{name}.{path}", f"{name}.{path} is {value!r}, which has no effect, as {why}")
    return list(found.values())


def _set(section: Section, key: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of the setting `key` of `section`, or of each inside it, whose value is not the default."""
    value, usual = getattr(section, key), type(section).model_fields[key].get_default(call_default_factory=True)
    if isinstance(value, Section):
        yield from ((f"{key}.{path}", inner) for one in type(value).model_fields for path, inner in _set(value, one))
    elif value != usual:
        yield key, value
