"""Noise levels: the grid a sampler walks down and the levels a loss is drawn at.

Symbols: ``sigma`` is the standard deviation of the noise added to the data (variance-exploding form, ``x = x0 + sigma n``);
``rho`` bends the grid towards small noise. Grids are float64 throughout.
"""

import torch
from torch import Tensor


def karras_sigmas(num: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """The Karras grid (arXiv 2206.00364, Eq. 5), float64 [num], descending from `sigma_max`, without the final 0.

    With ``num`` 1 the grid is ``[sigma_max]``. Raises ValueError for ``num < 1`` or ``not 0 < sigma_min <= sigma_max``.
    """
    if num < 1:
        raise ValueError(f"num is {num}; a grid needs at least 1 noise level")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"sigma_min {sigma_min} and sigma_max {sigma_max} must satisfy 0 < sigma_min <= sigma_max")
    ramp = torch.linspace(0, 1, num, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + ramp * (low - high)) ** rho


def lognormal_sigmas(
    num: int, mean: float = -1.2, std: float = 1.2, generator: torch.Generator | None = None, device: torch.device | str = "cpu"
) -> Tensor:
    """``num`` training noise levels with ln(sigma) ~ N(mean, std^2) (arXiv 2206.00364, Table 1), float32 [num]."""
    return (torch.randn(num, generator=generator, device=device) * std + mean).exp()


def level_sigmas(levels: Tensor, num: int, first: int, last: int, generator: torch.Generator | None = None) -> Tensor:
    """``num`` training noise levels, uniform over ``levels[first]`` to ``levels[last]`` inclusive, float32 [num].

    `levels` [L] is a whole grid, such as the 1,000-level Karras grid of DMD2 (arXiv 2405.14867), on the device wanted.
    Raises ValueError unless ``0 <= first <= last < L``.
    """
    if not 0 <= first <= last < len(levels):
        raise ValueError(f"levels {first} to {last} do not lie in a grid of {len(levels)}")
    index = torch.randint(first, last + 1, (num,), generator=generator, device=levels.device)
    return levels[index].float()
