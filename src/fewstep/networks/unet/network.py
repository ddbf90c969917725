"""The image U-Net: diffusers' `UNet2DModel`, class-conditional, with a null class, and with inner features that can be read.

Symbols: ``B`` batch, ``C`` channels, ``c_noise`` the noise conditioning ``ln(sigma)/4`` of EDM. The model is given the
timestep ``1000 c_noise``, which is what diffusers' consistency pipeline gives it, so that an export needs no custom code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


class UNet(nn.Module):
    """A U-Net ``F(x, c_noise, label)`` over images [B, C, size, size], same shape out.

    Args:
        shape: (C, height, width) of one image; height and width must be divisible by ``2^(len(channels) - 1)``.
        num_classes: number of classes, or None for an unconditional network. Label ``num_classes`` means "no class".
        channels: width of each resolution level; the first level has the full resolution, each next one half of that before.
        attention: one flag for each level, whether it has attention; None for no level. The bottleneck always has attention.
        layers_per_block: residual blocks at each level.
        groups: groups of every GroupNorm; must divide each width.
        head_dim: channels of one attention head.
        dropout: probability of dropout inside the residual blocks.
        time_scale: the timestep is ``time_scale * c_noise``; 1000 is the factor of diffusers' pipeline, a smaller one is smoother in time.
        patch: side of the squares of pixels that become channels of one position before the first convolution (pixel unshuffle), and
            squares again after the last; height and width must be divisible by ``patch 2^(len(channels) - 1)``. At 2 the first level works
            at half of the image's size, at a quarter of the cost.
        xi_channels: channels of a second noise xi [B, m, xi_channels, H, W] that the network takes; 0 for a network without xi.
        condition: length of a condition [B, condition] that is added to the embedding, by weights that are 0 at first; 0 for no condition.

        attention_norm: whether a GroupNorm stands before the bottleneck's attention. Without one the attention's logits grow with the
            features: in long runs at high learning rates they reach 1e9, where the gradient of PyTorch's fused attention overflows.

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
        time_scale: float = 1000.0,
        xi_channels: int = 0,
        condition: int = 0,
        patch: int = 1,
        attention_norm: bool = False,
    ) -> None:
        super().__init__()
        self.xi_shape, self.time_scale, self.patch = (xi_channels, *shape[1:]), time_scale, patch
        from diffusers.models.unets.unet_2d import UNet2DModel

        attention = list(attention) if attention is not None else [False] * len(channels)
        factor = patch * 2 ** (len(channels) - 1)
        if len(attention) != len(channels):
            raise ValueError(f"network.attention has {len(attention)} entries, network.channels {len(channels)}; give one flag a level")
        if any(side % factor for side in shape[1:]):
            patched = f"cut into patches of {patch} and " if patch > 1 else ""
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be {patched}halved {len(channels) - 1} times; "
                f"give network.channels fewer levels, or sides divisible by {factor}"
            )
        if any(width % groups for width in channels):
            raise ValueError(f"network.groups {groups} does not divide every width of network.channels {list(channels)}")
        if any(width % head_dim for width in [w for w, a in zip(channels, attention, strict=True) if a] + [channels[-1]]):
            raise ValueError(f"network.head_dim {head_dim} does not divide every width that has attention in {list(channels)}")
        height, width = (side // patch for side in shape[1:])
        sizes = [(channel, (height >> level, width >> level)) for level, channel in enumerate(channels)]
        self.feature_shapes = list(reversed(sizes))
        self.unet = UNet2DModel(
            sample_size=(height, width),
            in_channels=patch**2 * (shape[0] + xi_channels),
            out_channels=patch**2 * shape[0],
            down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attention),
            up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention)),
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            norm_num_groups=groups,
            attn_norm_num_groups=groups if attention_norm else None,  # of the bottleneck; finer levels always have one
            attention_head_dim=head_dim,
            dropout=dropout,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=None if num_classes is None else num_classes + 1,
        )
        self.condition_size = condition
        if condition:
            width = self.unet.time_embedding.linear_2.out_features
            self.unet.class_embedding = LabelAndCondition(self.unet.class_embedding, condition, width)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, xi: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return the output, like `x` [B, C, H, W], for `c_noise` [B] and `label` int64 [B], or None for an unconditional network.

        With `xi` [B, m, xi_channels, H, W] the output is [B, m, C, H, W]; xi enters the first convolution, so that each of the m particles
        costs a whole pass. `condition` is [B, condition] for a network with a condition; None stands for zeros.
        """
        if xi is None:
            return self._run(x, c_noise, self._told(x, label, condition))
        m = xi.shape[1]
        label, condition = (None if told is None else _repeated(told, m) for told in (label, condition))
        both = torch.cat([x[:, None].expand(-1, m, -1, -1, -1), xi], 2).flatten(0, 1)
        told = self._told(both, label, condition)
        out = self._run(both, _repeated(c_noise, m), told)
        return out.view(*xi.shape[:2], *x.shape[1:])

    def _run(self, x: Tensor, c_noise: Tensor, told: Any) -> Tensor:
        out = self.unet(self._patched(x), self.time_scale * c_noise, class_labels=told, return_dict=False)[0]
        return out if self.patch == 1 else pixel_shuffle(out, self.patch)

    def _patched(self, x: Tensor) -> Tensor:
        return x if self.patch == 1 else pixel_unshuffle(x, self.patch)

    def _told(self, x: Tensor, label: Tensor | None, condition: Tensor | None) -> Any:
        """Return the diffusers argument ``class_labels``: the label, or for a network with a condition the label and the condition."""
        if not self.condition_size:
            return label
        return label, x.new_zeros(len(x), self.condition_size) if condition is None else condition

    def features(self, x: Tensor, c_noise: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return the coarsest `levels` inner features [B, C', h, w]: the bottleneck's, then the encoder's last of each finer level.

        Their shapes are those in `feature_shapes`. The decoder is not run, so that a discriminator pays for half of the network.
        """
        return encoder_features(self.unet, self._patched(x), self.time_scale * c_noise, self._told(x, label, None))[:levels]

    @torch.no_grad()
    def zero_output(self) -> None:
        """Set the last convolution to zero, so that an untrained denoiser starts as ``c_skip x``."""
        nn.init.zeros_(self.unet.conv_out.weight)
        assert self.unet.conv_out.bias is not None
        nn.init.zeros_(self.unet.conv_out.bias)


class LabelAndCondition(nn.Module):
    """The embedding of a label and a condition, which diffusers adds to that of the noise level; it replaces the table of labels.

    diffusers passes its argument ``class_labels`` on to this module; here that argument is a pair of a label and a condition.
    """

    def __init__(self, table: nn.Embedding | None, condition: int, width: int) -> None:
        super().__init__()
        self.weight = None if table is None else table.weight  # under the same name in state dicts as without a condition
        self.from_condition = nn.Linear(condition, width, bias=False)
        nn.init.zeros_(self.from_condition.weight)

    def forward(self, told: tuple[Tensor | None, Tensor]) -> Tensor:
        """Return [B, width] for a label int64 [B], or None where there are no classes, and a condition [B, condition]."""
        label, condition = told
        added: Tensor = self.from_condition(condition.to(self.from_condition.weight.dtype))
        return added if self.weight is None or label is None else nn.functional.embedding(label, self.weight) + added


def _repeated(x: Tensor, m: int) -> Tensor:
    """Return each item of `x` [B, ...] `m` times in a row, [B m, ...]; torch 2.8 exports `repeat_interleave` as ONNX of another rank."""
    return x[:, None].expand(-1, m, *x.shape[1:]).flatten(0, 1)


def encoder_features(unet: Any, x: Tensor, timestep: Tensor, label: Any) -> list[Tensor]:
    """Return features [B, C', h, w] of a `UNet2DModel`, coarsest first: the bottleneck's output, then each finer level's last output.

    `x` is [B, C, H, W], `timestep` float [B], and `label` the input of the class embedding: int64 [B], or None without classes. The last
    output of a level is the one before the resolution is halved.
    """
    embedding = unet.time_embedding(unet.time_proj(timestep).to(x.dtype))
    if unet.class_embedding is not None:
        embedding = embedding + unet.class_embedding(label).to(x.dtype)
    x = skip = 2 * x - 1 if unet.config.center_input_sample else x
    x = unet.conv_in(x)
    levels = []
    for block in unet.down_blocks:
        if hasattr(block, "skip_conv"):  # NCSN++'s blocks also take the image, and return it halved
            x, outputs, skip = block(hidden_states=x, temb=embedding, skip_sample=skip)
        else:
            x, outputs = block(hidden_states=x, temb=embedding)
        levels.append(outputs[-1] if block.downsamplers is None else outputs[-2])  # the last before the level is halved
    return [x if unet.mid_block is None else unet.mid_block(x, embedding), *reversed(levels[:-1])]


class LatentUNet(nn.Module):
    """``G(z, label) = z + F(z, label)`` [B, C, H, W]: a U-Net as a map from noise of the data's shape to data.

    Before training, G returns the noise itself. F is a `UNet` at the fixed ``c_noise`` = 0, and takes the same arguments.
    """

    def __init__(self, shape: Sequence[int], num_classes: int | None = None, **arguments: Any) -> None:
        super().__init__()
        self.latent = tuple(shape)
        self.inner = UNet(shape, num_classes, **arguments)
        self.inner.zero_output()

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Return items like z [B, C, H, W]; `label` is int64 [B] for a network with classes."""
        return z + self.inner(z, z.new_zeros(z.shape[0]), label)
