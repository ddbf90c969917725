"""The exact denoiser of a Gaussian mixture, and the exact sampler of its posterior: ground truth for trained denoisers.

Symbols: modes ``k`` with mean ``mu_k``, isotropic standard deviation ``s_k`` and weight ``pi_k``.
"""

import torch
from torch import Tensor, nn

from fewstep.maths.mixtures import checked_mixture
from fewstep.maths.parametrization import expand_like
from fewstep.maths.schedules import linear_path


class MixtureDenoiser(nn.Module):
    """``E[x0 | x0 + sigma n = x]`` for ``x0 ~ sum_k pi_k N(mu_k, s_k^2 I)``, in closed form.

    ``D = sum_k w_k (s_k^2 x + sigma^2 mu_k) / (s_k^2 + sigma^2)`` with ``w_k`` proportional to
    ``pi_k N(x; mu_k, (s_k^2 + sigma^2) I)``. Labels are ignored.

    Args:
        means: means of the modes, [K, D], or [K, ...] for data of any shape.
        stds: standard deviations of the modes, [K], positive, or one number for all modes.
        weights: weights of the modes, [K], positive, normalised here; None for equal weights.

    Raises:
        ValueError: where the shapes differ, a value is not finite, or a std or weight is not positive.

    """

    def __init__(self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        means = torch.as_tensor(means)
        flat, self.stds, self.weights = checked_mixture(means.flatten(1) if means.ndim > 2 else means, stds, weights)
        self.means = flat.view(means.shape)

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        """Return the posterior mean, like `x` [B, ...], for `sigma` [B] or []. Differentiable in `x`."""
        means, stds, weights = (a.to(x) for a in (self.means.flatten(1), self.stds, self.weights))
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        flat = x.flatten(1)
        variance = stds**2 + sigma[:, None] ** 2  # [B, K]
        distance = (flat[:, None] - means).square().sum(2)
        w = torch.softmax(weights.log() - flat.shape[1] / 2 * variance.log() - distance / (2 * variance), 1)
        shrink = (w * stds**2 / variance).sum(1, keepdim=True)  # the coefficient of x
        x0 = shrink * flat + expand_like(sigma, flat) ** 2 * ((w / variance) @ means)
        return x0.view_as(x)


class MixturePosterior(nn.Module):
    """Exact draws of ``x0 | x_t`` for ``x0 ~ sum_k pi_k N(mu_k, s_k^2 I)`` on the linear path: a distributional denoiser in closed form.

    Given mode k, x0 is normal about ``mu_k + g_k (x_t - alpha mu_k)`` with variance ``s_k^2 sigma^2 / v_k``, where ``v_k = alpha^2 s_k^2 +
    sigma^2`` and ``g_k = alpha s_k^2 / v_k``; k has weight proportional to ``pi_k N(x_t; alpha mu_k, v_k I)``. xi has one number more than
    the data: the first picks the mode, the others are the normal draw. Labels are ignored.

    Args:
        means: means of the modes, [K, D].
        stds: standard deviations of the modes, [K], positive, or one number for all modes.
        weights: weights of the modes, [K], positive, normalised here; None for equal weights.

    Raises:
        ValueError: where the shapes differ, a value is not finite, or a std or weight is not positive.

    """

    def __init__(self, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        super().__init__()
        self.means, self.stds, self.weights = checked_mixture(means, stds, weights)

    @property
    def xi_shape(self) -> tuple[int, ...]:
        """Shape of the second noise xi of one draw: (D + 1,)."""
        return (self.means.shape[1] + 1,)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, xi: Tensor) -> Tensor:
        """Return draws [B, m, D] for `x` [B, D], `t` [B] or [] from 0 to 1 and `xi` [B, m, D + 1]; or [B, D] for `xi` [B, D + 1]."""
        many = xi.ndim > 2
        xi = (xi if many else xi[:, None]).to(x)
        means, stds, weights = (a.to(x) for a in (self.means, self.stds, self.weights))
        alpha, sigma = (c.expand(len(x))[:, None] for c in linear_path(torch.as_tensor(t, dtype=x.dtype, device=x.device)))
        variance = alpha**2 * stds**2 + sigma**2  # [B, K]
        gap = x[:, None] - alpha[..., None] * means  # [B, K, D]
        log = weights.log() - x.shape[1] / 2 * variance.log() - gap.square().sum(2) / (2 * variance)
        uniform = torch.special.ndtr(xi[..., 0]).clamp(max=1 - torch.finfo(x.dtype).eps)
        mode = torch.searchsorted(log.softmax(1).cumsum(1), uniform, right=True).clamp(max=len(means) - 1)  # [B, m]
        centre = means + (alpha * stds**2 / variance)[..., None] * gap
        chosen = centre.gather(1, mode[..., None].expand(-1, -1, x.shape[1]))
        x0 = chosen + (stds * sigma / variance.sqrt()).gather(1, mode)[..., None] * xi[..., 1:]
        return x0 if many else x0[:, 0]
