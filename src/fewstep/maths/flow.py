"""Steps of the probability-flow ODE between noise levels, and the schedule of the gap between two levels in consistency training.

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
    """Return the relative gap ``1 - s / sigma`` [B] of a stage: ``n(sigma) / 2^stage``, at most 1, with ``n = 1 + k sigmoid(-b sigma)``.

    This is the mapping of ECT (arXiv 2406.14548, Eq. 9) with a factor of 2 per stage: a gap of 1 is denoising, and each stage halves it.
    """
    return ((1 + k * torch.sigmoid(-b * sigma)) / 2**stage).clamp(max=1.0)


def stage_at(progress: float, stages: int, first: int = 0) -> int:
    """Return the number of the stage, counted from `first`, at `progress` (0 to 1) of a run with `stages` stages of equal length."""
    return first + min(stages - 1, math.floor(progress * stages))


def folded_lognormal(num: int, mean: float, std: float, low: float, high: float, rng: torch.Generator) -> Tensor:
    """Draw noise levels float32 [num] with ln sigma ~ N(mean, std^2); ln sigma is reflected at ln `high`, and sigma is at least `low`."""
    log = mean + std * normal((num,), rng)
    top = math.log(high)
    return torch.where(log > top, 2 * top - log, log).exp().clamp(min=low)


def towards(x: Tensor, target: Tensor, sigma: Tensor, s: Tensor) -> Tensor:
    """Return ``(s / sigma) x + (1 - s / sigma) target``, like `x` [B, ...]: an Euler step from `sigma` to `s` [B], aimed at `target`."""
    return target + expand_like(s / sigma, x) * (x - target)


def step_aim(denoise: Denoise, x: Tensor, sigma: Tensor, s: Tensor, second_order: bool = False) -> Tensor:
    """Return the point at level 0 that one step of the flow from `sigma` to `s` [B] heads for: ``x - sigma v``, like `x` [B, ...].

    The slope v is Euler's, or with `second_order` Heun's. Euler's point is ``D(x, sigma)``, and so is Heun's where s is 1e-3 or less.
    """
    x0 = denoise(x, sigma)
    if not second_order:
        return x0
    y, low = towards(x, x0, sigma, s), s.clamp(min=1e-3)
    slope = ((x - x0) / expand_like(sigma, x) + (y - denoise(y, low)) / expand_like(low, x)) / 2
    return torch.where(expand_like(s, x) > 1e-3, x - expand_like(sigma, x) * slope, x0)


def ode_step(denoise: Denoise, x: Tensor, sigma: Tensor, s: Tensor, second_order: bool = False) -> Tensor:
    """Return `x` [B, ...] moved along the probability flow from level `sigma` [B] down to `s` [B], by one Euler or Heun step."""
    return towards(x, step_aim(denoise, x, sigma, s, second_order), sigma, s)
