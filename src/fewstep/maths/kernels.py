"""Kernel averages over samples, in memory linear in the number of samples, and entropic transport plans between sets of samples.

Symbols: queries ``x`` [N, D], samples ``y`` [M, D] with optional log-weights ``l`` [M], temperature ``T``; the kernel is
``exp(-|x - y|^2 / T)`` ("gaussian") or ``exp(-|x - y| / T)`` ("laplace"). A barycentre is ``sum_j w_ij y_j`` with
``w_ij = softmax_j(log k(x_i, y_j) + l_j)``: for the Gaussian kernel the optimal denoiser of the samples at ``sigma^2 = T / 2``
(arXiv 2603.07514).

The Gaussian barycentre is softmax attention with query ``[2 x / T, 1]`` and key ``[y, l - |y|^2 / T]``, computed by torch's fused kernel.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

KERNELS = ("gaussian", "laplace")
BLOCK = 2**22  # largest number of logits held in memory at a time
SPREAD = 1000.0  # value of |y|^2 / T from which float32 attention logits round too coarsely, and distances are computed directly


def _check(x: Tensor, y: Tensor, temperature: float, kernel: str, exclude_self: bool) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; give [N, D] and [M, D]")
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError(f"x and y are {x.dtype} and {y.dtype}; both must be floating point")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; it must be positive")
    if kernel not in KERNELS:
        raise ValueError(f"kernel is {kernel!r}; allowed: {', '.join(KERNELS)}")
    if len(y) < 1 + exclude_self:
        raise ValueError(f"y has {len(y)} rows; {'2 are needed where each leaves itself out' if exclude_self else '1 is needed'}")
    if exclude_self and len(x) != len(y):
        raise ValueError(f"x has {len(x)} rows and y {len(y)}; with exclude_self they are one set, row by row")


def _rows(x: Tensor, y: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first row, rows) of blocks of `x`, with block size times M bounded by `BLOCK`."""
    size = max(1, BLOCK // len(y))
    return ((start, x[start : start + size]) for start in range(0, len(x), size))


def _logits(x: Tensor, y: Tensor, temperature: float, kernel: str, start: int | None, log_weights: Tensor | None) -> Tensor:
    """Return ``log k(x_i, y_j) + l_j`` [n, M]; with `start`, row i of `x` is row ``start + i`` of `y`, and that entry is -inf."""
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    logits = (distance.square_() if kernel == "gaussian" else distance).div_(-temperature)
    if log_weights is not None:
        logits += log_weights
    if start is not None:
        logits.diagonal(start).fill_(-torch.inf)
    return logits


def _attention(x: Tensor, y: Tensor, temperature: float, exclude_self: bool, log_weights: Tensor | None) -> Tensor:
    """Return the Gaussian barycentre by fused attention; with `exclude_self`, each query's own key is masked, in blocks of queries."""
    bias = y.square().sum(1, keepdim=True) / -temperature
    if log_weights is not None:
        bias = bias + log_weights[:, None]
    query = torch.cat([x * (2 / temperature), torch.ones_like(x[:, :1])], 1)
    key, value = torch.cat([y, bias], 1), pad(y, (0, 1))
    padding = -query.shape[1] % 8 if query.is_cuda else 0  # CUDA's kernels need a feature dimension divisible by 8
    query, key, value = (pad(a, (0, padding))[None, None] for a in (query, key, value))
    if not exclude_self:
        return scaled_dot_product_attention(query, key, value, scale=1.0)[0, 0, :, : x.shape[1]]
    parts = []
    mask = x.new_zeros(min(len(x), max(1, BLOCK // len(y))), -(-len(y) // 8) * 8)[:, : len(y)]
    for start, rows in _rows(x, y):
        own = mask[: len(rows)].diagonal(start)
        own.fill_(-torch.inf)
        block = query[:, :, start : start + len(rows)]
        parts.append(scaled_dot_product_attention(block, key, value, attn_mask=mask[: len(rows)], scale=1.0)[0, 0, :, : x.shape[1]])
        own.zero_()
    return torch.cat(parts)


def barycenter(
    x: Tensor,
    y: Tensor,
    temperature: float,
    kernel: str = "gaussian",
    exclude_self: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return ``sum_j softmax_j(log k(x_i, y_j) + l_j) y_j``, like `x` [N, D], for samples `y` [M, D], in O(N + M) memory.

    With `exclude_self`, x and y are one set, and no row counts for itself: its weight is masked, because subtracting it afterwards would
    lose all precision where it dominates. `log_weights` [M] weigh the samples. The result, meant as a target, carries no gradient.

    Source: mean shift (Comaniciu & Meer 2002). Raises ValueError for shapes that do not fit, integers, a temperature that is not
    positive, an unknown kernel, or fewer than 2 rows with `exclude_self`.
    """
    _check(x, y, temperature, kernel, exclude_self)
    dtype = x.dtype
    x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    y = y.detach().to(x)
    log_weights = None if log_weights is None else log_weights.detach().to(x)
    centre = y.mean(0)  # subtracted, so that logits grow with the spread of the data and not with its distance from 0
    x, y = x - centre, y - centre
    with torch.autocast(x.device.type, enabled=False):  # products in bfloat16 would round large logits to whole numbers
        if kernel == "gaussian" and x.dtype == torch.float32 and y.square().sum(1).max().item() < SPREAD * temperature:
            return (_attention(x, y, temperature, exclude_self, log_weights) + centre).to(dtype)
        result = torch.empty_like(x)  # allocated once: small results between large blocks would fragment the memory
        for start, rows in _rows(x, y):
            logits = _logits(rows, y, temperature, kernel, start if exclude_self else None, log_weights)
            result[start : start + len(rows)] = logits.softmax(1) @ y
        return (result + centre).to(dtype)


def log_kernel_sum(
    x: Tensor,
    y: Tensor,
    temperature: float,
    kernel: str = "gaussian",
    exclude_self: bool = False,
    log_weights: Tensor | None = None,
) -> Tensor:
    """Return ``log sum_j k(x_i, y_j) e^(l_j)`` [N], an unnormalised log kernel density, in O(N + M) memory.

    Raises ValueError as `barycenter` does.
    """
    _check(x, y, temperature, kernel, exclude_self)
    result = x.new_empty(len(x))
    for start, rows in _rows(x, y):
        logits = _logits(rows, y, temperature, kernel, start if exclude_self else None, log_weights)
        result[start : start + len(rows)] = logits.logsumexp(1)
    return result


def sinkhorn_log_weights(
    x: Tensor, y: Tensor, temperature: float, kernel: str = "gaussian", iterations: int = 20, exclude_self: bool = False
) -> Tensor:
    """Return log-weights [M] of `y` with which `barycenter` averages over the entropic transport plan from `x` to `y`, both uniform.

    Sinkhorn's iterations on log-potentials: ``f_i = -log sum_j k_ij e^(g_j) / M``, ``g_j = -log sum_i k_ij e^(f_i) / N``. The plan's row
    sums are exact (a softmax); its column sums become so as `iterations` grow. Each sample of y then pulls with the same total weight, so
    that a cluster with few x near it is not abandoned (Sinkhorn drifting, arXiv 2603.12366). With `exclude_self`, x and y are one set, and
    the plan moves no row to itself. Raises ValueError as `barycenter` does.
    """
    _check(x, y, temperature, kernel, exclude_self)
    x, y = x.detach(), y.detach()
    g = y.new_zeros(len(y))
    if len(x) * len(y) <= BLOCK:
        logits = _logits(x, y, temperature, kernel, 0 if exclude_self else None, None)
        for _ in range(iterations):
            f = -torch.logsumexp(logits + g, 1, keepdim=True)
            g = -torch.logsumexp(logits + f, 0)
        return g
    for _ in range(iterations):
        f = -log_kernel_sum(x, y, temperature, kernel, exclude_self, g)
        g = -log_kernel_sum(y, x, temperature, kernel, exclude_self, f)
    return g


def temperature_range(y: Tensor, neighbours: float = 0.04) -> tuple[float, float]:
    """Return (high, low): temperatures at which a Gaussian kernel reaches across a whole batch `y` [N, D], or only near neighbours.

    High is twice the total variance, which is the mean squared distance of two points: all modes pull. Low is the median squared distance
    to the neighbour of rank ``neighbours * N``: most of the pull on a point comes from that many neighbours. Both scale with the square of
    the data. Raises ValueError for fewer than 2 rows.
    """
    if len(y) < 2:
        raise ValueError(f"y has {len(y)} rows; 2 are needed for a distance")
    rank = min(len(y) - 1, max(1, round(neighbours * len(y))))
    distance = torch.cdist(y.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return 2 * y.double().var(0).sum().item(), distance.kthvalue(rank + 1, 1).values.median().item()
