"""EDM's image U-Nets: DDPM++ and NCSN++ as Karras et al. train them (arXiv 2206.00364, Appendix F.2; the architectures: 2011.13456).

Symbols: ``B`` batch, ``C`` channels, ``c_noise`` the noise conditioning ``ln(sigma)/4``, ``W`` the width of its embedding. Weights have
the names of the published checkpoints (``model.enc.32x32_block0.norm0.weight``), so that those load as they are.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

FORMS = ("ddpmpp", "ncsnpp")
GROUP_WIDTH, MOST_GROUPS = 4, 32  # of each GroupNorm: the least channels in a group, and the most groups
NEARLY_ZERO = 1e-5  # initial gain of the last layer of each residual branch, and of the output layer


class EDMUNet(nn.Module):
    """A U-Net ``F(x, c_noise, label)`` over images [B, C, size, size], same shape out.

    Args:
        shape: (C, height, width) of one image; square, and divisible by ``2^(len(multipliers) - 1)``.
        num_classes: number of classes, or None for an unconditional network. Label ``num_classes`` means "no class".
        form: "ddpmpp" (sines of the noise level; resolution is halved by 2x2 means) or "ncsnpp" (random Fourier features; 4x4 binomial
            filters; the image is added again at each level of the encoder). The paper's VP models are "ddpmpp", its VE models "ncsnpp".
        channels: width of the first convolution; a multiple of 4.
        multipliers: width of each resolution level, in `channels`; each next level has half the resolution.
        blocks: residual blocks at each level of the encoder; the decoder has one more.
        attention: heights of the levels with attention, which these have in each block of the encoder and in the last of the decoder. The
            bottleneck always has attention; a height that no level has is without effect.
        dropout: probability of dropout inside the residual blocks.
        augment_dim: length of the augmentation vector, which is always given as zeros; 0 for a checkpoint without augmentation inputs.
        condition: length of a condition [B, condition] that is added to the features of the noise level, by weights that are 0 at first; 0
            for no condition.

    Raises:
        ValueError: for a form, sizes or widths that do not fit together.

    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int | None = None,
        form: Literal["ddpmpp", "ncsnpp"] = "ddpmpp",
        channels: int = 128,
        multipliers: Sequence[int] = (2, 2, 2),
        blocks: int = 4,
        attention: Sequence[int] = (16,),
        dropout: float = 0.13,
        augment_dim: int = 9,
        condition: int = 0,
    ) -> None:
        super().__init__()
        factor = 2 ** (len(multipliers) - 1)
        if form not in FORMS:
            raise ValueError(f"network.form is {form!r}; allowed: {' or '.join(map(repr, FORMS))}")
        if shape[1] != shape[2] or shape[1] % factor:
            raise ValueError(
                f"images of {shape[1]}x{shape[2]} cannot be halved {len(multipliers) - 1} times as squares; "
                f"give square images with sides divisible by {factor}, or network.multipliers fewer levels"
            )
        if channels % GROUP_WIDTH:
            raise ValueError(f"network.channels is {channels}; give a multiple of {GROUP_WIDTH}")
        widths = [channels * multiplier for multiplier in multipliers]
        sizes = [(width, (shape[1] >> level, shape[2] >> level)) for level, width in enumerate(widths)]
        self.feature_shapes = list(reversed(sizes))
        self.model = _Body(tuple(shape), num_classes or 0, form, channels, widths, blocks, tuple(attention), dropout, augment_dim)
        self.from_condition = nn.Linear(condition, self.model.map_layer0.in_features, bias=False) if condition else None
        if self.from_condition is not None:
            nn.init.zeros_(self.from_condition.weight)
        self._register_load_state_dict_pre_hook(_with_prefix)  # the public name is younger than the oldest torch allowed

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, condition: Tensor | None = None) -> Tensor:
        """Return the output, like `x` [B, C, H, W]; `c_noise` is [B], `label` int64 [B], or None for no class.

        `condition` is [B, condition] for a network with a condition; None stands for zeros.
        """
        added = None if self.from_condition is None or condition is None else self.from_condition(condition.to(x.dtype))
        embedding = self.model.embed(c_noise, label, added)
        return self.model.decode(self.model.encode(x, embedding), embedding)

    def features(self, x: Tensor, c_noise: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return the coarsest `levels` inner features [B, C', h, w], coarsest first: the encoder's last output at each level.

        Their shapes are those in `feature_shapes`. The decoder is not run, so that a discriminator pays for half of the network.
        """
        skips = self.model.encode(x, self.model.embed(c_noise, label))
        last = {skip.shape[2]: skip for skip in skips}  # of each height
        return list(reversed(last.values()))[:levels]


class _Body(nn.Module):
    """The U-Net without preconditioning, with the published names of modules: ``map_...`` embed, ``enc`` and ``dec`` hold ``HxW_...``."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        form: str,
        channels: int,
        widths: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        dropout: float,
        augment_dim: int,
    ) -> None:
        super().__init__()
        fourier = form == "ncsnpp"
        taps, described, width = ((1, 3, 3, 1), 2 * channels, 4 * channels) if fourier else ((1, 1), channels, 4 * channels)
        self.map_noise = _Fourier(described) if fourier else _Sines(described)
        self.map_label = nn.Linear(classes, described) if classes else None
        self.map_augment = nn.Linear(augment_dim, described, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(described, width)
        self.map_layer1 = nn.Linear(width, width)

        def block(inputs: int, outputs: int, attend: bool = False, resample: str = "") -> _Block:
            return _Block(inputs, outputs, width, dropout, attend, resample, taps)

        now, image, skips = channels, shape[0], [channels]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        names = [f"{shape[1] >> level}x{shape[2] >> level}" for level in range(len(widths))]
        for level, (name, wide) in enumerate(zip(names, widths, strict=True)):
            if level == 0:
                self.enc[f"{name}_conv"] = nn.Conv2d(shape[0], channels, 3, padding=1)
            else:
                self.enc[f"{name}_down"] = block(now, now, resample="down")
                if fourier:
                    self.enc[f"{name}_aux_residual"] = _Convolution(image, now, 3, "halved", taps)
                    image = now
                skips.append(now)
            for number in range(blocks):
                self.enc[f"{name}_block{number}"] = block(now, wide, shape[1] >> level in attention)
                now = wide
                skips.append(now)
        for level, (name, wide) in reversed(list(enumerate(zip(names, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"] = block(now, now, attend=True)
                self.dec[f"{name}_in1"] = block(now, now)
            else:
                self.dec[f"{name}_up"] = block(now, now, resample="up")
            for number in range(blocks + 1):
                self.dec[f"{name}_block{number}"] = block(now + skips.pop(), wide, number == blocks and shape[1] >> level in attention)
                now = wide
        self.dec[f"{names[0]}_aux_norm"] = _norm(now)
        self.dec[f"{names[0]}_aux_conv"] = nn.Conv2d(now, shape[0], 3, padding=1)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise weights by Xavier's rule: nearly 0 at the end of a residual branch and at the output, a little lower for attention."""
        for name, weight in self.named_parameters():
            layer, kind = name.split(".")[-2:]
            if kind == "bias" and "norm" not in layer:
                nn.init.zeros_(weight)
            elif weight.ndim > 1:
                ends = layer in ("conv1", "proj") or layer.endswith("aux_conv")
                nn.init.xavier_uniform_(weight, NEARLY_ZERO if ends else 0.2**0.5 if layer == "qkv" else 1.0)

    def embed(self, c_noise: Tensor, label: Tensor | None, added: Tensor | None = None) -> Tensor:
        """Return the embedding [B, W] of `c_noise` [B] and `label` [B], in the weights' dtype; `added` [B, D] is added to the features."""
        dtype = self.map_layer0.weight.dtype
        described = self.map_noise(c_noise.float()).to(dtype)
        if self.map_label is not None:
            classes = self.map_label.in_features
            no_class = torch.zeros(c_noise.shape[0], classes, dtype=dtype, device=c_noise.device)
            # the row of "no class", which is the class after the last, is all zeros
            one_hot = no_class if label is None else (label[:, None] == torch.arange(classes, device=label.device)).to(dtype)
            described = described + self.map_label(one_hot * classes**0.5)
        if self.map_augment is not None:  # zeros, so that its weight has a gradient, of 0: DDP waits for every parameter's
            described = described + self.map_augment(described.new_zeros(1, self.map_augment.in_features))
        if added is not None:
            described = described + added
        return functional.silu(self.map_layer1(functional.silu(self.map_layer0(described))))

    def encode(self, x: Tensor, embedding: Tensor) -> list[Tensor]:
        """Return the outputs of the encoder's blocks, which are the decoder's skip connections; the last one enters the bottleneck."""
        skips: list[Tensor] = []
        image = x
        for name, module in self.enc.items():
            if name.endswith("aux_residual"):
                skips[-1] = x = image = (x + module(image)) * 0.5**0.5
                continue
            x = module(x, embedding) if isinstance(module, _Block) else module(x)
            skips.append(x)
        return skips

    def decode(self, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Return the network's output [B, C, H, W] from the encoder's outputs `skips`."""
        x, left = skips[-1], list(skips)
        for name, module in self.dec.items():
            if isinstance(module, _Block):
                x = module(torch.cat([x, left.pop()], 1) if "_block" in name else x, embedding)
            else:  # the output's normalisation and convolution
                x = functional.silu(module(x)) if name.endswith("norm") else module(x)
        return x


class _Block(nn.Module):
    """A residual block, followed by attention where `attend` is set: each ``(x + f(x)) / sqrt(2)``, which preserves the variance."""

    def __init__(self, inputs: int, outputs: int, width: int, dropout: float, attend: bool, resample: str, taps: Sequence[int]) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.norm0 = _norm(inputs)
        self.conv0 = _Convolution(inputs, outputs, 3, resample, taps)
        self.affine = nn.Linear(width, outputs)
        self.norm1 = _norm(outputs)
        self.conv1 = _Convolution(outputs, outputs, 3)
        self.skip = _Convolution(inputs, outputs, 1, resample, taps) if resample or inputs != outputs else None
        self.norm2 = _norm(outputs) if attend else None
        self.qkv = nn.Conv2d(outputs, 3 * outputs, 1) if attend else None
        self.proj = nn.Conv2d(outputs, outputs, 1) if attend else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [B, outputs, H', W'] for `x` [B, inputs, H, W] and `embedding` [B, width]."""
        hidden = self.conv0(functional.silu(self.norm0(x))) + self.affine(embedding)[:, :, None, None]
        hidden = self.dropout(functional.silu(self.norm1(hidden)))
        x = ((x if self.skip is None else self.skip(x)) + self.conv1(hidden)) * 0.5**0.5
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return x
        # a channel's query, key and value are adjacent; q, k and v are [B, 1 head, H W, C]. They are contiguous, for fused kernels take no
        # others, and without them torch 2.4 rounds the softmax to bf16
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (1, -1, 3)).movedim(3, 0).transpose(-1, -2).contiguous()
        mixed = functional.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        return (x + self.proj(mixed)) * 0.5**0.5


class _Convolution(nn.Conv2d):
    """A size-preserving convolution, with a fixed filter `taps` that changes the resolution as `resample` says.

    "down" halves and "up" doubles the resolution before the convolution, "halved" halves it after the convolution, and "" keeps it.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, resample: str = "", taps: Sequence[int] = ()) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)
        self.resample, self.reach = resample, (len(taps) - 1) // 2
        if resample:
            row = torch.tensor(taps, dtype=torch.float32) / sum(taps)
            self.resample_filter: Tensor
            self.register_buffer("resample_filter", torch.outer(row, row)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, outputs, H', W'] for `x` [B, inputs, H, W]."""
        if self.resample == "down":
            x = self._halved(x, self.reach)
        elif self.resample == "up":
            x = functional.conv_transpose2d(x, self._filters(x) * 4, stride=2, padding=self.reach, groups=x.shape[1])
        elif self.resample == "halved":  # beyond the image's edges the filter sees the convolution's outputs, which are not 0
            return self._halved(functional.conv2d(x, self.weight, self.bias, padding=self.kernel_size[0] // 2 + self.reach), 0)
        return super().forward(x)

    def _filters(self, x: Tensor) -> Tensor:
        return self.resample_filter.expand(x.shape[1], -1, -1, -1)

    def _halved(self, x: Tensor, padding: int) -> Tensor:
        return functional.conv2d(x, self._filters(x), stride=2, padding=padding, groups=x.shape[1])


class _Sines(nn.Module):
    """Sines and cosines of c_noise [B] at `count` / 2 frequencies from 1 down to 1e-4: [B, count] (arXiv 1706.03762, Sec. 3.5)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, c_noise: Tensor) -> Tensor:
        half = self.count // 2
        frequencies = torch.exp(-math.log(1e4) / (half - 1) * torch.arange(half, device=c_noise.device))
        return _waves(c_noise, frequencies)


class _Fourier(nn.Module):
    """Sines and cosines of c_noise [B] at `count` / 2 random frequencies of standard deviation 16: [B, count] (arXiv 2006.10739)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.freqs: Tensor
        self.register_buffer("freqs", 16 * torch.randn(count // 2))

    def forward(self, c_noise: Tensor) -> Tensor:
        return _waves(c_noise, 2 * math.pi * self.freqs)


def _waves(c_noise: Tensor, frequencies: Tensor) -> Tensor:
    angle = c_noise[:, None] * frequencies.to(c_noise.dtype)
    return torch.cat([angle.sin(), angle.cos()], 1)


def _norm(width: int) -> nn.GroupNorm:
    groups = min(MOST_GROUPS, width // GROUP_WIDTH)
    if width % groups:
        raise ValueError(
            f"network.channels and network.multipliers make a layer of {width} channels, which do not divide into {groups} groups; "
            f"give network.channels a multiple of {MOST_GROUPS}"
        )
    return nn.GroupNorm(groups, width, eps=1e-6)


def _with_prefix(state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the weights of a bare U-Net, such as ``enc...``, as inside a preconditioned network, ``model.enc...``."""
    bare = ("map_", "enc.", "dec.")
    for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix).startswith(bare)]:
        state[f"{prefix}model.{key.removeprefix(prefix)}"] = state.pop(key)
