"""How much memory a call takes, as torch's allocator tells it: the same on every machine, whatever is free."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fewstep.methods.base import Batch, Method, Turn
from fewstep.training.learned import learned, set_learning
from fewstep.training.precision import Mixed, in_precision


def peak_bytes(call: Callable[[], Any]) -> int:
    """The most that tensors made in `call` hold at once, and what kernels need for themselves."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        call()
    return max(itertools.accumulate(event.nbytes() for event in told.profiler.kineto_results.events() if event.name() == "[memory]"))


def step_bytes(method: Method, shape: tuple[int, ...], classes: int | None, items: int, mixed: bool = False) -> int:
    """The most that a turn's loss on so many items and its gradients take beside the weights, in bfloat16 if `mixed`."""
    precision, rng, scratch = Mixed(), torch.Generator().manual_seed(0), {}
    precision.on = mixed
    batch = Batch(torch.randn(items, *shape, generator=rng), torch.zeros(items, dtype=torch.long) if classes else None)
    networks = {name: in_precision(network, precision) for name, network in method.networks.items()}

    def gradients(turn: Turn) -> Any:
        learning = [p for name in turn.trains for p in learned(method.networks[name]).values()]
        return torch.autograd.grad(method.loss(turn.name, networks, batch, rng, scratch).loss, learning, allow_unused=True)

    most = 0
    for turn in method.turns:
        for name, network in method.networks.items():
            set_learning(network, name in turn.trains)
        most = max(most, peak_bytes(partial(gradients, turn)))
    return most
