"""The adversarial losses of DMD2, and penalties on the discriminator's gradient.

The discriminator gives a logit ``h``, positive where a sample looks real. Logits are [B], or [B, heads] for several heads of equal weight.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(logits_fake: Tensor) -> Tensor:
    """``mean softplus(-h(fake))``, the non-saturating generator loss, a scalar (DMD2, arXiv 2405.14867, Sec. 4.3)."""
    return softplus(-logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """``mean softplus(h(fake)) + mean softplus(-h(real))``, a scalar (DMD2, arXiv 2405.14867, Sec. 4.3); 2 ln 2 where all logits are 0."""
    return softplus(logits_fake).mean() + softplus(-logits_real).mean()


def approximate_r1(logits_real: Tensor, logits_perturbed: Tensor) -> Tensor:
    """``mean (h(x) - h(x + a n))^2``, a scalar: about a^2 times `r1_penalty` for small a (arXiv 2501.08316, Eq. 6).

    `logits_real` are ``h(x)`` for real data x, and `logits_perturbed` are ``h(x + a n)`` for standard normal n. Unlike `r1_penalty`, it
    needs one more forward pass but no second derivative. APT and FastGen use this form.
    """
    return (logits_real - logits_perturbed).square().mean()


def r1_penalty(logits_real: Tensor, x: Tensor) -> Tensor:
    """``E |grad_x h(x)|^2`` over real data `x` [B, ...], a scalar that can be differentiated (arXiv 1801.04406, Eq. 9, without gamma / 2).

    `logits_real` must have been computed from `x`, which must require a gradient. Of several heads each is a discriminator by itself, as in
    the other losses, and their penalties are averaged: slopes of two heads that point in opposite directions do not cancel.
    """
    heads = logits_real.reshape(len(x), -1).unbind(1)
    slopes = [torch.autograd.grad(head.sum(), x, create_graph=True)[0] for head in heads]
    return torch.stack([slope.flatten(1).square().sum(1).mean() for slope in slopes]).mean()
