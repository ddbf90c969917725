"""A residual network for points: layers that add to what comes in, told the noise level at each."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """``F(x, c_noise, label)`` for points x [B, D], c_noise [B] and label int64 [B], or None without classes: like x.

    Points come in as waves, too, without which fine structure is learned late (Fourier features, arXiv 2006.10739). The annotated arguments
    after `num_classes` are the settings: a recipe's section ``network`` may hold them, checked by their types.
    """

    items: ClassVar = ("points",)  # the data it can be of

    def __init__(self, shape: tuple[int, ...], num_classes: int | None, width: int = 96, blocks: int = 3, waves: int = 3) -> None:
        super().__init__()
        self.waves: Tensor
        self.register_buffer("waves", 2.0 ** torch.arange(waves), persistent=False)
        self.enter = nn.Linear(shape[0] * (1 + 2 * waves), width)
        self.levels = nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(blocks))
        self.leave = nn.Linear(width, shape[0])

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The output, like `x`."""
        told = self.levels(c_noise[:, None])
        if self.classes is not None and label is not None:
            told = told + self.classes(label)
        waves = (x[:, :, None] * self.waves).flatten(1)
        h = self.enter(torch.cat([x, waves.sin(), waves.cos()], 1))
        for block in self.blocks:
            h = h + block(torch.relu(h + told))
        return self.leave(h)

    def zero_output(self) -> None:
        """Be silent at first: the denoiser around it then starts as the best linear one."""
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
