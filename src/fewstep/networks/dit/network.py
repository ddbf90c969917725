"""A diffusion transformer with adaLN-zero (Peebles & Xie 2022, arXiv 2212.09748).

Symbols: ``B`` batch, ``m`` particles of each item, ``T`` tokens of an image (one for each patch), ``W`` width. ``xi`` is a second noise.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FREQUENCIES = 256  # sines and cosines that describe a noise level


class DiT(nn.Module):
    """A transformer ``F(x, c_noise, label)`` over patches of images [B, C, H, W], same shape out.

    Args:
        shape: (C, height, width) of one image; `patch` must divide height and width.
        num_classes: number of classes, or None for an unconditional network. Label ``num_classes`` means "no class".
        patch: side of a patch in pixels.
        width: channels of a token; must be divisible by `heads`, and by 4 for the position code.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden width of a block's feed-forward layers, as a multiple of `width`.
        xi_block: number of blocks before a second noise xi is added; they run once for each item, whatever m is.
        time_scale: the noise level is embedded as ``time_scale * c_noise``; a smaller factor makes the network smoother in time.
        xi_channels: channels of a second noise xi [B, m, xi_channels, H, W] that the network takes; 0 for a network without xi.
        condition: length of a condition [B, condition] that is added to the embedding, by weights that are 0 at first; 0 for no condition.

    Raises:
        ValueError: for sizes that do not fit together.

    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int | None = None,
        patch: int = 4,
        width: int = 384,
        depth: int = 8,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        xi_block: int = 0,
        time_scale: float = 1000.0,
        xi_channels: int = 0,
        condition: int = 0,
    ) -> None:
        super().__init__()
        channels, height, wide = shape
        if height % patch or wide % patch:
            allowed = [side for side in range(1, min(height, wide) + 1) if height % side == 0 and wide % side == 0]
            raise ValueError(f"network.patch is {patch}, which does not divide images of {height}x{wide}; allowed: {allowed}")
        if width % heads or width % 4:
            raise ValueError(f"network.width is {width}; it must be divisible by network.heads {heads} and by 4")
        if not 0 <= xi_block < depth:
            raise ValueError(f"network.xi_block is {xi_block}; allowed: 0 to {depth - 1}, for xi must enter before the last block")
        self.channels, self.patch, self.grid = channels, patch, (height // patch, wide // patch)
        self.xi_shape, self.xi_block = (xi_channels, height, wide), xi_block
        self.embed = nn.Linear(channels * patch**2, width)
        self.embed_xi = nn.Linear(xi_channels * patch**2, width, bias=False) if xi_channels else None
        self.position: Tensor
        self.register_buffer("position", position_code(*self.grid, width), persistent=False)
        self.level = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.time_scale, self.sinusoids = time_scale, Sinusoids()
        self.label = None if num_classes is None else nn.Embedding(num_classes + 1, width)
        self.from_condition = nn.Linear(condition, width, bias=False) if condition else None
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulate = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, channels * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        """Initialise linear layers by Xavier's rule, and as adaLN-zero: each block starts as the identity, the output as 0 (Sec. 3.2)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name in ("level.0.weight", "level.2.weight", "label.weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("modulate.weight") or name in ("out.weight", "from_condition.weight"):
                nn.init.zeros_(weight)

    def forward(
        self, x: Tensor, c_noise: Tensor, label: Tensor | None = None, xi: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """Return the output, like `x` [B, C, H, W] for `c_noise` [B], or [B, m, C, H, W] for `xi` [B, m, xi_channels, H, W].

        The embedding of noise level, label and condition, and the first `xi_block` blocks, are computed once for each item and not for
        each particle.
        """
        level = self.level(self.sinusoids(self.time_scale * c_noise).to(x.dtype))
        if self.label is not None:
            level = level + self.label(label)
        if self.from_condition is not None and condition is not None:
            level = level + self.from_condition(condition.to(x.dtype))
        modulation = functional.silu(level)[:, None, None]  # [B, 1, 1, W], broadcast over particles and tokens
        tokens = (self.embed(self._patches(x)) + self.position.to(x.dtype))[:, None]  # [B, 1, T, W]
        for number, block in enumerate(self.blocks):
            if self.embed_xi is not None and number == self.xi_block:
                assert xi is not None
                tokens = tokens + self.embed_xi(self._patches(xi))
            tokens = block(tokens, modulation)
        shift, scale = self.modulate(modulation).chunk(2, -1)
        out = self._image(self.out(self.norm(tokens) * (1 + scale) + shift))
        return out if self.embed_xi is not None else out[:, 0]

    def _patches(self, x: Tensor) -> Tensor:
        """Return images [..., C, H, W] as patches [..., T, C * patch^2]."""
        (rows, columns), p = self.grid, self.patch
        parts = x.unflatten(-1, (columns, p)).unflatten(-3, (rows, p))  # [..., C, rows, p, columns, p]
        return parts.movedim(-5, -3).movedim(-4, -3).movedim(-2, -4).flatten(-3).flatten(-3, -2)

    def _image(self, tokens: Tensor) -> Tensor:
        """Return patches [..., T, C * patch^2] as images [..., C, H, W]: the inverse of `_patches`."""
        p = self.patch
        parts = tokens.unflatten(-1, (self.channels, p, p)).unflatten(-4, self.grid)  # [..., rows, columns, C, p, p]
        return parts.movedim(-3, -5).movedim(-2, -3).flatten(-2).flatten(-3, -2)


class Block(nn.Module):
    """Attention, and two feed-forward layers, each modulated by the embedding: ``x + gate * f((1 + scale) norm(x) + shift)``."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        hidden = int(width * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulate = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return tokens like `x` [B, m, T, W] for the embedding `condition` [B, 1, 1, W]."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulate(condition).chunk(6, -1)
        x = x + gate_1 * self._attention(self.norm(x) * (1 + scale_1) + shift_1)
        return x + gate_2 * self.mlp(self.norm(x) * (1 + scale_2) + shift_2)

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).flatten(0, 1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B m, heads, T, W / heads]
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.mix(mixed).view_as(x)


class Sinusoids(nn.Module):
    """Cosines and sines of a value [B] at `count` / 2 frequencies from 1 down to 1e-4: [B, count] (arXiv 1706.03762, Sec. 3.5)."""

    def __init__(self, count: int = FREQUENCIES) -> None:
        super().__init__()
        self.count = count

    def frequencies(self, device: torch.device | None = None) -> Tensor:
        """The frequencies, float32 [count / 2]."""
        return torch.exp(-math.log(1e4) / (self.count // 2) * torch.arange(self.count // 2, device=device))

    def forward(self, value: Tensor) -> Tensor:
        """The embedding [B, count] of `value` [B]."""
        angle = value.float()[:, None] * self.frequencies(value.device)
        return torch.cat([angle.cos(), angle.sin()], 1)


def position_code(rows: int, columns: int, width: int) -> Tensor:
    """Return the fixed position code [rows * columns, width] of a grid: half of each code is of the row, and half of the column."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    waves = Sinusoids(width // 2)
    return torch.cat([waves(row.flatten()), waves(column.flatten())], 1)
