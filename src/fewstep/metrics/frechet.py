"""The Frechet distance between two sets of features, each taken for a Gaussian (FID, arXiv 1706.08500, Eq. 6)."""

import torch
from torch import Tensor


def gaussian_moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and unbiased covariance [D, D] of features [N, D], in float64."""
    features = features.double()
    return features.mean(0), features.T.cov()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """``|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` of features a [N, D] and b [M, D].

    Worked out in float64 by symmetric eigenvalues, so that a rank-deficient covariance (N < D) does no harm. It is biased
    upwards at small N: compare equal N only. Raises ValueError for fewer than 2 rows or unequal D.
    """
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give [N, D] and [M, D] with N, M >= 2")
    mean_a, cov_a = gaussian_moments(a)
    mean_b, cov_b = gaussian_moments(b)
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = vectors * values.clamp_min(0).sqrt() @ vectors.T
    # tr (S_a S_b)^(1/2) = tr (S_a^(1/2) S_b S_a^(1/2))^(1/2), and the latter matrix is symmetric
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    return ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()
