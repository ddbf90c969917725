"""Samplers, which go from noise to data along a grid of noise levels; each is one function, and all have the same signature.

Symbols: ``latents`` [B, ...] standard normal noise, ``sigmas`` [S] a descending grid of noise levels without a final 0, ``label`` int64 [B]
or None, ``noise`` the source of further noise, ``d = dx/dsigma`` the slope of the probability-flow ODE, ``xi`` the noise input of a
denoiser that samples the posterior. Every sampler returns data of the shape and dtype of `latents`. Classifier-free guidance is part of the
denoiser (`fewstep.denoisers.Guided`).

`SAMPLERS` holds for each sampler the settings that a model folder's config must have, its grids of noise levels, and its costs.
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
"""``sampler(denoiser, latents, sigmas, label=None, noise=None, **options)`` returns samples shaped like `latents`; see `SamplerKind`."""


def _ode(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None, second_order: bool) -> Tensor:
    """Integrate ``dx/dsigma = (x - D(x, sigma)) / sigma`` from ``sigmas[0]`` to 0, with x in float64 where the device has float64."""
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
    """Sample by Heun's second-order method (arXiv 2206.00364, Algorithm 1): ``2 S - 1`` network evaluations."""
    return _ode(denoiser, latents, sigmas, label, second_order=True)


def euler(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """Sample by Euler's method, which is DDIM in this parametrisation (arXiv 2206.00364, Sec. 3): ``S`` network evaluations."""
    return _ode(denoiser, latents, sigmas, label, second_order=False)


def few_step(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    noise: Noise | None = None,
    start: float | None = None,
) -> Tensor:
    """Sample from a few-step generator: denoise, add noise of the next level, denoise again (DMD2, arXiv 2405.14867, Sec. 4.4).

    Takes ``S`` network evaluations; with one level the sample is ``D(sigma_1 n, sigma_1)``. `start` is the standard deviation of the first
    noise where it is not sigma_1: stock diffusers pipelines begin with noise of size 1 in their own coordinates, which is the denoiser's
    `first_noise` in these.
    """
    sigmas, noise = sigmas.to(latents), noise or Noise()
    x = denoiser(latents * (sigmas[0] if start is None else start), sigmas[0], label)
    for sigma in sigmas[1:]:
        x = denoiser(x + sigma * noise(x.shape, x), sigma, label)
    return x


def push_forward(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Tensor:
    """Sample ``G(z)`` by one network evaluation, from a generator that maps noise directly to data (drift)."""
    return denoiser(latents, sigmas[0].to(latents), label)


def distributional(
    denoiser: PosteriorDenoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    noise: Noise | None = None,
    churn: float = 1.0,
) -> Tensor:
    """Draw x0 from the posterior, go to the next time by the bridge, and repeat (arXiv 2502.02483, Algorithm 2): ``S`` evaluations.

    `sigmas` are times of the linear path, on which the noise level equals the time: from 1 downwards, without the final 0. `churn` 1 is the
    posterior of the forward process (as DDPM), and with 0 the bridge adds no noise. `noise` is the source of xi and of the bridge's noise.
    Raises ValueError for times that do not descend from at most 1.
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


def two_time(
    denoiser: TwoTime, latents: Tensor, sigmas: Tensor, label: Tensor | None = None, noise: Noise | None = None, churn: float = 0.0
) -> Tensor:
    """Sample from a flow map: step from level to level along the flow itself instead of its tangent: ``S`` network evaluations.

    ``x <- (rho / sigma) x + (1 - rho / sigma) X(x, sigma, rho)``, down to rho = 0, where X is the sample. With `churn` g above 0 each step
    goes below its level, to ``sqrt(1 - g^2) rho``, and noise of ``g rho`` is added (gamma-sampling of CTM, arXiv 2310.02279):
    an exact map keeps the marginals with any g, and a trained one makes smaller errors where the noise of a level is not that of the level
    before. At 1 it samples as a consistency model does.
    """
    levels, noise = torch.cat([sigmas.to(latents), latents.new_zeros(1)]), noise or Noise()
    x = latents * levels[0]
    for sigma, level in pairwise(levels):
        rho = math.sqrt(1 - churn**2) * level
        ratio = rho / sigma
        x = ratio * x + (1 - ratio) * denoiser(x, sigma, label, rho)
        if churn and level:
            x = x + churn * level * noise(x.shape, x)
    return x


Config = Mapping[str, Any]


@dataclass(frozen=True)
class SamplerKind:
    """A sampler, and how it is described by the ``sampler`` entry of a generator's config.

    Attributes:
        draw: the sampler function.
        needs: keys that the config must have beside ``name``.
        sigmas: function of the config and an allowed number of steps that returns the noise levels, float64 [steps], descending.
        counts: function of the config that returns the allowed numbers of steps, None for any; the default is ``steps``, or the first.
        evaluations: function of the number of steps that returns the number of network evaluations for one sample.
        options: keys of the config that are passed to `draw` where the config has them.
        of: kind of denoiser that it samples from: "denoiser", "map", "posterior", "two_time", or a name of one's own.
        also: numbers of steps that `fewstep evaluate` measures beside the default, if the generator allows any number.
        every_level: whether its denoiser is trained at every noise level, so that it can be a teacher.

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

    @property
    def guided(self) -> bool:
        """Whether its config may have a ``guidance_scale``: whether it draws from a model of the data, and not from a student of one."""
        return self.every_level or self.of == "posterior"


def _karras(config: Config, steps: int) -> Tensor:
    return karras_sigmas(steps, config["sigma_min"], config["sigma_max"], config["rho"])


def _times(config: Config, steps: int) -> Tensor:
    """Return the noise levels of stock flow-matching pipelines, see `falling_times`."""
    return path_sigmas(falling_times(steps, config["shift"], config["last"], config.get("terminal")))


def _levels(config: Config, steps: int) -> Tensor:
    levels = config["levels"] if "levels" in config else [config["sigmas"]]
    return torch.tensor(next(row for row in levels if len(row) == steps), dtype=torch.float64)


def _arc(config: Config, steps: int) -> Tensor:
    """Return noise levels whose angles ``atan(sigma / middle)`` descend in equal steps from that of sigma_max towards 0."""
    last = math.atan(config["sigma_max"] / config["middle"])
    return config["middle"] * torch.tan(last * (1 - torch.arange(steps, dtype=torch.float64) / steps))


def _level_counts(config: Config) -> list[int]:
    return [len(row) for row in config["levels"]] if "levels" in config else [len(config["sigmas"])]


GRID = ("steps", "sigma_min", "sigma_max", "rho")
SAMPLERS: dict[str, SamplerKind] = {
    "heun": SamplerKind(heun, GRID, _karras, evaluations=lambda steps: 2 * steps - 1, also=(1,), every_level=True),
    "euler": SamplerKind(euler, GRID, _karras, also=(1,), every_level=True),
    # the config has either ``sigmas``, one list of noise levels, or ``levels``, a list for each number of steps
    "few_step": SamplerKind(few_step, (), _levels, counts=_level_counts, options=("start",)),
    "push_forward": SamplerKind(
        push_forward,
        (),
        lambda config, steps: torch.tensor([math.inf], dtype=torch.float64),
        counts=lambda config: [1],
        evaluations=lambda steps: 1,
        of="map",
    ),
    "two_time": SamplerKind(two_time, ("steps", "sigma_max", "middle"), _arc, options=("churn",), of="two_time", also=(1, 2, 4)),
    "distributional": SamplerKind(
        distributional, ("steps", "churn"), lambda config, steps: uniform_times(steps), options=("churn",), of="posterior", also=(4, 1)
    ),
    # with Euler's method only: Heun's averages the slopes at two noise levels, and the first level is almost infinite here
    "flow_euler": SamplerKind(euler, ("steps", "shift", "last"), _times, also=(1,), every_level=True),
}
