"""Discriminator heads: from features of another network to one logit an item."""

from torch import Tensor, nn


class BottleneckHead(nn.Module):
    """DMD2's head on a U-Net's bottleneck: features [B, channels, size, size] to logits [B].

    Convolutions shrink the map to 1x1, each with GroupNorm and SiLU, then a 1x1 convolution. At 8x8 this is the published
    head (4x4 stride 2, 4x4 stride 4, 1x1; DMD2, arXiv 2405.14867); smaller and larger bottlenecks use the same two kinds.
    """

    def __init__(self, channels: int, size: int, groups: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        while size > 1:
            kernel, stride, padding = (4, 2, 1) if size > 4 else (size, size, 0)
            layers += [nn.Conv2d(channels, channels, kernel, stride, padding), nn.GroupNorm(groups, channels), nn.SiLU()]
            size = size // stride
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Logits [B], positive where the item looks real."""
        return self.layers(features).flatten()
