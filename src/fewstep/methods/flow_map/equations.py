"""Flow maps in the two-time form ``X(x, sigma, rho)``, of which MeanFlow (2505.13447), iMF (2512.02012), AYF (2506.14603) are settings.

Symbols: ``f(x; sigma -> rho) = (rho / sigma) x + (1 - rho / sigma) X(x, sigma, rho)`` is the flow to rho; ``X(x, s, s)`` is
the denoiser D and ``X(x, s, 0)`` the consistency function; ``x0_hat`` an estimate of x0 at x, the A of `fewstep.methods.flow_map.method`;
``rho <= s < sigma``; ``v = (x - D) / sigma`` the flow's slope. The lesson docs/lessons/flows.md explains this form.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.streams import uniform

Map = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``X(x, sigma, rho)``, like x [B, ...], for sigma and rho [B]."""


def share_of_estimate(sigma: Tensor, s: Tensor, rho: Tensor) -> Tensor:
    """Return ``lam = (rho / s - rho / sigma) / (1 - rho / sigma)`` [B], x0_hat's share in the discrete target: 1 at s = rho, 0 at rho 0."""
    part = (rho / s.clamp(min=1e-12) - rho / sigma) / (1 - rho / sigma).clamp(min=1e-12)
    return torch.where(s <= rho, torch.ones_like(s), part)


def discrete_weight(sigma: Tensor, s: Tensor, rho: Tensor, sigma_data: float) -> Tensor:
    """Return the discrete loss's weight, ``w_EDM(sigma) (1 - rho / sigma) / (1 - s / sigma)`` [B]; w_EDM(sigma) where s = rho."""
    ratio = (1 - rho / sigma) / (1 - s / sigma).clamp(min=1e-6)
    return edm_weight(sigma, sigma_data) * torch.where(s <= rho, torch.ones_like(s), ratio)


def time_derivative(
    flow_map: Map, x: Tensor, sigma: Tensor, rho: Tensor, denoised: Tensor, how: Literal["jvp", "difference"], step: float
) -> Tensor:
    """Return ``dX/dsigma`` along (v, 1), like `x` [B, ...], by `torch.func.jvp` or a central difference of `step` in ln sigma.

    The central difference evaluates `flow_map` at two points of the straight line through `x` with slope v; `denoised` is D at `x`.
    """
    v = (x - denoised) / expand_like(sigma, x)
    if how == "jvp":
        return torch.func.jvp(lambda y, level: flow_map(y, level, rho), (x, sigma), (v, torch.ones_like(sigma)))[1]
    up, down = sigma * math.exp(step / 2), sigma * math.exp(-step / 2)
    above, below = (flow_map(x + expand_like(level - sigma, x) * v, level, torch.minimum(rho, level)) for level in (up, down))
    return (above - below) / expand_like(up - down, x)


def derivative_residual(value: Tensor, slope: Tensor, x0_hat: Tensor, sigma: Tensor, rho: Tensor) -> Tensor:
    """Return ``B = (rho / sigma) (X - x0_hat) + (sigma - rho) dX/dsigma``, like X (`value`), with dX/dsigma (`slope`).

    X - B is the derivative form's target; at the exact flow map B is 0.
    """
    return expand_like(rho / sigma, value) * (value - x0_hat) + expand_like(sigma - rho, value) * slope


def drawn_rho(sigma: Tensor, sigma_data: float, zero: float, anchor: float, rng: torch.Generator) -> Tensor:
    """Draw levels rho [B]: 0 for the share `zero`, sigma for the share `anchor`, else uniform in the angle ``atan(rho / sigma_data)``."""
    u, kind = (uniform((len(sigma),), rng) for _ in range(2))
    rho = sigma_data * torch.tan(u * torch.atan(sigma / sigma_data))
    rho = torch.where(kind < anchor, sigma, rho)
    return torch.where(kind >= 1 - zero, torch.zeros_like(rho), rho)


@contextlib.contextmanager
def forward_differentiable(network: nn.Module) -> Iterator[None]:
    """Let `torch.func.jvp` differentiate `network` inside the context: attention is not fused, and inputs of GroupNorm are contiguous."""

    def in_one_piece(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part.contiguous() if isinstance(part, Tensor) else part for part in inputs)

    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    hooks = [norm.register_forward_pre_hook(in_one_piece) for norm in norms]
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for hook in hooks:
            hook.remove()
