"""The discriminator of DMD2: heads on the features of the fake network or of the teacher, and what is computed from their logits.

Symbols: ``h`` a head's logit, positive where an item looks real; ``r = p_real / p_fake`` the density ratio, which exp(h) estimates.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.maths.adversarial import approximate_r1, r1_penalty
from fewstep.maths.matching import density_ratio, f_divergence_weight, ratio_means
from fewstep.methods.base import Networks, Ratio
from fewstep.methods.devices import mean_over_devices, whole_batch
from fewstep.methods.dmd2.settings import DMD2Settings
from fewstep.streams import normal


class Critic:
    """The discriminator's logits on noised samples, and the gradient penalty, density ratios and GAN weight that are made of them.

    Args:
        settings: the method's settings.
        levels: the ascending grid of noise levels, float64 [K].
        warmup: generator updates before the weight of the generator's GAN term is measured, where that weight is "auto".

    """

    AUTO_UPDATES = 20
    PULL_EVERY = 10  # updates between measurements of `pull`, which needs a second backward pass through the networks
    RATIO_GROUPS = 10
    RATIO_DECAY = 0.9

    def __init__(self, settings: DMD2Settings, levels: Tensor, warmup: int) -> None:
        self.settings, self.levels, self.warmup = settings, levels, warmup
        self.ratio_means = [1.0] * self.RATIO_GROUPS
        self.auto = settings.gan_weight_generator == "auto"
        self.weight = 0.0 if isinstance(settings.gan_weight_generator, str) else float(settings.gan_weight_generator)
        self.measurements = 0

    def logits(self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, told: dict[str, Tensor]) -> Tensor:
        """Return the heads' logits [B, heads] on samples `x_s` [B, ...] noised to the levels `s` [B].

        `told` are arguments for the fake network alone: a real sample is scored by the fake network of the same step as its fake sample.
        """
        denoiser: Any = networks[self.settings.gan_features]
        told = told if self.settings.gan_features == "fake" else {}
        return networks["head"](denoiser.features(x_s, s, label, self.settings.gan_levels, **told))

    def real_logits(
        self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, told: dict[str, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads' logits [B, heads] on noised real data, and the R1 gradient penalty, a scalar, or None where its weight is 0."""
        if not self.settings.r1_weight:
            return self.logits(networks, x_s, s, label, told), None
        exact = self.settings.r1 == "exact"
        # fused attention has no second derivative
        with sdpa_kernel(SDPBackend.MATH) if exact else contextlib.nullcontext():
            if exact:
                x_s = x_s.detach().requires_grad_()
            logits = self.logits(networks, x_s, s, label, told)
            if exact:
                return logits, r1_penalty(logits, x_s)
        perturbed = x_s + self.settings.r1_alpha * normal(x_s.shape, rng)
        return logits, approximate_r1(logits, self.logits(networks, perturbed, s, label, told))

    @torch.no_grad()
    def ratio(
        self, networks: Networks, x_s: Tensor, s: Tensor, label: Tensor | None, told: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (normalised r [B], mean r, mean h(r)) for samples `x_s` [B, ...] noised to levels `s` [B] (f-distill, arXiv 2502.15681).

        The normalised r is r divided by its running mean over fake samples at similar noise levels, of `RATIO_GROUPS` groups; the mean r is
        that before normalisation. The mean h(r) is of the normalised r, and divides a loss that is weighted by h(r).
        """
        ratio = density_ratio(self.logits(networks, x_s, s, label, told))
        level = torch.searchsorted(self.levels, s.to(self.levels)).clamp_max(len(self.levels) - 1)
        group = level * self.RATIO_GROUPS // len(self.levels)
        means = torch.tensor(self.ratio_means, dtype=torch.float64, device=x_s.device)
        means = ratio_means(means, whole_batch(ratio), whole_batch(group), self.RATIO_DECAY)
        self.ratio_means = means.tolist()
        normalised = ratio / means[group].to(ratio)
        weight = f_divergence_weight(normalised, self.settings.f_divergence)
        return normalised, ratio.mean(), mean_over_devices(weight.mean())

    def measure_weight(self, dm: Tensor, gan: Tensor, x: Tensor, updates: int) -> None:
        """Set the weight where it is "auto": to the mean of |d dm/dx| / |d gan/dx| over the first `AUTO_UPDATES` updates after warm-up."""
        if not self.auto or not 0 <= updates - self.warmup < self.AUTO_UPDATES:
            return
        (grad_dm,), (grad_gan,) = (torch.autograd.grad(term, x, retain_graph=True) for term in (dm, gan))
        squares = mean_over_devices(torch.stack([grad_dm.square().sum(), grad_gan.square().sum()]))
        ratio = squares[0].sqrt() / squares[1].sqrt().clamp_min(1e-12)
        self.measurements += 1
        self.weight += (ratio.item() - self.weight) / self.measurements

    def pull(self, dm: Tensor, gan: Tensor, x: Tensor) -> Ratio:
        """Return the ratio of the mean gradient norm of an item of `x` [B, ...] under the weighted GAN term `gan` to that under `dm`."""
        grads = (torch.autograd.grad(term, x, retain_graph=True)[0] for term in (gan, dm))
        over, under = (grad.flatten(1).norm(dim=1).mean() for grad in grads)
        return Ratio(self.weight * over, under.clamp_min(1e-12))
