"""Sums of Gaussians and their powers, with exact samples of both.

Symbols: ``p = sum_k a_k`` with ``a_k = pi_k N(mu_k, P_k^-1)``, where P_k is a precision matrix, and ``p^gamma``. Sums are in float64.

`SumOfGaussians` makes a `Power` of itself, and a `Power` takes its proposals from its sum; both are therefore in this module. For powers of
an unknown density, from data alone, see `fewstep.data.reweighting`.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from fewstep.data.density import Density, checked_gamma
from fewstep.data.errors import DataError

Propose = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""``propose(num, rng)`` returns points float64 [num, D] for rejection sampling, and the log-probability [num] that each is accepted."""

Map = Callable[[Tensor], Tensor]

MARGIN = 4.5  # standard deviations between the outermost mean and the edge of `limits`; 7e-6 of a Gaussian's mass lies outside both edges


class SumOfGaussians(Density):
    """A density that is a sum of Gaussians, in x or in coordinates which map to x without changing areas.

    This form makes exact samples of the density's powers possible, see `product_proposal`.
    """

    @abstractmethod
    def _proposal(self, gamma: float) -> Propose:
        """Return the proposal for the rejection sampling of ``p^gamma``."""

    @abstractmethod
    def _limits(self, gamma: float) -> tuple[float, float]:
        """Return the `limits` of ``p^gamma``."""

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high), the same for every axis: the range of the means, and 4.5 standard deviations beyond it."""
        return self._limits(1.0)

    def power(self, gamma: float) -> Density:
        """Return the density proportional to ``p^gamma``, see `Power`. Raises DataError if gamma is not finite and positive."""
        gamma = checked_gamma(gamma)
        return self if gamma == 1 else Power(self, gamma)


class Power(Density):
    """The density proportional to ``p^gamma`` of a sum of Gaussians p.

    `modes`, `mode_stds` and `mode_weights` are those of modes that are well apart: mu_k, ``s_k / sqrt(gamma)`` and weights
    proportional to ``pi_k^gamma s_k^(D (1 - gamma))``, exact in that limit. `sample` makes no such assumption: it is exact
    rejection sampling for any gamma and any overlap.

    Args:
        base: the sum of Gaussians p.
        gamma: the exponent, positive and finite.

    """

    def __init__(self, base: SumOfGaussians, gamma: float) -> None:
        self.base, self.gamma = base, checked_gamma(gamma)
        self.name, self.dim = f"{base.name}^{gamma:g}", base.dim

    @cached_property
    def _propose(self) -> Propose:
        return self.base._proposal(self.gamma)

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Return independent exact samples of the normalised power, float32 [num, D].

        Raises DataError if gamma is so large that fewer than 1 draw in 100,000 is accepted.
        """
        accepted = [torch.empty(0, self.dim)]
        drawn = got = 0
        while got < num:
            x, log_accept = self._propose(8192, rng)
            keep = torch.rand(len(x), generator=rng, dtype=torch.float64).log() < log_accept
            accepted.append(x[keep].float())
            drawn, got = drawn + len(x), got + len(accepted[-1])
            if drawn > 1_000_000 and got < 1e-5 * drawn:
                raise DataError(f"gamma is {self.gamma:g}: {got} of {drawn} draws for {self.name!r} were accepted; choose a smaller gamma")
        return torch.cat(accepted)[:num]

    def log_prob(self, x: Tensor) -> Tensor:
        """``gamma log p`` [N] at `x` [N, D]: the log-density up to a constant."""
        return self.gamma * self.base.log_prob(x)

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high), the same for every axis, as for the base p, whose standard deviations are divided by ``sqrt(gamma)``."""
        return self.base._limits(self.gamma)

    def power(self, gamma: float) -> Density:
        """Return the density proportional to ``p^(self.gamma gamma)``, of the same base p."""
        return self if checked_gamma(gamma) == 1 else self.base.power(self.gamma * gamma)

    @property
    def modes(self) -> Tensor:
        """Means mu_k of the modes, those of the base, float64 [K, D]."""
        return self.base.modes

    @property
    def mode_stds(self) -> Tensor:
        """Standard deviations ``s_k / sqrt(gamma)`` of the modes, float64 [K]."""
        return self.base.mode_stds / math.sqrt(self.gamma)

    @property
    def mode_weights(self) -> Tensor:
        """Weights of the modes, proportional to ``pi_k^gamma s_k^(D (1 - gamma))``, float64 [K], of sum 1."""
        return torch.softmax(self.gamma * self.base.mode_weights.log() + self.dim * (1 - self.gamma) * self.base.mode_stds.log(), 0)


def product_proposal(gamma: float, log_weights: Tensor, means: Tensor, precisions: Tensor, log_parts: Map) -> Propose:
    """Return the proposal for the rejection sampling of ``p^gamma``, where ``p = sum_k a_k`` is a sum of K Gaussians.

    With ``m = ceil(gamma)`` factors and ``beta = gamma / m``, at most 1, ``t -> t^beta`` is subadditive, hence

        p^gamma = ((sum_k a_k)^beta)^m  <=  q = (sum_k a_k^beta)^m.

    q is a sum of K^m products of m Gaussians, and these are Gaussians again. Its draws are accepted with probability
    p^gamma / q. No draw is rejected for a whole number gamma (then q = p^gamma), few are where the modes are well apart, and at
    any x at least ``K^(gamma - m)``, more than 1/K, is accepted: the power mean inequality bounds q by ``K^(m - gamma) p^gamma``.

    If K^m would be too many Gaussians, m is the largest number of factors for which K^m is not, beta is 1, and more draws are rejected:
    p^gamma <= p^m p_max^(gamma - m), with p_max from `_log_bound`.

    Args:
        gamma: the exponent, positive.
        log_weights: log pi_k, [K].
        means: mu_k, [K, D].
        precisions: P_k, [K, D, D].
        log_parts: function from points [N, D] to log a_k [N, K].

    """
    num_parts, dim = means.shape
    m, beta, rest = 1, gamma, 0.0  # a single Gaussian needs no bound: its power is a Gaussian
    if num_parts > 1:
        most = int(math.log(2**20 / dim**2) / math.log(num_parts))  # keeps the K^m matrices [D, D] within 8 MB
        m = min(math.ceil(gamma), max(most, 1))
        beta = min(gamma / m, 1.0)
        rest = max(gamma - m, 0.0)
    log_max = _log_bound(log_weights, means, precisions) if rest else 0.0

    # product over the tuple of N(mu_i, P_i^-1)^beta: precision P = beta sum P_i, mean P^-1 beta sum P_i mu_i, and its integral
    tuples = torch.cartesian_prod(*[torch.arange(num_parts)] * m).view(-1, m)
    pulls = (precisions @ means[:, :, None])[:, :, 0]
    precision, centre = (beta * sum((a[k] for k in tuples.T), torch.zeros(())) for a in (precisions, pulls))
    root = torch.linalg.cholesky(precision)
    centre = torch.cholesky_solve(centre[:, :, None], root)[:, :, 0]
    log_heights = log_weights + torch.linalg.slogdet(precisions)[1] / 2  # here and below without the powers of 2 pi, the same for all k
    log_mass = -root.diagonal(dim1=1, dim2=2).log().sum(1)
    for k in tuples.T:
        offset = means[k] - centre
        log_mass = log_mass + beta * (log_heights[k] - torch.einsum("ti,tij,tj->t", offset, precisions[k], offset) / 2)
    mass = (log_mass - log_mass.max()).exp()

    def propose(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = choose(mass, num, rng)
        noise = torch.randn(num, dim, 1, generator=rng, dtype=torch.float64)
        x = centre[chosen] + torch.linalg.solve_triangular(root[chosen].mT, noise, upper=True)[:, :, 0]
        parts = log_parts(x)
        return x, gamma * parts.logsumexp(1) - m * (beta * parts).logsumexp(1) - rest * log_max

    return propose


def _log_bound(log_weights: Tensor, means: Tensor, precisions: Tensor) -> float:
    """Return an upper bound of log p, which is the maximum of log p if the modes are well apart or all in one place.

    If mu_j is the mean nearest to x, then |x - mu_k| is at least |mu_j - mu_k| / 2, and so with the smallest eigenvalue l_k of P_k:
    ``p(x) <= sum_k a_k(mu_k) exp(-l_k |mu_j - mu_k|^2 / 8)``. The bound is the largest of these sums over j.
    """
    log_heights = log_weights + torch.linalg.slogdet(precisions)[1] / 2 - means.shape[1] / 2 * math.log(2 * math.pi)
    slowest = torch.linalg.eigvalsh(precisions)[:, 0]
    distance = (means[:, None] - means).square().sum(2)
    return (log_heights - slowest * distance / 8).logsumexp(1).max().item()


def choose(weights: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Indices int64 [num], drawn with probabilities proportional to `weights` [K]."""
    cumulative = weights.cumsum(0)
    u = cumulative[-1] * torch.rand(num, generator=rng, dtype=torch.float64)
    return torch.searchsorted(cumulative, u, right=True).clamp(max=len(weights) - 1)
