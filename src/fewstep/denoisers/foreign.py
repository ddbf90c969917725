"""A network trained elsewhere on discrete timesteps, seen as a denoiser of data with noise added to it.

Symbols: the network saw ``x_t = alpha x0 + sigma_t eps`` at integer t; ``x = x_t / alpha`` and ``sigma = sigma_t / alpha`` are the same in
variance-exploding form, which is what a denoiser is asked in.
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

    F is asked at ``x_t = alpha x`` and the timestep whose noise level is `sigma`, interpolated in ln sigma between the integer ones, so
    at these D is exactly what F was trained to be. Between 0 and the smallest level of the table, and beyond the largest, t stays at
    the end of the table while alpha and sigma_t go on: below, D still tends to x itself; above, F answers for noise it has never seen,
    and what is built on this denoiser must keep to `sigma_max`. The estimate is not clipped, as some samplers do.

    Args:
        network: called with x_t, t (float32 [B]) and label; its attribute ``null_class``, where it has one, says whether it
            knows a null class.
        sigma_data: standard deviation of the data. It weighs losses; D does not depend on it.
        num_classes: number of classes, or None.
        prediction: what F gives: "epsilon", "v_prediction" or "sample".
        betas: one for each timestep, or the arguments of `fewstep.maths.parametrization.beta_schedule`.
        zero_snr: the betas were stretched so that nothing of the data is left at the last timestep (arXiv 2305.08891). That timestep
            has no finite noise level, and is not used.

    Raises:
        ValueError: for another prediction, and for betas that make no table.

    """

    draws = "denoiser"
    needs = ("prediction", "betas")  # that a model's config.json has to name
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
        # no buffer: a module that is taken to half precision must not take its table along
        with torch.device("cpu"):  # also where the network is made without memory, on "meta"
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
        """Standard deviation of what a sampler begins with at the level `sigma`: 1 in x_t, in which stock pipelines draw it."""
        return math.sqrt(1 + sigma**2)

    def step_sigmas(self, steps: int) -> list[float]:
        """The levels at the ends of `steps` equal parts, falling, as LCM's scheduler has them: of 1,000, for 4, 999, 749, 499 and 249."""
        part = len(self.sigmas) // steps
        return [self.sigmas[part * number - 1].item() for number in range(steps, 0, -1)]

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep, float32 like `sigma` [...], at which the network is asked."""
        state = torch.float32 if sigma.device.type == "mps" else torch.float64
        return fractional_timestep(sigma, self.sigmas.to(sigma.device, state))

    @property
    def feature_shapes(self) -> list[tuple[int, tuple[int, int]]]:
        """(channels, (height, width)) of each level of the network's features, the coarsest first; empty for a network without."""
        return list(getattr(self.network, "feature_shapes", []))

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """The estimate of x0, like `x` [B, ...], in float32.

        `sigma` is [B] or [], positive. `label` is int64 [B]; None asks for no class. Raises ValueError where it is None, and the network
        has classes but no null class.
        """
        alpha, sigma_t, x_t, *told = self._told(x, sigma, label)
        f = self.network(*told).float()
        if self.prediction == "sample":
            return f
        return (x0_from_epsilon if self.prediction == "epsilon" else x0_from_v)(x_t, f, alpha, sigma_t)

    def features(self, x: Tensor, sigma: Tensor, label: Tensor | None, levels: int) -> list[Tensor]:
        """So many `levels` of the network's inner features, the coarsest first; arguments and errors as of `forward`."""
        *_, x_t, timestep, label = self._told(x, sigma, label)
        network: Any = self.network
        return network.features(x_t, timestep, label, levels)

    def _told(self, x: Tensor, sigma: Tensor, label: Tensor | None) -> tuple[Any, ...]:
        """(alpha, sigma_t, x_t, x_t as the network has it, timestep, label): coefficients, and what the network is told."""
        if label is None and self.num_classes is not None and not self.null_class:
            raise ValueError(f"label is None, but this network has {self.num_classes} classes and no null class; give labels")
        x = x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(x.shape[0])
        label = label_or_null(label, self.num_classes, x)
        alpha, sigma_t = (expand_like(c, x) for c in ddpm_coefficients(sigma))
        x_t = alpha * x
        # the timestep stays in float32: bfloat16 has no 999
        return alpha, sigma_t, x_t, x_t.to(next(self.network.parameters()).dtype), self.timestep(sigma), label
