"""Noise levels: the grids that samplers step down, the levels that losses are drawn at, and the linear path with its bridge.

Symbols: ``sigma`` is the standard deviation of the noise added to the data (variance-exploding form, ``x = x0 + sigma n``); a larger
``rho`` puts more levels of a grid at small noise. The linear path is ``x_t = alpha_t x0 + sigma_t eps`` with time t from 0 (data) to 1
(noise); ``s <= t`` is a time nearer to the data. Grids are float64 throughout.
"""

import math

import torch
from torch import Tensor

from fewstep.maths.parametrization import expand_like
from fewstep.streams import integers, normal

# the finite noise level that stands for time 1, where sigma is infinite: large enough that float32 rounds sigma / (1 + sigma) to 1
NOISE_ALONE = 2.0**30


def karras_sigmas(num: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """Return the Karras grid of noise levels (arXiv 2206.00364, Eq. 5), float64 [num], descending from `sigma_max`, without the final 0.

    With ``num`` 1 the grid is ``[sigma_max]``. Raises ValueError for ``num < 1`` or ``not 0 < sigma_min <= sigma_max``.
    """
    if num < 1:
        raise ValueError(f"num is {num}; a grid needs at least 1 noise level")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must satisfy 0 < sigma_min <= sigma_max")
    ramp = torch.linspace(0, 1, num, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def student_sigmas(num: int, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Return the default noise levels of a `num`-step student, float64 [num], descending from `sigma_max`, without the final 0.

    They are ``sigma_j = sigma_max (1 - j c)^rho``, with ``c = 1/2`` if `num` is 2, and ``1 / (num + 1)`` otherwise: the first `num` levels
    of the Karras grid that ends at 0 and has 3 levels if `num` is 2, ``num + 2`` levels otherwise. diffusers' consistency scheduler
    produces them in `num` steps if its ``num_train_timesteps`` is the number of levels of that grid. Raises ValueError for ``num < 1`` or a
    `sigma_max` not above 0.
    """
    if num < 1:
        raise ValueError(f"num is {num}; a student needs at least 1 noise level")
    if not sigma_max > 0:
        raise ValueError(f"sigma_max is {sigma_max}; a noise level must be above 0")
    c = 0.5 if num == 2 else 1 / (num + 1)
    return sigma_max * (1 - c * torch.arange(num, dtype=torch.float64)) ** rho


def lognormal_sigmas(
    num: int, mean: float = -1.2, std: float = 1.2, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """Draw `num` training noise levels with ln(sigma) ~ N(mean, std^2) (arXiv 2206.00364, Table 1), float32 [num].

    Without a `generator`, torch's global one is used, on `device`.
    """
    drawn = torch.randn(num, device=device) if generator is None else normal((num,), generator)
    return (drawn * std + mean).exp()


def level_sigmas(levels: Tensor, num: int, first: int, last: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw `num` training noise levels uniformly from ``levels[first]`` to ``levels[last]`` inclusive, float32 [num].

    `levels` [L] is a whole grid, such as the 1,000-level Karras grid of DMD2 (arXiv 2405.14867); the result is on its device. Raises
    ValueError unless ``0 <= first <= last < L``.
    """
    if not 0 <= first <= last < len(levels):
        raise ValueError(f"levels {first} to {last} do not lie in a grid of {len(levels)}")
    if generator is None:
        return levels[torch.randint(first, last + 1, (num,), device=levels.device)].float()
    index = integers(first, last + 1, (num,), generator)
    return levels[index].float()


def shifted_times(t: Tensor, shift: float) -> Tensor:
    """Return times `t` of the linear path moved towards noise, ``shift t / (1 + (shift - 1) t)``, like `t` (arXiv 2403.03206, Eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def path_sigmas(t: Tensor) -> Tensor:
    """Return the noise levels ``t / (1 - t)`` of times `t` of the linear path, like `t`; `NOISE_ALONE` for t = 1."""
    return torch.where(t < 1, t / (1 - t), NOISE_ALONE).clamp(max=NOISE_ALONE)


def trained_times(num: int, shift: float) -> Tensor:
    """Return the `num` times of the linear path at which diffusers' flow-matching schedulers train, float64 [num], ascending to 1."""
    return shifted_times(torch.arange(1, num + 1, dtype=torch.float64) / num, shift)


def falling_times(num: int, shift: float, last: float, terminal: float | None = None) -> Tensor:
    """Return the times at which diffusers' flow-matching schedulers sample in `num` steps, float64 [num], descending from 1.

    They are `num` equally spaced times from 1 to `last`, then shifted by `shifted_times`. Those of several steps are then stretched so that
    the last of them is `terminal`, if it is given (the schedulers' ``shift_terminal``).
    """
    t = shifted_times(torch.linspace(1, last, num, dtype=torch.float64), shift)
    return t if terminal is None or num == 1 else 1 - (1 - t) * (1 - terminal) / (1 - t[-1])


def uniform_times(num: int) -> Tensor:
    """Return the times ``1, 1 - 1/num, ..., 1/num`` of the linear path: float64 [num], descending, without the final 0.

    Raises ValueError for ``num < 1``.
    """
    if num < 1:
        raise ValueError(f"num is {num}; a grid needs at least 1 time")
    return torch.arange(num, 0, -1, dtype=torch.float64) / num


def linear_path(t: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha_t, sigma_t) = (1 - t, t), each shaped like `t` (arXiv 2502.02483, Eqs. 2-3 with the schedule of its Sec. 6)."""
    return 1 - t, t


def sigmoid_weight(t: Tensor, bias: float = 0.0) -> Tensor:
    """Return the loss weight ``sigmoid(ln(alpha_t^2 / sigma_t^2) - bias)``, shaped like `t` (arXiv 2502.02483, Sec. 4.2).

    It is computed as ``alpha^2 / (alpha^2 + e^bias sigma^2)``, which is 1 at t = 0 and 0 at t = 1 without a logarithm of 0. A `bias`
    below 0 gives more weight to noisy times.
    """
    alpha, sigma = linear_path(t)
    return alpha**2 / (alpha**2 + math.exp(bias) * sigma**2)


def bridge(x0: Tensor, x_t: Tensor, s: Tensor | float, t: Tensor | float, churn: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (mean, std) of the Gaussian ``x_s`` given `x0` and `x_t`, on the linear path (arXiv 2502.02483, Eq. 4).

    `churn` 1 is the posterior of the forward process (DDPM), 0 is deterministic (DDIM); every value keeps the marginals. `x0` and
    `x_t` are [B, ...], `s` and `t` are numbers or [B]; the mean is like `x0`, the standard deviation broadcasts over it.

    With ``k = churn^2 r_11 + 1 - churn^2``, ``r_11 = alpha_t sigma_s / (alpha_s sigma_t)``, Eq. 4 becomes ``std = sigma_s sqrt(1 - k^2)``
    and ``mean = k (sigma_s / sigma_t) (x_t - alpha_t x0) + alpha_s x0``.

    Raises:
        ValueError: unless ``0 <= s <= t <= 1``, ``t > 0``, ``s < 1`` or s = t = 1, and ``0 <= churn <= 1``.

    """
    device = "cpu" if x_t.device.type == "mps" else x_t.device  # mps has no float64
    s, t = (torch.as_tensor(a, dtype=torch.float64, device=device) for a in (s, t))
    if not 0 <= churn <= 1:
        raise ValueError(f"churn is {churn}; allowed are values from 0 to 1")
    if not bool(((s >= 0) & (s <= t) & (t <= 1) & (t > 0)).all()):
        raise ValueError(f"s {s.tolist()} and t {t.tolist()} must satisfy 0 <= s <= t <= 1 and t > 0")
    (alpha_s, sigma_s), (alpha_t, sigma_t) = linear_path(s), linear_path(t)
    # 1 - r_11 is computed directly, because it is small between near times; where alpha_s is 0, alpha_t is 0 too, and x_s is x_t
    lost = churn**2 * torch.where(s == t, 0.0, (t - s) / (alpha_s * sigma_t))
    k = 1 - lost
    std = sigma_s * (lost * (1 + k)).sqrt()
    keep = k * sigma_s / sigma_t  # coefficient of x_t in the mean; the rest comes from x0
    keep, rest, std = (expand_like(c, x0).to(x0) for c in (keep, alpha_s - keep * alpha_t, std))
    return keep * x_t + rest * x0, std
