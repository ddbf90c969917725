"""Measures by nearest neighbours: precision and recall, and how close generated samples lie to single training images."""

import torch
from torch import Tensor


def nearest_distance(a: Tensor, b: Tensor, k: int = 1, same: bool = False) -> Tensor:
    """Euclidean distance from each row of a [N, D] to its k-th nearest row of b [M, D]: float64 [N].

    With `same`, a and b are one set and a row does not count as its own neighbour.
    """
    a, b = a.double(), b.double()
    parts = [torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist").kthvalue(k + same, dim=1).values for rows in a.split(1024)]
    return torch.cat(parts)


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (arXiv 1904.06991, Sec. 2) of features real [N, D] and fake [M, D].

    Precision is the share of fake rows inside the union of balls round the real rows, each reaching to its k-th neighbour;
    recall is the same with the roles exchanged. A set collapsed onto few real rows has high precision and low recall.
    Raises ValueError unless both sets have more than `k` rows.
    """
    real, fake = torch.as_tensor(real).double(), torch.as_tensor(fake).double()
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) <= k:
        raise ValueError(f"features have shapes {tuple(real.shape)} and {tuple(fake.shape)}; give [N, D], [M, D] with N, M > k = {k}")

    def covered(points: Tensor, centres: Tensor) -> float:
        radius = nearest_distance(centres, centres, k, same=True)
        inside = [(torch.cdist(rows, centres, compute_mode="donot_use_mm_for_euclid_dist") <= radius).any(1) for rows in points.split(1024)]
        return torch.cat(inside).double().mean().item()

    return covered(fake, real), covered(real, fake)
