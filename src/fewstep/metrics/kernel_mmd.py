"""The kernel distance KID: an unbiased estimate of a squared maximum mean discrepancy (arXiv 1801.01401, Sec. 4)."""

import numpy as np
import torch
from torch import Tensor

BLOCK = 2048  # rows at a time


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Return the unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` of features a [N, D] and b [M, D]; 0 in expectation on equal laws.

    All pairs are used, in float64, a block of rows at a time. Raises ValueError for fewer than 2 rows or unequal D.
    """
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give [N, D] and [M, D] with N, M >= 2")

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1).pow_(3).sum()

    def within(x: Tensor) -> Tensor:
        blocks = x.split(BLOCK)
        on = torch.stack([kernel_sum(block, block) for block in blocks]).sum()
        # the kernel is symmetric: blocks above the diagonal count twice
        above = [kernel_sum(block, x[i * BLOCK :]) for i, block in enumerate(blocks[:-1], start=1)]
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (on + 2 * sum(above, torch.zeros_like(on)) - diagonal) / (len(x) * (len(x) - 1))

    across = torch.stack([kernel_sum(rows, b) for rows in a.split(BLOCK)]).sum()
    return (within(a) + within(b) - 2 * across / (len(a) * len(b))).item()


def kernel_distance_subsets(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> tuple[float, float]:
    """Return mean and standard deviation of `kernel_distance` over random subsets: the form of KID that papers report.

    Each of the `subsets` takes `size` rows of a [N, D] and of b [M, D] without repeats, drawn as torch-fidelity draws them
    (numpy's ``RandomState(seed).choice``); the standard deviation is over the subsets, with their number as divisor. Raises ValueError
    where a or b has fewer than `size` rows.
    """
    if min(len(a), len(b)) < size:
        raise ValueError(f"the sets have {len(a)} and {len(b)} rows; subsets of {size} need as many of each: give a smaller size")
    rng = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        rows = [torch.from_numpy(rng.choice(len(x), size, replace=False)).to(x.device) for x in (a, b)]
        values.append(kernel_distance(a[rows[0]], b[rows[1]]))
    return float(np.mean(values)), float(np.std(values))
