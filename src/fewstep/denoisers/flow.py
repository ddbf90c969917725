"""A flow-matching network, which was trained on the straight line between data and noise, as a denoiser of data with noise added.

Symbols: the network was trained on ``z_s = (1 - s) x0 + s eps`` at times s in [0, 1] and predicts the velocity ``v = eps - x0``;
``x = z / (1 - s)`` and ``sigma = s / (1 - s)`` are the same in variance-exploding form, in which denoisers are called.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import expand_like
from fewstep.maths.schedules import path_sigmas, shifted_times, trained_times, uniform_times


class FlowDenoiser(nn.Module):
    """``D(x, sigma, label) = z - s F(z, num s, label)``, with ``s = sigma / (1 + sigma)`` and ``z = x / (1 + sigma)``.

    At s = 1, where samplers begin, the noise level is infinite, and `fewstep.maths.schedules.NOISE_ALONE` stands for it: a level so large
    that in float32 s is exactly 1 and z exactly the noise. D is exact at all levels between those of the table, too, whatever `shift` is.

    Args:
        network: called with z, the time s multiplied by `timesteps` (float32 [B]), and label.
        sigma_data: standard deviation of the data. It weighs losses; D does not depend on it.
        num_classes: number of classes, or None.
        timesteps: number of times at which the network was trained, by which its time is multiplied, as in models of diffusers.
        shift: shift of these times towards noise, as in Stable Diffusion 3; 1 is none.

    Raises:
        ValueError: for `timesteps` that are not a whole number of at least 2, and for a `shift` that is not positive.

    """

    draws = "denoiser"
    prediction = "flow"
    forward_methods = ("features",)

    def __init__(
        self, network: nn.Module, sigma_data: float, num_classes: int | None = None, timesteps: int = 1000, shift: float = 1.0
    ) -> None:
        super().__init__()
        if int(timesteps) != timesteps or not timesteps > 1 or not 0 < shift < math.inf:
            raise ValueError(f"timesteps are {timesteps} and shift is {shift}; give a whole number from 2, and a number above 0")
        self.network, self.sigma_data, self.num_classes, self.timesteps = network, sigma_data, num_classes, int(timesteps)
        self.shift = shift
        self.null_class: bool = getattr(network, "null_class", True)
        # no buffer: converting the module to half precision must not convert the table
        with torch.device("cpu"):  # also where the network is made on the device "meta", without memory
            self.sigmas = path_sigmas(trained_times(self.timesteps, shift))

    @property
    def sigma_min(self) -> float:
        """The smallest noise level of the table, that of the first time."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """The number that stands for the infinite noise level of the last time, s = 1."""
        return self.sigmas[-1].item()

    def first_noise(self, sigma: float) -> float:
        """Return the standard deviation of the noise from which sampling starts at level `sigma`, 1 in z, as in diffusers."""
        return 1 + sigma

    def step_sigmas(self, steps: int) -> list[float]:
        """Return the noise levels at the ends of `steps` equal parts of time, descending, after the shift.

        With shift 3 the levels of 4 steps are those at s = 1, .9, .75 and .5.
        """
        found: list[float] = path_sigmas(shifted_times(uniform_times(steps), self.shift)).tolist()
        return found

    @property
    def feature_shapes(self) -> list[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of the network's features, the coarsest first; empty for a network without features."""
        return list(getattr(self.network, "feature_shapes", []))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], in float32; `sigma` is [B] or [], positive, `label` int64 [B] or None for no class.

        Raises ValueError where `label` is None, and the network has classes but no null class.
        """
        s, z, *told = self._told(x, sigma, label)
        velocity: Tensor = self.network(*told).float()
        return z - expand_like(s, z) * velocity

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return `levels` levels of the network's features, the coarsest first; arguments and errors are those of `forward`."""
        *_, z, time, label = self._told(x, sigma, label)
        network: Any = self.network
        found: list[Tensor] = network.features(z, time, label, levels)
        return found

    def _told(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Any, ...]:
        """Return (s, z, z in the network's precision, the network's time, its label); the first s and z are in float32."""
        if label is None and self.num_classes is not None and not self.null_class:
            raise ValueError(f"label is None, but this network has {self.num_classes} classes and no null class; give labels")
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        z = x / expand_like(1 + sigma, x)
        fine = sigma if x.device.type == "mps" else sigma.double()  # in float32 a time of 900 has only four digits after the point
        s = fine / (1 + fine)
        # the time stays in float32: bfloat16 cannot represent 999
        time, dtype = (self.timesteps * s).float(), next(self.network.parameters()).dtype
        return s.float(), z, z.to(dtype), time, label_or_null(label, self.num_classes, x)
