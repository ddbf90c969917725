"""A one-step map from noise to data as a denoiser: of noise so strong that nothing of the data is left."""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn


class PushForward(nn.Module):
    """``D(z, sigma, label) = sigma_data G(z, label)``: an estimate from pure noise z, whatever the value of `sigma`.

    The noise z [B, *latent] need not have the data's shape. `network` is called with z and label; its attribute ``latent`` is the
    shape of one z, or its length.
    """

    draws = "map"

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.num_classes = num_classes

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of the noise z of one item."""
        latent = self.network.latent
        return (latent,) if isinstance(latent, int) else tuple(cast(Sequence[int], latent))

    def forward(self, z: Tensor, sigma: Tensor | float = torch.inf, label: Tensor | None = None) -> Tensor:
        """Return items [B, ...] in float32 for z [B, *latent]; `label` is int64 [B] where there are classes.

        Raises ValueError where there are classes and `label` is None, for there is no null class.
        """
        if label is None and self.num_classes is not None:
            raise ValueError(f"label is None, but this map has {self.num_classes} classes and none that means no class; give labels")
        dtype = next(self.network.parameters()).dtype
        return self.sigma_data * self.network(z.to(dtype), None if self.num_classes is None else label).float()
