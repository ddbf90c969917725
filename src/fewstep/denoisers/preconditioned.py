"""A raw network made into a denoiser by EDM's preconditioning (arXiv 2206.00364, Table 1)."""

from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import edm_coefficients, expand_like


class PreconditionedDenoiser(nn.Module):
    """``D(x, sigma, label) = c_skip x + c_out F(c_in x, c_noise, label)`` around a network ``F``.

    The coefficients are computed in float32, and the network's inputs are in its own precision. `num_classes` None makes the denoiser
    unconditional; otherwise a missing label becomes the null class, ``num_classes``.
    """

    draws = "denoiser"
    forward_methods = ("features",)

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.num_classes = num_classes

    @property
    def feature_shapes(self) -> list[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of the network's features, the coarsest first; empty for a network without features."""
        return list(getattr(self.network, "feature_shapes", []))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], in float32.

        `sigma` is [B] or [], positive. `label` is int64 [B]; None, or the entry ``num_classes``, asks for no class.
        """
        x = x.float()
        c_skip, c_out, *told = self._told(x, sigma, label)
        return c_skip * x + c_out * self.network(*told).float()

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return `levels` levels of the network's features, the coarsest first; arguments are those of `forward`."""
        _, _, *told = self._told(x.float(), sigma, label)
        network: Any = self.network
        return network.features(*told, levels)

    def _told(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Any, ...]:
        """Return (c_skip, c_out, c_in x, c_noise, label): the outer coefficients, and the network's arguments in its own precision."""
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        label = label_or_null(label, self.num_classes, x)
        c_skip, c_out, c_in, c_noise = (expand_like(c, x) for c in edm_coefficients(sigma, self.sigma_data))
        dtype = next(self.network.parameters()).dtype
        return c_skip, c_out, (c_in * x).to(dtype), c_noise.flatten().to(dtype), label
