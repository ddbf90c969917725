"""Format figures as the cells of tables."""

import statistics
from collections.abc import Sequence


def ranged(values: Sequence[float], form: str) -> str:
    """Return the mean of `values` in `form`, with their range in brackets where it shows; an empty text if there are no values."""
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return form.format(statistics.mean(values)) + ("" if low == high else f" ({low} to {high})")
