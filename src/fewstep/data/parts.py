"""What data sets in two parts have in common: the number of items in each part, and a sample of the training items."""

from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="InMemory")


class TwoParts:
    """A data set whose parts `train` and `heldout` have a length; subclasses define both parts."""

    train: Any
    heldout: Any

    @property
    def train_size(self) -> int:
        """Number of training items."""
        return len(self.train)

    @property
    def heldout_size(self) -> int:
        """Number of held-out items."""
        return len(self.heldout)


class InMemory(TwoParts):
    """A data set whose two parts lie in memory as a whole."""

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Return training items float32 [B, ...] and their labels [B], or None, on `device`, for `index` int64 [B]."""
        raise NotImplementedError

    def excerpt(self: T) -> T:
        """Return the data set itself, since both of its parts are in memory."""
        return self

    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` training items [num, ...], or all if there are fewer, drawn with `seed` and prepared as for training."""
        rng = torch.Generator().manual_seed(seed)
        return self.batch(torch.randperm(len(self.train), generator=rng)[:num], rng, torch.device("cpu"))[0]
