"""A U-Net trained elsewhere: diffusers' `UNet2DModel` as its own config describes it, with inner features that can be read.

Unlike `fewstep.networks.unet.UNet`, which is built on the same class, it takes a timestep, and need not have a null class.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fewstep.networks.unet.network import encoder_features


class UNet2D(nn.Module):
    """A network ``F(x, timestep, label)`` over images [B, C, H, W], same shape out.

    Attributes: ``null_class``, whether label ``num_classes`` means "no class"; and ``feature_shapes``.

    Args:
        shape: (C, height, width) of one image.
        num_classes: number of classes, or None for an unconditional network. Where it is one less than ``num_class_embeds`` the last
            row of the table is the null class.
        config: all other arguments of `UNet2DModel`, as in its config.json. ``out_channels`` may be twice C: the second half, a predicted
            variance, is left out.

    Raises:
        ValueError: for a model that takes other inputs than a timestep and a class number, or does not fit `shape` and `num_classes`.

    """

    def __init__(self, shape: Sequence[int], num_classes: int | None = None, **config: Any) -> None:
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        embedding = config.get("time_embedding_type", "positional")
        if embedding != "positional":
            raise ValueError(f"time_embedding_type is {embedding!r}; only 'positional' gives a timestep between two integers a meaning")
        if config.get("class_embed_type") is not None:
            raise ValueError(
                f"class_embed_type is {config['class_embed_type']!r}; only null, a table of classes, can be given class numbers"
            )
        rows = config.get("num_class_embeds")
        if rows not in ([None] if num_classes is None else [num_classes, num_classes + 1]):
            raise ValueError(f"num_class_embeds is {rows}; with {num_classes or 'no'} classes it must be as many, or one more")
        channels = config.get("in_channels", 3), config.get("out_channels", 3)
        if channels not in ((shape[0], shape[0]), (shape[0], 2 * shape[0])):
            raise ValueError(f"in_channels and out_channels are {channels}, which does not fit images of {shape[0]} channels")
        self.unet: Any = UNet2DModel(**config)
        widths = self.unet.config.block_out_channels
        factor = 2 ** (len(widths) - 1)
        if any(side % factor for side in shape[1:]):
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be halved {len(widths) - 1} times; sample_size must be divisible by {factor}"
            )
        self.channels = shape[0]
        self.null_class = num_classes is not None and rows == num_classes + 1
        self.feature_shapes = [(width, (shape[1] >> level, shape[2] >> level)) for level, width in enumerate(widths)][::-1]

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the prediction, like `x` [B, C, H, W]; `timestep` is float [B], `label` int64 [B] for a network with classes."""
        return self.unet(x, timestep, class_labels=label, return_dict=False)[0][:, : self.channels]

    def features(self, x: Tensor, timestep: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return the coarsest `levels` inner features [B, C', h, w], coarsest first, as `fewstep.networks.unet.UNet` does."""
        return encoder_features(self.unet, x, timestep, label)[:levels]
