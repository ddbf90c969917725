"""What is asked of a data set, wherever it lies: the least that methods, measuring, pictures and a dry run need.

`ImageData` and `PointData` lie in memory; `ItemData` and `StreamData` (`fewstep.data.own`) hold a data set of one's own, whose items are
read as they are asked for.
"""

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from fewstep.data.images import ImageData
    from fewstep.data.points import PointData


class Data(Protocol):
    """A data set in two parts: one that is trained on, and one that is held out and measured against."""

    @property
    def name(self) -> str:
        """What it is called in tables."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one item: (C, H, W) of images, (D,) of points."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None."""
        ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """One for each class; empty without classes."""
        ...

    @property
    def mixture(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Means [K, D], standard deviations [K] and weights [K] of the mixture of Gaussians that it was drawn from; None if unknown."""
        ...

    @property
    def train_size(self) -> int | None:
        """Items to train on; None for a stream, which does not say."""
        ...

    @property
    def heldout_size(self) -> int:
        """Items held out."""
        ...

    def some(self, num: int, seed: int) -> Tensor:
        """Return `num` training items [num, ...], or all if there are fewer, drawn with `seed` and prepared as for training."""
        ...

    def excerpt(self) -> "ImageData | PointData":
        """Both parts in memory, as measuring and pictures want them: all of a set that lies there, else a bounded random share."""
        ...
