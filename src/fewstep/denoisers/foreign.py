"""A network that was trained elsewhere on discrete timesteps, as a denoiser of data with noise added.

Symbols: the network was trained on ``x_t = alpha x0 + sigma_t eps`` at integer t; ``x = x_t / alpha`` and ``sigma = sigma_t / alpha`` are
the same in variance-exploding form, in which denoisers are called.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.denoisers.protocol import label_or_null
from fewstep.maths.parametrization import (
    beta_schedule,
    ddpm_coefficients,
    expand_like,
    fractional_timestep,
    timestep_sigmas,
    x0_from_epsilon,
    x0_from_v,
)

PREDICTIONS = ("epsilon", "v_prediction", "sample")  # diffusers' names


class ForeignDenoiser(nn.Module):
    """``D(x, sigma, label)`` of a network ``F(x_t, t, label)`` that predicts eps, v or x0 at discrete times.

    F is called at ``x_t = alpha x`` and the timestep whose noise level is `sigma`, interpolated in ln sigma between integer timesteps, so
    that at integer timesteps D is exactly what F was trained to be. Below the smallest noise level of the table and above the largest, t
    stays at the end of the table while alpha and sigma_t follow `sigma`: below, D still tends to x itself; above, F sees more noise than
    it was trained on, so that callers must not exceed `sigma_max`. Unlike in some samplers, the estimate is not clipped.

    Args:
        network: called with x_t, t (float32 [B]) and label; its attribute ``null_class``, where it has one, says whether it
            knows a null class.
        sigma_data: standard deviation of the data. It weighs losses; D does not depend on it.
        num_classes: number of classes, or None.
        prediction: what F predicts: "epsilon", "v_prediction" or "sample".
        betas: the beta of each timestep, or the arguments of `fewstep.maths.parametrization.beta_schedule`.
        zero_snr: whether the betas were rescaled so that nothing of the data is left at the last timestep (arXiv 2305.08891). That timestep
            has no finite noise level, and is not used.

    Raises:
        ValueError: for another prediction, and for betas that make no noise schedule.

    """

    draws = "denoiser"
    needs = ("prediction", "betas")  # arguments that a model's config.json has to give
    forward_methods = ("features",)

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float,
        num_classes: int | None = None,
        prediction: Literal["epsilon", "v_prediction", "sample"] = "epsilon",
        betas: Mapping[str, Any] | Sequence[float] = (),
        zero_snr: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"the prediction is {prediction!r}; allowed: {', '.join(PREDICTIONS)}")
        self.network = network
        self.sigma_data = sigma_data
        self.num_classes = num_classes
        self.null_class: bool = getattr(network, "null_class", True)
        self.prediction = prediction
        # no buffer: converting the module to half precision must not convert the table
        with torch.device("cpu"):  # also where the network is made on the device "meta", without memory
            table = beta_schedule(**betas) if isinstance(betas, Mapping) else torch.tensor(betas, dtype=torch.float64)
            self.sigmas = timestep_sigmas(table, zero_snr)

    @property
    def sigma_min(self) -> float:
        """Noise level of timestep 0."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """The largest noise level that the network was trained at."""
        return self.sigmas[-1].item()

    def first_noise(self, sigma: float) -> float:
        """Return the standard deviation of the noise from which sampling starts at level `sigma`, 1 in x_t, as in diffusers."""
        return math.sqrt(1 + sigma**2)

    def step_sigmas(self, steps: int) -> list[float]:
        """Return the noise levels at the ends of `steps` equal parts of the table, descending, as in LCM's scheduler.

        Of 1,000 timesteps, 4 steps take those of the timesteps 999, 749, 499 and 249.
        """
        part = len(self.sigmas) // steps
        return [self.sigmas[part * number - 1].item() for number in range(steps, 0, -1)]

    def timestep(self, sigma: Tensor) -> Tensor:
        """Return the timestep, float32 like the noise level `sigma` [...], at which the network is called."""
        state = torch.float32 if sigma.device.type == "mps" else torch.float64
        return fractional_timestep(sigma, self.sigmas.to(sigma.device, state))

    @property
    def feature_shapes(self) -> list[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of the network's features, the coarsest first; empty for a network without features."""
        return list(getattr(self.network, "feature_shapes", []))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...], in float32.

        `sigma` is [B] or [], positive. `label` is int64 [B]; None asks for no class. Raises ValueError where `label` is None, and the
        network has classes but no null class.
        """
        alpha, sigma_t, x_t, *told = self._told(x, sigma, label)
        f = self.network(*told).float()
        if self.prediction == "sample":
            return f
        return (x0_from_epsilon if self.prediction == "epsilon" else x0_from_v)(x_t, f, alpha, sigma_t)

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """Return `levels` levels of the network's features, the coarsest first; arguments and errors are those of `forward`."""
        *_, x_t, timestep, label = self._told(x, sigma, label)
        network: Any = self.network
        return network.features(x_t, timestep, label, levels)

    def _told(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Any, ...]:
        """Return (alpha, sigma_t, x_t, x_t in the network's precision, timestep, label); the last three are the network's arguments."""
        if label is None and self.num_classes is not None and not self.null_class:
            raise ValueError(f"label is None, but this network has {self.num_classes} classes and no null class; give labels")
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        label = label_or_null(label, self.num_classes, x)
        alpha, sigma_t = (expand_like(c, x) for c in ddpm_coefficients(sigma))
        x_t = alpha * x
        # the timestep stays in float32: bfloat16 cannot represent 999
        return alpha, sigma_t, x_t, x_t.to(next(self.network.parameters()).dtype), self.timestep(sigma), label
