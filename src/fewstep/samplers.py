"""From noise to data along a grid of noise levels. One function each, one signature.

Symbols: ``latents`` [B, ...] standard normal noise, ``sigmas`` [S] a descending grid without a final 0, ``label`` int64 [B] or None,
``noise`` gives further noise, ``d = dx/dsigma`` the slope of the probability-flow ODE, ``xi`` the noise of a denoiser that samples the
posterior. Every sampler returns data like `latents`, in its dtype. Guidance is the denoiser's own (`fewstep.denoisers.Guided`).

`SAMPLERS` says of each what a model folder's config has to tell about it: its settings, its grids, its costs.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fewstep.denoisers.protocol import Denoiser, PosteriorDenoiser, TwoTime
from fewstep.maths.schedules import bridge, falling_times, karras_sigmas, path_sigmas, uniform_times
from fewstep.streams import Noise

Sampler = Callable[..., Tensor]
"""``sampler(denoiser, latents, sigmas, label=None, noise=None, **options)``: data like `latents`; its `SamplerKind` names the options."""


def _ode(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None, second_order: bool) -> Tensor:
    """Integrate ``dx/dsigma = (x - D(x, sigma)) / sigma`` from ``sigmas[0]`` to 0, the state held in float64 where there is one."""
    state = torch.float32 if latents.device.type == "mps" else torch.float64
    grid = torch.cat([sigmas.to(torch.float64), torch.zeros(1, dtype=torch.float64, device=sigmas.device)]).to(latents.device, state)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return denoiser(x.to(latents.dtype), sigma.to(latents.dtype), label).to(state)

    x = latents.to(state) * grid[0]
    for sigma, sigma_next in pairwise(grid):
        d = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * d
        if second_order and sigma_next > 0:
            d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    return x.to(latents.dtype)


def heun(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """Heun's second-order method (arXiv 2206.00364, Algorithm 1 with S_churn = 0): ``2 S - 1`` evaluations."""
    return _ode(denoiser, latents, sigmas, label, second_order=True)


def euler(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """Euler's method, which is DDIM in this parametrisation (arXiv 2206.00364, Sec. 3): ``S`` evaluations."""
    return _ode(denoiser, latents, sigmas, label, second_order=False)


def few_step(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    noise: Noise | None = None,
    start: float | None = None,
) -> Tensor:
    """A few-step generator's own sampler: denoise, noise to the next level, denoise (DMD2, arXiv 2405.14867, Sec. 4.4).

    ``S`` evaluations; with one level this is ``D(sigma_1 n, sigma_1)``. `start` is the size of the first noise where that is not
    sigma_1: stock pipelines begin with noise of size 1 in their own coordinates, which is `first_noise` of the denoiser here.
    """
    sigmas, noise = sigmas.to(latents), noise or Noise()
    x = denoiser(latents * (sigmas[0] if start is None else start), sigmas[0], label)
    for sigma in sigmas[1:]:
        x = denoiser(x + sigma * noise(x.shape, x), sigma, label)
    return x


def push_forward(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """``G(z)`` at once: a generator that was never trained at any other noise level (drift, MATHS 3). One evaluation."""
    return denoiser(latents, sigmas[0].to(latents), label)


def distributional(
    denoiser: PosteriorDenoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    noise: Noise | None = None,
    churn: float = 1.0,
) -> Tensor:
    """Draw x0 from the posterior, go back to the next time by the bridge, draw again (arXiv 2502.02483, Algorithm 2): ``S`` evaluations.

    `sigmas` are times of the linear path, where the noise level *is* the time: from 1 downwards, without the final 0. `churn` 1 is
    the posterior of the forward process, 0 takes nothing new but xi. xi and the bridge's noise come from `noise`.
    """
    times, noise = sigmas.tolist(), noise or Noise()
    if not times or not all(1 >= t > s for t, s in pairwise([*times, 0.0])):
        raise ValueError(f"sigmas are {times}; give times that fall from at most 1, without the final 0")
    x = latents
    for t, s in pairwise([*times, 0.0]):
        xi = noise((len(x), *denoiser.xi_shape), latents)
        x0 = denoiser(x, torch.tensor(t, dtype=x.dtype, device=x.device), label, xi).to(x.dtype)
        mean, std = bridge(x0, x, s, t, churn)
        x = mean + std * noise(x.shape, latents) if churn and s else mean
    return x


def two_time(denoiser: TwoTime, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """Euler steps from level to level that land on the flow itself, and not on its tangent (MATHS 5c): ``S`` evaluations.

    ``x <- (rho / sigma) x + (1 - rho / sigma) X(x, sigma, rho)``, down to rho = 0, where X is the sample.
    """
    levels = torch.cat([sigmas.to(latents), latents.new_zeros(1)])
    x = latents * levels[0]
    for sigma, rho in pairwise(levels):
        ratio = rho / sigma
        x = ratio * x + (1 - ratio) * denoiser(x, sigma, label, rho)
    return x


Config = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerKind:
    """A sampler, and what a generator's config says about it.

    Attributes:
        draw: the sampler itself.
        needs: keys that the config must have beside ``name``.
        sigmas: the levels, float64 descending, from the config and a number of steps that it can serve.
        counts: the numbers of steps that a config can serve, None for any; the default is ``steps``, or the first of them.
        evaluations: network evaluations for so many steps.
        options: keys of the config that are handed to `draw` where it has them.
        of: what kind of denoiser it draws from: "denoiser", "map", "posterior", or a name of one's own.
        also: numbers of steps that an evaluation looks at beside the default, where it may choose.
        every_level: whether what it draws from is right at every noise level, and so may teach.

    """

    draw: Sampler
    needs: tuple[str, ...]
    sigmas: Callable[[Config, int], Tensor]
    counts: Callable[[Config], list[int] | None] = lambda config: None
    evaluations: Callable[[int], int] = lambda steps: steps
    options: tuple[str, ...] = ()
    of: str = "denoiser"
    also: tuple[int, ...] = ()
    every_level: bool = False


def _karras(config: Config, steps: int) -> Tensor:
    return karras_sigmas(steps, config["sigma_min"], config["sigma_max"], config["rho"])


def _times(config: Config, steps: int) -> Tensor:
    """Levels of times from 1 down to ``last``, moved by ``shift``: those of stock flow-matching pipelines."""
    return path_sigmas(falling_times(steps, config["shift"], config["last"]))


def _levels(config: Config, steps: int) -> Tensor:
    levels = config["levels"] if "levels" in config else [config["sigmas"]]
    return torch.tensor(next(row for row in levels if len(row) == steps), dtype=torch.float64)


def _arc(config: Config, steps: int) -> Tensor:
    """Levels whose angles ``atan(sigma / middle)`` fall in equal steps from that of sigma_max to 0."""
    last = math.atan(config["sigma_max"] / config["middle"])
    return config["middle"] * torch.tan(last * (1 - torch.arange(steps, dtype=torch.float64) / steps))


def _level_counts(config: Config) -> list[int]:
    return [len(row) for row in config["levels"]] if "levels" in config else [len(config["sigmas"])]


GRID = ("steps", "sigma_min", "sigma_max", "rho")
SAMPLERS: dict[str, SamplerKind] = {
    "heun": SamplerKind(heun, GRID, _karras, evaluations=lambda steps: 2 * steps - 1, also=(1,), every_level=True),
    "euler": SamplerKind(euler, GRID, _karras, also=(1,), every_level=True),
    # either one list of levels, ``sigmas``, or one for each number of steps, ``levels``
    "few_step": SamplerKind(few_step, (), _levels, counts=_level_counts, options=("start",)),
    "push_forward": SamplerKind(
        push_forward,
        (),
        lambda config, steps: torch.tensor([math.inf], dtype=torch.float64),
        counts=lambda config: [1],
        evaluations=lambda steps: 1,
        of="map",
    ),
    "two_time": SamplerKind(two_time, ("steps", "sigma_max", "middle"), _arc, of="two_time", also=(1, 2, 4)),
    "distributional": SamplerKind(
        distributional, ("steps", "churn"), lambda config, steps: uniform_times(steps), options=("churn",), of="posterior", also=(4, 1)
    ),
    # Heun's slopes are of levels, the first of which is as good as infinite
    "flow_euler": SamplerKind(euler, ("steps", "shift", "last"), _times, also=(1,), every_level=True),
}
