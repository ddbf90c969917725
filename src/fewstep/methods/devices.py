"""Where a method's tensors are, and what a loss needs of the other processes: it is of the whole batch, of which each has its part."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def move(method: Any, device: torch.device | str) -> None:
    """Move all that `method` holds to `device`: modules, and tensors, in its attributes and in those of the objects among them."""
    moved: dict[int, Tensor] = {}  # what is held in two places stays one
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
    """(container, key, tensor or module) for all in the attributes of `thing`, and of the objects among them."""
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
    """How many processes learn from one batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_devices(value: Tensor) -> Tensor:
    """`value` averaged over all processes, without a gradient."""
    if world_size() == 1:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def whole_batch(x: Tensor) -> Tensor:
    """`x` [B, ...] of every process, in the order of the whole batch: [B times processes, ...].

    A gradient passes through this process's own items alone. Where the loss is a mean over the whole batch, multiply it by `world_size`:
    gradients are averaged over the processes, each of which has those of its own items.
    """
    if world_size() == 1:
        return x
    parts = [torch.empty_like(x, requires_grad=False) for _ in range(world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.stack(parts, 1).flatten(0, 1)


def whole_items(parts: Iterable[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """All items of a batch in order, and their labels, of which this process has `parts`."""
    items, labels = zip(*parts, strict=True)
    known = [label for label in labels if label is not None]

    def whole(mine: Sequence[Tensor]) -> Tensor:
        # one part stays as it lies in memory; several have every so-manieth item each
        return whole_batch(mine[0] if len(mine) == 1 else torch.stack(list(mine), 1).flatten(0, 1))

    return whole(items), whole(known) if known else None
