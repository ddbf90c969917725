"""What is said when a device has no memory left for a training step: the settings by which the run would fit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from fewstep.build import Data, make_method
from fewstep.costs import Costs, measure
from fewstep.errors import UserError
from fewstep.limits import memory
from fewstep.quantities import short
from fewstep.recipe import Recipe

ROOM = 0.9  # of a device's memory, that a run may be told to take: the rest is the driver's, and lost between blocks


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch has found no memory left, on a device or in the machine."""
    return isinstance(error, torch.OutOfMemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def device_memory(device: torch.device) -> int:
    """Bytes of memory that `device` has."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else memory()


@contextlib.contextmanager
def told_without_room(recipe: Recipe, data: Data, device: torch.device, devices: int, teacher: Path | None) -> Iterator[None]:
    """Inside, a device without memory left is a UserError that says what a step takes, and by which settings it would fit.

    `teacher` is the folder of the run's copy of its teacher, `devices` the number of all of them.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(f"{_name(device)} has no memory left for a step: {advice(recipe, data, device, devices, teacher)}") from None


def _name(device: torch.device) -> str:
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    return f"{named} ({short(device_memory(device), 'B')})"


def advice(recipe: Recipe, data: Data, device: torch.device, devices: int, teacher: Path | None) -> str:
    """What a step of `recipe` takes by its costs (see `fewstep.costs`), and what to set, for an error message."""
    batch, now = recipe.batch_size, recipe.trainer.accumulate
    halved = 0.5 if recipe.trainer.precision == "bf16-mixed" else 1.0  # roughly, see `Costs.lines`

    def costs(parts: int) -> Costs:
        method = make_method(recipe, data, teacher)
        return measure(method, data.shape, data.num_classes, recipe.steps, batch, devices, parts)

    def needed(found: Costs) -> float:
        return found.weights + halved * found.activations

    method = make_method(recipe, data, teacher)
    least, whole = method.least_items, method.needs_whole_batch
    most = device_memory(device)
    takes = f"batch_size {batch} in {devices * now} part(s) takes about {short(needed(costs(now)), 'B')}"
    parts = now
    while batch % (devices * parts * 2) == 0 and batch // (devices * parts * 2) >= least:
        parts *= 2  # at least once: the estimate may have been too low
        if needed(costs(parts)) <= ROOM * most:
            less = f"batch_size={batch * now // parts}, which is another run"
            if whole is not None:
                return f"{takes}. Give {less} (method {recipe.method.name} learns from a batch as a whole: {whole})"
            return f"{takes}. Give trainer.accumulate={parts}, which learns the same, and go on with --resume; or {less}"
    return (
        f"{takes}, and no smaller part of it that divides by 2 fits either, of which the weights alone take "
        f"{short(costs(parts).weights, 'B')}: take a smaller network, or a device with more memory"
    )
