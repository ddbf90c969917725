"""A denoiser of samples that a generator's different steps have made, with a copy of the network for each step."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class StepwiseDenoiser(nn.Module):
    """``D(x, sigma, label, step)``: a copy of a denoiser for each of several steps.

    The samples that a generator makes at its first step and at its last have two distributions. One score for their mixture
    pulls the mixture to the data, and leaves the first too narrow and the last too wide (measured in docs/dmd2.md). Each item goes
    through one copy only, so a pass costs what one denoiser's does; memory grows with the steps.
    """

    forward_methods = ("features",)

    def __init__(self, denoiser: nn.Module, steps: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(denoiser) for _ in range(steps))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None, step: Tensor) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], for samples made by the generator's step `step`, int64 [B]."""
        parts, back = self._by_step(lambda denoiser, *told: denoiser(*told), x, sigma, label, step)
        return torch.cat(parts)[back]

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int, step: Tensor) -> list[Tensor]:
        """Return `levels` levels of features, the coarsest first, of the denoiser of each item's `step`."""
        parts, back = self._by_step(lambda denoiser, *told: denoiser.features(*told, levels), x, sigma, label, step)
        return [torch.cat(maps)[back] for maps in zip(*parts, strict=True)]

    def _by_step(self, ask: Callable[..., Any], x: Tensor, sigma: Tensor, label: Tensor | None, step: Tensor) -> tuple[list[Any], Tensor]:
        """Call `ask` on the items of each step that occurs; return its results, and the order that puts the items back in their places."""
        sigma = torch.as_tensor(sigma, device=x.device).expand(x.shape[0])
        groups = [(step == number).nonzero().flatten() for number in range(len(self.copies))]
        parts = [
            ask(denoiser, x[group], sigma[group], None if label is None else label[group])
            for denoiser, group in zip(self.copies, groups, strict=True)
            if len(group)
        ]
        return parts, torch.cat(groups).argsort()
