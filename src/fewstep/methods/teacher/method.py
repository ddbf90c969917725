"""The diffusion teacher: EDM training (Karras et al. 2022, arXiv 2206.00364).

    sigma ~ p(sigma)          log-normal, or uniform over the levels of the Karras grid
    x     = x0 + sigma n      n ~ N(0, I)
    loss  = mean w(sigma) (D(x, sigma, label) - x0)^2,   w = (sigma^2 + sd^2) / (sigma sd)^2

Labels are hidden with the probability ``label_dropout``, so that the network also learns the unconditional estimate.
"""

import math
from typing import Any, ClassVar

import torch
from torch import nn

from fewstep.generator import Generator
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas, level_sigmas, lognormal_sigmas
from fewstep.methods.base import Alarm, Batch, Given, LossOutput, Method, Networks, Turn, hidden_labels
from fewstep.methods.teacher.settings import TeacherSettings
from fewstep.streams import normal


class Teacher(Method):
    """Train `generator`'s denoiser on data with EDM's loss.

    Args:
        settings: the method's settings.
        generator: an untrained generator, with the sampler that the trained teacher is to have.

    """

    Settings = TeacherSettings
    ships = "denoiser"
    shown = ("denoising",)
    main = "denoiser.denoising"
    drawn: ClassVar = {"losses": ("denoising",)}
    readings: ClassVar = {
        "losses": "The weighted squared error of the denoised item, about 1 for a network that knows nothing. Lower is better, down to a "
        "level above 0 that depends on the data, because noise cannot be fully told from data.",
    }
    alarms: ClassVar = (
        Alarm(
            "untrained",
            "denoiser.denoising",
            "the denoising loss is {value:.2f} (about 1 for a network that knows nothing)",
            "Training is unstable: lower method.optimizer.lr",
            high=0.9,
            sound=0.0,
            unmoved="Raise method.optimizer.lr, or train longer; check network.sigma_data against the data's standard deviation, and that "
            "method.sigma_mean and method.sigma_std are where there is something to learn",
        ),
        # EDM's own setting is .5 above; a factor of e^3 away, noise hides items altogether, or hides nothing of them
        Alarm(
            "levels",
            "denoiser.levels",
            "method.sigma_mean is {value:+.1f} from ln(sigma_data) - 1: at most of the noise levels there is nothing to learn",
            "Set method.sigma_mean to ln(network.sigma_data) - 1",
            low=-3.0,
            high=3.0,
        ),
    )

    def __init__(self, settings: TeacherSettings, generator: Generator) -> None:
        self.settings, self.generator = settings, generator
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), settings.optimizer),)
        self.levels = karras_sigmas(settings.num_train_timesteps, settings.sigma_min, settings.sigma_max, settings.rho)
        self.label_dropout = settings.label_dropout if generator.num_classes else 0.0

    @classmethod
    def make(cls, settings: TeacherSettings, given: Given) -> "Teacher":
        """Make the method, with a preconditioned denoiser and a sampler of the probability-flow ODE.

        Raises UserError for guidance on data without classes.
        """
        grid = {name: getattr(settings, name) for name in ("sigma_min", "sigma_max", "rho")}
        sampler = {**grid, "name": settings.sampler, "steps": settings.sampler_steps}
        return cls(settings, given.make_generator(settings.guided(sampler, given.data.name, given.data.num_classes)))

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return EDM's weighted denoising loss, with the term ``denoising``, which is about 1 at the start."""
        x0, label = batch.x, batch.label
        if self.settings.sigma_sampling == "lognormal":
            sigma = lognormal_sigmas(len(x0), self.settings.sigma_mean, self.settings.sigma_std, rng, x0.device)
        else:
            sigma = level_sigmas(self.levels, len(x0), 0, len(self.levels) - 1, rng)
        label = hidden_labels(label, self.label_dropout, self.generator.num_classes, rng)
        n = normal(x0.shape, rng)
        x = x0 + expand_like(sigma, x0) * n
        weight = expand_like(edm_weight(sigma, self.generator.sigma_data), x0)
        denoising = (weight * (networks["denoiser"](x, sigma, label) - x0).square()).mean()
        return LossOutput(denoising, {"denoising": denoising.detach()})

    @property
    def standing(self) -> dict[str, float]:
        """With log-normal levels, ``denoiser.levels``: ``sigma_mean`` less ln(sigma_data) - 1, about which most is learned."""
        if self.settings.sigma_sampling != "lognormal":
            return {}
        return {"denoiser.levels": self.settings.sigma_mean - math.log(self.generator.sigma_data) + 1}

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the denoiser with its ODE sampler."""
        info = {"method": "teacher", "step": step, "label_dropout": self.label_dropout}
        return self.generator.derive(self.generator.sampler, {**self.generator.info, **info}, network)
