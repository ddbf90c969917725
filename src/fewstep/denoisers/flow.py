"""A flow-matching network, which moves along the straight line between data and noise, seen as a denoiser of data with noise added.

Symbols: the network saw ``z_s = (1 - s) x0 + s eps`` at times s in [0, 1] and predicts the velocity ``v = eps - x0``;
``x = z / (1 - s)`` and ``sigma = s / (1 - s)`` are the same in variance-exploding form, which is what a denoiser is asked in.
"""

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import expand_like

LAST = 0.999  # the last time that has a noise level worth asking for: sigma 999, where nothing is left of the data


class FlowDenoiser(nn.Module):
    """``D(x, sigma, label) = z - s F(z, num s, label)``, with ``s = sigma / (1 + sigma)`` and ``z = (1 - s) x``.

    At s = 1 the noise level is infinite; `sigma_max` is that of s = .999. What schedule times come in (a shift, as Stable Diffusion 3 has
    one) is the sampler's: the denoiser is the same for all.

    Args:
        network: called with z, the time times `timesteps` (float32 [B]) and label.
        sigma_data: standard deviation of the data. It weighs losses; D does not depend on it.
        num_classes: number of classes, or None.
        timesteps: by what the network has its time multiplied, as diffusers' models do.

    """

    draws = "denoiser"
    sigma_max = LAST / (1 - LAST)

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None, timesteps: float = 1000.0) -> None:
        super().__init__()
        self.network, self.sigma_data, self.num_classes, self.timesteps = network, sigma_data, num_classes, timesteps
        self.null_class: bool = getattr(network, "null_class", True)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate of x0, like `x` [B, ...], in float32; `sigma` is [B] or [], positive, `label` int64 [B] or None for no class.

        Raises ValueError where it is None, and the network has classes but no null class.
        """
        if label is None and self.num_classes is not None and not self.null_class:
            raise ValueError(f"label is None, but this network has {self.num_classes} classes and no null class; give labels")
        x = x.float()
        s = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        s = s / (1 + s)
        z = x * (1 - expand_like(s, x))
        dtype = next(self.network.parameters()).dtype
        velocity: Tensor = self.network(z.to(dtype), self.timesteps * s, label_or_null(label, self.num_classes, x)).float()
        return z - expand_like(s, x) * velocity
