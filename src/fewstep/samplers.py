"""From noise to data along a grid of noise levels. One function each, one signature.

Symbols: ``latents`` [B, ...] standard normal noise, ``sigmas`` [S] a descending grid without a final 0, ``d = dx/dsigma``
the slope of the probability-flow ODE, ``xi`` the noise of a denoiser that samples the posterior. Every sampler returns data
like `latents`, in its dtype.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoisers.distributional import DistributionalDenoiser
from fewstep.denoisers.protocol import Denoiser, guided
from fewstep.maths.schedules import bridge

Sampler = Callable[..., Tensor]


def _ode(denoiser: Denoiser, latents: Tensor, sigmas: Tensor, label: Tensor | None, guidance_scale: float, second_order: bool) -> Tensor:
    """Integrate ``dx/dsigma = (x - D(x, sigma)) / sigma`` from ``sigmas[0]`` to 0, the state held in float64 where there is one."""
    state = torch.float32 if latents.device.type == "mps" else torch.float64
    grid = torch.cat([sigmas.to(torch.float64), torch.zeros(1, dtype=torch.float64, device=sigmas.device)]).to(latents.device, state)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return guided(denoiser, x.to(latents.dtype), sigma.to(latents.dtype), label, guidance_scale).to(state)

    x = latents.to(state) * grid[0]
    for sigma, sigma_next in pairwise(grid):
        d = (x - denoise(x, sigma)) / sigma
        x_next = x + (sigma_next - sigma) * d
        if second_order and sigma_next > 0:
            d_next = (x_next - denoise(x_next, sigma_next)) / sigma_next
            x_next = x + (sigma_next - sigma) * (d + d_next) / 2
        x = x_next
    return x.to(latents.dtype)


def heun(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Heun's second-order method (arXiv 2206.00364, Algorithm 1 with S_churn = 0): ``2 S - 1`` evaluations."""
    return _ode(denoiser, latents, sigmas, label, guidance_scale, second_order=True)


def euler(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Euler's method, which is DDIM in this parametrisation (arXiv 2206.00364, Sec. 3): ``S`` evaluations."""
    return _ode(denoiser, latents, sigmas, label, guidance_scale, second_order=False)


def few_step(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """A distilled generator's own sampler: denoise, noise to the next level, denoise (DMD2, arXiv 2405.14867, Sec. 4.4).

    ``S`` evaluations; with one level this is ``D(sigma_1 n, sigma_1)``. Fresh noise comes from `generator`, drawn on its
    own device.
    """
    sigmas = sigmas.to(latents)
    x = guided(denoiser, latents * sigmas[0], sigmas[0], label, guidance_scale)
    for sigma in sigmas[1:]:
        noise = torch.randn(x.shape, generator=generator, device=generator.device if generator else x.device).to(x)
        x = guided(denoiser, x + sigma * noise, sigma, label, guidance_scale)
    return x


def push_forward(
    denoiser: Denoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """``G(z)`` at once: a generator that was never trained at any other noise level (drift, MATHS 3). One evaluation."""
    return denoiser(latents, sigmas[0].to(latents), label)


@dataclass(frozen=True)
class _Draw:
    """A distributional denoiser with its xi held: an ordinary one, so that guidance asks twice with the same xi."""

    denoiser: DistributionalDenoiser
    xi: Tensor

    def __call__(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        return self.denoiser(x, sigma, label, self.xi)


def distributional(
    denoiser: DistributionalDenoiser,
    latents: Tensor,
    sigmas: Tensor,
    label: Tensor | None = None,
    generator: torch.Generator | None = None,
    guidance_scale: float = 1.0,
    churn: float = 1.0,
) -> Tensor:
    """Draw x0 from the posterior, go back to the next time by the bridge, draw again (arXiv 2502.02483, Algorithm 2): ``S`` evaluations.

    `sigmas` are times of the linear path, where the noise level *is* the time: from 1 downwards, without the final 0. `churn` 1 is
    the posterior of the forward process, 0 takes nothing new but xi. xi and the bridge's noise come from `generator`.
    """
    times = sigmas.tolist()
    if not times or not all(1 >= t > s for t, s in pairwise([*times, 0.0])):
        raise ValueError(f"sigmas are {times}; give times that fall from at most 1, without the final 0")
    device = generator.device if generator else latents.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(latents)

    x = latents
    for t, s in pairwise([*times, 0.0]):
        draw = _Draw(denoiser, normal(len(x), *denoiser.xi_shape))
        x0 = guided(draw, x, torch.tensor(t, dtype=x.dtype, device=x.device), label, guidance_scale).to(x.dtype)
        mean, std = bridge(x0, x, s, t, churn)
        x = mean + std * normal(*x.shape) if churn and s else mean
    return x


SAMPLERS: dict[str, Sampler] = {
    "heun": heun,
    "euler": euler,
    "few_step": few_step,
    "push_forward": push_forward,
    "distributional": distributional,
}
ODE_SAMPLERS = (
    "heun",
    "euler",
)  # of a denoiser that is right at every noise level; the others belong to the generator they were trained with


def evaluations(sampler: str, steps: int) -> int:
    """How many times `sampler` calls an unguided denoiser for `steps` noise levels."""
    if sampler == "push_forward":
        return 1
    return 2 * steps - 1 if sampler == "heun" else steps
