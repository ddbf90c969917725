"""Flow maps: a network that goes from any noise level to any lower one (MeanFlow, arXiv 2505.13447), in the form ``X(x, sigma, rho)``.

    x    = x0 + sigma n               ln sigma ~ N(mean, std^2), folded below sigma_max; rho <= sigma: 0, sigma, or between
    A    = x0, or the student's own X(x, sigma, sigma) where rho < sigma, or the teacher's D(x, sigma)
           guided: the teacher's D as usual, x0 as w x0 + (1 - w) X(x, sigma, sigma | no class) where the label is not hidden
    discrete form, s = max(sigma (1 - gap), rho), the gap halved at each stage:
        x_s    = A + (s / sigma) (x - A)
        target = lam A + (1 - lam) X(x_s, s, rho)
        loss   = mean w_EDM(sigma) (1 - rho / sigma) / (1 - s / sigma) |X(x, sigma, rho) - stop_gradient(target)|^2
    derivative form:
        target = X - [ (rho / sigma) (X - A) + (sigma - rho) dX/dsigma ],   loss = mean w_EDM(sigma) |X - stop_gradient(target)|^2

At rho = sigma this is denoising, and at rho = 0 a consistency model. The derivative is taken by `torch.func.jvp` or by a central
difference; through a time embedding as rough as ``1000 ln(sigma) / 4`` the exact derivative is mostly noise (see network.time_scale).
"""

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fewstep.denoisers import Guided, PreconditionedDenoiser
from fewstep.denoisers.two_time import CONDITION
from fewstep.generator import Generator
from fewstep.maths.flow import folded_lognormal, stage_gap, step_aim, towards
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.methods.base import Alarm, Batch, Given, LossOutput, Networks, exact_denoiser
from fewstep.methods.flow_map.equations import (
    derivative_residual,
    discrete_weight,
    drawn_rho,
    forward_differentiable,
    share_of_estimate,
    time_derivative,
)
from fewstep.methods.flow_map.settings import FlowMapSettings
from fewstep.methods.self_taught import SelfTaught
from fewstep.screen import SCREEN
from fewstep.streams import normal


class FlowMap(SelfTaught):
    """Train the student's two-time denoiser to be the map of the probability flow.

    The arguments are those of `SelfTaught`. The flow's slope comes from a teacher or a closed form or, without either, from the data or
    the student's own estimate.

    Raises:
        ValueError: for guidance without classes, or without label dropout in the training of the network that is guided; and for label
            dropout where the slope comes from a teacher that was trained without.

    """

    Settings = FlowMapSettings
    shown = ("flow", "denoising")
    main = "student.flow"
    drawn: ClassVar = {"losses": ("flow", "denoising"), "gap": ("gap",)}
    readings: ClassVar = {
        "losses": "flow is how far the map from one noise level to a lower one is from its target, weighted. Lower is better within a "
        "stage; it may jump where the next stage begins. denoising is the loss of the run's own teacher, with method.own_teacher.",
        "gap": "How far apart the two compared noise levels are, as a share of the upper one. Each stage halves it on purpose: neither "
        "direction is better.",
    }
    alarms: ClassVar = (
        Alarm(
            "unlearned",
            "student.flow",
            "the flow-map loss is {value:.2f}, as large as for a network that knows nothing",
            "Training is unstable: lower method.optimizer.lr; check network.sigma_data against the data's standard deviation",
            high=1.5,
        ),
    )

    def __init__(
        self,
        settings: FlowMapSettings,
        student: Generator,
        steps: int = 1,
        teacher: Generator | None = None,
        real: nn.Module | None = None,
    ) -> None:
        super().__init__(settings, student, steps, teacher, real)
        self.velocity = settings.velocity
        if self.velocity == "auto":
            self.velocity = "teacher" if "teacher" in self.networks else "data"
        if self.velocity == "teacher":
            self.check_hidden()
        if settings.guidance_scale != 1.0:
            knows = teacher.info.get("label_dropout") if teacher is not None and self.velocity == "teacher" else settings.label_dropout
            if student.num_classes is None or not knows:
                raise ValueError(
                    f"method.guidance_scale is {settings.guidance_scale}; it needs data with classes, and labels that are hidden now and "
                    "then (method.label_dropout, or a teacher that was trained with it)"
                )
        self.how = self._derivative() if settings.form == "derivative" else "difference"

    @classmethod
    def make(cls, settings: FlowMapSettings, given: Given) -> "FlowMap":
        """Make the method, with a student that has a network of its own, or a copy of the teacher's with an input for the second time.

        Raises ValueError for a copy of a teacher's denoiser that is not preconditioned as EDM's is.
        """
        sampler = {"name": "two_time", "steps": settings.sampler_steps, "sigma_max": settings.first_level}
        sampler |= {"churn": settings.churn} if settings.churn else {}
        denoiser = {"name": "two_time"} | ({} if settings.gap_gain == 1.0 else {"gain": settings.gap_gain})
        if given.network.role == "copy":
            assert given.teacher is not None
            if type(given.teacher.denoiser) is not PreconditionedDenoiser:
                raise ValueError(
                    f"the teacher's denoiser is {given.teacher.denoiser_config['name']}; a flow map copies one with EDM's preconditioning: "
                    "give another teacher, or a network of its own"
                )
            sampler["middle"] = settings.middle or given.teacher.sigma_data
            student = given.teacher.reworked(sampler, denoiser, condition=CONDITION)
        else:
            student = given.make_generator({**sampler, "middle": settings.middle or 1.0}, denoiser, condition=CONDITION)
            student.sampler["middle"] = settings.middle or student.sigma_data
        return cls(settings, student, given.steps, given.teacher, exact_denoiser(given.data) if settings.exact else None)

    @property
    def best_from(self) -> float:
        """The fraction of the run at which the last third of the stages begins or, with form "derivative", the student's part."""
        return super().best_from if self.settings.form == "discrete" else self.settings.own_teacher

    def denoise(self, network: Any, x: Tensor, sigma: Tensor, label: Tensor | None) -> Tensor:
        """Return the estimate of x0, like `x` [B, ...]: X at rho = sigma."""
        return network(x, sigma, label, sigma)

    def student_loss(self, networks: Networks, batch: Batch, rng: torch.Generator) -> LossOutput:
        """Return the weighted squared distance to the target of ``settings.form``; terms ``flow`` and, in the discrete form, ``gap``."""
        s, x0, label, sigma_data = self.settings, batch.x, batch.label, self.student.sigma_data
        sigma = folded_lognormal(len(x0), s.sigma_mean, s.sigma_std, s.sigma_min, s.sigma_max, rng)
        x = x0 + expand_like(sigma, x0) * normal(x0.shape, rng)
        rho = drawn_rho(sigma, sigma_data, s.zero, s.anchor, rng)
        gap = stage_gap(sigma, self.stage, s.gap_k, s.gap_b)
        low = torch.maximum(sigma * (1 - gap), rho)
        x0_hat = self._estimate(networks, x0, x, sigma, low, rho, label)
        terms = {}
        if s.form == "discrete":
            target = self._discrete_target(networks, x, x0_hat, sigma, low, rho, label)
            weight = discrete_weight(sigma, low, rho, sigma_data)
            terms["gap"] = gap.mean()
        else:
            target, weight = self._derivative_target(x, x0_hat, sigma, rho, label), edm_weight(sigma, sigma_data)
        out = networks["student"](x, sigma, label, rho)
        loss = (weight * (out - target).square().flatten(1).mean(1)).mean()
        return LossOutput(loss, {"flow": loss.detach(), **terms})

    @torch.no_grad()
    def _estimate(self, networks: Networks, x0: Tensor, x: Tensor, sigma: Tensor, s: Tensor, rho: Tensor, label: Tensor | None) -> Tensor:
        """Return A, like `x` [B, ...]: the estimate of x0 at which the flow's slope at `x` points, guided where the settings ask for it.

        For a teacher with Heun's method it is the point at which the mean of the slopes at `sigma` and at `s` points. With the velocity
        "own", A is the student's estimate, except at rho = sigma, where the student learns this estimate from the data, and in the
        derivative form, which uses the student's estimate in the tangent alone (iMF), see `_derivative_target`. The student's estimate of
        a class is guided by what it learned from, and is not guided again. Items whose label is hidden teach the unconditional estimate,
        which is not guided.
        """
        w = self.settings.guidance_scale
        if self.velocity == "teacher":
            teacher = Guided.of(networks["teacher"], w)
            return step_aim(lambda y, level: teacher(y, level, label), x, sigma, s, self.settings.solver == "heun")
        if w != 1.0:
            null = self.student.num_classes
            assert label is not None
            assert null is not None
            guided = self.for_targets(networks["student"])(x, sigma, None, sigma).lerp(x0, w)
            x0 = torch.where(expand_like(label != null, x), guided, x0)
        if self.velocity == "own" and self.settings.form == "discrete":
            own = self.for_targets(networks["student"])(x, sigma, label, sigma)
            x0 = torch.where(expand_like(rho < sigma, x), own, x0)
        return x0

    @torch.no_grad()
    def _discrete_target(
        self, networks: Networks, x: Tensor, x0_hat: Tensor, sigma: Tensor, s: Tensor, rho: Tensor, label: Tensor | None
    ) -> Tensor:
        """Return ``lam x0_hat + (1 - lam) X(x_s, s, rho)``, like `x`.

        X is evaluated only for items whose s lies above rho, or with dropout for all, so that it is the same as in the pass for the loss.
        """
        if self.dropout:
            low = torch.maximum(s.clamp(min=1e-4), rho)
            there = self.for_targets(networks["student"])(towards(x, x0_hat, sigma, low), low, label, rho)
            return there.lerp(x0_hat, expand_like(share_of_estimate(sigma, s, rho), x))
        target, on = x0_hat.clone(), (s > rho).nonzero().flatten()
        if len(on):
            x_s = towards(x[on], x0_hat[on], sigma[on], s[on])
            there = networks["student"](x_s, s[on], None if label is None else label[on], rho[on])
            lam = expand_like(share_of_estimate(sigma[on], s[on], rho[on]), x)
            target[on] = lam * x0_hat[on] + (1 - lam) * there
        else:
            self.call_all_the_same(networks["student"], x, sigma, label, rho)
        return target

    @torch.no_grad()
    def _derivative_target(self, x: Tensor, x0_hat: Tensor, sigma: Tensor, rho: Tensor, label: Tensor | None) -> Tensor:
        """Return ``X - B``, like `x`, from the unwrapped network: no gradient passes, so the wrapper for several devices is not needed."""
        network = self.networks["student"]
        called = self.for_targets(network)

        def student(y: Tensor, level: Tensor, low: Tensor) -> Tensor:
            return called(y, level, label, low)

        denoised = student(x, sigma, sigma) if self.velocity == "own" else x0_hat
        value = student(x, sigma, rho)
        with forward_differentiable(network):
            slope = time_derivative(student, x, sigma, rho, denoised, self.how, self.settings.step_in_log)
        return value - derivative_residual(value, slope, x0_hat, sigma, rho)

    def _derivative(self) -> Literal["jvp", "difference"]:
        """Return how the derivative is computed: as ``method.derivative`` says or, for "auto", by jvp if the network allows it."""
        if self.settings.derivative != "auto":
            return self.settings.derivative
        x, ones = torch.zeros(2, *self.student.shape, device=self.student.device), torch.ones(2, device=self.student.device)
        label = None if self.student.num_classes is None else torch.zeros(2, dtype=torch.long, device=x.device)
        try:
            network = self.networks["student"]
            with torch.no_grad(), forward_differentiable(network), torch.random.fork_rng(devices=[]):
                time_derivative(lambda y, a, b: network(y, a, label, b), x, ones, ones / 2, x, "jvp", 0.1)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0][:100]
            SCREEN.say(f"note: method.derivative is a central difference, for the network allows no torch.func.jvp ({reason})")
            return "difference"
        return "jvp"

    def settings_now(self) -> dict[str, float]:
        """Return the present stage, in the discrete form."""
        return {"stage": float(self.stage)} if self.settings.form == "discrete" else {}

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (`points`, V): V is the student's sample, in one evaluation from the point at noise level sigma_data, less the point."""
        sigma = torch.full((), self.student.sigma_data).to(points)
        return points, self.networks["student"](points, sigma, None, sigma * 0) - points

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the student, whose sampler can take any number of steps."""
        return self.shipped(network, "flow_map", step)
