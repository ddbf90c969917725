"""Losses that move a generated sample from the fake distribution towards the real one.

Symbols: ``x`` [B, ...] a generated sample (the only tensor that may carry a gradient), ``x_s = x + s n`` the same sample
noised, ``x0_real`` and ``x0_fake`` what the real (teacher) and the fake denoiser make of ``x_s``.
"""

import torch
from torch import Tensor


def _item_mean(x: Tensor) -> Tensor:
    """Mean over everything but the first dimension, kept for broadcasting: [B, ...] -> [B, 1, ..., 1]."""
    return x.flatten(1).mean(1).reshape(-1, *[1] * (x.ndim - 1))


def _direction(x0_real: Tensor, x0_fake: Tensor, gamma: float, x_s: Tensor | None) -> Tensor:
    """``(x0_real - x0_fake) + (gamma - 1)(x0_real - x_s)``: where the sample has to move, at rest where q_s is p_s^gamma."""
    if gamma == 1.0:
        return x0_real - x0_fake
    if x_s is None:
        raise ValueError(f"gamma is {gamma}; other than 1 it needs x_s, the noised sample")
    return x0_real - x0_fake + (gamma - 1) * (x0_real - x_s)


def _divisor(x: Tensor, x0_real: Tensor, direction: Tensor, max_ratio: float) -> Tensor:
    """``mean|x - x0_real|`` of each item, [B, 1, ..., 1], but no less than ``mean|direction| / max_ratio``."""
    return torch.maximum(_item_mean((x - x0_real).abs()), _item_mean(direction.abs()) / max_ratio)


def dmd_gradient(
    x: Tensor, x0_real: Tensor, x0_fake: Tensor, gamma: float = 1.0, x_s: Tensor | None = None, max_ratio: float = 10.0
) -> Tensor:
    """The normalised distribution-matching gradient at `x`, like `x` (DMD, arXiv 2311.18828, Eqs. 7-8; DMD2, 2405.14867).

    ``[(x - x0_real) - (x - x0_fake)] / mean|x - x0_real|``, the mean taken over each sample. With `gamma` other than 1 the
    target is ``p_real^gamma``: ``(gamma - 1)(x0_real - x_s)`` joins the pull of the real side, and `x_s` must be given.

    The published form divides by zero where ``x`` equals ``x0_real``. Here the divisor never falls below
    ``mean|numerator| / max_ratio``, so a sample's mean absolute gradient is at most `max_ratio`; smaller ones are as published.
    Non-finite entries become 0, as in the reference. Raises ValueError for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    divisor = _divisor(x, x0_real, direction, max_ratio)
    return torch.nan_to_num(-direction / divisor, nan=0.0, posinf=0.0, neginf=0.0).detach()


def dmd_loss(x: Tensor, grad: Tensor) -> Tensor:
    """``0.5 mean((x - stop_gradient(x - grad))^2)``, a scalar whose gradient in `x` is ``grad / x.numel()``.

    DMD2 (arXiv 2405.14867), as released. The value is half the mean square of a normalised direction: it measures how far
    the two denoisers disagree, relative to the teacher's error, and need not fall while the samples improve.
    """
    return 0.5 * (x - (x - grad).detach()).square().mean()


def sid_loss(x: Tensor, x0_real: Tensor, x0_fake: Tensor, alpha: float = 1.0, gamma: float = 1.0, x_s: Tensor | None = None) -> Tensor:
    """Score identity distillation (SiD, arXiv 2404.04057, Eq. 23), a scalar.

    ``mean( (x0_real - x0_fake) [ (x0_real - x) - alpha (x0_real - x0_fake) ] / mean|x - x0_real| )``. Here `x0_real` and
    `x0_fake` must carry the gradient of the two frozen networks in ``x_s``, and through it in `x`. `gamma` other than 1
    sharpens ``x0_real`` to ``x0_real + (gamma - 1)(x0_real - x_s)`` everywhere but in the divisor, which is that of
    `dmd_gradient`. Raises ValueError for `gamma` != 1 without `x_s`.
    """
    direction = _direction(x0_real, x0_fake, gamma, x_s)
    with torch.no_grad():
        divisor = _divisor(x, x0_real, direction, max_ratio=10.0).clamp_min(torch.finfo(x.dtype).tiny)
    sharpened = direction + x0_fake
    return (direction * ((sharpened - x) - alpha * direction) / divisor).mean()
