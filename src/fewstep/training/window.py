"""Means of the terms logged since the last record of metrics.jsonl."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.methods.base import Ratio


class Window:
    """Sums and counts of logged scalars by name. For a ratio both its terms are summed: a mean of ratios is not the ratio of the means."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # [] for a scalar, [2] for a ratio
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | Ratio]) -> None:
        """Add scalars or ratios to the sums, on the device that they are on, without waiting for it."""
        for name, value in values.items():
            value = (torch.stack(list(value)) if isinstance(value, Ratio) else value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def average(self, over_processes: Callable[[list[float]], list[float]]) -> None:
        """Replace every sum by its mean over all processes, which the function `over_processes` takes of a list of numbers."""
        flat = over_processes([number for total in self.sums.values() for number in total.flatten().tolist()])
        for name, total in self.sums.items():
            self.sums[name] = torch.tensor(flat[: total.numel()]).reshape(total.shape).to(total)
            flat = flat[total.numel() :]

    def means(self) -> dict[str, float]:
        """Return the mean of each name: of a scalar its average, of a ratio the ratio of the averages."""
        return {name: _number(total / self.counts[name]) for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the sums and counts as plain numbers."""
        return {"sums": {name: total.tolist() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Restore the sums and counts that `state_dict` returned, on `device`."""
        self.sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])


def _number(mean: Tensor) -> float:
    return (mean if mean.ndim == 0 else mean[0] / mean[1]).item()
