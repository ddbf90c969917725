"""How a run starts that is not new: a run that is made longer, and a run that takes its initial weights from another one."""

import math

from fewstep.build import note
from fewstep.errors import UserError
from fewstep.generator import Generator, load
from fewstep.methods.base import Method
from fewstep.recipe import Recipe, resolved
from fewstep.training.run_folder import RunFolder

UNSEEN = ("name", "dropout")  # of a network: its name, as its weights fit, and what has no effect on a trained model


def check_longer(recipe: Recipe, run: RunFolder, method: Method) -> None:
    """Print a note where `recipe` has more steps than the run in the folder `run` that is resumed.

    Raises UserError where `method` divides a run into parts at a share of its steps, as that would be another step in the longer run.
    """
    before = run.more_steps(resolved(recipe))
    if before is None:
        return
    if method.divides_run:
        raise UserError(
            f"steps was {before}, now {recipe.steps}, but method {recipe.method.name} divides a run into parts, which would change in "
            f"a longer run; train into another folder, from these weights with trainer.init={run.path}"
        )
    note(f"the run of {before} steps becomes one of {recipe.steps}: from here on learning rates and ramps are those of the longer run")


def start_from(path: str, method: Method) -> None:
    """Load the weights of the generator at `path` into the network of `method` that ships. Raises UserError where they do not fit."""
    try:
        theirs = load(path)
    except UserError as error:
        raise UserError(f"trainer.init: {error}") from error
    if any(turn.begins and method.ships in turn.trains for turn in method.turns):
        raise UserError(
            f"trainer.init is {path}, but this run first trains a teacher that its network starts from; set method.own_teacher to 0"
        )
    mine = method.ship(method.networks[method.ships], 0)
    for what, own, other in (
        ("items of shape", list(mine.shape), list(theirs.shape)),
        # prompts may differ, but low-rank changes (LoRA) to one network do not fit another network
        *((("the network", mine.base and mine.base.weights, theirs.base and theirs.base.weights),) if mine.told is not None else ()),
        *((("classes:", mine.num_classes, theirs.num_classes),) if mine.told is None else ()),
        ("the denoiser", mine.denoiser_config["name"], theirs.denoiser_config["name"]),
        ("points in units", mine.units and mine.units.config, theirs.units and theirs.units.config),
    ):
        if own != other:
            raise UserError(f"trainer.init is {path}, which has {what} {other}, and this run has {own}; give a run of the same kind")
    try:
        method.networks[method.ships].load_state_dict(theirs.denoiser.state_dict())
    except RuntimeError as error:
        lines = str(error).strip().splitlines()
        raise UserError(
            f"trainer.init is {path}, whose network is another ({lines[-1].strip()}); give a run of the same network"
        ) from error
    if unlike := _differences(mine, theirs):
        note(
            f"trainer.init is {path}, where {' and '.join(f'{key} is {other}' for key, _, other in unlike)}, and here "
            f"{' and '.join(f'{key} is {own}' for key, own, _ in unlike)}: with other settings its weights are another model; set "
            f"{'it' if len(unlike) == 1 else 'them'} as there to go on from that model"
        )


def _differences(mine: Generator, theirs: Generator) -> list[tuple[str, object, object]]:
    """Return (key, value in `mine`, value in `theirs`) of settings that differ and change what the same weights compute."""
    found: list[tuple[str, object, object]] = []
    if not math.isclose(mine.sigma_data, theirs.sigma_data, rel_tol=1e-6):
        found.append(("network.sigma_data", mine.sigma_data, theirs.sigma_data))
    for what, own, other in (
        ("network", mine.network_config, theirs.network_config),
        ("the denoiser's", mine.denoiser_config, theirs.denoiser_config),
    ):
        keys = [key for key in own if key in other and key not in UNSEEN and own[key] != other[key]]
        found += [(f"network.{key}" if what == "network" else f"{what} {key}", own[key], other[key]) for key in keys]
    return found
