"""Discriminator heads: from features of another network to one logit for each item."""

from collections.abc import Sequence
from math import gcd

import torch
from torch import Tensor, nn


class BottleneckHead(nn.Module):
    """DMD2's head on a U-Net's bottleneck: features [B, channels, height, width] to logits [B].

    Convolutions shrink the map to 1x1, each with GroupNorm and SiLU, then a 1x1 convolution. At 8x8 this is the published
    head (4x4 stride 2, 4x4 stride 4, 1x1; DMD2, arXiv 2405.14867); smaller and larger bottlenecks use the same two kinds of layers.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        groups = gcd(32, channels)
        while groups > 1 and channels // groups < 4:  # normalised at 1x1, one or two numbers keep only signs, and no slope
            groups //= 2

        def shrink(kernel: tuple[int, int], stride: tuple[int, int], padding: int) -> None:
            layers.extend([nn.Conv2d(channels, channels, kernel, stride, padding), nn.GroupNorm(groups, channels), nn.SiLU()])

        while min(height, width) > 4:
            shrink((4, 4), (2, 2), 1)
            height, width = height // 2, width // 2
        if max(height, width) > 1:
            shrink((height, width), (height, width), 0)
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B], positive where the item looks real."""
        return self.layers(features).flatten()


class LevelHeads(nn.Module):
    """A `BottleneckHead` for each of several feature maps, whose sizes (channels, (height, width)) are in `shapes`."""

    def __init__(self, shapes: Sequence[tuple[int, tuple[int, int]]]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(BottleneckHead(channels, *size) for channels, size in shapes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return logits [B, heads] from one feature map [B, channels, height, width] for each head."""
        return torch.stack([head(feature) for head, feature in zip(self.heads, features, strict=True)], 1)


def feature_shapes(denoiser: nn.Module, levels: int) -> list[tuple[int, tuple[int, int]]]:
    """Return (channels, (height, width)) of the coarsest `levels` feature maps of a `fewstep.denoisers.FeatureDenoiser`, coarsest first.

    Raises ValueError for a denoiser without features, or with fewer levels.
    """
    shapes = list(getattr(denoiser, "feature_shapes", []))
    if not shapes:
        network = getattr(denoiser, "network", denoiser)
        raise ValueError(f"the network is a {type(network).__name__}, which has no resolution levels; method.gan needs a U-Net")
    if levels > len(shapes):
        raise ValueError(f"method.gan_levels is {levels}, but the network has {len(shapes)}; give at most that many")
    return shapes[:levels]
