"""The running average of weights that ships (arXiv 2312.02696 calls the warm-up form a power-function EMA)."""

import torch
from torch import nn

from fewstep.training.learned import average_of, learned


class EMA:
    """An average of what `module` learns: at update u (from 1) the old average keeps ``min(decay, u / (u + warmup))``.

    With `decay` 1 the average always spans the same share of the updates made so far, about ``1 / warmup``; with `warmup` 0
    it is the usual constant decay.
    """

    def __init__(self, module: nn.Module, decay: float = 0.9999, warmup: float = 20.0) -> None:
        self.module = average_of(module)
        self.decay, self.warmup, self.updates = decay, warmup, 0
        self.age = 0.0  # mean age of the weights in the average, in updates

    def _keep(self) -> float:
        """The share of the old average that the next update keeps; it is counted here."""
        self.updates += 1
        keep = min(self.decay, self.updates / (self.updates + self.warmup))
        self.age = keep * (self.age + 1)
        return keep

    def go_on_from(self, updates: int) -> None:
        """As after so many updates; the weights come back by themselves."""
        self.updates, self.age = 0, 0.0
        for _ in range(updates):
            self._keep()

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the parameters of `module`; its buffers are copied."""
        keep = self._keep()
        theirs = [parameter.detach() for parameter in learned(module).values()]
        torch._foreach_lerp_(list(learned(self.module).values()), theirs, 1 - keep)
        for mine, others in zip(self.module.buffers(), module.buffers(), strict=True):
            mine.copy_(others)
