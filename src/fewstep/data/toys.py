"""Densities on which everything is known exactly, and data sets drawn from them.

Symbols: a density ``p`` in D dimensions and its power ``p^gamma``, which for gamma above 1 is sharper than p and below 1
flatter. Where p is a sum of Gaussians, ``p = sum_k a_k`` with ``a_k = pi_k N(mu_k, P_k^-1)`` (P_k is a precision matrix).

All chance comes from the CPU generator `rng`. Sums are in float64 and samples are float32.
"""

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fewstep.data.errors import DataError
from fewstep.data.points import PointData
from fewstep.maths.mixtures import checked_mixture

Propose = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""``propose(num, rng)``: points float64 [num, D], and the logarithm [num] of the probability with which each is accepted."""

Map = Callable[[Tensor], Tensor]

MARGIN = 4.5  # standard deviations between the outermost mean and the edge of `limits`; 7e-6 of a Gaussian lies beyond two edges
HELDOUT = 10_000  # points held out by `toy_data`


def _checked_gamma(gamma: float) -> float:
    if not (math.isfinite(gamma) and gamma > 0):
        raise DataError(f"gamma is {gamma}; allowed is any finite number above 0, and 1 is the density itself")
    return float(gamma)


def _choose(weights: Tensor, num: int, rng: torch.Generator) -> Tensor:
    """Indices int64 [num], drawn with probabilities proportional to `weights` [K]."""
    cumulative = weights.cumsum(0)
    u = cumulative[-1] * torch.rand(num, generator=rng, dtype=torch.float64)
    return torch.searchsorted(cumulative, u, right=True).clamp(max=len(weights) - 1)


class Density(ABC):
    """A probability density with exact samples and an exact log-density.

    Attributes:
        name: what it is called in tables.
        dim: D.

    """

    name: str
    dim: int

    @abstractmethod
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, D]."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm [N] of the density at `x` [N, D], in the type of `x`; differentiable. DataError for another shape."""

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """(low, high), the same for every axis: all but 1e-4 of the mass lies in ``[low, high]^D``."""

    @abstractmethod
    def power(self, gamma: float) -> "Density":
        """The density proportional to ``p^gamma``; itself for gamma 1. DataError for a gamma that is not finite and positive."""

    @property
    def modes(self) -> Tensor:
        """Means of the modes, float64 [K, D]. DataError for a density that is no mixture of Gaussians."""
        raise self._modeless("modes")

    @property
    def mode_stds(self) -> Tensor:
        """Standard deviation of each mode, float64 [K]. DataError as for `modes`."""
        raise self._modeless("mode_stds")

    @property
    def mode_weights(self) -> Tensor:
        """Share of each mode, float64 [K], of sum 1. DataError as for `modes`."""
        raise self._modeless("mode_weights")

    def _modeless(self, asked: str) -> DataError:
        having = ", ".join(name for name, make in DENSITIES.items() if isinstance(make(), Mixture))
        return DataError(f"{asked} of {self.name!r} was asked for; only mixtures have modes ({having}): take one, or no metric of modes")

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise DataError(f"points of shape {list(x.shape)} were given to {self.name!r}; its points have shape [N, {self.dim}]")
        return x


class SumOfGaussians(Density):
    """A density that is a sum of Gaussians, in x or in coordinates which map to x without changing areas.

    That is what makes exact samples of its powers possible, see `_product_proposal`.
    """

    @abstractmethod
    def _proposal(self, gamma: float) -> Propose:
        """Draws for the rejection sampling of ``p^gamma``."""

    @abstractmethod
    def _limits(self, gamma: float) -> tuple[float, float]:
        """`limits` of ``p^gamma``."""

    @property
    def limits(self) -> tuple[float, float]:
        """(low, high) for every axis: the means and 4.5 standard deviations more."""
        return self._limits(1.0)

    def power(self, gamma: float) -> Density:
        """``p^gamma`` with exact samples, see `Power`."""
        gamma = _checked_gamma(gamma)
        return self if gamma == 1 else Power(self, gamma)


def _product_proposal(gamma: float, log_weights: Tensor, means: Tensor, precisions: Tensor, log_parts: Map) -> Propose:
    """Draws for the rejection sampling of ``p^gamma`` where ``p = sum_k a_k`` over K Gaussians.

    With ``m = ceil(gamma)`` factors and ``beta = gamma / m``, at most 1, ``t -> t^beta`` is subadditive, hence

        p^gamma = ((sum_k a_k)^beta)^m  <=  q = (sum_k a_k^beta)^m.

    q is a sum of K^m products of m Gaussians, and these are Gaussians again. Its draws are accepted with probability
    p^gamma / q. No draw is rejected for a whole number gamma (then q = p^gamma), few are where the modes are well apart, and at
    any x at least ``K^(gamma - m)``, more than 1/K, is accepted: the power mean inequality bounds q by ``K^(m - gamma) p^gamma``.

    Where K^m would be too many, m is the largest number of factors that is not, beta is 1, and what is left is thinned:
    p^gamma <= p^m p_max^(gamma - m), with p_max from `_log_bound`.

    Args:
        gamma: positive.
        log_weights: [K].
        means: [K, D].
        precisions: [K, D, D].
        log_parts: takes points [N, D] to log a_k [N, K].

    """
    num_parts, dim = means.shape
    m, beta, rest = 1, gamma, 0.0  # one Gaussian needs no bound: its power is another
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
    log_heights = log_weights + torch.linalg.slogdet(precisions)[1] / 2  # here and below without the powers of 2 pi, the same for all
    log_mass = -root.diagonal(dim1=1, dim2=2).log().sum(1)
    for k in tuples.T:
        offset = means[k] - centre
        log_mass = log_mass + beta * (log_heights[k] - torch.einsum("ti,tij,tj->t", offset, precisions[k], offset) / 2)
    mass = (log_mass - log_mass.max()).exp()

    def propose(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = _choose(mass, num, rng)
        noise = torch.randn(num, dim, 1, generator=rng, dtype=torch.float64)
        x = centre[chosen] + torch.linalg.solve_triangular(root[chosen].mT, noise, upper=True)[:, :, 0]
        parts = log_parts(x)
        return x, gamma * parts.logsumexp(1) - m * (beta * parts).logsumexp(1) - rest * log_max

    return propose


def _log_bound(log_weights: Tensor, means: Tensor, precisions: Tensor) -> float:
    """A number that log p nowhere exceeds, and reaches where the modes are well apart or all in one place.

    If mu_j is the mean nearest to x, then |x - mu_k| is at least |mu_j - mu_k| / 2, and so with the smallest eigenvalue l_k of
    P_k: ``p(x) <= sum_k a_k(mu_k) exp(-l_k |mu_j - mu_k|^2 / 8)``. The bound is the largest of these over j.
    """
    log_heights = log_weights + torch.linalg.slogdet(precisions)[1] / 2 - means.shape[1] / 2 * math.log(2 * math.pi)
    slowest = torch.linalg.eigvalsh(precisions)[:, 0]
    distance = (means[:, None] - means).square().sum(2)
    return (log_heights - slowest * distance / 8).logsumexp(1).max().item()


class Power(Density):
    """The density proportional to ``p^gamma`` of a sum of Gaussians p.

    `modes`, `mode_stds` and `mode_weights` are those of modes that are well apart: mu_k, ``s_k / sqrt(gamma)`` and weights
    proportional to ``pi_k^gamma s_k^(D (1 - gamma))``, exact in that limit. `sample` makes no such assumption: it is exact
    rejection sampling for any gamma and any overlap.

    Args:
        base: p.
        gamma: positive.

    """

    def __init__(self, base: SumOfGaussians, gamma: float) -> None:
        self.base, self.gamma = base, _checked_gamma(gamma)
        self.name, self.dim = f"{base.name}^{gamma:g}", base.dim

    @cached_property
    def _propose(self) -> Propose:
        return self.base._proposal(self.gamma)

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples of the normalised power, float32 [num, D].

        Raises DataError for a gamma so large that fewer than 1 draw in 100,000 is accepted.
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
        """(low, high) for every axis."""
        return self.base._limits(self.gamma)

    def power(self, gamma: float) -> Density:
        """``p^(self.gamma gamma)``, of the same p."""
        return self if _checked_gamma(gamma) == 1 else self.base.power(self.gamma * gamma)

    @property
    def modes(self) -> Tensor:
        """float64 [K, D]."""
        return self.base.modes

    @property
    def mode_stds(self) -> Tensor:
        """float64 [K]."""
        return self.base.mode_stds / math.sqrt(self.gamma)

    @property
    def mode_weights(self) -> Tensor:
        """float64 [K], of sum 1."""
        return torch.softmax(self.gamma * self.base.mode_weights.log() + self.dim * (1 - self.gamma) * self.base.mode_stds.log(), 0)


class Mixture(SumOfGaussians):
    """``p = sum_k pi_k N(mu_k, s_k^2 I)``.

    Args:
        name: what it is called.
        means: [K, D].
        stds: [K], positive, or one number for all modes.
        weights: [K], positive, normalised here; None for equal weights.

    Raises:
        DataError: where the shapes differ, a value is not finite, or a std or weight is not positive.

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
        k = _choose(self.weights, num, rng)
        noise = torch.randn(num, self.dim, generator=rng, dtype=torch.float64)
        return (self.means[k] + self.stds[k, None] * noise).float()

    def log_prob(self, x: Tensor) -> Tensor:
        """The log-density [N] at `x` [N, D], in the type of `x`."""
        return self._log_parts(self._checked(x)).logsumexp(1)

    @property
    def modes(self) -> Tensor:
        """mu_k, float64 [K, D]."""
        return self.means

    @property
    def mode_stds(self) -> Tensor:
        """s_k, float64 [K]."""
        return self.stds

    @property
    def mode_weights(self) -> Tensor:
        """pi_k, float64 [K]."""
        return self.weights

    def _log_parts(self, x: Tensor) -> Tensor:
        means, stds, weights = (a.to(x) for a in (self.means, self.stds, self.weights))
        distance = (x[:, None] - means).square().sum(2)
        return weights.log() - self.dim * (stds.log() + math.log(2 * math.pi) / 2) - distance / (2 * stds**2)

    def _proposal(self, gamma: float) -> Propose:
        precisions = torch.eye(self.dim, dtype=torch.float64) / self.stds[:, None, None] ** 2
        return _product_proposal(gamma, self.weights.log(), self.means, precisions, self._log_parts)

    def _limits(self, gamma: float) -> tuple[float, float]:
        reach = MARGIN * self.stds[:, None] / math.sqrt(gamma)
        return (self.means - reach).min().item(), (self.means + reach).max().item()


class Checkerboard(Density):
    """Uniform on the 8 dark squares, of side 2, of a board of 4 x 4 squares over [-4, 4]^2; the lower left one is dark.

    Every power of it is the same density.
    """

    name = "checkerboard"
    dim = 2

    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, 2]."""
        square = torch.randint(8, (num,), generator=rng)
        row = square // 2
        column = 2 * (square % 2) + row % 2
        corner = 2.0 * torch.stack([column, row], 1) - 4
        x = (corner + 2 * torch.rand(num, 2, generator=rng, dtype=torch.float64)).float()
        return torch.minimum(x, torch.nextafter(corner + 2, corner))  # float32 may have rounded a point into the next square

    def log_prob(self, x: Tensor) -> Tensor:
        """-log 32 on the dark squares and -inf elsewhere, [N], at `x` [N, 2]. A square owns its left and its lower edge."""
        column, row = (self._checked(x) / 2).floor().unbind(1)
        dark = ((column + row) % 2 == 0) & (x >= -4).all(1) & (x < 4).all(1)
        return torch.where(dark, -math.log(32), -math.inf).to(x)

    @property
    def limits(self) -> tuple[float, float]:
        """A little more than the board."""
        return -4.4, 4.4

    def power(self, gamma: float) -> Density:
        """Itself. DataError for a gamma that is not finite and positive."""
        _checked_gamma(gamma)
        return self


class Curve(SumOfGaussians):
    """Gaussian noise about curves in the plane: ``x = c(u) + noise n`` with u uniform on an interval and c one of the arms.

    ``p(x)``, an integral over u, is summed by Gauss-Legendre quadrature: it is a mixture with a Gaussian at each node. The error
    falls faster than exponentially as soon as nodes lie closer than `noise`. At a spacing of at most 0.7 `noise`, as
    for all the curves below, log p within 5 `noise` of the curve was measured to be right to 2e-11. Powers are those of this mixture.

    Args:
        name: what it is called.
        arms: the curves, each from u [N] to points [N, 2], all equally likely.
        interval: (low, high) of u.
        noise: standard deviation, positive.
        nodes: number of nodes an arm.

    Raises:
        DataError: for a noise that is not positive and finite, when the log-density is first asked for.

    """

    dim = 2

    def __init__(self, name: str, arms: tuple[Map, ...], interval: tuple[float, float], noise: float, nodes: int) -> None:
        self.name, self.arms, self.interval, self.noise, self.nodes = name, arms, interval, noise, nodes

    @cached_property
    def quadrature(self) -> Mixture:
        """The mixture of a Gaussian at each node of each arm."""
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
        """The log-density [N] at `x` [N, 2], computed in float64 and returned in the type of `x`."""
        block = 2**20 // (self.nodes * len(self.arms))
        return torch.cat([self.quadrature.log_prob(part) for part in self._checked(x).double().split(block)]).to(x)

    def _proposal(self, gamma: float) -> Propose:
        return self.quadrature._proposal(gamma)

    def _limits(self, gamma: float) -> tuple[float, float]:
        return self.quadrature._limits(gamma)


class Pinwheel(SumOfGaussians):
    """Arms that are bent Gaussians: ``x = R(2 pi k / arms + rate |f|) f``, R a rotation, k one of the arms.

    f is normal about (radius, 0), with standard deviations `radial_std` and `tangential_std`. The angle depends on |f| = |x|
    alone, so x -> ``R(-rate |x|) x`` undoes the bending and keeps areas: p is a sum of Gaussians in these coordinates.
    After the pinwheel of Johnson et al. 2016 (arXiv 1603.06277), whose angle depends on f's first coordinate.

    Args:
        arms: number of arms, all equally likely.
        radius: distance of their middle from the origin.
        radial_std, tangential_std: along an arm and across it.
        rate: radians a unit of length.

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
        """The log-density [N] at `x` [N, 2], in the type of `x`."""
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
        straight = _product_proposal(gamma, log_weights, self.radius * self.along, precisions, self._log_parts)

        def propose(num: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
            y, log_accept = straight(num, rng)
            return self._bend(y, self.rate), log_accept

        return propose

    def _limits(self, gamma: float) -> tuple[float, float]:
        reach = self.radius + MARGIN * self.radial_std / math.sqrt(gamma)
        return -reach, reach


def ring() -> Mixture:
    """8 modes on a circle of radius 3, standard deviation 0.2."""
    angle = 2 * math.pi * torch.arange(8, dtype=torch.float64) / 8
    return Mixture("ring", 3 * torch.stack([angle.cos(), angle.sin()], 1), 0.2)


def grid25() -> Mixture:
    """5 x 5 modes, 2 apart, standard deviation 0.2."""
    ticks = torch.arange(-4.0, 5, 2)
    return Mixture("grid25", torch.cartesian_prod(ticks, ticks), 0.2)


def unequal() -> Mixture:
    """3 modes of weights 1 : 2 : 4 and standard deviations 0.1, 0.2 and 0.4, so far apart that powers keep them apart."""
    means = torch.tensor([[-2.2, -1.4], [2.2, -1.4], [0.0, 1.8]], dtype=torch.float64)
    return Mixture("unequal", means, torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64), torch.tensor([1.0, 2, 4]))


def mixture8d() -> Mixture:
    """5 modes in 8 dimensions, at distance 4 from each other, standard deviation 0.3."""
    signs = ["+-+-+-+-", "-++--++-", "++--++--", "---++++-", "+-+--+-+"]  # rows of a Hadamard matrix, up to sign: orthogonal
    return Mixture("mixture8d", torch.tensor([[1.0 if sign == "+" else -1.0 for sign in row] for row in signs]), 0.3)


def gaussian() -> Mixture:
    """One mode at the origin, standard deviation 0.5."""
    return Mixture("gaussian", torch.zeros(1, 2), 0.5)


def bimodal() -> Mixture:
    """2 modes, 4 apart, standard deviation 0.5: the smallest case in which the mean of a posterior is no draw from it."""
    return Mixture("bimodal", torch.tensor([[-2.0, 0.0], [2.0, 0.0]], dtype=torch.float64), 0.5)


def moons() -> Curve:
    """Two interleaving half circles of radius 2, noise 0.15; one is the other turned by 180 degrees about the origin."""

    def arm(u: Tensor) -> Tensor:
        return torch.stack([2 * u.cos() - 1, 2 * u.sin() - 0.5], 1)

    return Curve("moons", (arm, lambda u: -arm(u)), (0.0, math.pi), noise=0.15, nodes=100)


def swiss_roll() -> Curve:
    """A spiral of one and a half turns, noise 0.12: the angle is uniform, the radius a quarter of it."""
    return Curve("swiss_roll", (lambda u: _spiral(0.25, u),), (1.5 * math.pi, 4.5 * math.pi), noise=0.12, nodes=500)


def spirals() -> Curve:
    """Two spirals of one and a quarter turns, noise 0.15: the square of the angle is uniform, so points lie about equally dense."""

    def arm(u: Tensor) -> Tensor:
        return _spiral(0.375, u.sqrt())

    return Curve("spirals", (arm, lambda u: -arm(u)), ((0.5 * math.pi) ** 2, (3 * math.pi) ** 2), noise=0.15, nodes=250)


def _spiral(pitch: float, angle: Tensor) -> Tensor:
    return pitch * angle[:, None] * torch.stack([angle.cos(), angle.sin()], 1)


DENSITIES: dict[str, Callable[[], Density]] = {
    "ring": ring,
    "grid25": grid25,
    "unequal": unequal,
    "mixture8d": mixture8d,
    "gaussian": gaussian,
    "bimodal": bimodal,
    "checkerboard": Checkerboard,
    "swiss_roll": swiss_roll,
    "moons": moons,
    "spirals": spirals,
    "pinwheel": Pinwheel,
}


def make_density(name: str) -> Density:
    """The density called `name` in `DENSITIES`. DataError, with the nearest name, where there is none."""
    if name not in DENSITIES:
        nearest = difflib.get_close_matches(name, DENSITIES, 1, 0.0)[0]
        raise DataError(f"there is no density {name!r}; did you mean {nearest!r}? allowed are {', '.join(DENSITIES)}")
    return DENSITIES[name]()


def toy_data(name_or_density: str | Density, size: int = 20_000, seed: int = 0) -> PointData:
    """`size` points to train and 10,000 held out, drawn from `seed`; the held-out points do not depend on `size`.

    Raises DataError for a name that is unknown and for a size below 2.
    """
    if size < 2:
        raise DataError(f"data.size is {size}; at least 2 points are needed to train, choose a larger data.size")
    density = make_density(name_or_density) if isinstance(name_or_density, str) else name_or_density
    # hashed, so that neither split shares a stream with the noise of a loop that is seeded with the same number
    streams = np.random.SeedSequence(seed % 2**64).generate_state(2, np.uint64)
    train, heldout = (
        density.sample(num, torch.Generator().manual_seed(int(stream))) for num, stream in zip((size, HELDOUT), streams, strict=True)
    )
    return PointData(density.name, train, heldout, density)
