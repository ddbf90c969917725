"""What the cells of tables have in common."""

import statistics
from collections.abc import Sequence


def ranged(values: Sequence[float], form: str) -> str:
    """The mean, and the range in brackets where it shows; nothing of no values."""
    if not values:
        return ""
    low, high = form.format(min(values)), form.format(max(values))
    return form.format(statistics.mean(values)) + ("" if low == high else f" ({low} to {high})")
