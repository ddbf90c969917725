"""Classifiers whose activations are the features of digits, MNIST and CIFAR-10; they ship with the package.

Each was trained on the train split of its data set alone, by ``tools/train_features.py``, which prints its accuracy; the files are
never made anew, for numbers that were measured in other features do not compare.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, pixel_unshuffle, silu


class Normed(nn.Sequential):
    """A convolution and the norm of its outputs: [B, width, H / stride, W / stride]."""

    def __init__(self, before: int, width: int, stride: int = 1) -> None:
        super().__init__(nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width))


class Residual(nn.Module):
    """Two convolutions around which the input goes, too (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Normed(width, width), Normed(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Like x [B, width, H, W]."""
        return silu(x + self.second(silu(self.first(x))))


class ResidualClassifier(nn.Module):
    """A small residual network over images [B, C, size, size], with features of two depths.

    The features are the averages over the image of the activations half-way, which tell textures and strokes, and those before the last
    layer, which tell classes; each divided by its standard deviation on the train split, so that neither drowns the other.

    Args:
        channels: C.
        size: height and width.
        num_classes: classes that it tells apart.
        widths: channels of each level; the first level works at half of `size`, each next one at half of the one before.
        residual: whether levels hold residual blocks, or plain convolutions.

    """

    def __init__(self, channels: int, size: int, num_classes: int, widths: Sequence[int], residual: bool = True) -> None:
        super().__init__()
        self.shape = (channels, size, size)
        self.num_classes = num_classes
        levels, before = [], 4 * channels
        for level, width in enumerate(widths):
            inner: nn.Module = Residual(width) if residual else nn.Sequential(Normed(width, width), nn.SiLU())
            levels.append(nn.Sequential(Normed(before, width, 1 if level == 0 else 2), nn.SiLU(), inner))
            before = width
        self.levels = nn.ModuleList(levels)
        self.output = nn.Linear(widths[-1], num_classes)
        self.halfway = len(widths) // 2
        self.register_buffer("mean", torch.zeros(widths[self.halfway - 1] + widths[-1]))
        self.register_buffer("std", torch.ones(widths[self.halfway - 1] + widths[-1]))

    def activations(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The averages over the image after the levels half-way and last: [B, D'] and [B, D'']."""
        x, halfway = pixel_unshuffle(images, 2), images
        for level, block in enumerate(self.levels, 1):
            x = block(x)
            halfway = x if level == self.halfway else halfway
        return tuple(adaptive_avg_pool2d(each, 1).flatten(1) for each in (halfway, x))  # type: ignore[return-value]

    def forward(self, images: Tensor) -> Tensor:
        """Features [B, D] of images [B, C, size, size] in [-1, 1]. Raises ValueError for images of another shape."""
        if images.shape[1:] != self.shape:
            raise ValueError(f"the images are {list(images.shape[1:])}, and these features are for {list(self.shape)}")
        return (torch.cat(self.activations(images), 1) - self.mean) / self.std

    def classify(self, features: Tensor) -> Tensor:
        """Class logits [B, num_classes] from features [B, D]."""
        last = self.output.in_features
        return self.output(features[:, -last:] * self.std[-last:] + self.mean[-last:])
