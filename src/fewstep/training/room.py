"""A step that does not fit into memory: what would is tried in smaller parts, and said."""

import traceback
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric import Fabric

from fewstep.errors import UserError
from fewstep.limits import in_units
from fewstep.methods.base import Batch, Method
from fewstep.training.called import Called

NO_ROOM = ("can't allocate memory", "not enough memory", "out of memory")  # what torch says of main memory, and other devices


def is_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory has run out, a GPU's or the machine's."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(words in str(error) for words in NO_ROOM))


def too_large(
    error: BaseException,
    method: Method,
    called: Called,
    fabric: Fabric,
    optimizers: Mapping[str, torch.optim.Optimizer],
    shape: tuple[int, ...],
    num_classes: int | None,
    batch_size: int,
    accumulate: int,
    step: int,
    kept: str,
) -> UserError:
    """What is said of a step that ran out of memory; `method` is used up by it.

    Args:
        error: what was raised; what its frames hold is let go.
        method: whose losses are tried on smaller and smaller parts of a batch.
        called: its networks.
        fabric: the engine.
        optimizers: of each turn.
        shape: of an item.
        num_classes: of the data.
        batch_size: over all devices.
        accumulate: the parts that a device's share was in.
        step: the number of the step, from 1.
        kept: what is left of the run, in words.

    """
    traceback.clear_frames(error.__traceback__)
    for optimizer in optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    device, devices = fabric.device, fabric.world_size
    where = "memory"
    if device.type == "cuda":
        torch.cuda.empty_cache()
        properties = torch.cuda.get_device_properties(device)
        where = f"memory on {properties.name} ({in_units(properties.total_memory)})"
    whole, share = method.needs_whole_batch is not None, batch_size // devices
    now = f"batch_size {batch_size}" + (f" and trainer.accumulate {accumulate}" if accumulate > 1 else "")
    told = f"step {step}: out of {where} with {now}, {share // accumulate} items at once. Nothing is lost: {kept}. "
    fitting = _fitting(method, called, device, optimizers, shape, num_classes, share, accumulate, devices > 1)
    if fitting is None:
        smaller = "a smaller network (network.*)" + ("" if called_in_bf16(fabric) else ", or trainer.precision=bf16-mixed")
        return UserError(f"{told}Not even {_least(method)} item{'s' * (_least(method) > 1)} at once would fit: give {smaller}")
    parts, tried = fitting
    if whole:
        smaller = f"batch_size={share // parts * devices}"
        return UserError(f"{told}{smaller} fits{tried}; train with it into another folder ({method.needs_whole_batch})")
    return UserError(f"{told}trainer.accumulate={parts} fits{tried}: the same batch in {parts} parts; go on with --resume and that")


def called_in_bf16(fabric: Fabric) -> bool:
    """Whether the engine works in bfloat16 already."""
    return bool(getattr(fabric.strategy.precision, "on", False))


def _least(method: Method) -> int:
    return max(1, method.least_items)


def _fitting(
    method: Method,
    called: Called,
    device: torch.device,
    optimizers: Mapping[str, torch.optim.Optimizer],
    shape: tuple[int, ...],
    num_classes: int | None,
    share: int,
    accumulate: int,
    several: bool,
) -> tuple[int, str] | None:
    """Into how many parts a device's `share` of a batch has to go, and how that is known; None where not even the least fits.

    Among `several` processes nothing can be tried, for the others wait in the middle of their step: half as much is what is told.
    """
    parts = accumulate
    while True:
        parts = next((number for number in range(2 * parts, share + 1) if share % number == 0), 0)
        if not parts or share // parts < _least(method):
            return None
        if several:
            return parts, " if half as much does"
        try:
            _tried(method, called, device, optimizers, shape, num_classes, share // parts)
        except Exception as error:
            if not is_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        return parts, f" ({share // parts} items at once were tried)"


def _tried(
    method: Method,
    called: Called,
    device: torch.device,
    optimizers: Mapping[str, torch.optim.Optimizer],
    shape: tuple[int, ...],
    num_classes: int | None,
    items: int,
) -> None:
    """The losses of a step and their gradients on so many random items, beside the moments that the optimisers keep."""
    moments = [
        torch.empty_like(p)
        for optimizer in optimizers.values()
        if not optimizer.state
        for group in optimizer.param_groups
        for p in group["params"]
        for _ in range(2)
    ]
    rng = torch.Generator(device).manual_seed(0)
    label = None if num_classes is None else torch.arange(items, device=device) % num_classes
    batch, scratch = Batch(2 * torch.rand(items, *shape, generator=rng, device=device) - 1, label), dict[str, Any]()
    for turn in method.turns:
        networks = called.in_turn(turn)
        learning = [p for name in turn.trains for p in called.parameters[name]]
        # kept until the turn ends, as gradients are
        gradients = torch.autograd.grad(method.loss(turn.name, networks, batch, rng, scratch).loss, learning, allow_unused=True)
        del gradients
    del moments
