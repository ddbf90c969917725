"""The interface of a data set, wherever it is stored: the least that methods, measuring, pictures and a dry run need.

`ImageData` and `PointData` lie in memory; `ItemData` (`fewstep.data.own`) and `StreamData` (`fewstep.data.iterables`) hold a user's own
data set, whose items are read on request.
"""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from fewstep.data.images import ImageData
    from fewstep.data.points import PointData


class Data(Protocol):
    """A data set in two parts: one to train on, and a held-out one to measure against."""

    @property
    def name(self) -> str:
        """Name of the data set in tables."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) of images, (D,) of points."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes; None without classes."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name per class; empty without classes."""
        ...

    @property
    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Means [K, D], standard deviations [K] and weights [K] of the data's density, if it is a known mixture of Gaussians; else None."""
        ...

    @property
    def train_size(self) -> int | None:
        """Number of training items; None for a stream, whose length is unknown."""
        ...

    @property
    def heldout_size(self) -> int:
        """Number of held-out items."""
        ...

    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` training items [num, ...], or all if there are fewer, drawn with `seed` and prepared as for training."""
        ...

    def excerpt(self) -> "ImageData | PointData":
        """Return both parts in memory, for measuring and pictures: all items of a data set in memory, else a bounded sample."""
        ...
