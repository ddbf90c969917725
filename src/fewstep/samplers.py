"""From noise to data along a grid of noise levels. One function each, one signature.

Symbols: ``latents`` [B, ...] standard normal noise, ``sigmas`` [S] a descending grid without a final 0, ``d = dx/dsigma``
the slope of the probability-flow ODE. Every sampler returns data like `latents`, in its dtype.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.denoisers.protocol import Denoiser, guided

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


SAMPLERS: dict[str, Sampler] = {"heun": heun, "euler": euler, "few_step": few_step, "push_forward": push_forward}
ODE_SAMPLERS = (
    "heun",
    "euler",
)  # of a denoiser that is right at every noise level; the others belong to the generator they were trained with


def evaluations(sampler: str, steps: int) -> int:
    """How many times `sampler` calls an unguided denoiser for `steps` noise levels."""
    if sampler == "push_forward":
        return 1
    return 2 * steps - 1 if sampler == "heun" else steps
