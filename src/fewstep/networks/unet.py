"""The image U-Net: diffusers' `UNet2DModel`, class-conditional, with a null class and a way out at the bottleneck.

Symbols: ``B`` batch, ``C`` channels, ``c_noise`` the noise conditioning ``ln(sigma)/4`` of EDM. The model is given the
timestep ``1000 c_noise``, which is what diffusers' consistency pipeline gives it, so that an export needs no custom code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class UNet(nn.Module):
    """A U-Net ``F(x, c_noise, label)`` over images [B, C, size, size], same shape out.

    Args:
        shape: (C, height, width) of one image; height and width must be divisible by ``2^(len(channels) - 1)``.
        num_classes: number of classes, or None for an unconditional network. Label ``num_classes`` means "no class".
        channels: width of each resolution level, the first at full resolution, each next one at half of it.
        attention: one flag a level; the bottleneck has attention in any case.
        layers_per_block: residual blocks a level.
        groups: groups of every GroupNorm; must divide each width.
        head_dim: channels of one attention head.
        dropout: probability, inside the residual blocks.
        xi_channels: channels of a second noise xi [B, m, xi_channels, H, W] that the network also sees; 0 for a network without.

    Raises:
        ValueError: for widths, sizes or groups that do not fit together.

    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int | None = None,
        channels: Sequence[int] = (64, 128, 256, 512),
        attention: Sequence[bool] | None = None,
        layers_per_block: int = 1,
        groups: int = 32,
        head_dim: int = 64,
        dropout: float = 0.0,
        xi_channels: int = 0,
    ) -> None:
        super().__init__()
        self.xi_shape = (xi_channels, *shape[1:])
        from diffusers.models.unets.unet_2d import UNet2DModel

        attention = list(attention) if attention is not None else [False] * len(channels)
        factor = 2 ** (len(channels) - 1)
        if len(attention) != len(channels):
            raise ValueError(f"network.attention has {len(attention)} entries, network.channels {len(channels)}; give one flag a level")
        if any(side % factor for side in shape[1:]):
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be halved {len(channels) - 1} times; "
                f"give network.channels fewer levels, or sides divisible by {factor}"
            )
        if any(width % groups for width in channels):
            raise ValueError(f"network.groups {groups} does not divide every width of network.channels {list(channels)}")
        if any(width % head_dim for width in [w for w, a in zip(channels, attention, strict=True) if a] + [channels[-1]]):
            raise ValueError(f"network.head_dim {head_dim} does not divide every width that has attention in {list(channels)}")
        sizes = [(width, (shape[1] >> level, shape[2] >> level)) for level, width in enumerate(channels)]
        self.feature_shapes = list(reversed(sizes))
        self.unet = UNet2DModel(
            sample_size=tuple(shape[1:]),
            in_channels=shape[0] + xi_channels,
            out_channels=shape[0],
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            norm_num_groups=groups,
            attention_head_dim=head_dim,
            dropout=dropout,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=None if num_classes is None else num_classes + 1,
        )

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, features: int = 0, xi: Tensor | None = None) -> Any:
        """The network's output, like `x` [B, C, H, W]; or a list of so many `features` [B, C', h, w], the coarsest first.

        `c_noise` is [B], `label` int64 [B] or None for an unconditional network. With `xi` [B, m, xi_channels, H, W] the output is
        [B, m, C, H, W]; every convolution sees xi, so each of the m costs a whole pass. Features are the bottleneck's, then the
        encoder's last of each finer level, of the shapes in `feature_shapes`; they skip the decoder, so a discriminator pays for half
        the network.
        """
        if features:
            return encoder_features(self.unet, x, 1000 * c_noise, label)[:features]
        if xi is None:
            return self.unet(x, 1000 * c_noise, class_labels=label, return_dict=False)[0]
        m = xi.shape[1]
        label = None if label is None else label.repeat_interleave(m)
        both = torch.cat([x[:, None].expand(-1, m, -1, -1, -1), xi], 2).flatten(0, 1)
        out = self.unet(both, 1000 * c_noise.repeat_interleave(m), class_labels=label, return_dict=False)[0]
        return out.view(*xi.shape[:2], *x.shape[1:])


def encoder_features(unet: Any, x: Tensor, timestep: Tensor, label: Tensor | None) -> list[Tensor]:
    """What leaves the bottleneck of a `UNet2DModel`, and the last of each finer level before it is halved, coarsest first.

    `x` is [B, C, H, W], `timestep` float [B], `label` int64 [B] where there are classes.
    """
    embedding = unet.time_embedding(unet.time_proj(timestep).to(x.dtype))
    if unet.class_embedding is not None:
        embedding = embedding + unet.class_embedding(label).to(x.dtype)
    x = skip = 2 * x - 1 if unet.config.center_input_sample else x
    x = unet.conv_in(x)
    levels = []
    for block in unet.down_blocks:
        if hasattr(block, "skip_conv"):  # NCSN++'s blocks also see the image, halved
            x, outputs, skip = block(hidden_states=x, temb=embedding, skip_sample=skip)
        else:
            x, outputs = block(hidden_states=x, temb=embedding)
        levels.append(outputs[-1] if block.downsamplers is None else outputs[-2])  # the last before the level is halved
    return [x if unet.mid_block is None else unet.mid_block(x, embedding), *reversed(levels[:-1])]


class LatentUNet(nn.Module):
    """``G(z, label) = z + F(z, label)`` [B, C, H, W]: a U-Net as a map from noise of the data's shape to data.

    It starts as the noise itself. Arguments as of `UNet`, which F is, asked at one noise level.
    """

    def __init__(self, shape: Sequence[int], num_classes: int | None = None, **arguments: Any) -> None:
        super().__init__()
        self.latent = tuple(shape)
        self.inner = UNet(shape, num_classes, **arguments)
        zero_output(self.inner)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Items like z [B, C, H, W]; `label` int64 [B] where there are classes."""
        return z + self.inner(z, z.new_zeros(z.shape[0]), label)


def feature_shapes(network: nn.Module, levels: int) -> list[tuple[int, tuple[int, int]]]:
    """(channels, (height, width)) of the features that ``features=levels`` gives, the coarsest first.

    Raises ValueError for a network without them, or with fewer levels.
    """
    shapes = getattr(network, "feature_shapes", [])
    if not shapes:
        raise ValueError(f"the network is a {type(network).__name__}, which has no resolution levels; method.gan needs a U-Net")
    if levels > len(shapes):
        raise ValueError(f"method.gan_levels is {levels}, but the network has {len(shapes)}; give at most that many")
    return shapes[:levels]


def num_parameters(module: nn.Module) -> int:
    """Number of parameters of `module`, trainable or frozen."""
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def zero_output(network: UNet) -> None:
    """Set the last convolution to zero, so that an untrained denoiser starts as ``c_skip x``."""
    nn.init.zeros_(network.unet.conv_out.weight)
    assert network.unet.conv_out.bias is not None
    nn.init.zeros_(network.unet.conv_out.bias)
