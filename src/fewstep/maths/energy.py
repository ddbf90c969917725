"""The generalised energy score: a loss whose minimiser samples from the posterior, instead of predicting its mean.

Symbols: ``x0`` the true item [B, ...], ``xhat_j`` m particles [B, m, ...] that should have the distribution of ``x0``, ``beta`` in (0, 2]
the power of the distance, ``lam`` in [0, 1] the weight of the term that keeps the particles apart. Norms are over a whole item.
"""

import torch
from torch import Tensor

TINY = 1e-12  # added inside the square root, so that the gradient of a distance of 0 is 0 and not infinite


def particle_distances(x0: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return (|x0 - xhat_j| [B, m], |xhat_j - xhat_k| [B, m, m]) for `x0` [B, ...] and `samples` [B, m, ...], in float32 or float64.

    All distances are computed in one call that takes differences directly and stores no [B, m, m, D] array (the backward pass of torch's
    `cdist` on CUDA briefly does).
    """
    dtype = torch.promote_types(samples.dtype, torch.float32)
    particles = samples.flatten(2).to(dtype)
    targets = torch.cat([x0.flatten(1).to(dtype)[:, None], particles], 1)
    squares = torch.cdist(particles, targets, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = (squares + TINY).sqrt()
    return distances[..., 0], distances[..., 1:]


def energy_score_of(errors: Tensor, pairs: Tensor, beta: float, lam: float) -> Tensor:
    """Return the score [B] of the distances `errors` [B, m] and `pairs` [B, m, m] of `particle_distances` (arXiv 2502.02483, Eq. 14).

    It is ``mean_j errors_j^beta - lam / 2 * mean_(j != k) pairs_jk^beta``; the mean over pairs is their sum divided by m (m - 1).
    """
    score = errors.pow(beta).mean(1)
    if lam == 0:
        return score
    m = errors.shape[1]
    apart = pairs.pow(beta).masked_fill(torch.eye(m, dtype=torch.bool, device=pairs.device), 0.0).sum((1, 2)) / (m * (m - 1))
    return score - lam / 2 * apart


def generalized_energy_score(x0: Tensor, samples: Tensor, beta: float, lam: float) -> Tensor:
    """Return the generalised energy score [B] of `samples` [B, m, ...] for true items `x0` [B, ...] (arXiv 2502.02483, Eqs. 12-14).

    Its expectation is lowest where the samples have the distribution of x0, strictly so for ``lam = 1`` and ``beta < 2``; with
    ``beta = 2, lam = 0`` it is the squared error of ordinary diffusion training.

    Raises:
        ValueError: for `beta` outside (0, 2], `lam` outside [0, 1], shapes that do not fit, or fewer than 2 samples with lam > 0.

    """
    if not 0 < beta <= 2:
        raise ValueError(f"beta is {beta}; allowed are values above 0, up to 2")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam is {lam}; allowed are values from 0 to 1")
    if x0.ndim < 2 or samples.ndim != x0.ndim + 1 or samples.shape[0] != x0.shape[0] or samples.shape[2:] != x0.shape[1:]:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, samples {tuple(samples.shape)}; give [B, ...] and [B, m, ...]")
    if samples.shape[1] < 2 and lam > 0:
        raise ValueError(f"m is {samples.shape[1]} with lam {lam}; pairs need m of at least 2, or lam 0")
    return energy_score_of(*particle_distances(x0, samples), beta, lam)


def calibration(errors: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Return (mean distance of two particles, mean distance of a particle from the true item), scalars whose ratio is the calibration.

    The ratio is 1 where the particles are draws from the posterior, like the true item, and 0 where all particles of an item coincide. The
    second scalar is kept above 0. `errors` [B, m] and `pairs` [B, m, m] are the distances of `particle_distances`.
    """
    m = errors.shape[1]
    apart = pairs.masked_fill(torch.eye(m, dtype=torch.bool, device=pairs.device), 0.0).sum() / (len(pairs) * m * (m - 1))
    return apart, errors.mean().clamp_min(TINY)
