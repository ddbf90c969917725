"""Distances between two sets of points that need no features: energy distance, MMD^2, sliced Wasserstein-2, with errors.

Symbols: sets ``x`` [N, D] and ``y`` [M, D], each taken for independent draws of a law; primes mark a second draw of the same
law; ``h`` a kernel's bandwidth. All is computed on the CPU in float64, from direct differences: an energy distance is often
1e-3, as a difference of means of order 1, and would drown in the rounding of ``|x|^2 + |y|^2 - 2 x.y``.

**Errors.** A standard error is that of the delete-a-group jackknife (Kott 2001, J. Official Statistics 17, 521; grouped by
Tukey; Efron and Tibshirani 1993, Ch. 11): the rows of each set are dealt at random into G = 20 groups, a figure t_g is
computed without the g-th group of either set, and ``error^2 = (G - 1)/G sum_g (t_g - mean t)^2``. Being a sum of G - 1
squares, an error is itself known to about 16 %. Group g of x is left out together with group g of y, so that sets of equal size
whose rows are paired (made from the same noise) get the error of a paired comparison. Between equal laws, where these figures
have no linear term, the error comes out 1.2 to 1.6 times too large: it errs on the safe side at the floor.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

GROUPS = 20
LEAST_ROWS = 2 * GROUPS  # two rows a group
BLOCK = 2**17  # entries of the largest matrix held at once: 1 MiB, which fits into a CPU's cache
SALT = 0x5EED0000  # keeps these seeds apart from those of samples: groups by the samples' own random numbers would not be random


class Estimate(NamedTuple):
    """A figure and its standard error."""

    value: float
    error: float


def finite_rows(x: Tensor, name: str, least: int = LEAST_ROWS) -> Tensor:
    """Return `x` [N, D] as float64 on the CPU, without gradient.

    Raises ValueError for another number of axes, no columns, fewer than `least` rows, or rows that are not finite.
    """
    x = torch.as_tensor(x).detach().cpu().double()
    if x.ndim != 2 or len(x) < least or x.shape[1] < 1:
        raise ValueError(f"{name} has shape {tuple(x.shape)}; give [N, D] with N >= {least} rows and D >= 1")
    bad = int((~x.isfinite().all(1)).sum())
    if bad:
        raise ValueError(f"{bad} of the {len(x)} rows of {name} are not finite (NaN or infinity); only finite rows can be measured")
    return x


def jackknife_groups(rows: int) -> Tensor:
    """Return the group, 0 to 19, of each of `rows` rows: int64 [rows]. Groups are dealt at random, so that a sorted set does no harm."""
    return _shuffled(rows) % GROUPS


def jackknife_error(values: Tensor) -> Tensor:
    """Return the standard error [...] of a figure from `values` [G, ...] of it, each computed without one of the G groups."""
    groups = len(values)
    return ((groups - 1) / groups * (values - values.mean(0)).square().sum(0)).sqrt()


def energy_distance(x: Tensor, y: Tensor) -> Estimate:
    """Return ``2 E|x - y| - E|x - x'| - E|y - y'|`` of x [N, D] and y [M, D], unbiased (Szekely and Rizzo 2013).

    It is 0 for equal laws only. No pair of a row with itself is used, so that an estimate can fall below 0. The error costs
    nothing more: it comes from the sums of distances between pairs of groups. Time grows as (N + M)^2 D. Raises ValueError for
    sets of different D, with fewer than 40 rows, or with rows that are not finite.
    """
    return _estimate(-_discrepancy(*_pair(x, y), kernel=lambda distance: distance))


def median_bandwidth(x: Tensor, y: Tensor) -> float:
    """Return the bandwidth of the median heuristic: the median distance between two rows of x [N, D] and y [M, D] together.

    Garreau et al. 2017 (arXiv 1707.07269). At most 500 rows of each set are used, drawn with a fixed seed. Raises ValueError
    like `energy_distance`, and where the median is 0.
    """
    rows = [a[_shuffled(len(a))[:500]] for a in _pair(x, y)]
    median = torch.pdist(torch.cat(rows)).median().item()
    if not median:
        raise ValueError("the median distance between rows of x and y is 0: most of them coincide; give a bandwidth > 0")
    return median


def mmd(x: Tensor, y: Tensor, bandwidth: float | None = None, biased: bool = False) -> Estimate:
    """Return MMD^2 of x [N, D] and y [M, D] with the kernel ``exp(-|x - y|^2 / (2 h^2))`` (Gretton et al. 2012, JMLR 13, Eq. 3 and 5).

    Args:
        x: the first set [N, D].
        y: the second set [M, D].
        bandwidth: h; None for `median_bandwidth`. Figures of different h do not compare: to read one beside a floor, give both
            the same h. The standard error takes h as fixed.
        biased: keep the pairs of a row with itself; the estimate is then never negative, and about
            ``(1 - E k(x, x')) (1/N + 1/M)`` at equal laws instead of 0.

    Raises:
        ValueError: like `energy_distance`, and for a bandwidth that is not a positive number.

    """
    x, y = _pair(x, y)
    h = median_bandwidth(x, y) if bandwidth is None else bandwidth
    if not 0 < h < math.inf:
        raise ValueError(f"bandwidth is {bandwidth}; give a number > 0, or None for the median distance")
    return _estimate(_discrepancy(x, y, kernel=lambda distance: (distance.square() / (-2 * h * h)).exp(), biased=biased))


def sliced_wasserstein(x: Tensor, y: Tensor, projections: int = 128, seed: int = 0) -> Estimate:
    """Return the sliced Wasserstein-2 of x [N, D] and y [M, D]: root of the mean over directions of the projections' squared 1-D W2.

    The W2 of two empirical laws is exact for any N and M: the step functions of their quantiles are integrated over the union
    of their steps. The directions come in orthonormal bases, each direction uniform on the sphere (Rowland et al. 2019,
    arXiv 1903.03784): where D divides `projections`, a difference of means enters without Monte-Carlo error, as
    ``|difference|^2 / D``. In D = 1 one direction suffices.

    Biased upwards at finite N and M: equal laws give a positive figure, of order ``sqrt(1/N + 1/M)`` times their spread. Read
    it beside the figure of two exact sets of the same sizes. The error holds the directions fixed (they belong to `seed`) and
    does not contain the bias.

    Raises:
        ValueError: like `energy_distance`, and for fewer than 1 projections.

    """
    x, y = _pair(x, y)
    if projections < 1:
        raise ValueError(f"projections is {projections}; give at least 1")
    group_x, group_y = jackknife_groups(len(x)), jackknife_groups(len(y))
    directions = _directions(projections, x.shape[1], seed)
    squared = torch.zeros(1 + GROUPS, dtype=torch.float64)
    for theta in directions.split(max(1, BLOCK // (len(x) + len(y)))):
        sorted_x, order_x = (theta @ x.T).sort(1)
        sorted_y, order_y = (theta @ y.T).sort(1)
        squared[0] += _squared_w2(sorted_x, sorted_y).sum()
        in_group_x, in_group_y = group_x[order_x], group_y[order_y]
        for g in range(GROUPS):  # the remaining rows are in order already
            kept_x = sorted_x[in_group_x != g].view(len(theta), -1)
            kept_y = sorted_y[in_group_y != g].view(len(theta), -1)
            squared[1 + g] += _squared_w2(kept_x, kept_y).sum()
    return _estimate((squared / len(directions)).sqrt())


def _shuffled(rows: int) -> Tensor:
    return torch.randperm(rows, generator=torch.Generator().manual_seed(SALT))


def _pair(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x, y = finite_rows(x, "x"), finite_rows(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}; give [N, D] and [M, D]")
    return x, y


def _estimate(values: Tensor) -> Estimate:
    """Return the estimate from `values` [1 + G]: the figure of all rows, then those without one group each."""
    return Estimate(values[0].item(), jackknife_error(values[1:]).item())


def _discrepancy(x: Tensor, y: Tensor, kernel: Callable[[Tensor], Tensor], biased: bool = False) -> Tensor:
    """Return ``E k(x, x') + E k(y, y') - 2 E k(x, y)`` for a kernel of the distance: [1 + G], of all rows and without each group."""
    in_x, in_y = (torch.nn.functional.one_hot(jackknife_groups(len(a)), GROUPS).double() for a in (x, y))
    left_x, left_y = (len(a) - torch.cat([torch.zeros(1), a.sum(0)]) for a in (in_x, in_y))  # how many rows are left: [1 + G]

    def kernel_sum(a: Tensor, in_a: Tensor, b: Tensor, in_b: Tensor) -> Tensor:
        sums = torch.zeros(GROUPS, GROUPS, dtype=torch.float64)  # over the pairs of rows of each pair of groups
        block = max(1, BLOCK // len(b))
        for rows, in_rows in zip(a.split(block), in_a.split(block), strict=True):
            sums += in_rows.T @ (kernel(torch.cdist(rows, b, compute_mode="donot_use_mm_for_euclid_dist")) @ in_b)
        without = sums.sum() - sums.sum(0) - sums.sum(1) + sums.diagonal()
        return torch.cat([sums.sum()[None], without])

    def within(a: Tensor, in_a: Tensor, left: Tensor) -> Tensor:
        total = kernel_sum(a, in_a, a, in_a)
        if biased:
            return total / left**2
        return (total - left * kernel(torch.zeros((), dtype=torch.float64))) / (left * (left - 1))

    across = kernel_sum(x, in_x, y, in_y) / (left_x * left_y)
    return within(x, in_x, left_x) + within(y, in_y, left_y) - 2 * across


def _directions(projections: int, dims: int, seed: int) -> Tensor:
    """Return unit vectors [P, D] in orthonormal bases, the last cut short; [1, 1] in one dimension, where the sign does not matter."""
    if dims == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    size = min(dims, projections)
    rng = torch.Generator().manual_seed(SALT + seed)
    gaussian = torch.randn(math.ceil(projections / size), dims, size, generator=rng, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q.mT.reshape(-1, dims)[:projections]


def _squared_w2(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared 1-D W2 [P] of sorted x [P, N] and y [P, M]: the integral of the squared difference of their quantile functions."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).square().mean(1)
    # both are constant between the multiples of 1/n and of 1/m; in units of 1/(n m) these are whole numbers
    ends = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), ends[:-1]])
    return (x[:, starts // m] - y[:, starts // n]).square() @ ((ends - starts).double() / (n * m))
