"""Along the probability flow: how far two noise levels lie apart as training goes on, and how to get from one to the other.

Symbols: noise levels ``0 <= rho <= s < sigma``, a denoiser ``D``, slope of the flow ``v = dx/dsigma = (x - D(x, sigma)) / sigma``.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.maths.parametrization import expand_like
from fewstep.streams import normal

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x, sigma)``: the estimate of x0, like x [B, ...], for sigma [B]."""


def stage_gap(sigma: Tensor, stage: float, k: float = 8.0, b: float = 1.0) -> Tensor:
    """``1 - s / sigma`` [B] at a stage of the run: ``n(sigma) / 2^stage``, at most 1, with ``n = 1 + k sigmoid(-b sigma)``.

    The mapping of ECT (arXiv 2406.14548, Eq. 9), a factor of 2 a stage: 1 is denoising, and each stage halves the gap.
    """
    return ((1 + k * torch.sigmoid(-b * sigma)) / 2**stage).clamp(max=1.0)


def stage_at(progress: float, stages: int, first: int = 0) -> int:
    """The stage, `first` and on, at `progress` (0 to 1) of a run of so many `stages` of equal length."""
    return first + min(stages - 1, math.floor(progress * stages))


def folded_lognormal(num: int, mean: float, std: float, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Noise levels float32 [num], ln sigma ~ N(mean, std^2), with what lies above `high` folded back below it, none below `low`."""
    log = mean + std * normal((num,), rng)
    top = math.log(high)
    return torch.where(log > top, 2 * top - log, log).exp().clamp(min=low)


def towards(x: Tensor, target: Tensor, sigma: Tensor, s: Tensor) -> Tensor:
    """One Euler step from `sigma` to `s` [B] aimed at `target`: ``(s / sigma) x + (1 - s / sigma) target``, like `x` [B, ...]."""
    return target + expand_like(s / sigma, x) * (x - target)


def step_aim(denoise: Denoise, x: Tensor, sigma: Tensor, s: Tensor, second_order: bool = False) -> Tensor:
    """What one step of the flow from `sigma` down to `s` [B] aims at, like `x` [B, ...]: ``x - sigma v``, v by Euler's or by Heun's method.

    Euler's aims at ``D(x, sigma)``, and so does Heun's where s is 0.
    """
    x0 = denoise(x, sigma)
    if not second_order:
        return x0
    y, low = towards(x, x0, sigma, s), s.clamp(min=1e-3)
    slope = ((x - x0) / expand_like(sigma, x) + (y - denoise(y, low)) / expand_like(low, x)) / 2
    return torch.where(expand_like(s, x) > 1e-3, x - expand_like(sigma, x) * slope, x0)


def ode_step(denoise: Denoise, x: Tensor, sigma: Tensor, s: Tensor, second_order: bool = False) -> Tensor:
    """The probability flow from `sigma` down to `s` [B], like `x` [B, ...]: one step towards `step_aim`."""
    return towards(x, step_aim(denoise, x, sigma, s, second_order), sigma, s)
