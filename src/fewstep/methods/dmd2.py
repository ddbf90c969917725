"""DMD2: distil a diffusion teacher into a one-step generator (Yin et al. 2024, arXiv 2405.14867).

    x      = G(sigma_cond n, sigma_cond, label)                     one step from pure noise
    generator, every k-th step:
        x_s  = x + s n'                                             s from the middle of the Karras grid
        loss = L_dm(x, D_real(x_s, s), D_fake(x_s, s))              the DMD or the SiD loss
             + w_g softplus(-h(fake's bottleneck at x_s'))          optional GAN term
    fake ("guidance"), every step:
        loss = mean w(s) (D_fake(x_s, s) - stop_gradient(x))^2      s from the whole grid
             + w_d [softplus(h(fake_s')) + softplus(-h(real_s'))]

D_real is the frozen teacher; G and D_fake start from its weights. With the DMD loss no gradient passes through either
denoiser; with the SiD loss (arXiv 2404.04057) it passes through both, their weights held still.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewstep.denoisers import guided
from fewstep.generator import Generator, frozen
from fewstep.maths.adversarial import discriminator_loss, generator_loss
from fewstep.maths.matching import dmd_gradient, dmd_loss, sid_loss
from fewstep.maths.parametrization import edm_weight, expand_like
from fewstep.maths.schedules import karras_sigmas, level_sigmas
from fewstep.methods.base import Batch, LossOutput, Method, Networks, OptimizerSettings, Ramp, Turn
from fewstep.networks.heads import BottleneckHead
from fewstep.networks.unet import feature_shapes


class DMD2(Method):
    """Distil `teacher` into a generator that needs one evaluation.

    Args:
        teacher: any `Generator` with an ODE sampler; it is copied three times and not changed.
        real: a denoiser of real data to use instead of the teacher's, such as a closed form; `teacher` then only is where the generator
            and the fake network start.
        student: a push-forward generator to train instead of a copy of the teacher's network; it is trained in place.
        generator_optimizer, guidance_optimizer: AdamW of the generator and of the fake network (with the head).
        dfake_gen_update_ratio: the generator learns at every so many-th step, the fake network at each.
        loss: "dmd", or "sid" with `sid_alpha`.
        gamma: match ``p_real^gamma``; 1 is the real distribution.
        guidance_scale: classifier-free guidance of the teacher.
        conditioning_sigma: noise level of the generator's input.
        min_step_percent: share of the ascending grid from which on the DM term draws its levels; a number or a `Ramp`. Coarse
            levels settle how much mass goes where, fine ones hold each sample in its mode: coming down to them late gets the weights
            of far modes right.
        max_step_percent: share of the grid up to which it does.
        num_train_timesteps, sigma_min, sigma_max, rho: that grid.
        reuse_generator_batch: let the fake network learn from the samples that the generator's turn has just made, where it
            has had one, instead of drawing others.
        gan: add the adversarial pair; `gan_weight_generator` is w_g, or "auto": the ratio of the two terms' gradient norms
            at the image, averaged over the `AUTO_UPDATES` updates after warm-up, then held. `gan_weight_guidance` is w_d.

    Raises:
        ValueError: where guidance is asked of a teacher trained without label dropout.

    """

    ships = "generator"
    AUTO_UPDATES = 20

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
        min_step_percent: Ramp | float = 0.02,
        max_step_percent: float = 0.98,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        reuse_generator_batch: bool = True,
        gan: bool = False,
        gan_weight_generator: float | Literal["auto"] = 3e-3,
        gan_weight_guidance: float = 1e-2,
        real: nn.Module | None = None,
        student: Generator | None = None,
    ) -> None:
        if guidance_scale != 1.0 and not teacher.info.get("label_dropout"):
            raise ValueError(
                f"method.guidance_scale is {guidance_scale}, but the teacher was trained without label dropout and has no "
                "unconditional estimate; use 1, or a teacher trained with method.label_dropout above 0"
            )
        self.teacher, self.real, self.student = teacher, real, student
        fake = frozen(teacher.denoiser).requires_grad_(True).train()
        self.networks = {
            "teacher": frozen(real or teacher.denoiser),
            "generator": student.denoiser if student else frozen(teacher.denoiser).requires_grad_(True).train(),
            "fake": fake,
        }
        guidance: tuple[str, ...] = ("fake",)
        if gan:
            ((channels, (height, width)),) = feature_shapes(teacher.denoiser.network, 1)
            self.networks["head"] = BottleneckHead(channels, height, width)
            guidance = ("fake", "head")
        self.turns = (
            Turn("generator", ("generator",), generator_optimizer, every=dfake_gen_update_ratio),
            Turn("guidance", guidance, guidance_optimizer),
        )
        self.loss_name, self.sid_alpha, self.gamma, self.guidance_scale = loss, sid_alpha, gamma, guidance_scale
        self.conditioning_sigma = conditioning_sigma
        self.levels = karras_sigmas(num_train_timesteps, sigma_min, sigma_max, rho).flip(0)  # ascending, as published
        self.first = min_step_percent if isinstance(min_step_percent, Ramp) else Ramp(min_step_percent)
        self.last = min(int(max_step_percent * num_train_timesteps), num_train_timesteps - 1)
        self.reuse_generator_batch = reuse_generator_batch
        self.gan, self.gan_weight_guidance = gan, gan_weight_guidance
        self.auto = gan_weight_generator == "auto"
        self.gan_weight_generator = 0.0 if gan_weight_generator == "auto" else float(gan_weight_generator)
        self.generator_updates = self.gan_measurements = 0

    def loss(self, turn: str, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        """The generator's loss (terms ``dm``, ``gap``, ``gan``) or the guidance's (terms ``fake``, ``gan``)."""
        if self.levels.device != batch.x.device:
            self.levels = self.levels.to(batch.x.device)
        if turn == "generator":
            return self._generator_loss(networks, batch, rng, scratch)
        return self._guidance_loss(networks, batch, rng, scratch)

    def _noised(self, x: Tensor, first: int, last: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """(x + s n, s) with each item's s uniform over ``levels[first..last]``: [B, ...] and [B]."""
        s = level_sigmas(self.levels, len(x), first, last, rng)
        return x + expand_like(s, x) * torch.randn(x.shape, generator=rng, device=x.device), s

    def _generate(self, networks: Networks, batch: Batch, rng: torch.Generator) -> Tensor:
        """One step from noise, for the batch's labels: [B, ...]."""
        shape = self.student.latent_shape if self.student else batch.x.shape[1:]
        n = torch.randn(len(batch.x), *shape, generator=rng, device=batch.x.device)
        if self.student:
            return networks["generator"](n, math.inf, batch.label)
        sigma = torch.tensor(self.conditioning_sigma, device=n.device)
        return networks["generator"](sigma * n, sigma, batch.label)

    def _logits(self, networks: Networks, x: Tensor, label: Tensor | None, rng: torch.Generator) -> Tensor:
        """The head's verdict on diffused `x`: [B]."""
        x_s, s = self._noised(x, 0, len(self.levels) - 1, rng)
        return networks["head"](networks["fake"](x_s, s, label, features=1)[0])

    def _generator_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        x, label = self._generate(networks, batch, rng), batch.label
        scratch["x"] = x.detach()
        with torch.set_grad_enabled(self.loss_name == "sid"):
            first = round(self.first(self.generator_updates) * len(self.levels))
            x_s, s = self._noised(x, min(first, self.last), self.last, rng)
            x0_real = guided(networks["teacher"], x_s, s, label, self.guidance_scale)
            x0_fake = networks["fake"](x_s, s, label)
        if self.loss_name == "sid":
            dm = sid_loss(x, x0_real, x0_fake, self.sid_alpha, self.gamma, x_s)
        else:
            dm = dmd_loss(x, dmd_gradient(x, x0_real, x0_fake, self.gamma, x_s))
        with torch.no_grad():
            gap = (x0_real - x0_fake).abs().mean() / (x - x0_real).abs().mean()
        terms = {"dm": dm.detach(), "gap": gap}
        total = dm
        if self.gan:
            gan = generator_loss(self._logits(networks, x, label, rng))
            if self.auto:
                self._measure_gan_weight(dm, gan, x)
            total = dm + self.gan_weight_generator * gan
            terms |= {"gan": gan.detach(), "gan_weight": torch.tensor(self.gan_weight_generator)}
        return LossOutput(total, terms, scratch["x"], label)

    def after_update(self, turn: str) -> None:
        """Count the generator's updates."""
        self.generator_updates += turn == "generator"

    def _measure_gan_weight(self, dm: Tensor, gan: Tensor, x: Tensor) -> None:
        """Running mean of |d dm/dx| / |d gan/dx| over `AUTO_UPDATES` updates after warm-up, the same on every device."""
        if not 0 <= self.generator_updates - self.turns[0].optimizer.warmup < self.AUTO_UPDATES:
            return
        (grad_dm,), (grad_gan,) = (torch.autograd.grad(term, x, retain_graph=True) for term in (dm, gan))
        ratio = grad_dm.norm() / grad_gan.norm().clamp_min(1e-12)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(ratio)
            ratio = ratio / torch.distributed.get_world_size()
        self.gan_measurements += 1
        self.gan_weight_generator += (ratio.item() - self.gan_weight_generator) / self.gan_measurements

    def _guidance_loss(self, networks: Networks, batch: Batch, rng: torch.Generator, scratch: dict[str, Any]) -> LossOutput:
        label = batch.label
        x = scratch.get("x") if self.reuse_generator_batch else None
        if x is None:
            with torch.no_grad():
                x = self._generate(networks, batch, rng)
        x_s, s = self._noised(x, 0, len(self.levels) - 1, rng)
        weight = expand_like(edm_weight(s, self.teacher.sigma_data), x)
        fake = (weight * (networks["fake"](x_s, s, label) - x).square()).mean()
        terms, total = {"fake": fake.detach()}, fake
        if self.gan:
            real_logits, fake_logits = self._logits(networks, batch.x, label, rng), self._logits(networks, x, label, rng)
            gan = discriminator_loss(real_logits, fake_logits)
            total = fake + self.gan_weight_guidance * gan
            terms["gan"] = gan.detach()
        return LossOutput(total, terms)

    def ship(self, network: nn.Module, step: int) -> Generator:
        """The generator, to be sampled in one step from `conditioning_sigma`."""
        info = {**self.teacher.info, "method": "dmd2", "step": step, "label_dropout": 0.0}
        if self.student:
            return self.student.derive(self.student.sampler, info, network)
        return self.teacher.derive({"name": "few_step", "sigmas": [self.conditioning_sigma]}, info, network)

    @torch.no_grad()
    def field(self, points: Tensor, samples: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
        """``gamma D_real - D_fake - (gamma - 1) x`` at `points`, seen at the middle level: where samples there have to go."""
        sigma = self.levels[len(self.levels) // 2].to(points)
        x0_real, x0_fake = (self.networks[name](points, sigma, None) for name in ("teacher", "fake"))
        return points, x0_real - x0_fake + (self.gamma - 1) * (x0_real - points)

    def state_dict(self) -> dict[str, Any]:
        """The GAN weight measured so far, from how many measurements, and how many generator updates there have been."""
        return {name: getattr(self, name) for name in ("gan_weight_generator", "gan_measurements", "generator_updates")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name in self.state_dict():
            setattr(self, name, state[name])
