"""Densities in the plane that lie along curves and are still sums of Gaussians, by quadrature or in other coordinates."""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.data.mixtures import Mixture
from fewstep.data.powers import MARGIN, Map, Propose, SumOfGaussians, product_proposal


class Curve(SumOfGaussians):
    """Gaussian noise about curves in the plane: ``x = c(u) + noise n`` with u uniform on an interval and c one of the arms.

    ``p(x)``, an integral over u, is summed by Gauss-Legendre quadrature: it is a mixture with a Gaussian at each node. The error
    falls faster than exponentially as soon as nodes lie closer than `noise`. At a spacing of at most 0.7 `noise`, as for all the
    curves of `fewstep.data.toys`, log p within 5 `noise` of the curve was measured to be right to 2e-11. Powers are those of this
    mixture.

    Args:
        name: name of the density.
        arms: the curves, each a function from u [N] to points [N, 2], all equally likely.
        interval: (low, high), the range of u.
        noise: standard deviation of the Gaussian noise, positive.
        nodes: number of quadrature nodes per arm.

    Raises:
        DataError: if `noise` is not positive and finite, when the log-density is first computed.

    """

    dim = 2

    def __init__(self, name: str, arms: tuple[Map, ...], interval: tuple[float, float], noise: float, nodes: int) -> None:
        self.name, self.arms, self.interval, self.noise, self.nodes = name, arms, interval, noise, nodes

    @cached_property
    def quadrature(self) -> Mixture:
        """The mixture that has one Gaussian at each quadrature node of each arm."""
        z, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(self.nodes))
        low, high = self.interval
        u = (low + high) / 2 + (high - low) / 2 * z
        return Mixture(self.name, torch.cat([arm(u) for arm in self.arms]), self.noise, weights.repeat(len(self.arms)))

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, 2]."""
        low, high = self.interval
        u = low + (high - low) * torch.rand(num, generator=rng, dtype=torch.float64)
        arm = torch.randint(len(self.arms), (num,), generator=rng)
        noise = torch.randn(num, 2, generator=rng, dtype=torch.float64)
        return (torch.stack([c(u) for c in self.arms])[arm, torch.arange(num)] + self.noise * noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density [N] at `x` [N, 2], computed in float64 and returned in the dtype of `x`."""
        block = 2**20 // (self.nodes * len(self.arms))
        return torch.cat([self.quadrature.log_prob(part) for part in self._checked(x).double().split(block)]).to(x)

    def _proposal(self, gamma: float) -> Propose:
        return self.quadrature._proposal(gamma)

    def _limits(self, gamma: float) -> tuple[float, float]:
        return self.quadrature._limits(gamma)


class Pinwheel(SumOfGaussians):
    """Gaussians bent into arms: ``x = R(2 pi k / arms + rate |f|) f``, where R is a rotation and k numbers the arms.

    f is normal about (radius, 0), with standard deviations `radial_std` and `tangential_std`. The angle depends on |f| = |x|
    alone, so x -> ``R(-rate |x|) x`` undoes the bending and keeps areas: p is a sum of Gaussians in these coordinates.
    After the pinwheel of Johnson et al. 2016 (arXiv 1603.06277), whose angle depends on f's first coordinate.

    Args:
        arms: number of arms, all equally likely.
        radius: distance of the middle of an arm from the origin.
        radial_std, tangential_std: standard deviation along an arm and across it.
        rate: bending of the arms, in radians per unit of length.

    """

    name = "pinwheel"
    dim = 2

    def __init__(
        self, arms: int = 5, radius: float = 2.0, radial_std: float = 0.5, tangential_std: float = 0.15, rate: float = 0.7
    ) -> None:
        self.arms, self.radius, self.radial_std, self.tangential_std, self.rate = arms, radius, radial_std, tangential_std, rate
        angle = 2 * math.pi * torch.arange(arms, dtype=torch.float64) / arms
        self.along = torch.stack([angle.cos(), angle.sin()], 1)  # [arms, 2], of unit length
        self.across = torch.stack([-angle.sin(), angle.cos()], 1)

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, 2]."""
        k = torch.randint(self.arms, (num,), generator=rng)
        noise = torch.randn(num, 2, generator=rng, dtype=torch.float64)
        along, across = self.radius + self.radial_std * noise[:, :1], self.tangential_std * noise[:, 1:]
        return self._bend(along * self.along[k] + across * self.across[k], self.rate).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density [N] at `x` [N, 2], in the dtype of `x`."""
        return self._log_parts(self._bend(self._checked(x), -self.rate)).logsumexp(1)

    def _bend(self, x: Tensor, rate: float) -> Tensor:
        angle = rate * torch.linalg.vector_norm(x, dim=1)
        cos, sin = angle.cos(), angle.sin()
        return torch.stack([cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]], 1)

    def _log_parts(self, y: Tensor) -> Tensor:
        along = (y @ self.along.T.to(y) - self.radius) / self.radial_std
        across = y @ self.across.T.to(y) / self.tangential_std
        return -(along**2 + across**2) / 2 - math.log(2 * math.pi * self.arms * self.radial_std * self.tangential_std)

    def _proposal(self, gamma: float) -> Propose:
        directions = ((self.along, self.radial_std), (self.across, self.tangential_std))
        precisions = torch.stack([d[:, :, None] * d[:, None] / std**2 for d, std in directions]).sum(0)
        log_weights = torch.full((self.arms,), -math.log(self.arms), dtype=torch.float64)
        straight = product_proposal(gamma, log_weights, self.radius * self.along, precisions, self._log_parts)

        def propose(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            y, log_accept = straight(num, rng)
            return self._bend(y, self.rate), log_accept

        return propose

    def _limits(self, gamma: float) -> tuple[float, float]:
        reach = self.radius + MARGIN * self.radial_std / math.sqrt(gamma)
        return -reach, reach
