"""DMD2: distil a diffusion teacher into a generator of one or a few steps (Yin et al. 2024, arXiv 2405.14867).

    x      = G(sigma_1 n, sigma_1, label)                           one step, from pure noise; or
    x      = G(x' + sigma_j n, sigma_j, label)                      step j of several, x' from the generator's own earlier steps
    generator, every k-th step:
        x_s  = x + s n'                                             s from the middle of the Karras grid
        loss = L_dm(x, D_real(x_s, s), D_fake(x_s, s))              the DMD or the SiD loss, DMD's weighted by h(p_real / p_fake), or both
             + w_g softplus(-h(features at x_s'))                   optional GAN term
    fake ("guidance"), every step:
        loss = mean w(s) (D_fake(x_s, s) - stop_gradient(x))^2      s from a range of its own
             + w_d [softplus(h(fake_s')) + softplus(-h(real_s')) + w_r R1]

D_real is the frozen teacher; G and D_fake start from its weights. A student of several steps has a D_fake for each step: a single score
for the mixture of all steps' samples leaves the first step too narrow and the last too wide (docs/dmd2.md). With the DMD loss no gradient
passes through either denoiser. With the SiD loss (arXiv 2404.04057) the gradient passes through both denoisers, whose weights are fixed,
and so it does with the Uni-Instruct loss (2505.20755), a weighted sum of the two losses whose gradient is that of an f-divergence.
"""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.data.prompts import PromptData
from fewstep.data.teacher_samples import TeacherSamples
from fewstep.denoisers import Guided, StepwiseDenoiser
from fewstep.generator import Generator, frozen
from fewstep.maths.adversarial import discriminator_loss, generator_loss
from fewstep.maths.matching import dmd_gradient, dmd_loss, f_divergence_weight, sid_loss, uni_loss
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas, level_sigmas
from fewstep.methods.base import Alarm, Batch, Given, LossOutput, Method, Networks, Ramp, Ratio, Turn, exact_denoiser
from fewstep.methods.dmd2.critic import Critic
from fewstep.methods.dmd2.roles import roles
from fewstep.methods.dmd2.settings import DMD2Settings
from fewstep.methods.dmd2.steps import StudentSteps, own_levels, student_levels
from fewstep.model_config import inherited
from fewstep.networks import tables_of
from fewstep.networks.heads import LevelHeads, feature_shapes
from fewstep.networks.mlp.settings import MLPSettings
from fewstep.screen import SCREEN
from fewstep.streams import integers, normal


class DMD2(Method):
    """Distil `teacher` into a generator that samples in one evaluation, or in a few.

    Args:
        settings: the method's settings.
        teacher: any `Generator` with an ODE sampler. Its denoiser is copied three times and not changed; with ``settings.lora`` it becomes
            the one network that teacher, student and fake network share.
        steps: length of the run, of which the ramp of noise levels takes a fraction.
        real: a denoiser of real data that teaches in place of the teacher's denoiser, such as a closed form; `teacher` then only gives the
            generator and the fake network their initial weights.
        student: a push-forward generator to train instead of a copy of the teacher's network; it is trained in place, for one step.
        seed: seed of the low-rank adapters' initial weights.
        pairs: noise and the teacher's samples from it, for ``settings.regression``.

    Raises:
        ValueError: for guidance by a teacher trained without label dropout, and for noise levels, steps or loss terms that do not fit
            together.

    """

    Settings = DMD2Settings
    ships = "generator"
    rate = "method.generator_optimizer.lr"
    renamed: ClassVar = {"generator.gap": "generator.disagreement"}
    shown = ("dm", "fake", "gan")
    main = "generator.dm"
    drawn: ClassVar = {"losses": ("dm", "fake", "gan", "regression"), "agreement": ("disagreement",), "pull": ("gan_pull",)}
    readings: ClassVar = {
        "losses": "dm is the disagreement of teacher and fake network on the generator's samples, and no measure of quality: it may rise "
        "while samples improve. fake is the fake network's denoising error: lower is better. gan, with an adversarial term, is a contest "
        "between generator and discriminator: neither direction is better. regression, with method.regression, should fall.",
        "agreement": "How far apart the outputs of the teacher and the fake network are, in units of the distance of the teacher's output "
        "from the sample. Lower is better; above 1.5 the fake network does not keep up with the generator.",
        "pull": "How hard the adversarial term pulls at the samples, in units of the teacher's pull. Neither direction is better: far "
        "above 1 the generator is trained as in a GAN, and the teacher hardly counts.",
    }
    alarms: ClassVar = (
        Alarm(
            "disagreement",
            "generator.disagreement",
            "the outputs of the teacher and the fake network are {value:.1f} times as far apart as the teacher's is from the sample",
            "The fake network does not keep up with the generator: raise method.guidance_optimizer.lr or method.dfake_gen_update_ratio, or "
            "lower method.generator_optimizer.lr",
            high=1.5,
        ),
        Alarm(
            "frozen",
            "guidance.reach",
            "the fake network stands still: the learning rates of all its updates add up to {value:.1g} of a weight's size; a network "
            "that learns has 1 or more",
            "Raise method.guidance_optimizer.lr by as much",
            low=0.02,
        ),
        Alarm(
            "gan",
            "generator.gan_pull",
            "the adversarial term pulls {value:.0f} times as hard at the samples as the teacher does",
            "Set method.gan_weight_generator to auto, or lower it",
            high=10.0,
        ),
    )
    advice: ClassVar = {
        "collapse": "The fake network lags behind the generator, or the batch is very small: raise method.dfake_gen_update_ratio or "
        "method.guidance_optimizer.lr, or batch_size",
        "noise": "Lower method.generator_optimizer.lr",
        "teacher": "Name a teacher in method.teacher that was trained on this data, with the same network.sigma_data and pixel range",
        "shift": "The teacher does not fit the data (sigma_data, pixel range), or guidance is too strong: check the teacher's own samples, "
        "lower method.guidance_scale",
        "saturation": "Guidance or gamma is too strong, or the learning rate too high: lower method.guidance_scale, method.gamma or "
        "method.generator_optimizer.lr",
    }

    def __init__(
        self,
        settings: DMD2Settings,
        teacher: Generator,
        steps: int = 0,
        real: nn.Module | None = None,
        student: Generator | None = None,
        seed: int = 0,
        pairs: TeacherSamples | None = None,
    ) -> None:
        _check(settings, teacher, student)
        self.pairs = pairs if settings.regression else None
        self.settings, self.teacher, self.real, self.student = settings, teacher, real, student
        teaches, learns, fake = roles(teacher, settings.lora, seed)
        self.stepwise = settings.sampler_steps > 1 and settings.fake_per_step
        self.networks = {
            "teacher": teaches if real is None else frozen(real),
            "generator": student.denoiser if student else learns,
            "fake": StepwiseDenoiser(fake, settings.sampler_steps) if self.stepwise else fake,
        }
        guidance: tuple[str, ...] = ("fake",)
        if settings.gan:
            self.networks["head"] = LevelHeads(feature_shapes(teacher.denoiser, settings.gan_levels))
            guidance = ("fake", "head")
        self.turns = (
            Turn(
                "generator",
                ("generator",),
                settings.generator_optimizer,
                settings.dfake_gen_update_ratio,
                dict.fromkeys(tables_of(self.networks["generator"]), settings.table_scale),
            ),
            Turn("guidance", guidance, settings.guidance_optimizer),
        )
        self.start: float | None = None  # standard deviation of the initial noise, where it is not the first noise level
        if settings.times == "teacher":
            denoiser: Any = teacher.denoiser
            self.sigmas = own_levels(denoiser, settings.sampler_steps, settings.sampler_timesteps)
            self.start, self.levels = denoiser.first_noise(self.sigmas[0]), denoiser.sigmas.clone()
        else:
            self.sigmas = student_levels(settings.conditioning_sigma, settings.sampler_steps, settings.sampler_sigmas)
            # ascending, as published
            self.levels = karras_sigmas(settings.num_train_timesteps, settings.sigma_min, settings.sigma_max, settings.rho).flip(0)
        self.generate = StudentSteps(self.sigmas, settings.inputs, student.latent_shape if student else None, self.start)
        num = len(self.levels)
        updates = -(-steps // settings.dfake_gen_update_ratio)
        self.first = Ramp(settings.min_step_percent, settings.min_step_start, round(settings.min_step_warmup * updates))
        self.last = min(int(settings.max_step_percent * num), num - 1)
        self.fake_first = min(round(settings.fake_min_step_percent * num), num - 1)
        self.fake_last = min(int(settings.fake_max_step_percent * num), num - 1)
        if self.fake_first > self.fake_last:
            raise ValueError(
                f"method.fake_min_step_percent {settings.fake_min_step_percent} must not exceed method.fake_max_step_percent "
                f"{settings.fake_max_step_percent}"
            )
        self.regression = round(settings.regression * updates)  # number of generator updates by the regression loss
        if settings.regression and updates and not 0 < self.regression < updates:
            raise ValueError(
                f"method.regression is {settings.regression}, which of the generator's {updates} updates gives {self.regression} to the "
                f"regression and {updates - self.regression} to the matching; each needs one at least: give more steps, or another share"
            )
        self.critic = Critic(settings, self.levels, self.regression + settings.generator_optimizer.warmup)
        if settings.gan and self.critic.auto and updates and self.critic.warmup >= updates:
            SCREEN.say(
                f"note: method.gan_weight_generator is auto, measured after {self.critic.warmup} updates of the generator, of which this "
                f"run makes {updates}: the generator never feels the adversarial term; lower method.generator_optimizer.warmup, or give a "
                "weight"
            )
        self.generator_updates = 0

    @classmethod
    def make(cls, settings: DMD2Settings, given: Given) -> "DMD2":
        """Make the method with the given teacher or the data's closed form, and a student that is a map from noise where the recipe's is.

        Raises ValueError where ``method.regression`` is set and the data has no pairs of the teacher.
        """
        # None: the student is a copy of the teacher's network
        student = given.make_generator({"name": "push_forward"}, {"name": "push_forward"}) if given.network.role == "map" else None
        real = None
        if settings.exact:
            assert student is not None
            real, teacher = exact_denoiser(given.data), _untrained(settings, given, student.sigma_data)
        else:
            assert given.teacher is not None
            teacher = given.teacher
        pairs = given.data.pairs if isinstance(given.data, PromptData) else None
        if settings.regression and pairs is None:
            raise ValueError(
                f"method.regression is {settings.regression}, and the data {given.data.name} has no pairs of the teacher; draw some with "
                "fewstep encode --pairs, or set it to 0"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(given.seed)  # for the initial weights of the discriminator heads
            return cls(settings, teacher, given.steps, real, student, given.seed, pairs)

    @property
    def least_items(self) -> int:
        """One item for each step of the student."""
        return self.settings.sampler_steps

    @property
    def needs_whole_batch(self) -> str | None:
        """The quantity that has to be measured on a batch as a whole, or None."""
        if self.settings.f_divergence != "reverse_kl":
            return f"the weights of method.f_divergence={self.settings.f_divergence} have mean 1 over the batch"
        if self.critic.auto:
            return "method.gan_weight_generator=auto is measured on the whole batch"
        return None

    @property
    def divides_run(self) -> bool:
        """Whether the generator first learns pairs, to which it would return in a longer run."""
        return self.regression > 0

    @property
    def kept_teacher(self) -> Generator | None:
        """The trained teacher; None beside a closed form, which comes with the data."""
        return self.teacher if self.real is None else None

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """Return the loss of `turn`.

        Terms: of "generator" ``dm``, ``disagreement`` and ``gan``, or ``regression``; of "guidance" ``fake``, ``gan`` and ``r1``.
        """
        if turn == "generator":
            return self._generator_loss(networks, batch, rng, scratch)
        return self._guidance_loss(networks, batch, rng, scratch)

    def _noised(self, x: Tensor, first: int, last: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return (x + s n, s), [B, ...] and [B], with each item's noise level s drawn uniformly from ``levels[first..last]``."""
        s = level_sigmas(self.levels, len(x), first, last, rng)
        return x + expand_like(s, x) * normal(x.shape, rng), s

    def _noised_anyhow(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return what `_noised` does, with levels from the whole grid: the input of the discriminator heads."""
        return self._noised(x, 0, len(self.levels) - 1, rng)

    def _told(self, step: Tensor | None) -> dict[str, Tensor]:
        """Return the fake denoiser's extra arguments: the `step` [B] that made each sample, if each step has a fake network of its own."""
        return {"step": step} if self.stepwise and step is not None else {}

    def _generator_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        if self.pairs is not None and self.generator_updates < self.regression:
            return self._regression_loss(networks, self.pairs, len(batch.x), rng)
        x, step = self.generate(networks["generator"], batch, rng)
        label, told, loss = batch.label, self._told(step), self.settings.loss
        scratch["x"], scratch["step"] = x.detach(), step
        with torch.set_grad_enabled(loss != "dmd"):
            first = round(self.first(self.generator_updates) * len(self.levels))
            x_s, s = self._noised(x, min(first, self.last), self.last, rng)
            x0_real = Guided.of(networks["teacher"], self.settings.guidance_scale)(x_s, s, label)
            x0_fake = networks["fake"](x_s, s, label, **told)
        terms: dict[str, Tensor | Ratio] = {}
        ratio, mean_weight = x.new_ones(len(x)), x.new_ones(())  # for reverse KL, which needs no density ratio
        divergence = self.settings.f_divergence
        if divergence != "reverse_kl":
            ratio, terms["ratio"], mean_weight = self.critic.ratio(networks, x_s.detach(), s, label, told)
        if loss == "sid":
            dm = sid_loss(x, x0_real, x0_fake, self.settings.sid_alpha, self.settings.gamma, x_s)
        elif loss == "uni":
            dm = uni_loss(x, x_s, s, x0_real, x0_fake, ratio, divergence) / mean_weight
        else:
            grad = dmd_gradient(x, x0_real, x0_fake, self.settings.gamma, x_s)
            dm = dmd_loss(x, expand_like(f_divergence_weight(ratio, divergence) / mean_weight, grad) * grad)
        with torch.no_grad():
            apart = Ratio((x0_real - x0_fake).abs().mean(), (x - x0_real).abs().mean())
        terms |= {"dm": dm.detach(), "disagreement": apart}
        total = dm
        if self.settings.gan:
            gan = generator_loss(self.critic.logits(networks, *self._noised_anyhow(x, rng), label, told))
            self.critic.measure_weight(dm, gan, x, self.generator_updates)
            if (self.generator_updates + 1) % self.critic.PULL_EVERY == 0 and dm.requires_grad and gan.requires_grad:
                terms["gan_pull"] = self.critic.pull(dm, gan, x)
            total = dm + self.critic.weight * gan
            terms |= {"gan": gan.detach(), "gan_weight": torch.tensor(self.critic.weight)}
        return LossOutput(total, terms, scratch["x"], label)

    def _regression_loss(self, networks: Networks, pairs: TeacherSamples, num: int, rng: torch.Generator) -> LossOutput:
        """Return the mean squared error between the generator's and the teacher's samples from the same noise, for `num` random pairs."""
        index = integers(0, len(pairs), (num,), rng).cpu()
        noise, target, label = (part.to(rng.device) for part in (pairs.noise(index), pairs.latents(index), pairs.rows[index]))
        x = networks["generator"](self.generate.start * noise, torch.tensor(self.sigmas[0], device=noise.device), label)
        loss = (x - target).square().mean()
        return LossOutput(loss, {"regression": loss.detach()}, x.detach(), label)

    def _guidance_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        label = batch.label
        x, step = (scratch.get("x"), scratch.get("step")) if self.settings.reuse_generator_batch else (None, None)
        if x is None:
            with torch.no_grad():
                x, step = self.generate(networks["generator"], batch, rng)
        told = self._told(step)
        x_s, s = self._noised(x, self.fake_first, self.fake_last, rng)
        weight = expand_like(edm_weight(s, self.teacher.sigma_data), x)
        fake = (weight * (networks["fake"](x_s, s, label, **told) - x).square()).mean()
        terms, total = {"fake": fake.detach()}, fake
        if self.settings.gan:
            real_logits, r1 = self.critic.real_logits(networks, *self._noised_anyhow(batch.x, rng), label, told, rng)
            fake_logits = self.critic.logits(networks, *self._noised_anyhow(x, rng), label, told)
            gan = discriminator_loss(real_logits, fake_logits)
            total = fake + self.settings.gan_weight_guidance * gan
            terms["gan"] = gan.detach()
            if r1 is not None:
                total = total + self.settings.gan_weight_guidance * self.settings.r1_weight * r1
                terms["r1"] = r1.detach()
        return LossOutput(total, terms)

    def after_update(self, turn: str) -> None:
        """Count the generator's updates."""
        self.generator_updates += turn == "generator"

    def ship(self, network: nn.Module, step: int) -> Generator:
        """Return the generator with a sampler that uses the noise levels it was trained for."""
        info = {**inherited(self.teacher.info), "method": "dmd2", "step": step, "label_dropout": 0.0}
        if self.student:
            return self.student.derive(self.student.sampler, info, network)
        started = {} if self.start is None else {"start": self.start}
        return self.teacher.derive({"name": "few_step", "sigmas": self.sigmas, **started}, info, network)

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """Return (`points`, V), V = ``gamma D_real - D_fake - (gamma - 1) x``, both denoisers at the middle noise level of the grid."""
        sigma = self.levels[len(self.levels) // 2].to(points)
        last = torch.full((len(points),), self.settings.sampler_steps - 1, device=points.device)  # the step that makes final samples
        x0_real, x0_fake = self.networks["teacher"](points, sigma, None), self.networks["fake"](points, sigma, None, **self._told(last))
        return points, x0_real - x0_fake + (self.settings.gamma - 1) * (x0_real - points)

    def state_dict(self) -> dict[str, Any]:
        """Return the measured GAN weight and density-ratio means, and the numbers of measurements, generator updates and batches so far."""
        return {
            "gan_weight_generator": self.critic.weight,
            "gan_measurements": self.critic.measurements,
            "generator_updates": self.generator_updates,
            "batches_made": self.generate.batches_made,
            "ratio_means": self.critic.ratio_means,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.critic.weight, self.critic.measurements = state["gan_weight_generator"], state["gan_measurements"]
        self.generator_updates, self.generate.batches_made = state["generator_updates"], state["batches_made"]
        self.critic.ratio_means = list(state["ratio_means"])


def _check(settings: DMD2Settings, teacher: Generator, student: Generator | None) -> None:
    """Raise ValueError for settings that do not fit the teacher, the student or each other."""
    if settings.guidance_scale != 1.0 and not teacher.info.get("label_dropout"):
        raise ValueError(
            f"method.guidance_scale is {settings.guidance_scale}, but the teacher was trained without label dropout and has no "
            "unconditional estimate; use 1, or a teacher trained with method.label_dropout above 0"
        )
    if settings.f_divergence != "reverse_kl" and (not settings.gan or settings.loss == "sid"):
        raise ValueError(
            f"method.f_divergence is {settings.f_divergence!r}, which weighs the loss by the discriminator's density ratio; set "
            "method.gan=true and method.loss to dmd or uni, or leave it at 'reverse_kl'"
        )
    if settings.loss == "uni" and settings.gamma != 1.0:
        raise ValueError(
            f"method.gamma is {settings.gamma}, which method.loss=uni does not know: its divergence is that of the data themselves; use "
            "1, or method.loss=sid or dmd"
        )
    if student is not None and settings.sampler_steps > 1:
        raise ValueError(
            f"method.sampler_steps is {settings.sampler_steps}, but a map from noise to data has one step; give 1, or a network that "
            "denoises"
        )


def _untrained(settings: DMD2Settings, given: Given, sigma_data: float) -> Generator:
    """Return an untrained MLP generator, from which the fake network starts where the teacher is a closed form."""
    network = MLPSettings(name="mlp", sigma_data=sigma_data, widths=settings.fake_widths)
    sampler = {"name": "heun", "steps": 18, "sigma_min": settings.sigma_min, "sigma_max": settings.sigma_max, "rho": settings.rho}
    return given.make_generator(sampler, network=network)
