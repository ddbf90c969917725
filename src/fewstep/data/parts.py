"""What data sets in two parts have in common: how much there is to train on and to be measured against, and a look at some of it."""

from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T", bound="InMemory")


class TwoParts:
    """A data set whose parts `train` and `heldout` can be counted; whoever derives from it has them."""

    train: Any
    heldout: Any

    @property
    def train_size(self) -> int:
        """Items to train on."""
        return len(self.train)

    @property
    def heldout_size(self) -> int:
        """Items held out."""
        return len(self.heldout)


class InMemory(TwoParts):
    """Two parts that lie in memory, whole."""

    def batch(self, index: Tensor, rng: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Training items float32 [B, ...] and their labels [B], or None, on `device`, for `index` int64 [B]."""
        raise NotImplementedError

    def excerpt(self: T) -> T:
        """All of it."""
        return self

    def some(self, num: int, seed: int) -> Tensor:
        """`num` training items [num, ...], or all if there are fewer, drawn with `seed`, as they are trained on."""
        rng = torch.Generator().manual_seed(seed)
        return self.batch(torch.randperm(len(self.train), generator=rng)[:num], rng, torch.device("cpu"))[0]
