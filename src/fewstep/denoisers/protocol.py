"""What a denoiser is, and what can be done with any of them.

Symbols: ``x = x0 + sigma n`` noised data [B, ...], ``sigma`` [B] or [], ``label`` int64 [B] or None.
"""

from typing import Protocol

import torch
from torch import Tensor


class Denoiser(Protocol):
    """Anything that estimates the clean data: a trained network, a closed form, a set of samples, a foreign checkpoint."""

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate of x0, like `x` [B, ...]. `label` None asks for the unconditional estimate."""
        ...


def label_or_null(label: Tensor | None, num_classes: int | None, x: Tensor) -> Tensor | None:
    """What a network is told of `label` for `x` [B, ...]: nothing without classes; the null class, ``num_classes``, where it is None."""
    if num_classes is None:
        return None
    return torch.full((x.shape[0],), num_classes, device=x.device) if label is None else label


def guided(denoiser: Denoiser, x: Tensor, sigma: Tensor, label: Tensor | None, scale: float) -> Tensor:
    """Classifier-free guidance ``D_uncond + scale (D_cond - D_uncond)``, like `x` (arXiv 2207.12598, Eq. 6, in x0 terms).

    `scale` 1 is the conditional denoiser itself, at the price of one evaluation.
    """
    conditional = denoiser(x, sigma, label)
    if scale == 1.0:
        return conditional
    return denoiser(x, sigma, None).lerp(conditional, scale)
