"""Means of what has been logged since the last record."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.methods.base import Ratio


class Window:
    """Sums and counts of scalars by name; of a ratio, of both its terms, for the mean of ratios is not that of the whole."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}  # of one number, or of two
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | Ratio]) -> None:
        """Scalars, left where they are: nothing waits for a device."""
        for name, value in values.items():
            value = (torch.stack(list(value)) if isinstance(value, Ratio) else value).detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def average(self, over_processes: Callable[[list[float]], list[float]]) -> None:
        """Put into every sum its mean over all processes."""
        flat = over_processes([number for total in self.sums.values() for number in total.flatten().tolist()])
        for name, total in self.sums.items():
            self.sums[name] = torch.tensor(flat[: total.numel()]).reshape(total.shape).to(total)
            flat = flat[total.numel() :]

    def means(self) -> dict[str, float]:
        """One number a name."""
        return {name: _number(total / self.counts[name]) for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"sums": {name: total.tolist() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])


def _number(mean: Tensor) -> float:
    return (mean if mean.ndim == 0 else mean[0] / mean[1]).item()
