"""Kernel averages over samples, in memory linear in their number, and entropic transport plans between sets.

Symbols: queries ``x`` [N, D], samples ``y`` [M, D] with optional log-weights ``l`` [M], temperature ``T``; the kernel is
``exp(-|x - y|^2 / T)`` ("gaussian") or ``exp(-|x - y| / T)`` ("laplace"). A barycentre is ``sum_j w_ij y_j`` with
``w_ij = softmax_j(log k(x_i, y_j) + l_j)``: for the Gaussian kernel the optimal denoiser of the samples at ``sigma^2 = T / 2``
(arXiv 2603.07514).

The Gaussian one is softmax attention, query ``[2 x / T, 1]``, key ``[y, l - |y|^2 / T]``, and so torch's fused kernel does it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

KERNELS = ("gaussian", "laplace")
BLOCK = 2**22  # logits held at once
SPREAD = 1000.0  # from |y|^2 / T on, float32 attention logits round too coarsely, and distances are taken directly


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
    """Blocks of x so small that block times M is bounded, and where each begins."""
    size = max(1, BLOCK // len(y))
    return ((start, x[start : start + size]) for start in range(0, len(x), size))


def _logits(x: Tensor, y: Tensor, temperature: float, kernel: str, start: int | None, log_weights: Tensor | None) -> Tensor:
    """``log k(x_i, y_j) + l_j`` [n, M]; with `start`, row i is row ``start + i`` of y and leaves itself out."""
    distance = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    logits = (distance.square_() if kernel == "gaussian" else distance).div_(-temperature)
    if log_weights is not None:
        logits += log_weights
    if start is not None:
        logits.diagonal(start).fill_(-torch.inf)
    return logits


def _attention(x: Tensor, y: Tensor, temperature: float, exclude_self: bool, log_weights: Tensor | None) -> Tensor:
    """The Gaussian barycentre by fused attention; each block of queries masks itself among all keys."""
    bias = y.square().sum(1, keepdim=True) / -temperature
    if log_weights is not None:
        bias = bias + log_weights[:, None]
    query = torch.cat([x * (2 / temperature), torch.ones_like(x[:, :1])], 1)
    key, value = torch.cat([y, bias], 1), pad(y, (0, 1))
    padding = -query.shape[1] % 8 if query.is_cuda else 0  # what CUDA's kernels ask of the feature dimension
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
    """``sum_j softmax_j(log k(x_i, y_j) + l_j) y_j``, like `x` [N, D], for samples `y` [M, D], in O(N + M) memory.

    With `exclude_self`, x and y are one set and no row counts for itself (masked, not subtracted afterwards: that loses
    everything where the own weight dominates). `log_weights` [M] weigh the samples. No gradient: the result is a target.

    Source: mean shift; MATHS 3.1. Raises ValueError for shapes that do not fit, integers, a temperature that is not positive, an
    unknown kernel, or fewer than 2 rows with `exclude_self`.
    """
    _check(x, y, temperature, kernel, exclude_self)
    dtype = x.dtype
    x = x.detach().float() if x.dtype in (torch.float16, torch.bfloat16) else x.detach()
    y = y.detach().to(x)
    log_weights = None if log_weights is None else log_weights.detach().to(x)
    centre = y.mean(0)  # logits then grow with the spread of the data, not with where it lies
    x, y = x - centre, y - centre
    with torch.autocast(x.device.type, enabled=False):  # products in bfloat16 would round the logits to whole numbers
        if kernel == "gaussian" and x.dtype == torch.float32 and y.square().sum(1).max().item() < SPREAD * temperature:
            return (_attention(x, y, temperature, exclude_self, log_weights) + centre).to(dtype)
        result = torch.empty_like(x)  # small results allocated between large blocks would keep the allocator from reusing these
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
    """``log sum_j k(x_i, y_j) e^(l_j)`` [N], in O(N + M) memory: a kernel density estimate. Raises ValueError as `barycenter` does."""
    _check(x, y, temperature, kernel, exclude_self)
    result = x.new_empty(len(x))
    for start, rows in _rows(x, y):
        logits = _logits(rows, y, temperature, kernel, start if exclude_self else None, log_weights)
        result[start : start + len(rows)] = logits.logsumexp(1)
    return result


def sinkhorn_log_weights(x: Tensor, y: Tensor, temperature: float, kernel: str = "gaussian", iterations: int = 20) -> Tensor:
    """Log-weights [M] of `y` with which `barycenter` averages over the entropic transport plan from x to y, both uniform.

    Sinkhorn's iterations on log-potentials: ``f_i = -log sum_j k_ij e^(g_j) / M``, ``g_j = -log sum_i k_ij e^(f_i) / N``. The plan's
    rows are exact (a softmax), its columns as good as `iterations` made them. Each sample of y then pulls with the same total
    weight, which keeps a cluster with few x from being left (Sinkhorn drifting, arXiv 2603.12366). Raises ValueError as `barycenter`.
    """
    _check(x, y, temperature, kernel, False)
    x, y = x.detach(), y.detach()
    g = y.new_zeros(len(y))
    if len(x) * len(y) <= BLOCK:
        logits = _logits(x, y, temperature, kernel, None, None)
        for _ in range(iterations):
            f = -torch.logsumexp(logits + g, 1, keepdim=True)
            g = -torch.logsumexp(logits + f, 0)
        return g
    for _ in range(iterations):
        f = -log_kernel_sum(x, y, temperature, kernel, log_weights=g)
        g = -log_kernel_sum(y, x, temperature, kernel, log_weights=f)
    return g


def temperature_range(y: Tensor, neighbours: float = 0.04) -> tuple[float, float]:
    """(high, low): temperatures between which a Gaussian kernel sees all of a batch `y` [N, D], and only its details.

    High is twice the total variance, the mean squared distance of two points: all modes pull. Low is the median squared distance to
    the neighbour of rank ``neighbours * N``: most of a point's pull comes from so many. Scales with the square of the data.
    Raises ValueError for fewer than 2 rows.
    """
    if len(y) < 2:
        raise ValueError(f"y has {len(y)} rows; 2 are needed for a distance")
    rank = min(len(y) - 1, max(1, round(neighbours * len(y))))
    distance = torch.cdist(y.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square()
    return 2 * y.double().var(0).sum().item(), distance.kthvalue(rank + 1, 1).values.median().item()
