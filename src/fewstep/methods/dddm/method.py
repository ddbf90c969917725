"""Distributional diffusion: train a denoiser to sample the posterior, with a scoring rule (De Bortoli et al. 2025, arXiv 2502.02483).

    t     ~ U(0, 1)                     the linear path, 0 data and 1 noise
    x_t   = (1 - t) x0 + t eps          eps ~ N(0, I)
    xhat_j = D(x_t, t, label, xi_j)     m particles, xi_j ~ N(0, I), of one x_t
    loss  = mean w(t) [ 1/m sum_j |x0 - xhat_j|^beta - lambda / (2 m (m - 1)) sum_{j != k} |xhat_j - xhat_k|^beta ]

beta 2 with lambda 0 is ordinary diffusion. There is no teacher and no distillation: because D draws from ``x0 | x_t`` instead of averaging
over it, samples stay good on a coarse grid of times.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.denoisers import DistributionalDenoiser
from fewstep.generator import Generator
from fewstep.maths.energy import calibration, energy_score_of, particle_distances
from fewstep.maths.parametrization import expand_like
from fewstep.maths.schedules import linear_path, sigmoid_weight
from fewstep.methods.base import Alarm, Batch, Given, LossOutput, Method, Networks, Ramp, Ratio, Turn, hidden_labels
from fewstep.methods.dddm.settings import DDDMSettings
from fewstep.streams import normal, uniform


class DDDM(Method):
    """Train `generator`'s distributional denoiser on data (Algorithm 1).

    Args:
        settings: the method's settings.
        generator: an untrained generator with a distributional denoiser.
        steps: length of the run, over a fraction of which lambda rises.

    Raises:
        ValueError: for a generator with another kind of denoiser.

    """

    Settings = DDDMSettings
    ships = "denoiser"
    shown = ("score", "calibration")
    main = "denoiser.score"
    drawn: ClassVar = {
        "losses": ("score", "error"),
        "calibration (1: the particles spread as the posterior does)": ("calibration", "apart"),
    }
    readings: ClassVar = {
        "losses": "score is the energy score, which training minimises, and error the mean distance of a particle from the truth, in "
        "standard deviations of the data. Lower is better for both.",
        "calibration (1: the particles spread as the posterior does)": "How far particles lie from each other, as a share of how far they "
        "lie from the truth. 1 is best: far below 1 the network ignores xi, its second noise. apart is the same ratio while lambda still "
        "rises (method.lam_warmup), when it is meant to be low.",
    }
    alarms: ClassVar = (
        Alarm(
            "overconfident",
            "denoiser.calibration",
            "particles lie {value:.0%} as far from each other as from the truth (100% for draws from the posterior): xi is being ignored",
            "Raise method.lam (1 asks for the whole spread) or method.m, or lower method.optimizer.lr; samples from few steps will be "
            "blurred until then",
            low=0.5,
        ),
    )
    advice: ClassVar = {
        "collapse": "The posterior is drawn too narrow: check that method.lam is 1, raise method.m, or train longer",
        "noise": "Lower method.optimizer.lr",
    }

    def __init__(self, settings: DDDMSettings, generator: Generator, steps: int = 0) -> None:
        if not isinstance(generator.denoiser, DistributionalDenoiser):
            raise ValueError(f"the generator's denoiser is {generator.denoiser_config['name']!r}; DDDM trains a 'distributional' one")
        self.settings, self.generator = settings, generator
        self.xi_shape = generator.denoiser.xi_shape
        self.networks = {"denoiser": generator.denoiser}
        self.turns = (Turn("denoiser", ("denoiser",), settings.optimizer),)
        self.m, self.beta = settings.m, settings.beta
        self.lam = Ramp(settings.lam, 0.0 if settings.lam_warmup else None, round(settings.lam_warmup * steps))
        self.label_dropout = settings.label_dropout if generator.num_classes else 0.0
        self.updates = 0

    @classmethod
    def make(cls, settings: DDDMSettings, given: Given) -> "DDDM":
        """Make the method, with a distributional denoiser; its network takes xi of as many channels as the settings say or the data has.

        Raises UserError for guidance on data without classes.
        """
        sampler = {"name": "distributional", "steps": settings.sampler_steps, "churn": settings.churn}
        sampler = settings.guided(sampler, given.data.name, given.data.num_classes)
        denoiser = {"name": "distributional", "output": settings.output}
        generator = given.make_generator(sampler, denoiser, xi_channels=settings.xi_channels or given.data.shape[0])
        return cls(settings, generator, given.steps)

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return the weighted generalised energy score of the batch (arXiv 2502.02483, Eqs. 12-14).

        Terms: ``score``, the loss; ``error``, the mean distance of a particle from the truth, in standard deviations of the data; and
        ``calibration``, the mean distance of two particles over the mean distance of a particle from the truth: 1 for draws from the
        posterior, 0 where xi is ignored. While lambda still rises, and for lambda 0, which asks for no spread, that ratio is logged as
        ``apart``, for which there is no alarm.
        """
        x0, lam = batch.x, self.lam(self.updates)
        label = hidden_labels(batch.label, self.label_dropout, self.generator.num_classes, rng)
        t = uniform((len(x0),), rng)
        eps = normal(x0.shape, rng)
        xi = normal((len(x0), self.m, *self.xi_shape), rng)
        alpha, sigma = (expand_like(c, x0) for c in linear_path(t))
        xhat = networks["denoiser"](alpha * x0 + sigma * eps, t, label, xi)
        errors, pairs = particle_distances(x0, xhat)
        score = (sigmoid_weight(t, self.settings.bias) * energy_score_of(errors, pairs, self.beta, lam)).mean()
        terms: dict[str, Tensor | Ratio] = {
            "score": score.detach(),
            "error": errors.detach().mean() / (self.generator.sigma_data * x0[0].numel() ** 0.5),
        }
        if self.m > 1:
            settled = lam == self.lam.end and lam > 0
            terms["calibration" if settled else "apart"] = Ratio(*calibration(errors.detach(), pairs.detach()))
        # draws from the posteriors of noised data are distributed like the data; posterior means, to which lambda below 1 tends, are not
        return LossOutput(score, terms, xhat[:, 0].detach() if lam == 1 else None, batch.label)

    def after_update(self, turn: str) -> None:
        """Count the updates, for the ramp of lambda."""
        self.updates += 1

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (`points`, V): V is the mean of 16 draws of x0 given ``x_t = points / 2`` at t = 1/2, less the points."""
        xi = torch.randn(1, 16, *self.xi_shape, generator=torch.Generator().manual_seed(0)).to(points)
        t = torch.tensor(0.5, device=points.device)
        x0 = self.networks["denoiser"]((1 - t) * points, t, None, xi.expand(len(points), *xi.shape[1:]))
        return points, x0.mean(1) - points

    def settings_now(self) -> dict[str, float]:
        """Return the present lambda, where it is ramped."""
        return {} if self.lam.start is None else {"lam": self.lam(max(0, self.updates - 1))}

    def state_dict(self) -> dict[str, Any]:
        """Return the number of updates so far."""
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.updates = state["updates"]

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the denoiser with the generator's sampler."""
        info = {**self.generator.info, "method": "dddm", "step": step, "label_dropout": self.label_dropout}
        return self.generator.derive(self.generator.sampler, info, network)
