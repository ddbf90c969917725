"""Ratios of a figure of samples to the same figure of real items, which have no value where the real one is 0, as among copies."""

import math
import sys
from collections.abc import Mapping
from typing import Any

from fewstep.metrics.frechet import Gaussian

# share of the covariance's trace, for each of its dimensions, to which a Frechet distance is exact: each eigenvalue is the root of one
# whose rounding error is float64's, and many are 0 where there are fewer images than dimensions
ROUNDING = sys.float_info.epsilon**0.5


def ratio(value: float, real: float) -> float:
    """Return ``value / real``; NaN where `real` is not above 0."""
    return value / real if real > 0 else math.nan


def over_floor(distance: float, floor: float, reference: Gaussian) -> float:
    """Return the ratio of a Frechet `distance` to the `floor`, both to `reference`; NaN where the floor is 0 but for rounding."""
    exact = ROUNDING * len(reference.mean) * reference.covariance.trace().item()
    return ratio(distance, floor if floor > exact else 0.0)


def defined(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return `row` without figures that are not finite; names of classes stay."""
    return {key: value for key, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
