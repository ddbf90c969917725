"""Mixtures of isotropic Gaussians, whose modes are known.

Symbols: modes ``k`` with mean ``mu_k``, standard deviation ``s_k`` and weight ``pi_k``.
"""

import math

import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.powers import MARGIN, Propose, SumOfGaussians, choose, product_proposal
from fewstep.maths.mixtures import checked_mixture


class Mixture(SumOfGaussians):
    """``p = sum_k pi_k N(mu_k, s_k^2 I)``.

    Args:
        name: name of the density.
        means: means mu_k, [K, D].
        stds: standard deviations s_k, [K], positive; or one number for all modes.
        weights: weights pi_k, [K], positive, normalised here; None for equal weights.

    Raises:
        DataError: if the shapes differ, a value is not finite, or a standard deviation or weight is not positive.

    """

    def __init__(self, name: str, means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> None:
        self.name = name
        try:
            self.means, self.stds, self.weights = checked_mixture(torch.as_tensor(means, dtype=torch.float64), stds, weights)
        except ValueError as error:
            raise DataError(f"mixture {name!r}: {error}") from None
        self.dim = self.means.shape[1]

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, D]."""
        k = choose(self.weights, num, rng)
        noise = torch.randn(num, self.dim, generator=rng, dtype=torch.float64)
        return (self.means[k] + self.stds[k, None] * noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density [N] at `x` [N, D], in the dtype of `x`."""
        return self._log_parts(self._checked(x)).logsumexp(1)

    @property
    def modes(self) -> Tensor:
        """Means mu_k of the modes, float64 [K, D]."""
        return self.means

    @property
    def mode_stds(self) -> Tensor:
        """Standard deviations s_k of the modes, float64 [K]."""
        return self.stds

    @property
    def mode_weights(self) -> Tensor:
        """Weights pi_k of the modes, float64 [K]."""
        return self.weights

    def _log_parts(self, x: Tensor) -> Tensor:
        means, stds, weights = (a.to(x) for a in (self.means, self.stds, self.weights))
        distance = (x[:, None] - means).square().sum(2)
        return weights.log() - self.dim * (stds.log() + math.log(2 * math.pi) / 2) - distance / (2 * stds**2)

    def _proposal(self, gamma: float) -> Propose:
        precisions = torch.eye(self.dim, dtype=torch.float64) / self.stds[:, None, None] ** 2
        return product_proposal(gamma, self.weights.log(), self.means, precisions, self._log_parts)

    def _limits(self, gamma: float) -> tuple[float, float]:
        reach = MARGIN * self.stds[:, None] / math.sqrt(gamma)
        return (self.means - reach).min().item(), (self.means + reach).max().item()
