"""How well samples cover the modes of a known Gaussian mixture: which modes they reach, and with what weights and widths.

Symbols: samples ``x`` [N, D]; mode ``k`` with centre ``mu_k`` (`means` [K, D]), standard deviation ``s_k`` (`stds` [K]) and
weight ``w_k`` (`weights` [K], normalised here). ``r = |x - mu_k| / s_k`` is a sample's radius in its own mode, the one of
highest posterior probability under the mixture, ``log w_k - D log s_k - r^2 / 2``. A sample far from all modes belongs to the one
with the heaviest tail: that of the nearest centre for equal stds, the widest mode otherwise.

The figures are meant for modes whose balls of radius ``within * s_k`` keep clear of each other; where modes overlap, exact
samples miss the values given here. A Gaussian in D dimensions has its mass round ``r = sqrt(D)``: let `within` exceed that.

Widths are compared with those of a Gaussian cut off at `within`, so that exact samples give 1 and stray ones do not count.
The cut hides part of a deviation: in D = 2 at 3 standard deviations, Gaussian modes of 1.1 times the variance read 1.078, of
0.9 times 0.916; a cut at 5 hides nothing to speak of, and lets more strays in. Errors: `fewstep.metrics.two_sample`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.maths.mixtures import checked_mixture
from fewstep.metrics.two_sample import BLOCK, GROUPS, LEAST_ROWS, Estimate, finite_rows, jackknife_error, jackknife_groups

COVERED_FRACTION = 0.2  # a mode is covered by this share of the samples that an exact set of the same size has in its ball


class TruncatedGaussian(NamedTuple):
    """An isotropic Gaussian of unit standard deviation, cut off at some radius."""

    inside: float  # mass within the radius, before the rest is cut off
    variance: float  # per dimension
    median_radius: float


def truncated_gaussian(dims: int, within: float) -> TruncatedGaussian:
    """Return the standard Gaussian in `dims` dimensions, cut off at radius `within`, from ``P(r < w) = P(D/2, w^2/2)``.

    P is the regularised incomplete gamma function, and ``E[r^2; r < w] = D P(D/2 + 1, w^2/2)``. Raises ValueError where
    `within` is not positive or so small for `dims` that no mass is left.
    """

    def mass(radius: float, shape: float) -> float:
        return torch.special.gammainc(*torch.tensor([shape, radius * radius / 2], dtype=torch.float64)).item()

    inside = mass(within, dims / 2) if within > 0 else 0.0
    if inside < 1e-100:
        raise ValueError(f"within is {within} and holds nothing of a Gaussian in {dims} dimensions; give about {math.sqrt(dims) + 2:.1f}")
    low, high = 0.0, min(within, math.sqrt(dims) + 10)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle, dims / 2) < inside / 2 else (low, middle)
    return TruncatedGaussian(inside, mass(within, dims / 2 + 1) / inside, middle)


def mode_shares(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor) -> Tensor:
    """Return the share of the samples x [N, D] that belongs to each mode of means [K, D], stds [K], weights [K]: float64 [K], sum 1.

    It is cheap enough for use during training. Raises ValueError for shapes that do not fit, stds or weights that are not positive and
    rows that are not finite.
    """
    x, mixture = finite_rows(x, "x", least=1), _mixture(x, means, stds, weights)
    return _assign(x, mixture).mode.bincount(minlength=len(means)).double() / len(x)


def mode_counts(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor, within: float = 3.0) -> Tensor:
    """Return how many samples x [N, D] lie within `within` stds of the mode they belong to: float64 [K]. Raises as `mode_shares` does."""
    x, mixture = finite_rows(x, "x", least=1), _mixture(x, means, stds, weights)
    assigned = _assign(x, mixture)
    return assigned.mode[assigned.radius <= within].bincount(minlength=len(means)).double()


def usual_radius(dims: int) -> float:
    """Return the radius, in stds, within which a Gaussian in `dims` dimensions has as much mass as within 3 in the plane: 98.889%."""
    share, low, high = 1 - math.exp(-4.5), 0.0, math.sqrt(dims) + 10
    for _ in range(60):
        middle = (low + high) / 2
        inside = torch.special.gammainc(*torch.tensor([dims / 2, middle * middle / 2], dtype=torch.float64)).item()
        low, high = (middle, high) if inside < share else (low, middle)
    return high


def mode_report(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor, within: float = 3.0) -> dict[str, Estimate]:
    """Return how samples x [N, D] cover the modes of means [K, D], stds [K], weights [K], each figure with its standard error.

    ``modes``: how many are covered, that is, hold at least a fifth (`COVERED_FRACTION`) of the samples that exact ones of the
    same number would put within `within` stds of their centre. ``weight_tv``: total variation of the shares from the weights,
    half the sum of ``|share_k - w_k|``; biased upwards, read it beside the figure of exact samples of the same number, where
    it is about ``sum_k sqrt(w_k (1 - w_k) / (2 pi N))``. ``inside``: share of samples within `within` stds of some mode;
    0.98889 for exact ones at 3 in D = 2.

    As ratios to a Gaussian cut off at `within`, 1 for exact samples: ``variance``, mean over the covered modes, weighted alike,
    of the mean squared distance of a mode's samples from its true centre, so that a displaced mode counts as a wide one;
    ``median_radius``, of all samples inside their mode. NaN where no mode is covered, or no sample inside.

    The error of ``inside`` is binomial, the others' are of the jackknife. The error of ``modes`` is mostly 0: it tells only whether
    a mode is about to be gained or lost. The error of ``weight_tv`` is 1.6 times too large where the shares are right. Raises
    ValueError like `mode_shares`, for fewer than 40 rows, and for a `within` that holds nothing.
    """
    count = _count(x, means, stds, weights, within)
    covered = count.within >= COVERED_FRACTION * count.exact.inside * count.weights * count.rows[:, None]
    modes = covered.sum(1).double()
    tv = (count.share - count.weights).abs().sum(1) / 2
    variance = torch.where(covered, count.variance, 0).sum(1) / modes
    figures = {"modes": modes, "weight_tv": tv, "variance": variance, "median_radius": count.median / count.exact.median_radius}
    return {
        **{name: Estimate(values[0].item(), jackknife_error(values[1:]).item()) for name, values in figures.items()},
        "inside": Estimate(count.inside, math.sqrt(count.inside * (1 - count.inside) / len(x))),
    }


def mode_table(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor, within: float = 3.0) -> list[dict[str, float]]:
    """Return one row for each mode: ``share`` of all samples, true ``weight``, ``variance`` ratio as in `mode_report`, ``within``.

    ``within`` counts the samples within `within` stds of the centre; ``share_error`` and ``variance_error`` are of the
    jackknife. The ratio of a mode without samples is NaN. Arguments and errors are those of `mode_report`.
    """
    count = _count(x, means, stds, weights, within)
    columns = {
        "share": count.share[0],
        "share_error": jackknife_error(count.share[1:]),
        "weight": count.weights,
        "variance": count.variance[0],
        "variance_error": jackknife_error(count.variance[1:]),
        "within": count.within[0].long(),
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*(column.tolist() for column in columns.values()), strict=True)]


class _Assigned(NamedTuple):
    mode: Tensor  # int64 [N]
    radius: Tensor  # [N], in stds of that mode
    nearest: Tensor  # [N], the smallest radius in any mode


class _Count(NamedTuple):
    """Figures of the modes, of all samples and then without each group of samples: axis 0 has length 1 + G."""

    rows: Tensor  # [1 + G]
    share: Tensor  # [1 + G, K]
    within: Tensor  # [1 + G, K], number
    variance: Tensor  # [1 + G, K], ratio
    median: Tensor  # [1 + G], radius
    inside: float
    weights: Tensor  # [K]
    exact: TruncatedGaussian


def _mixture(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mixture's parameters as float64 on the CPU, with weights that sum to 1. Raises ValueError where they do not fit `x`."""
    means, stds, weights = checked_mixture(*(torch.as_tensor(a).detach().cpu().double() for a in (means, stds, weights)))
    if means.shape[1] != x.shape[1]:
        raise ValueError(f"x and means have shapes {tuple(x.shape)} and {tuple(means.shape)}; give [N, D] and [K, D]")
    return means, stds, weights


def _assign(x: Tensor, mixture: tuple[Tensor, Tensor, Tensor]) -> _Assigned:
    means, stds, weights = mixture
    offset = weights.log() - x.shape[1] * stds.log()
    parts = []
    for rows in x.split(max(1, BLOCK // len(means))):
        radius = torch.cdist(rows, means, compute_mode="donot_use_mm_for_euclid_dist") / stds
        mode = (offset - radius.square() / 2).argmax(1)
        parts.append((mode, radius.gather(1, mode[:, None])[:, 0], radius.amin(1)))
    return _Assigned(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _count(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor, within: float) -> _Count:
    x = finite_rows(x, "x", LEAST_ROWS)
    mixture = _mixture(x, means, stds, weights)
    exact = truncated_gaussian(x.shape[1], within)
    mode, radius, nearest = _assign(x, mixture)
    group, num_modes, is_within = jackknife_groups(len(x)), len(mixture[0]), radius <= within

    def sums(values: Tensor) -> Tensor:  # over the samples of each mode: [1 + G, K]
        parts = (group * num_modes + mode).bincount(values.double(), minlength=GROUPS * num_modes).view(GROUPS, num_modes)
        return torch.cat([parts.sum(0)[None], parts.sum(0) - parts])

    def median(a: Tensor) -> Tensor:  # of sorted a [n]
        return (a[(len(a) - 1) // 2] + a[len(a) // 2]) / 2 if len(a) else torch.tensor(math.nan).double()

    members, inside = sums(torch.ones_like(radius)), sums(is_within)
    rows = members.sum(1)
    squares = sums(torch.where(is_within, radius, 0).square())
    # the jackknife is valid for a median if a group is large beside the root of the number of rows (Shao and Wu 1989): from 400 rows on
    ordered, order = radius[is_within].sort()
    in_group = group[is_within][order]
    medians = [median(ordered), *(median(ordered[in_group != g]) for g in range(GROUPS))]
    return _Count(
        rows=rows,
        share=members / rows[:, None],
        within=inside,
        variance=squares / inside / x.shape[1] / exact.variance,
        median=torch.stack(medians),
        inside=(nearest <= within).double().mean().item(),
        weights=mixture[2],
        exact=exact,
    )
