"""Validation of the parameters of a mixture of isotropic Gaussians, ``p = sum_k pi_k N(mu_k, s_k^2 I)``.

Symbols: K modes; mode ``k`` has the mean ``mu_k`` in D dimensions, standard deviation ``s_k`` and weight ``pi_k``.
"""

import torch
from torch import Tensor


def checked_mixture(means: Tensor, stds: Tensor | float, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return means [K, D], standard deviations [K] and weights [K] that sum to 1, all of the type of `means`, or float64 for integers.

    Args:
        means: the modes' means [K, D], finite.
        stds: the modes' standard deviations [K], or one number for all modes; positive and finite.
        weights: the modes' weights [K], positive and finite, with any sum; None for equal weights.

    Raises:
        ValueError: for other shapes, or values that are not finite or not positive.

    """
    means = torch.as_tensor(means)
    means = means if means.is_floating_point() else means.double()
    if means.ndim != 2 or not means.numel():
        raise ValueError(f"means have shape {tuple(means.shape)}; give [K, D], one row a mode")
    modes = len(means)
    stds = torch.as_tensor(stds, dtype=means.dtype)
    if stds.shape not in ((), (modes,)):
        raise ValueError(f"stds have shape {tuple(stds.shape)} for {modes} means; give one number a mode, or one for all")
    stds = stds.expand(modes)
    weights = torch.ones(modes, dtype=means.dtype) if weights is None else torch.as_tensor(weights, dtype=means.dtype)
    if weights.shape != (modes,):
        raise ValueError(f"weights have shape {tuple(weights.shape)} for {modes} means; give one weight a mode")
    if not means.isfinite().all():
        raise ValueError(f"means are {means.tolist()}; all must be finite")
    for name, a in {"stds": stds, "weights": weights}.items():
        if not ((a > 0) & a.isfinite()).all():
            raise ValueError(f"{name} are {a.tolist()}; all must be positive and finite")
    return means, stds, weights / weights.sum()
