"""Rectified flow (Liu et al. 2022, arXiv 2209.03003), told of a denoiser.

    x_t  = (1 - t) x0 + t n                     a straight line from data x0 to noise n ~ N(0, I)
    v    = E[n - x0 | x_t] = (x_t - D) / t      the velocity along it, by the denoiser D = E[x0 | x_t]
    loss = mean (v - (n - x0))^2 = mean (D - x0)^2 / t^2

fewstep's denoisers are told ``x0 + sigma n``, which is ``x_t / (1 - t)`` at ``sigma = t / (1 - t)``.
"""

from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import nn

from fewstep.generator import Generator
from fewstep.methods import Alarm, Batch, Compared, Given, LossOutput, Method, MethodSettings, Networks, Optimizer, Turn, normal, uniform


class RectifiedSettings(MethodSettings):
    """What a recipe's section ``method`` may hold, beside what every method has."""

    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(lr=2e-3, warmup=50, decay_from=0.5, final=0.05, weight_decay=0.0))
    time: Literal["uniform", "logit_normal"] = Field("logit_normal", description="of t; logit_normal as in arXiv 2403.03206, Sec. 3.1")
    sampler_steps: PositiveInt = Field(12, description="noise levels; 12 of Heun's are 23 evaluations")
    sigma_min: PositiveFloat = 0.01
    sigma_max: PositiveFloat = 20.0

    teaches: ClassVar = True  # what it ships denoises at every noise level
    compared: ClassVar = (Compared("rectified flow", items=("points",), one_step=False),)


class Rectified(Method):
    """Regress the velocity of straight lines from data to noise; draw by Heun's method."""

    Settings = RectifiedSettings
    ships = "denoiser"
    shown = ("velocity",)
    main = "denoiser.velocity"
    drawn: ClassVar = {"losses": ("velocity",)}
    alarms: ClassVar = (
        Alarm(
            "no better than the mean",
            "denoiser.velocity",
            "the velocity is off by {value:.2f}, more than the data's mean alone would be",
            "Train with a lower method.optimizer.lr",
            high=4.0,
        ),
    )

    def __init__(self, settings: RectifiedSettings, generator: Generator) -> None:
        self.settings, self.generator = settings, generator
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), settings.optimizer),)

    @classmethod
    def make(cls, settings: RectifiedSettings, given: Given) -> "Rectified":
        """From an untrained denoiser of the data."""
        grid = {"sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max, "rho": 7.0}
        return cls(settings, given.make_generator({"name": "heun", "steps": settings.sampler_steps, **grid}))

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The mean squared error of the velocity."""
        x0 = batch.x
        t = uniform((len(x0),), rng) if self.settings.time == "uniform" else normal((len(x0),), rng).sigmoid()
        sigma = (t / (1 - t)).clamp(self.settings.sigma_min, self.settings.sigma_max)
        t, wide = sigma / (1 + sigma), (-1, *[1] * (x0.ndim - 1))
        n = normal(x0.shape, rng)
        d = networks["denoiser"](x0 + sigma.view(wide) * n, sigma, batch.label)
        velocity = ((d - x0) / t.view(wide)).square().mean()
        return LossOutput(velocity, {"velocity": velocity.detach()})

    def ship(self, network: nn.Module, step: int) -> Generator:
        """The denoiser with its sampler."""
        return self.generator.derive(self.generator.sampler, {**self.generator.info, "method": "rectified", "step": step}, network)
