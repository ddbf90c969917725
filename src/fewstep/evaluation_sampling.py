"""How the models of an evaluation are sampled: with which guidance, with which churn, and in how many steps."""

from collections.abc import Mapping, Sequence

from fewstep.errors import UserError
from fewstep.generator import Generator
from fewstep.model_config import is_guidance


def usual_counts(model: Generator) -> list[int]:
    """Return the default numbers of steps to measure `model` at: its own and, if it allows several, the usual ones of its sampler."""
    more = model.step_counts or model.kind.also if model.any_steps else []
    return list(dict.fromkeys([model.default_steps(), *more]))


def guide(models: Mapping[str, Generator], scale: float | None) -> None:
    """Set the guidance `scale`, if one is given, for all of `models` that can be guided: no students, and trained with label dropout.

    Raises UserError where `models` has no such model, or `scale` is not a finite number.
    """
    guided = [model for model in models.values() if model.kind.guided and model.info.get("label_dropout")]
    if scale is not None and not (guided and is_guidance(scale)):
        without = "no model here but students was trained with label dropout: leave it out"
        allowed = "give a finite number, 1 for none" if guided else without
        raise UserError(f"--guidance-scale is {scale}; {allowed}")
    for model in guided:
        model.sampler |= {} if scale is None else {"guidance_scale": scale}


def churn(models: Mapping[str, Generator], value: float | None) -> list[str]:
    """Set the churn, if a `value` is given, of all `models` whose sampler can add noise in each step; return the names of these models.

    Raises UserError where `models` has no such model, or `value` is not from 0 to 1.
    """
    if value is None:
        return []
    able = [name for name, model in models.items() if "churn" in model.kind.options]
    if not able or not 0 <= value <= 1:
        allowed = "give a number from 0, for no new noise, to 1" if able else "no sampler here can add noise in its steps: leave it out"
        raise UserError(f"--churn is {value}; {allowed}")
    for name in able:
        models[name].sampler |= {"churn": value}
    return able


def step_counts(models: Mapping[str, Generator], steps: Sequence[int] | None) -> dict[str, list[int]]:
    """Return for each of `models` the numbers of steps to measure it at.

    Raises UserError for numbers in `steps` at which a model cannot be sampled.
    """
    counts = {}
    for name, model in models.items():
        counts[name] = usual_counts(model)
        if steps and (model.any_steps or len(models) == 1):
            for count in steps:
                model.sigmas(count)
            counts[name] = list(dict.fromkeys(steps))
    return counts
