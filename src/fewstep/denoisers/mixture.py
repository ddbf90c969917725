"""The exact denoiser of a Gaussian mixture: ground truth for whatever else is built here.

Symbols: modes ``k`` with mean ``mu_k``, isotropic standard deviation ``s_k`` and weight ``pi_k``.
"""

import torch
from torch import Tensor, nn

from fewstep.maths.parametrization import expand_like


class MixtureDenoiser(nn.Module):
    """``E[x0 | x0 + sigma n = x]`` for ``x0 ~ sum_k pi_k N(mu_k, s_k^2 I)``, in closed form.

    ``D = sum_k w_k (s_k^2 x + sigma^2 mu_k) / (s_k^2 + sigma^2)`` with ``w_k`` proportional to
    ``pi_k N(x; mu_k, (s_k^2 + sigma^2) I)``. Labels are ignored.

    Args:
        means: [K, D], or [K, ...] for data of any shape.
        stds: [K], positive, or one number for all modes.
        weights: [K], positive, normalised here; None for equal weights.

    Raises:
        ValueError: where the shapes differ or a value is not positive.

    """

    def __init__(self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        self.means = torch.as_tensor(means)
        modes = len(self.means)
        self.stds = torch.as_tensor(stds, dtype=self.means.dtype)
        if self.stds.shape not in ((), (modes,)):
            raise ValueError(f"stds have shape {tuple(self.stds.shape)} for {modes} means; give one number a mode, or one for all")
        self.stds = self.stds.expand(modes)
        self.weights = torch.ones(modes, dtype=self.means.dtype) if weights is None else torch.as_tensor(weights, dtype=self.means.dtype)
        if self.weights.shape != (modes,):
            raise ValueError(f"weights have shape {tuple(self.weights.shape)} for {modes} means; give one weight a mode")
        if not (self.stds > 0).all() or not (self.weights > 0).all():
            raise ValueError(f"stds {self.stds.tolist()} and weights {self.weights.tolist()} must all be positive")
        self.weights = self.weights / self.weights.sum()

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """The posterior mean, like `x` [B, ...], for `sigma` [B] or []. Differentiable in `x`."""
        means, stds, weights = (a.to(x) for a in (self.means.flatten(1), self.stds, self.weights))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        flat = x.flatten(1)
        variance = stds**2 + sigma[:, None] ** 2  # [B, K]
        distance = (flat[:, None] - means).square().sum(2)
        w = torch.softmax(weights.log() - flat.shape[1] / 2 * variance.log() - distance / (2 * variance), 1)
        shrink = (w * stds**2 / variance).sum(1, keepdim=True)  # the share of x that stays
        x0 = shrink * flat + expand_like(sigma, flat) ** 2 * ((w / variance) @ means)
        return x0.view_as(x)
