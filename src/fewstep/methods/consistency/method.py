"""Consistency models (Song et al. 2023, arXiv 2303.01469), trained as ECT is (Geng et al. 2024, arXiv 2406.14548).

    f(x, s) = D(x, s)                 EDM's preconditioning, so that f(x, 0) = x by itself
    x_s  = x0 + s n                   ln s ~ N(mean, std^2), folded below sigma_max
    r    = s (1 - gap)                gap = min(1, n(s) / 2^stage), halved at each stage of the run; 1 is denoising
    x_r  = x0 + r n                   the same noise; or with a teacher its ODE step from x_s to r, which is consistency distillation
    loss = mean w(s) / gap |f(x_s, s) - stop_gradient f(x_r, r)|^2,   w = (s^2 + sd^2) / (s sd)^2

What a stage learns can be in the way of the next stage, so that figures in the middle of the run are no guide: the best model is chosen
from the last third of the run.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fewstep.denoisers import Guided
from fewstep.generator import Generator
from fewstep.maths.flow import folded_lognormal, ode_step, stage_gap, towards
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.methods.base import Alarm, Batch, Given, LossOutput, Networks, exact_denoiser
from fewstep.methods.consistency.settings import ConsistencySettings
from fewstep.methods.self_taught import SelfTaught
from fewstep.model_config import inherited
from fewstep.streams import normal


class Consistency(SelfTaught):
    """Train the student's denoiser to be constant along the paths of the probability flow.

    The arguments are those of `SelfTaught`. A teacher or a closed form takes the step from a noise level to the next lower one; without
    either, both levels have the same noise.

    Raises:
        ValueError: for guidance or label dropout with a teacher that was trained without label dropout; and for guidance or the solver heun
            where no teacher takes a step.

    """

    Settings = ConsistencySettings
    shown = ("consistency", "denoising")
    main = "student.consistency"
    drawn: ClassVar = {"losses": ("consistency", "denoising"), "gap": ("gap",)}
    readings: ClassVar = {
        "losses": "consistency is how far apart the network's outputs at two neighbouring noise levels are, weighted. Lower is better "
        "within a stage; it may jump where the next stage begins. denoising is the loss of the run's own teacher, with method.own_teacher.",
        "gap": "How far apart the two compared noise levels are, as a share of the upper one. Each stage halves it on purpose: neither "
        "direction is better.",
    }
    alarms: ClassVar = (
        Alarm(
            "unlearned",
            "student.consistency",
            "the consistency loss is {value:.2f}, as large as for a network that knows nothing",
            "Training is unstable: lower method.optimizer.lr; check network.sigma_data against the data's standard deviation",
            high=1.5,
        ),
    )

    def __init__(
        self,
        settings: ConsistencySettings,
        student: Generator,
        steps: int = 1,
        teacher: Generator | None = None,
        real: nn.Module | None = None,
    ) -> None:
        if settings.guidance_scale != 1.0 and (teacher is None or not teacher.info.get("label_dropout")):
            raise ValueError(
                f"method.guidance_scale is {settings.guidance_scale}, which guides a teacher that was trained with label dropout; "
                "use 1, or give such a teacher"
            )
        super().__init__(settings, student, steps, teacher, real)
        if settings.solver == "heun" and "teacher" not in self.networks:
            raise ValueError("method.solver is 'heun', by which a teacher steps, and there is none; give method.teacher, or use euler")
        if settings.solver == "none" and settings.guidance_scale != 1.0:
            raise ValueError(
                f"method.guidance_scale is {settings.guidance_scale}, but with method.solver=none the teacher takes no step that it could "
                "guide; use 1, or another solver"
            )
        if settings.solver != "none":
            self.check_hidden()

    @classmethod
    def make(cls, settings: ConsistencySettings, given: Given) -> "Consistency":
        """Make the method, with a student that has a network of its own, or a copy of the teacher's network and weights."""
        sampler = {"name": "few_step", "levels": settings.levels, "steps": settings.sampler_steps}
        if given.network.role == "copy":
            assert given.teacher is not None
            student = given.teacher.derive(sampler, inherited(given.teacher.info))
        else:
            student = given.make_generator(sampler)
        return cls(settings, student, given.steps, given.teacher, exact_denoiser(given.data) if settings.exact else None)

    def student_loss(self, networks: Networks, batch: Batch, rng: torch.Generator) -> LossOutput:
        """Return the weighted distance between the student's outputs at neighbouring noise levels; terms ``consistency`` and ``gap``."""
        s, x0, label = self.settings, batch.x, batch.label
        sigma = folded_lognormal(len(x0), s.sigma_mean, s.sigma_std, s.sigma_min, s.sigma_max, rng)
        n = normal(x0.shape, rng)
        gap = stage_gap(sigma, self.stage, s.gap_k, s.gap_b)
        x_s, r = x0 + expand_like(sigma, x0) * n, sigma * (1 - gap)
        target = self._target(networks, x0, x_s, sigma, r, label)
        out = networks["student"](x_s, sigma, label)
        if s.distance == "squared":
            weight = edm_weight(sigma, self.student.sigma_data) / gap
            loss = (weight * (out - target).square().flatten(1).mean(1)).mean()
        else:
            distance = (out - target).square().flatten(1).sum(1)
            loss = (((distance + s.huber_c**2).sqrt() - s.huber_c) / (sigma - r)).mean()
        return LossOutput(loss, {"consistency": loss.detach(), "gap": gap.mean()})

    @torch.no_grad()
    def _target(self, networks: Networks, x0: Tensor, x_s: Tensor, sigma: Tensor, r: Tensor, label: Tensor | None) -> Tensor:
        """Return the target of f at `x_s`, like `x0`: f at the path's point of the next lower level `r` or, where `r` is 0, that point."""
        if "teacher" not in networks or self.settings.solver == "none":
            x_r = towards(x_s, x0, sigma, r)
        else:
            teacher = Guided.of(networks["teacher"], self.settings.guidance_scale)
            x_r = ode_step(lambda x, level: teacher(x, level, label), x_s, sigma, r, self.settings.solver == "heun")
        if self.dropout:  # must be the same in both passes: on the whole batch, with the same random numbers
            there = self.for_targets(networks["student"])(x_r, r.clamp(min=1e-4), label)
            return torch.where(expand_like(r, x0) > 0, there, x_r)
        on = (r > 0).nonzero().flatten()
        if len(on):
            x_r[on] = networks["student"](x_r[on], r[on], None if label is None else label[on])
        else:
            self.call_all_the_same(networks["student"], x_s, sigma, label)
        return x_r

    def settings_now(self) -> dict[str, float]:
        """Return the present stage."""
        return {"stage": float(self.stage)}

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (`points`, V): V is the student's sample, in one evaluation from the point at noise level sigma_data, less the point."""
        sigma = torch.full((), self.student.sigma_data).to(points)
        return points, self.networks["student"](points, sigma, None) - points

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the student, whose sampler can take any number of steps that ``method.levels`` has noise levels for."""
        return self.shipped(network, "consistency", step)
