"""The diffusion teacher: EDM training (Karras et al. 2022, arXiv 2206.00364).

    sigma ~ p(sigma)          log-normal, or uniform over the levels of the Karras grid
    x     = x0 + sigma n      n ~ N(0, I)
    loss  = mean w(sigma) (D(x, sigma, label) - x0)^2,   w = (sigma^2 + sd^2) / (sigma sd)^2

A label is hidden now and then, so that the network also learns to do without one.
"""

from typing import Any, Literal

import torch
from torch import nn

from fewstep.generator import Generator
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas, level_sigmas, lognormal_sigmas
from fewstep.methods.base import Batch, LossOutput, Method, Networks, OptimizerSettings, Turn, hidden_labels


class Teacher(Method):
    """Train `generator`'s denoiser on data with EDM's loss.

    Args:
        generator: untrained, with the sampler that the trained one is to have.
        optimizer: settings of AdamW.
        sigma_sampling: "lognormal" with `sigma_mean` and `sigma_std`, or "karras", uniform over the `num_train_timesteps`
            levels of the grid from `sigma_min` to `sigma_max`.
        label_dropout: probability that an item's label is replaced by the null class, which guidance needs.

    """

    ships = "denoiser"

    def __init__(
        self,
        generator: Generator,
        optimizer: OptimizerSettings,
        sigma_sampling: Literal["lognormal", "karras"] = "lognormal",
        sigma_mean: float = -1.2,
        sigma_std: float = 1.2,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        label_dropout: float = 0.0,
    ) -> None:
        self.generator = generator
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), optimizer),)
        self.sigma_sampling, self.sigma_mean, self.sigma_std = sigma_sampling, sigma_mean, sigma_std
        self.levels = karras_sigmas(num_train_timesteps, sigma_min, sigma_max, rho)
        self.label_dropout = label_dropout

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """EDM's weighted denoising loss; the term is called ``denoising`` and is about 1 at the start."""
        x0, label = batch.x, batch.label
        if self.sigma_sampling == "lognormal":
            sigma = lognormal_sigmas(len(x0), self.sigma_mean, self.sigma_std, rng, x0.device)
        else:
            sigma = level_sigmas(self.levels.to(x0.device), len(x0), 0, len(self.levels) - 1, rng)
        label = hidden_labels(label, self.label_dropout, self.generator.num_classes, rng)
        n = torch.randn(x0.shape, generator=rng, device=x0.device)
        x = x0 + expand_like(sigma, x0) * n
        weight = expand_like(edm_weight(sigma, self.generator.sigma_data), x0)
        denoising = (weight * (networks["denoiser"](x, sigma, label) - x0).square()).mean()
        return LossOutput(denoising, {"denoising": denoising.detach()})

    def ship(self, network: nn.Module, step: int) -> Generator:
        """The denoiser with its ODE sampler."""
        info = {"method": "teacher", "step": step, "label_dropout": self.label_dropout}
        return self.generator.derive(self.generator.sampler, {**self.generator.info, **info}, network)
