"""The generalised energy score: a loss whose minimiser is a sampler of the posterior, and not its mean.

Symbols: ``x0`` the truth [B, ...], ``xhat_j`` m particles that should be distributed like it [B, m, ...], ``beta`` in (0, 2] the power
of the distance, ``lam`` in [0, 1] the weight of the term that keeps the particles apart. Norms are over a whole item.
"""

import torch
from torch import Tensor

TINY = 1e-12  # inside the root: the gradient of a distance of 0 is 0 and not infinite


def particle_distances(x0: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """(|x0 - xhat_j| as [B, m], |xhat_j - xhat_k| as [B, m, m]) in float32 (float64 stays), for `x0` [B, ...], `samples` [B, m, ...].

    All distances come from one pass that takes differences directly and keeps no [B, m, m, D] array (torch's CUDA backward of
    `cdist` has one for a moment).
    """
    dtype = torch.promote_types(samples.dtype, torch.float32)
    particles = samples.flatten(2).to(dtype)
    targets = torch.cat([x0.flatten(1).to(dtype)[:, None], particles], 1)
    squares = torch.cdist(particles, targets, compute_mode="donot_use_mm_for_euclid_dist").square()
    distances = (squares + TINY).sqrt()
    return distances[..., 0], distances[..., 1:]


def energy_score_of(errors: Tensor, pairs: Tensor, beta: float, lam: float) -> Tensor:
    """The score [B] of distances `errors` [B, m] and `pairs` [B, m, m], as `particle_distances` gives them (arXiv 2502.02483, Eq. 14).

    ``mean_j errors_j^beta - lam / 2 * mean_(j != k) pairs_jk^beta``: the pair term is divided by m (m - 1), once.
    """
    score = errors.pow(beta).mean(1)
    if lam == 0:
        return score
    m = errors.shape[1]
    apart = pairs.pow(beta).masked_fill(torch.eye(m, dtype=torch.bool, device=pairs.device), 0.0).sum((1, 2)) / (m * (m - 1))
    return score - lam / 2 * apart


def generalized_energy_score(x0: Tensor, samples: Tensor, beta: float, lam: float) -> Tensor:
    """The generalised energy score of `samples` [B, m, ...] for the truth `x0` [B, ...]: [B] (arXiv 2502.02483, Eqs. 12-14).

    Lowest in expectation where the samples are distributed as x0 is, strictly so for ``lam = 1`` and ``beta < 2``; with
    ``beta = 2, lam = 0`` it is the squared error of ordinary diffusion.

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
    """Mean distance of two particles, and, never 0, that of a particle from the truth: scalars, whose ratio is the calibration.

    It is 1 where the particles are draws from the posterior, as the truth is; 0 where they coincide, whatever the noise they were made of.
    """
    m = errors.shape[1]
    apart = pairs.masked_fill(torch.eye(m, dtype=torch.bool, device=pairs.device), 0.0).sum() / (len(pairs) * m * (m - 1))
    return apart, errors.mean().clamp_min(TINY)
