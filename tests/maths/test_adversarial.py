import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.adversarial import discriminator_loss, generator_loss

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = {  # generator's loss and gradient; discriminator's loss and gradients
    "dmd2_edm": ("f64.gen_cls_loss", "f64.gen_cls_dlogit", "f64.guidance_cls_loss", "f64.guidance_dlogit_real", "f64.guidance_dlogit_fake"),
    "fastgen_dmd2": ("gan.gen", "gan.gen_dlogit", "gan.disc", "gan.disc_dreal", "gan.disc_dfake"),
}


@pytest.mark.parametrize("source", NAMES)
def test_losses_and_gradients_are_the_references(source):
    golden = load_file(GOLDEN / f"{source}.safetensors")
    gen, gen_dfake, disc, disc_dreal, disc_dfake = (golden[name] for name in NAMES[source])
    real, fake = (golden[f"in.logits_{name}"].requires_grad_() for name in ("real", "fake"))

    loss = generator_loss(fake)
    torch.testing.assert_close(loss, gen, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, fake)[0], gen_dfake, rtol=1e-12, atol=1e-15)

    loss = discriminator_loss(real, fake)
    torch.testing.assert_close(loss, disc, rtol=1e-12, atol=0)
    for found, expected in zip(torch.autograd.grad(loss, (real, fake)), (disc_dreal, disc_dfake), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_a_head_that_knows_nothing_loses_two_ln_two():
    assert discriminator_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(2 * math.log(2))
    assert generator_loss(torch.zeros(3)).item() == pytest.approx(math.log(2))
