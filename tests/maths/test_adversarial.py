import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.adversarial import approximate_r1, discriminator_loss, generator_loss, r1_penalty

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


def test_approximate_r1_is_fastgen_s():
    """There clean data goes in with the time of noised data; the stand-in for the discriminator is tanh(3 mean + 0.01 t)."""
    golden = load_file(GOLDEN / "fastgen_dmd2.safetensors")
    t = golden["in.t"]

    def logits(x):
        return torch.tanh(3 * x.flatten(1).mean(1) + 0.01 * t)

    real = golden["in.real"]
    torch.testing.assert_close(
        approximate_r1(logits(real), logits(real + 0.1 * golden["in.r1_noise"])), golden["r1.value"], rtol=1e-6, atol=0
    )


def test_penalties_of_a_linear_head_are_its_squared_slope():
    rng = torch.Generator().manual_seed(0)
    x, n = (torch.randn(20_000, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    x.requires_grad_()
    assert r1_penalty(x @ slope, x).item() == pytest.approx(5.25)
    assert approximate_r1(x @ slope, (x + 0.1 * n) @ slope).item() == pytest.approx(0.01 * 5.25, rel=0.04)  # 4 sqrt(2 / 20,000)


@pytest.mark.parametrize(("second", "mean"), [(3.0, 5.0), (-1.0, 1.0), (0.0, 0.5)])
def test_both_penalties_of_several_heads_are_the_mean_of_each_head_s(second, mean):
    rng = torch.Generator().manual_seed(0)
    x, n = (torch.randn(20_000, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def logits(x):
        return torch.stack([x @ slope, second * (x @ slope)], 1)

    x.requires_grad_()
    assert r1_penalty(logits(x), x).item() == pytest.approx(mean * 5.25)  # (1 + second^2) / 2
    assert approximate_r1(logits(x), logits(x + 0.1 * n)).item() == pytest.approx(0.01 * mean * 5.25, rel=0.04)  # 4 sqrt(2 / 20,000)


def test_exact_penalty_can_be_learned_from():
    x = torch.tensor([[0.3], [-0.4]], requires_grad=True)
    weight = torch.tensor(2.0, requires_grad=True)
    penalty = r1_penalty(weight * x.square().sum(1), x)  # (2 w x)^2 on average: w^2 (0.36 + 0.64) / 2
    torch.testing.assert_close(penalty, torch.tensor(2.0))
    (gradient,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(gradient, torch.tensor(2.0))
