"""The exponential moving average (EMA) of the weights that ships (arXiv 2312.02696 calls the warm-up form a power-function EMA)."""

import torch
from lightning_fabric import Fabric
from torch import nn

from fewstep.methods.base import Method
from fewstep.methods.devices import move
from fewstep.training.learned import average_of, learned
from fewstep.training.sharding import is_sharded, shard, share


class EMA:
    """A moving average of the parameters that `module` learns: at update u (from 1) its decay is ``min(decay, u / (u + warmup))``.

    With `decay` 1 the average always spans the same share of the updates made so far, about ``1 / warmup``; with `warmup` 0
    it is the usual average of constant decay.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, warmup: float = 20.0) -> None:
        self.module = average_of(module)
        self.pairs: _Pairs | None = None
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.age = 0.0  # mean age, in updates, of the weights in the average

    def _keep(self) -> float:
        """Count one update, and return its decay: the weight that the old average keeps."""
        self.updates += 1
        keep = min(self.decay, self.updates / (self.updates + self.warmup))
        self.age = keep * (self.age + 1)
        return keep

    def go_on_from(self, updates: int) -> None:
        """Set the number of updates and the mean age as after `updates` updates; the averaged weights are restored separately."""
        self.updates, self.age = 0, 0.0
        for _ in range(updates):
            self._keep()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the parameters of `module`, and copy the buffers of `module`."""
        keep = self._keep()
        if self.pairs is None or module is not self.pairs.module:
            self.pairs = _Pairs(self.module, module)
        torch._foreach_lerp_(self.pairs.mine, self.pairs.theirs, 1 - keep)
        for mine, theirs in self.pairs.buffers:
            mine.copy_(theirs)


def placed(method: Method, fabric: Fabric, decay: float, warmup: float) -> EMA:
    """Return the moving average of the network that `method` ships, after putting it and all networks on the device of `fabric`.

    With the strategy fsdp the networks and the average are sharded. Raises UserError for a network that cannot be sharded.
    """
    if not is_sharded(fabric):
        move(method, fabric.device)
        return EMA(method.networks[method.ships], decay, warmup)
    ema = EMA(method.networks[method.ships], decay, warmup)
    shard(method, ema.module, fabric)  # before the move, while the unsharded networks are in main memory
    move(method, fabric.device)
    return ema


class _Pairs:
    """The tensors of an average and of the `module` that it follows, collected once: walking the modules costs as much as an update."""

    def __init__(self, average: nn.Module, module: nn.Module) -> None:
        self.module = module
        self.mine = [share(tensor) for tensor in learned(average).values()]
        self.theirs = [share(tensor) for tensor in learned(module).values()]
        self.buffers = list(zip(average.buffers(), module.buffers(), strict=True))
