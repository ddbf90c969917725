"""A flow map's ``X(x, sigma, rho)``: a denoiser that is also told the lower level to which its estimate will be used to step.

Symbols: one Euler step from sigma to rho, ``0 <= rho <= sigma``, is ``f = (rho / sigma) x + (1 - rho / sigma) X``; the gap is
``g = 1 - rho / sigma``. The lesson docs/lessons/flows.md explains this form.
"""

import math

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import edm_coefficients, expand_like

CONDITION = 8  # numbers that describe the gap


def gap_features(sigma: Tensor, rho: Tensor, sigma_data: float) -> Tensor:
    """Return [B, 8] numbers that describe the gap between `sigma` and `rho` [B], all 0 where `sigma` and `rho` are equal.

    They are g and its square; d and its square, where d in [0, 1] is the difference of the angles ``atan(sigma / sigma_data)`` and
    ``atan(rho / sigma_data)`` over a right angle; and ``sin(k pi d)`` and ``1 - cos(k pi d)`` for k = 1 and 2.
    """
    g = 1 - rho / sigma
    d = (torch.atan(sigma / sigma_data) - torch.atan(rho / sigma_data)) / (math.pi / 2)
    waves = [(k * math.pi * d).sin() for k in (1, 2)] + [1 - (k * math.pi * d).cos() for k in (1, 2)]
    return torch.stack([g, g.square(), d, d.square(), *waves], 1)


class TwoTimeDenoiser(nn.Module):
    """``X(x, sigma, label, rho) = c_skip x + c_out F(c_in x, c_noise, label, gap)``: EDM's preconditioning, with the gap as F's condition.

    At rho = sigma the gap is 0, and X is the preconditioned denoiser ``D(x, sigma, label)`` with F's weights. `num_classes` None makes it
    unconditional; otherwise a missing label becomes the null class, ``num_classes``.

    Args:
        network: a network that takes a condition of `CONDITION` numbers.
        sigma_data: standard deviation of the data.
        num_classes: number of classes, or None.
        gain: factor on the condition. A network whose weights for the condition start at 0 learns the gap that many times faster.

    """

    draws = "two_time"

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.sigma_data = sigma_data
        self.num_classes = num_classes
        if not (isinstance(gain, int | float) and 0 < gain < math.inf):
            raise ValueError(f"gain is {gain!r}; give a number above 0")
        self.gain = gain

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None, rho: Tensor | None = None) -> Tensor:
        """Return the point that one Euler step from `sigma` to `rho` must aim at, like `x` [B, ...], in float32.

        `sigma` and `rho` are [B] or [], sigma positive; `rho` None stands for sigma itself. `label` is int64 [B]; None, or the entry
        ``num_classes``, asks for no class.
        """
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        label = label_or_null(label, self.num_classes, x)
        c_skip, c_out, c_in, c_noise = (expand_like(c, x) for c in edm_coefficients(sigma, self.sigma_data))
        condition = None
        if rho is not None:
            rho = torch.as_tensor(rho, dtype=torch.float32, device=x.device).expand(x.shape[0])
            condition = self.gain * gap_features(sigma, rho, self.sigma_data)
        dtype = next(self.network.parameters()).dtype
        f = self.network((c_in * x).to(dtype), c_noise.flatten().to(dtype), label, condition=condition)
        return c_skip * x + c_out * f.float()
