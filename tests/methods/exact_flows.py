"""Exact flow maps, float64: of a Gaussian in closed form, and of a mixture by integrating its exact denoiser."""

import math

import torch

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths.parametrization import expand_like

MU, V = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3
MEANS = torch.tensor([[1.0, 0.5], [-1.2, 0.3], [0.1, -1.0]], dtype=torch.float64)
MIXTURE = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.5, 0.4]).double(), torch.tensor([0.5, 0.2, 0.3]).double())


def gaussian_denoiser(x, sigma):
    return MU + (x - MU) * V / (V + expand_like(sigma, x) ** 2)


def gaussian_flow(x, sigma, rho):
    return MU + (x - MU) * ((V + expand_like(rho, x) ** 2) / (V + expand_like(sigma, x) ** 2)).sqrt()


def mixture_flow(x, sigma, rho, steps=400):
    """Heun's method in equal steps of ln sigma down to 1e-4 at least, and from there to 0 by one Euler step."""
    low = rho.clamp(min=1e-4)
    for i in range(steps):
        t, u = (sigma.log().lerp(low.log(), k / steps).exp() for k in (i, i + 1))
        h, d = expand_like(u - t, x), (x - MIXTURE(x, t)) / expand_like(t, x)
        y = x + h * d
        x = x + h * (d + (y - MIXTURE(y, u)) / expand_like(u, x)) / 2
    return torch.where(expand_like(rho, x) == 0, MIXTURE(x, low), x)


def aimed_at(flow, denoiser):
    """``X(x, sigma, rho)`` of an exact `flow`; where rho = sigma the `denoiser`, which is its limit."""

    def flow_map(x, sigma, rho):
        same, ratio = expand_like(rho == sigma, x), expand_like(rho / sigma, x)
        found = (flow(x, sigma, rho) - ratio * x) / torch.where(same, torch.ones_like(ratio), 1 - ratio)
        return torch.where(same, denoiser(x, sigma), found)

    return flow_map


EXACT = {
    "gaussian": (gaussian_flow, gaussian_denoiser, aimed_at(gaussian_flow, gaussian_denoiser)),
    "mixture": (mixture_flow, MIXTURE, aimed_at(mixture_flow, MIXTURE)),
}


def draws(num=64, seed=0, low=0.1, high=8.0):
    """(x, sigma, rho): noised points at random levels, and random lower ones."""
    rng = torch.Generator().manual_seed(seed)
    sigma = (torch.rand(num, generator=rng, dtype=torch.float64) * math.log(high / low) + math.log(low)).exp()
    rho = sigma * torch.rand(num, generator=rng, dtype=torch.float64) * 0.95
    n, m = (torch.randn(num, 2, generator=rng, dtype=torch.float64) for _ in range(2))
    return MU + V**0.5 * m + expand_like(sigma, n) * n, sigma, rho


def rms(x):
    return x.square().mean().sqrt().item()
