"""A residual network for points: linear layers that add to what comes in, told the noise level at each."""

from typing import ClassVar

import torch
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """``F(x, c_noise, label)`` for points x [B, D], c_noise [B] and label int64 [B], or None without classes: like x.

    The annotated arguments after `num_classes` are its settings: a recipe's section ``network`` may hold them, checked by their types.
    """

    items: ClassVar = ("points",)  # the data it can be of

    def __init__(self, shape: tuple[int, ...], num_classes: int | None, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(shape[0], width)
        self.levels = nn.Sequential(nn.Linear(1, width), nn.SiLU(), nn.Linear(width, width))
        self.classes = None if num_classes is None else nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)) for _ in range(blocks))
        self.leave = nn.Linear(width, shape[0])

    def forward(self, x: Tensor, c_noise: Tensor, label: Tensor | None = None) -> Tensor:
        """The output, like `x`."""
        told = self.levels(c_noise[:, None])
        if self.classes is not None and label is not None:
            told = told + self.classes(label)
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(torch.nn.functional.silu(h + told))
        return self.leave(h)

    def zero_output(self) -> None:
        """Be silent at first: the denoiser around it then starts as the best linear one."""
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)
