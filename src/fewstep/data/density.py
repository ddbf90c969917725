"""The interface of a density: its exact samples, its log-density, its powers, and its modes if they are known.

Symbols: a density ``p`` in D dimensions and its power ``p^gamma``, which is sharper than p for gamma above 1, and flatter for gamma below
1. All randomness comes from the CPU generator `rng`; samples are float32.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from fewstep.data.errors import DataError


def checked_gamma(gamma: float) -> float:
    """Return `gamma`, the power of a density. Raises DataError if it is not finite and positive."""
    if not (math.isfinite(gamma) and gamma > 0):
        raise DataError(f"gamma is {gamma}; allowed is any finite number above 0, and 1 is the density itself")
    return float(gamma)


class Density(ABC):
    """A probability density with exact samples and an exact log-density.

    Attributes:
        name: name of the density in tables.
        dim: number of dimensions, D.

    """

    name: str
    dim: int

    @abstractmethod
    def sample(self, num: int, rng: torch.Generator) -> Tensor:
        """Independent exact samples, float32 [num, D]."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """The logarithm [N] of the density at `x` [N, D], in the dtype of `x`; differentiable. Raises DataError for another shape."""

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """(low, high), the same for every axis: all but 1e-4 of the mass lies in ``[low, high]^D``."""

    @abstractmethod
    def power(self, gamma: float) -> "Density":
        """The density proportional to ``p^gamma``; itself for gamma 1. Raises DataError if gamma is not finite and positive."""

    @property
    def modes(self) -> Tensor:
        """Means of the modes, float64 [K, D]. Raises DataError for a density that is not a mixture of Gaussians."""
        raise self._modeless("modes")

    @property
    def mode_stds(self) -> Tensor:
        """Standard deviation of each mode, float64 [K]. Raises DataError as `modes` does."""
        raise self._modeless("mode_stds")

    @property
    def mode_weights(self) -> Tensor:
        """Weight of each mode, float64 [K], of sum 1. Raises DataError as `modes` does."""
        raise self._modeless("mode_weights")

    def _modeless(self, asked: str) -> DataError:
        having = "only mixtures have modes (fewstep.data.Mixture; make_density('ring') is one)"
        return DataError(f"{asked} of {self.name!r} was asked for; {having}: take one, or no metric of modes")

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise DataError(f"points of shape {list(x.shape)} were given to {self.name!r}; its points have shape [N, {self.dim}]")
        return x
