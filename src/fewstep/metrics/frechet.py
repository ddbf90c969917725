"""The Frechet distance between two sets of features, each taken for a Gaussian (FID, arXiv 1706.08500, Eq. 6).

Symbols: features [N, D] with mean ``mu`` [D] and unbiased covariance ``S`` [D, D], in float64. Moments are added up batch by batch, so
that no more than a batch of features need be in memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Gaussian:
    """A Gaussian in feature space: `mean` [D] and `covariance` [D, D], float64."""

    mean: Tensor
    covariance: Tensor

    @cached_property
    def root(self) -> Tensor:
        """``S^(1/2)`` [D, D], by the eigenvalues of S; negative eigenvalues, which come from rounding, count as 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return vectors * values.clamp_min(0).sqrt() @ vectors.T


@dataclass(frozen=True)
class Moments:
    """The moments of a set of `num` features: `mean` [D] and `scatter` [D, D], the sum of ``(x - mean)(x - mean)^T``, float64."""

    num: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Return the moments of features [N, D]."""
        features = features.double()
        mean = features.mean(0)
        return cls(len(features), mean, (features - mean).T @ (features - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Return the moments of both sets together (Chan, Golub and LeVeque 1979); centred squares lose no digits to a large mean."""
        num, step = self.num + other.num, other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.num * other.num / num)
        return Moments(num, self.mean + step * (other.num / num), scatter)

    def gaussian(self) -> Gaussian:
        """Return the Gaussian of this mean and the unbiased covariance; needs at least 2 features."""
        return Gaussian(self.mean, self.scatter / (self.num - 1))


def add_up(parts: Iterable[Moments]) -> Moments:
    """Return the moments of all `parts` together, of which there must be at least one."""
    parts = iter(parts)
    total = next(parts)
    for part in parts:
        total = total + part
    return total


def gaussian_distance(a: Gaussian, b: Gaussian) -> float:
    """Return ``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))``; the root of `b` is cached, so let many be measured against one `b`.

    A rank-deficient covariance (fewer rows than dimensions) does no harm. Raises ValueError for unequal D.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have {len(a.mean)} and {len(b.mean)} dimensions; give two sets from the same feature network")
    # tr (S_a S_b)^(1/2) = tr (S_b^(1/2) S_a S_b^(1/2))^(1/2), and the last matrix is symmetric
    cross = torch.linalg.eigvalsh(b.root @ a.covariance @ b.root).clamp_min(0).sqrt().sum()
    return ((a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross).item()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the `gaussian_distance` of the Gaussians fitted to features a [N, D] and b [M, D].

    It is computed in float64, and biased upwards at small N: compare figures of equal N only. Raises ValueError for fewer than 2 rows
    or unequal D.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give [N, D] and [M, D] with N, M >= 2")
    return gaussian_distance(Moments.of(a).gaussian(), Moments.of(b).gaussian())


def expected_bias(halves: tuple[Gaussian, Gaussian], whole: Gaussian, reference: Gaussian) -> float:
    """Return by how much the Frechet distance of a set of n features, `whole`, to `reference` is too large because n is finite.

    The distance is ``F(n) = F_inf + C / n`` to first order (arXiv 1911.07023, Sec. 3), hence ``C / n = F(n / 2) - F(n)``; F(n / 2)
    is the mean over the set's two `halves`.
    """
    half = sum(gaussian_distance(part, reference) for part in halves) / 2
    return half - gaussian_distance(whole, reference)
