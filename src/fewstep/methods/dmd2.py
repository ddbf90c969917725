"""DMD2: distil a diffusion teacher into a generator of one or a few steps (Yin et al. 2024, arXiv 2405.14867).

    x      = G(sigma_1 n, sigma_1, label)                           one step, from pure noise; or
    x      = G(x' + sigma_j n, sigma_j, label)                      step j of several, x' from the generator's own earlier steps
    generator, every k-th step:
        x_s  = x + s n'                                             s from the middle of the Karras grid
        loss = L_dm(x, D_real(x_s, s), D_fake(x_s, s))              the DMD or the SiD loss, or DMD's weighted by h(p_real / p_fake)
             + w_g softplus(-h(features at x_s'))                   optional GAN term
    fake ("guidance"), every step:
        loss = mean w(s) (D_fake(x_s, s) - stop_gradient(x))^2      s from a range of its own
             + w_d [softplus(h(fake_s')) + softplus(-h(real_s')) + w_r R1]

D_real is the frozen teacher; G and D_fake start from its weights. With several steps there is a D_fake for each: one score for the
mixture of their samples leaves the first step too narrow and the last too wide (docs/dmd2.md). With the DMD loss no gradient passes
through either denoiser; with the SiD loss (arXiv 2404.04057) it passes through both, their weights held still.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.denoisers import StepwiseDenoiser, guided
from fewstep.generator import Generator, frozen
from fewstep.maths.adversarial import approximate_r1, discriminator_loss, generator_loss, r1_penalty
from fewstep.maths.matching import density_ratio, dmd_gradient, dmd_loss, f_divergence_weight, ratio_means, sid_loss
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas, level_sigmas, student_sigmas
from fewstep.methods.base import Batch, LossOutput, Method, Networks, OptimizerSettings, Ramp, Turn
from fewstep.networks.heads import LevelHeads
from fewstep.networks.unet import feature_shapes


class DMD2(Method):
    """Distil `teacher` into a generator that needs one evaluation, or a few.

    Args:
        teacher: any `Generator` with an ODE sampler; it is copied three times and not changed.
        real: a denoiser of real data to use instead of the teacher's, such as a closed form; `teacher` then only is where the generator
            and the fake network start.
        student: a push-forward generator to train instead of a copy of the teacher's network; it is trained in place, for one step.
        generator_optimizer, guidance_optimizer: AdamW of the generator and of the fake network (with the head).
        dfake_gen_update_ratio: the generator learns at every so many-th step, the fake network at each.
        loss: "dmd", or "sid" with `sid_alpha`.
        gamma: match ``p_real^gamma``; 1 is the real distribution.
        guidance_scale: classifier-free guidance of the teacher.
        conditioning_sigma: noise level of the generator's first input.
        sampler_steps: how many steps the generator is made for.
        sampler_sigmas: the noise levels of these steps, from `conditioning_sigma` downwards; None for `student_sigmas`.
        fake_per_step: a fake network for each of several steps; False is one for all, as published, which learns the score of the mixture
            of all steps' samples, and so holds only the mixture to the data.
        inputs: what a later step learns from. "backward_simulation": the generator's own earlier steps, as it will be sampled.
            "noised_data": real data, which it will never see there: a shortcut that FastGen's and other releases offer, and a known
            cause of blurred few-step students.
        min_step_percent: share of the ascending grid from which on the DM term draws its levels; a number or a `Ramp`. Coarse
            levels settle how much mass goes where, fine ones hold each sample in its mode: coming down to them late gets the weights
            of far modes right.
        max_step_percent: share of the grid up to which it does.
        fake_min_step_percent, fake_max_step_percent: the same two of the fake network's loss.
        num_train_timesteps, sigma_min, sigma_max, rho: that grid.
        reuse_generator_batch: let the fake network learn from the samples that the generator's turn has just made, where it
            has had one, instead of drawing others.
        gan: add the adversarial pair; `gan_weight_generator` is w_g, or "auto": the ratio of the two terms' gradient norms
            at the image, averaged over the `AUTO_UPDATES` updates after warm-up, then held. `gan_weight_guidance` is w_d.
        gan_features: whose features the heads see: the "fake" network's, which learns them for the purpose, or the frozen "teacher"'s.
        gan_levels: at how many resolutions, from the bottleneck up; each has a head.
        r1_weight: w_r, of the penalty on the heads' slope at real data.
        r1: "approximate", by finite differences of length `r1_alpha`, or "exact", by a second gradient.
        f_divergence: which divergence the DMD loss descends, of `fewstep.maths.matching.F_DIVERGENCES`; all but "reverse_kl" take the
            density ratio from the heads, divided by its running mean over fake samples at about the same noise level.

    Raises:
        ValueError: where guidance is asked of a teacher trained without label dropout, or levels, steps or terms do not fit together.

    """

    ships = "generator"
    AUTO_UPDATES = 20
    RATIO_GROUPS = 10
    RATIO_DECAY = 0.9

    def __init__(
        self,
        teacher: Generator,
        generator_optimizer: OptimizerSettings,
        guidance_optimizer: OptimizerSettings,
        dfake_gen_update_ratio: int = 5,
        loss: Literal["dmd", "sid"] = "dmd",
        sid_alpha: float = 1.0,
        gamma: float = 1.0,
        guidance_scale: float = 1.0,
        conditioning_sigma: float = 80.0,
        sampler_steps: int = 1,
        sampler_sigmas: Sequence[float] | None = None,
        fake_per_step: bool = True,
        inputs: Literal["backward_simulation", "noised_data"] = "backward_simulation",
        min_step_percent: Ramp | float = 0.02,
        max_step_percent: float = 0.98,
        fake_min_step_percent: float = 0.0,
        fake_max_step_percent: float = 1.0,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        reuse_generator_batch: bool = True,
        gan: bool = False,
        gan_weight_generator: float | Literal["auto"] = 3e-3,
        gan_weight_guidance: float = 1e-2,
        gan_features: Literal["fake", "teacher"] = "fake",
        gan_levels: int = 1,
        r1_weight: float = 0.0,
        r1: Literal["approximate", "exact"] = "approximate",
        r1_alpha: float = 0.1,
        f_divergence: str = "reverse_kl",
        real: nn.Module | None = None,
        student: Generator | None = None,
    ) -> None:
        if guidance_scale != 1.0 and not teacher.info.get("label_dropout"):
            raise ValueError(
                f"method.guidance_scale is {guidance_scale}, but the teacher was trained without label dropout and has no "
                "unconditional estimate; use 1, or a teacher trained with method.label_dropout above 0"
            )
        if f_divergence != "reverse_kl" and not (gan and loss == "dmd"):
            raise ValueError(
                f"method.f_divergence is {f_divergence!r}, which weighs the DMD loss by the discriminator's density ratio; "
                "set method.gan=true and method.loss=dmd, or leave it at 'reverse_kl'"
            )
        if student is not None and sampler_steps > 1:
            raise ValueError(
                f"method.sampler_steps is {sampler_steps}, but a map from noise to data has one step; give 1, or a network that denoises"
            )
        self.teacher, self.real, self.student = teacher, real, student
        fake = frozen(teacher.denoiser).requires_grad_(True).train()
        self.networks = {
            "teacher": frozen(real or teacher.denoiser),
            "generator": student.denoiser if student else frozen(teacher.denoiser).requires_grad_(True).train(),
            "fake": StepwiseDenoiser(fake, sampler_steps) if sampler_steps > 1 and fake_per_step else fake,
        }
        guidance: tuple[str, ...] = ("fake",)
        if gan:
            self.networks["head"] = LevelHeads(feature_shapes(teacher.denoiser.network, gan_levels))
            guidance = ("fake", "head")
        self.turns = (
            Turn("generator", ("generator",), generator_optimizer, every=dfake_gen_update_ratio),
            Turn("guidance", guidance, guidance_optimizer),
        )
        self.loss_name, self.sid_alpha, self.gamma, self.guidance_scale = loss, sid_alpha, gamma, guidance_scale
        self.sigmas = _student_levels(conditioning_sigma, sampler_steps, sampler_sigmas)
        self.inputs, self.stepwise = inputs, sampler_steps > 1 and fake_per_step
        self.levels = karras_sigmas(num_train_timesteps, sigma_min, sigma_max, rho).flip(0)  # ascending, as published
        self.first = min_step_percent if isinstance(min_step_percent, Ramp) else Ramp(min_step_percent)
        top = num_train_timesteps - 1
        self.last = min(int(max_step_percent * num_train_timesteps), top)
        self.fake_first = min(round(fake_min_step_percent * num_train_timesteps), top)
        self.fake_last = min(int(fake_max_step_percent * num_train_timesteps), top)
        if self.fake_first > self.fake_last:
            raise ValueError(
                f"method.fake_min_step_percent {fake_min_step_percent} must not exceed method.fake_max_step_percent {fake_max_step_percent}"
            )
        self.reuse_generator_batch = reuse_generator_batch
        self.gan, self.gan_weight_guidance, self.gan_features, self.gan_levels = gan, gan_weight_guidance, gan_features, gan_levels
        self.r1, self.r1_weight, self.r1_alpha = r1, r1_weight, r1_alpha
        self.f_divergence = f_divergence
        self.ratio_means = [1.0] * self.RATIO_GROUPS
        self.auto = gan_weight_generator == "auto"
        self.gan_weight_generator = 0.0 if gan_weight_generator == "auto" else float(gan_weight_generator)
        self.generator_updates = self.gan_measurements = self.batches_made = 0

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The generator's loss (terms ``dm``, ``gap``, ``gan``) or the guidance's (terms ``fake``, ``gan``, ``r1``)."""
        if self.levels.device != batch.x.device:
            self.levels = self.levels.to(batch.x.device)
        if turn == "generator":
            return self._generator_loss(networks, batch, rng, scratch)
        return self._guidance_loss(networks, batch, rng, scratch)

    def _noised(self, x: Tensor, first: int, last: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x + s n, s) with each item's s uniform over ``levels[first..last]``: [B, ...] and [B]."""
        s = level_sigmas(self.levels, len(x), first, last, rng)
        return x + expand_like(s, x) * torch.randn(x.shape, generator=rng, device=x.device), s

    # --- samples -----------------------------------------------------------------------------------------------------

    def _generate(self, networks: Networks, batch: Batch, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """(x, step): what the generator makes at one of its steps, dealt to the items in turn, [B, ...] and int64 [B] (None of one step).

        A gradient passes through that step alone.
        """
        shape = self.student.latent_shape if self.student else batch.x.shape[1:]
        n = torch.randn(len(batch.x), *shape, generator=rng, device=batch.x.device)
        if self.student:
            return networks["generator"](n, math.inf, batch.label), None
        sigmas = torch.tensor(self.sigmas, device=n.device)
        if len(sigmas) == 1:
            return networks["generator"](sigmas[0] * n, sigmas[0], batch.label), None
        step = self._dealt_steps(len(n)).to(n.device)
        if self.inputs == "noised_data":
            x = expand_like(sigmas[step], n) * n + expand_like((step > 0).to(n), n) * batch.x
        else:
            x = self._simulated(networks, sigmas[0] * n, sigmas, step, batch.label, rng)
        return networks["generator"](x, sigmas[step], batch.label), step

    @torch.no_grad()
    def _simulated(self, networks: Networks, x: Tensor, sigmas: Tensor, step: Tensor, label: Tensor | None, rng: torch.Generator) -> Tensor:
        """Backward simulation: each item as its own earlier steps have left it before step ``step[i]``, like x [B, ...]."""
        for done, (sigma, below) in enumerate(itertools.pairwise(sigmas)):
            on = (step > done).nonzero().flatten()  # the items that take step number `done` and go on
            if len(on):
                x0 = networks["generator"](x[on], sigma, None if label is None else label[on])
                x = x.index_copy(0, on, x0 + below * torch.randn(x0.shape, generator=rng, device=x.device))
        return x

    def _dealt_steps(self, num: int) -> Tensor:
        """The step that each of `num` items trains: dealt in turn from a random first one, which is the same on every device."""
        self.batches_made += 1
        first = torch.randint(len(self.sigmas), (), generator=torch.Generator().manual_seed(self.batches_made))
        return (first + torch.arange(num)) % len(self.sigmas)

    # --- the generator's turn ----------------------------------------------------------------------------------------

    def _generator_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        x, step = self._generate(networks, batch, rng)
        label, told = batch.label, self._told(step)
        scratch["x"], scratch["step"] = x.detach(), step
        with torch.set_grad_enabled(self.loss_name == "sid"):
            first = round(self.first(self.generator_updates) * len(self.levels))
            x_s, s = self._noised(x, min(first, self.last), self.last, rng)
            x0_real = guided(networks["teacher"], x_s, s, label, self.guidance_scale)
            x0_fake = networks["fake"](x_s, s, label, **told)
        terms: dict[str, Tensor] = {}
        if self.loss_name == "sid":
            dm = sid_loss(x, x0_real, x0_fake, self.sid_alpha, self.gamma, x_s)
        else:
            grad = dmd_gradient(x, x0_real, x0_fake, self.gamma, x_s)
            if self.f_divergence != "reverse_kl":
                weight, terms["ratio"] = self._divergence_weight(networks, x_s, s, label, step)
                grad = expand_like(weight, grad) * grad
            dm = dmd_loss(x, grad)
        with torch.no_grad():
            gap = (x0_real - x0_fake).abs().mean() / (x - x0_real).abs().mean()
        terms |= {"dm": dm.detach(), "gap": gap}
        total = dm
        if self.gan:
            gan = generator_loss(self._logits(networks, *self._noised(x, 0, len(self.levels) - 1, rng), label, step))
            if self.auto:
                self._measure_gan_weight(dm, gan, x)
            total = dm + self.gan_weight_generator * gan
            terms |= {"gan": gan.detach(), "gan_weight": torch.tensor(self.gan_weight_generator)}
        return LossOutput(total, terms, scratch["x"], label)

    @torch.no_grad()
    def _divergence_weight(
        self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, step: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """(h(r) with mean 1, [B]; the mean of r as the heads have it) at noised samples `x_s`."""
        ratio = density_ratio(self._logits(networks, x_s, s, label, step))
        level = torch.searchsorted(self.levels, s.to(self.levels)).clamp_max(len(self.levels) - 1)
        group = level * self.RATIO_GROUPS // len(self.levels)
        means = torch.tensor(self.ratio_means, dtype=torch.float64, device=x_s.device)
        means = _mean_over_devices(ratio_means(means, ratio, group, self.RATIO_DECAY))
        self.ratio_means = means.tolist()
        weight = f_divergence_weight(ratio / means[group].to(ratio), self.f_divergence)
        return weight / weight.mean(), ratio.mean()

    def after_update(self, turn: str) -> None:
        """Count the generator's updates."""
        self.generator_updates += turn == "generator"

    def _measure_gan_weight(self, dm: Tensor, gan: Tensor, x: Tensor) -> None:
        """Running mean of |d dm/dx| / |d gan/dx| over `AUTO_UPDATES` updates after warm-up, the same on every device."""
        if not 0 <= self.generator_updates - self.turns[0].optimizer.warmup < self.AUTO_UPDATES:
            return
        (grad_dm,), (grad_gan,) = (torch.autograd.grad(term, x, retain_graph=True) for term in (dm, gan))
        ratio = _mean_over_devices(grad_dm.norm() / grad_gan.norm().clamp_min(1e-12))
        self.gan_measurements += 1
        self.gan_weight_generator += (ratio.item() - self.gan_weight_generator) / self.gan_measurements

    # --- the guidance's turn -----------------------------------------------------------------------------------------

    def _guidance_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        label = batch.label
        x, step = (scratch.get("x"), scratch.get("step")) if self.reuse_generator_batch else (None, None)
        if x is None:
            with torch.no_grad():
                x, step = self._generate(networks, batch, rng)
        x_s, s = self._noised(x, self.fake_first, self.fake_last, rng)
        weight = expand_like(edm_weight(s, self.teacher.sigma_data), x)
        fake = (weight * (networks["fake"](x_s, s, label, **self._told(step)) - x).square()).mean()
        terms, total = {"fake": fake.detach()}, fake
        if self.gan:
            real_s, s = self._noised(batch.x, 0, len(self.levels) - 1, rng)
            real_logits, r1 = self._real_logits(networks, real_s, s, label, step, rng)
            fake_logits = self._logits(networks, *self._noised(x, 0, len(self.levels) - 1, rng), label, step)
            gan = discriminator_loss(real_logits, fake_logits)
            total = fake + self.gan_weight_guidance * gan
            terms["gan"] = gan.detach()
            if r1 is not None:
                total = total + self.gan_weight_guidance * self.r1_weight * r1
                terms["r1"] = r1.detach()
        return LossOutput(total, terms)

    def _told(self, step: Tensor | None) -> dict[str, Tensor]:
        """What the fake denoiser is told beside the label: the step [B], where there is a network for each."""
        return {"step": step} if self.stepwise and step is not None else {}

    def _logits(self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, step: Tensor | None) -> Tensor:
        """The heads' verdicts on noised samples: [B, heads]. Real ones are seen by the fake network of `step`, as the fakes are."""
        told = self._told(step) if self.gan_features == "fake" else {}
        return networks["head"](networks[self.gan_features](x_s, s, label, features=self.gan_levels, **told))

    def _real_logits(
        self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, step: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """The heads' verdicts on noised real data, and the penalty on their slope there, where it weighs anything."""
        if not self.r1_weight:
            return self._logits(networks, x_s, s, label, step), None
        exact = self.r1 == "exact"
        # fused attention has no second gradient
        with sdpa_kernel(SDPBackend.MATH) if exact else contextlib.nullcontext():
            if exact:
                x_s = x_s.detach().requires_grad_()
            logits = self._logits(networks, x_s, s, label, step)
            if exact:
                return logits, r1_penalty(logits, x_s)
        perturbed = x_s + self.r1_alpha * torch.randn(x_s.shape, generator=rng, device=x_s.device)
        return logits, approximate_r1(logits, self._logits(networks, perturbed, s, label, step))

    # --- what is kept ------------------------------------------------------------------------------------------------

    def ship(self, network: nn.Module, step: int) -> Generator:
        """The generator, to be sampled at the noise levels it was trained for."""
        info = {**self.teacher.info, "method": "dmd2", "step": step, "label_dropout": 0.0}
        if self.student:
            return self.student.derive(self.student.sampler, info, network)
        return self.teacher.derive({"name": "few_step", "sigmas": self.sigmas}, info, network)

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """``gamma D_real - D_fake - (gamma - 1) x`` at `points`, seen at the middle level: where samples there have to go."""
        sigma = self.levels[len(self.levels) // 2].to(points)
        x0_real, x0_fake = (self.networks[name](points, sigma, None) for name in ("teacher", "fake"))
        return points, x0_real - x0_fake + (self.gamma - 1) * (x0_real - points)

    KEPT = ("gan_weight_generator", "gan_measurements", "generator_updates", "batches_made", "ratio_means")

    def state_dict(self) -> dict[str, Any]:
        """What has been measured so far and from how many measurements, and how many updates and batches there have been."""
        return {name: getattr(self, name) for name in self.KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name in self.KEPT:
            setattr(self, name, state[name])


def _student_levels(conditioning_sigma: float, steps: int, sigmas: Sequence[float] | None) -> list[float]:
    """The noise levels of a student's steps, descending. Raises ValueError where those given do not fit the other two settings."""
    if sigmas is None:
        return student_sigmas(steps, conditioning_sigma).tolist()
    falling = all(a > b > 0 for a, b in itertools.pairwise(sigmas))
    if len(sigmas) != steps or sigmas[0] != conditioning_sigma or not falling:
        raise ValueError(
            f"method.sampler_sigmas is {list(sigmas)}; with method.sampler_steps {steps} and method.conditioning_sigma "
            f"{conditioning_sigma} give {steps} levels that fall from {conditioning_sigma}"
        )
    return list(sigmas)


def _mean_over_devices(value: Tensor) -> Tensor:
    """`value` averaged over all processes, where there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
