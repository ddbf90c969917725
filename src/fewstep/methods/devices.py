"""Move a method's tensors to a device, and gather tensors across processes: a loss is of the whole batch, each process has a part."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def move(method: Any, device: torch.device | str) -> None:
    """Move to `device` the modules and tensors in the attributes of `method` and, recursively, of the objects in its attributes.

    Raises TypeError for a tensor in a container that cannot be changed, such as a tuple.
    """
    moved: dict[int, Tensor] = {}  # a tensor that is held in two places stays one tensor
    for place, key, value in list(_held(method, set())):
        if isinstance(value, nn.Module):
            value.to(device)
        elif isinstance(place, dict | list):
            place[key] = moved.setdefault(id(value), value.to(device))
        else:
            raise TypeError(
                f"a tensor is held in a {type(place).__name__}, where it cannot be moved; hold it in an attribute, dict or list"
            )


def _held(thing: Any, seen: set[int]) -> Iterator[tuple[Any, Any, Tensor | nn.Module]]:
    """Yield (container, key, value) of each tensor and module in the attributes of `thing`, recursively; `seen` holds visited ids."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    inside: Any = thing if isinstance(thing, dict | list | tuple) else getattr(thing, "__dict__", {})
    items = list(inside.items()) if isinstance(inside, Mapping) else list(enumerate(inside))
    for key, value in items:
        if isinstance(value, Tensor | nn.Module):
            yield inside, key, value
        elif not isinstance(value, type | torch.Generator) and (isinstance(value, dict | list | tuple) or hasattr(value, "__dict__")):
            yield from _held(value, seen)


def world_size() -> int:
    """Return how many processes share one batch: 1 unless training is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_devices(value: Tensor) -> Tensor:
    """Return `value` averaged over all processes, without a gradient."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def whole_batch(x: Tensor) -> Tensor:
    """Gather `x` [B, ...] from every process, in the order of the whole batch: [B times processes, ...].

    A gradient passes through this process's own items alone. Where the loss is a mean over the whole batch, multiply it by `world_size`:
    gradients are averaged over the processes, each of which computes the gradients of its own items.
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, requires_grad=False) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.stack(parts, 1).flatten(0, 1)


def whole_items(parts: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Gather (items, labels or None) of the whole batch, in order; `parts` are the (items, labels) of this process, part by part."""
    items, labels = zip(*parts, strict=True)
    known = [label for label in labels if label is not None]

    def whole(mine: Sequence[Tensor]) -> Tensor:
        # a single part keeps its memory layout; of n parts, each holds every n-th item
        return whole_batch(mine[0] if len(mine) == 1 else torch.stack(list(mine), 1).flatten(0, 1))

    return whole(items), whole(known) if known else None
