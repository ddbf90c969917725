"""The kernel distance KID: an unbiased estimate of a squared maximum mean discrepancy (arXiv 1801.01401, Sec. 4)."""

import torch
from torch import Tensor


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased MMD^2 with the kernel ``(x.y / D + 1)^3`` of features a [N, D] and b [M, D]; 0 in expectation on equal laws.

    All pairs are used, in float64, a block of rows at a time. Raises ValueError for fewer than 2 rows or unequal D.
    """
    a, b = torch.as_tensor(a).double(), torch.as_tensor(b).double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(f"features have shapes {tuple(a.shape)} and {tuple(b.shape)}; give [N, D] and [M, D] with N, M >= 2")

    def kernel_sum(x: Tensor, y: Tensor) -> Tensor:
        return torch.stack([(rows @ y.T / x.shape[1] + 1).pow(3).sum() for rows in x.split(2048)]).sum()

    def within(x: Tensor) -> Tensor:
        diagonal = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
        return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * kernel_sum(a, b) / (len(a) * len(b))).item()
