"""Points on two circles, with noise."""

import math

import torch
from torch import Tensor

from fewstep.data import DataError, PointData

HELD_OUT = 4000


def circles(size: int = 20_000, noise: float = 0.05, inner: float = 0.5, seed: int = 0) -> PointData:
    """Points [size, 2] on circles of radius 1 and `inner`, each as often as the other, with Gaussian `noise`; 4,000 more held out.

    The annotated arguments are its settings; `seed` is the recipe's. Raises DataError for settings that make no circles.
    """
    if size < 40 or noise <= 0 or not 0 < inner < 1:
        raise DataError(f"data is circles of size {size}, noise {noise} and inner {inner}; give at least 40, above 0, between 0 and 1")
    rng = torch.Generator().manual_seed(seed)

    def drawn(num: int) -> Tensor:
        radius = torch.where(torch.rand(num, generator=rng) < 0.5, 1.0, inner)
        angle = 2 * math.pi * torch.rand(num, generator=rng)
        points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
        return points + noise * torch.randn(num, 2, generator=rng)

    return PointData("circles", drawn(size), drawn(HELD_OUT))
