"""The adversarial pair of DMD2: a logit ``h``, positive where a sample looks real."""

from torch import Tensor
from torch.nn.functional import softplus


def generator_loss(logits_fake: Tensor) -> Tensor:
    """``mean softplus(-h(fake))``, the non-saturating generator loss, a scalar (DMD2, arXiv 2405.14867, Sec. 4.3)."""
    return softplus(-logits_fake).mean()


def discriminator_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """``mean softplus(h(fake)) + mean softplus(-h(real))``, a scalar; 2 ln 2 for a head that knows nothing (as above)."""
    return softplus(logits_fake).mean() + softplus(-logits_real).mean()
