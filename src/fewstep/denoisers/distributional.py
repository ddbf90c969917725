"""A raw network made into a sampler of the posterior ``x0 | x_t``: a denoiser with a second noise as input (arXiv 2502.02483, Sec. 3)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import expand_like, path_coefficients


class DistributionalDenoiser(nn.Module):
    """``D(x_t, t, label, xi)`` on the linear path ``x_t = (1 - t) x0 + t eps``: each xi ~ N(0, I) gives another draw of x0.

    The network is given ``c_in x_t``, of unit variance, and t as its noise conditioning. `num_classes` None makes it unconditional;
    otherwise a missing label becomes the null class, ``num_classes``.

    Args:
        network: has an attribute ``xi_shape`` and is called with x, t, label and ``xi=`` [B, m, *xi_shape].
        sigma_data: standard deviation of the data.
        num_classes: number of classes, or None.
        output: "x0", ``D = sigma_data F``; or "edm", ``D = c_skip x_t + c_out F`` (arXiv 2206.00364, Table 1). For draws from a posterior
            of several modes "x0" learns better, for F then need not cancel the noise that c_skip lets through (docs/dddm.md).

    """

    draws = "posterior"

    def __init__(self, network: nn.Module, sigma_data: float, num_classes: int | None = None, output: Literal["x0", "edm"] = "x0") -> None:
        super().__init__()
        if output not in ("x0", "edm"):
            raise ValueError(f"output is {output!r}; allowed: 'x0', 'edm'")
        if not math.prod(getattr(network, "xi_shape", (0,))):
            raise ValueError("the network takes no second noise xi; give one with xi_channels of at least 1")
        self.network = network
        self.sigma_data = sigma_data
        self.num_classes = num_classes
        self.output = output

    @property
    def xi_shape(self) -> tuple[int, ...]:
        """Shape of the second noise xi of one draw."""
        return tuple(self.network.xi_shape)  # type: ignore[arg-type]

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, xi: Tensor) -> Tensor:
        """Return draws of x0 in float32, [B, m, ...] for `xi` [B, m, *xi_shape], or like `x` [B, ...] for `xi` [B, *xi_shape].

        `t` is [B] or [], from 0 to 1. `label` is int64 [B]; None, or the entry ``num_classes``, asks for no class.
        """
        x = x.float()
        t = torch.as_tensor(t, dtype=torch.float32, device=x.device).expand(x.shape[0])
        label = label_or_null(label, self.num_classes, x)
        c_skip, c_out, c_in = (expand_like(c, x) for c in path_coefficients(t, self.sigma_data))
        dtype = next(self.network.parameters()).dtype
        many = xi.ndim > len(self.xi_shape) + 1
        particles = xi if many else xi[:, None]
        f = self.network((c_in * x).to(dtype), t.to(dtype), label, xi=particles.to(dtype)).float()
        x0 = self.sigma_data * f if self.output == "x0" else (c_skip * x)[:, None] + c_out[:, None] * f
        return x0 if many else x0[:, 0]
