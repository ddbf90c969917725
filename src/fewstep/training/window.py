"""Means of what has been logged since the last record."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Window:
    """Sums and counts of scalars by name."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Scalars, left where they are: nothing waits for a device."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        """One number a name."""
        return {name: (total / self.counts[name]).item() for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers."""
        return {"sums": {name: total.item() for name, total in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.sums = {name: torch.tensor(total, device=device) for name, total in state["sums"].items()}
        self.counts = dict(state["counts"])
