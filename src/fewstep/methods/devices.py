"""What a loss needs of the other processes: it is of the whole batch, of which each process holds every so-manieth item."""

import torch
import torch.distributed as dist
from torch import Tensor


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
