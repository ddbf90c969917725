"""The adversarial pair of DMD2, and penalties on its slope: a logit ``h``, positive where a sample looks real.

Logits are [B], or [B, heads] of several heads that count alike.
"""

import torch
from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(logits_fake: Tensor) -> Tensor:
    """``mean softplus(-h(fake))``, the non-saturating generator loss, a scalar (DMD2, arXiv 2405.14867, Sec. 4.3)."""
    return softplus(-logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """``mean softplus(h(fake)) + mean softplus(-h(real))``, a scalar; 2 ln 2 for a head that knows nothing (as above)."""
    return softplus(logits_fake).mean() + softplus(-logits_real).mean()


def approximate_r1(logits_real: Tensor, logits_perturbed: Tensor) -> Tensor:
    """``mean (h(x) - h(x + a n))^2``, a scalar: a^2 times the R1 penalty for small a, at the price of one more pass and no second gradient.

    Of real data x and standard normal n (arXiv 2501.08316, Eq. 6, as APT and FastGen have it).
    """
    return (logits_real - logits_perturbed).square().mean()


def r1_penalty(logits_real: Tensor, x: Tensor) -> Tensor:
    """``E |grad_x h(x)|^2`` over real data x [B, ...], a scalar with a gradient in the head (arXiv 1801.04406, Eq. 9, without gamma / 2).

    `logits_real` must have been made from `x`, which must carry a gradient; the logits of several heads are averaged.
    """
    (slope,) = torch.autograd.grad(logits_real.reshape(len(x), -1).mean(1).sum(), x, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()
