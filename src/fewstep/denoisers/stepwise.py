"""A denoiser of samples that were made in different ways, told which."""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class StepwiseDenoiser(nn.Module):
    """``D(x, sigma, label, step)``: a copy of a denoiser for each of several steps.

    The samples that a generator makes at its first step and at its last have two distributions. One score for their mixture
    pulls the mixture to the data, and leaves the first too narrow and the last too wide (measured in docs/dmd2.md). Each item goes
    through one copy only, so a pass costs what one denoiser's does; memory grows with the steps.
    """

    def __init__(self, denoiser: nn.Module, steps: int) -> None:
        super().__init__()
        self.copies = nn.ModuleList(copy.deepcopy(denoiser) for _ in range(steps))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, features: int = 0, step: Tensor | None = None) -> Any:
        """The estimate of x0, like `x` [B, ...], or the network's inner `features`, for samples of `step`, int64 [B]."""
        assert step is not None
        sigma = torch.as_tensor(sigma, device=x.device).expand(x.shape[0])
        groups = [(step == number).nonzero().flatten() for number in range(len(self.copies))]
        parts = [
            denoiser(x[group], sigma[group], None if label is None else label[group], features)
            for denoiser, group in zip(self.copies, groups, strict=True)
            if len(group)
        ]
        back = torch.cat(groups).argsort()
        return [torch.cat(maps)[back] for maps in zip(*parts, strict=True)] if features else torch.cat(parts)[back]
