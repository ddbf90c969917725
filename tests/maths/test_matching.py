from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths.matching import F_DIVERGENCES, density_ratio, dmd_gradient, dmd_loss, f_divergence_weight, ratio_means, sid_loss
from fewstep.maths.parametrization import edm_weight, expand_like

GOLDEN = Path(__file__).parents[1] / "golden"


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_gradient_and_loss_are_dmd2_s():
    golden = load_file(GOLDEN / "dmd2_edm.safetensors")
    x = golden["in.latents"].requires_grad_()
    grad = dmd_gradient(x, golden["f64.pred_real"], golden["f64.pred_fake"])
    torch.testing.assert_close(grad, golden["f64.dm_grad"], rtol=1e-10, atol=1e-13)
    loss = dmd_loss(x, grad)
    torch.testing.assert_close(loss, golden["f64.loss_dm"], rtol=1e-10, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], golden["f64.dm_autograd"], rtol=1e-10, atol=1e-15)


def test_gradient_and_loss_are_fastgen_s():
    golden = load_file(GOLDEN / "fastgen_dmd2.safetensors")
    x = golden["in.gen_data"]
    grad = dmd_gradient(x, golden["in.teacher_x0"], golden["in.fake_score_x0"])
    # FastGen adds 1e-6 to the divisor, which is about 1 here
    torch.testing.assert_close(grad, golden["vsd.np64.grad"], rtol=5e-6, atol=1e-12)
    torch.testing.assert_close(dmd_loss(x, grad), golden["vsd.np64.loss"], rtol=1e-5, atol=0)


def test_weighted_fake_loss_is_dmd2_s():
    golden = load_file(GOLDEN / "dmd2_edm.safetensors")
    x, sigma = golden["in.latents"], golden["np64.karras_sigmas"][golden["in.timesteps_fake"].flatten()]
    s = expand_like(sigma, x)
    fake = (x + s * golden["in.noise"]) / (1 + s**2) * 0.8 - 0.02
    loss = (expand_like(edm_weight(sigma, 0.5), x) * (fake - x) ** 2).mean()
    # the reference holds its grid in float32: relative error 2^-24 in sigma, doubled by sigma^-2
    torch.testing.assert_close(loss, golden["f64.loss_fake"], rtol=5e-7, atol=0)


def test_gradient_stays_bounded_where_the_reference_divides_by_zero():
    reference = load_file(GOLDEN / "dmd2_edm.safetensors")["edge.dm_grad"]
    x = torch.zeros(2, 3, 4, 4)
    real, fake = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]), torch.full((2, 3, 4, 4), 3.0)
    grad = dmd_gradient(x, real, fake)
    assert reference[0].min() > 1e38  # 3 / 0, as released
    torch.testing.assert_close(grad[0], torch.full((3, 4, 4), 10.0))
    torch.testing.assert_close(grad[1], reference[1])
    torch.testing.assert_close(dmd_gradient(x, real, fake, max_ratio=4.0)[0], torch.full((3, 4, 4), 4.0))
    assert torch.equal(dmd_gradient(x[:1], real[:1], real[:1]), torch.zeros(1, 3, 4, 4))  # 0 / 0


def test_an_entry_that_is_not_finite_spoils_its_own_sample_alone():
    x, real, fake = (random(3, 4, seed=seed) for seed in range(3))
    clean = dmd_gradient(x, real, fake)
    for bad in (float("nan"), float("inf")):
        spoilt = fake.clone()
        spoilt[1, 2] = bad
        grad = dmd_gradient(x, real, spoilt)
        assert grad[1, 2] == 0
        assert grad.isfinite().all()
        assert torch.equal(grad[[0, 2]], clean[[0, 2]])


def gaussians_at_gamma(gamma, sigma=0.8):
    """Samples, noised samples, and denoisers of p and of a q with q_sigma proportional to p_sigma^gamma, 1-D."""
    mean = torch.tensor([[0.7]], dtype=torch.float64)
    std_fake = ((0.9**2 + sigma**2) / gamma - sigma**2) ** 0.5  # p_sigma^gamma has variance (s^2 + sigma^2) / gamma
    x = random(50, 1)
    x_s = x + sigma * random(50, 1, seed=1)
    real, fake = MixtureDenoiser(mean, 0.9), MixtureDenoiser(mean, std_fake)
    return x, x_s, lambda x: real(x, sigma), lambda x: fake(x, sigma)


@pytest.mark.parametrize("gamma", [0.7, 1.0, 1.6])
def test_gamma_is_at_rest_where_the_fake_is_the_real_to_the_power_gamma(gamma):
    x, x_s, real, fake = gaussians_at_gamma(gamma)
    assert dmd_gradient(x, real(x_s), fake(x_s), gamma, x_s).abs().max() < 1e-12
    assert abs(sid_loss(x, real(x_s), fake(x_s), 1.0, gamma, x_s).item()) < 1e-12
    assert dmd_gradient(x, real(x_s), fake(x_s), gamma + 0.1, x_s).abs().max() > 0.01


def test_gamma_by_hand():
    # numerator (fake - real) - (gamma - 1)(real - x_s) = (5 - 2) - 0.5 (2 - 4) = 4; divisor |1 - 2|
    x, x_s, real, fake = (torch.full((1, 1), value) for value in (1.0, 4.0, 2.0, 5.0))
    assert dmd_gradient(x, real, fake, 1.5, x_s).item() == 4


@pytest.mark.parametrize("loss", [dmd_gradient, sid_loss])
def test_gamma_needs_the_noised_sample(loss):
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"gamma is 1.5.*x_s"):
        loss(x, x + 1, x + 2, gamma=1.5)


def test_loss_has_the_gradient_it_was_given():
    x, grad = random(5, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    loss = dmd_loss(x, grad)
    torch.testing.assert_close(loss, grad.square().mean() / 2)
    found_x, found_grad = torch.autograd.grad(loss, (x, grad), allow_unused=True)
    torch.testing.assert_close(found_x, grad / 15)
    assert found_grad is None


def test_gradient_carries_no_graph():
    x, real, fake = (random(2, 3, seed=seed).requires_grad_() for seed in range(3))
    assert not dmd_gradient(x, real, fake).requires_grad


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sid_loss_in_the_paper_s_form(alpha):
    # SiD Eq. 23 in other terms: (1 - alpha) |real - fake|^2 + (real - fake).(fake - x), item by item
    x, real, fake = (random(4, 2, 3, seed=seed) for seed in range(3))
    expected = 0.0
    for i in range(4):
        difference = real[i] - fake[i]
        value = (1 - alpha) * (difference**2).sum() + (difference * (fake[i] - x[i])).sum()
        expected += value / (x[i] - real[i]).abs().mean() / 24
    torch.testing.assert_close(sid_loss(x, real, fake, alpha), expected)


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_sid_gradient_passes_through_both_networks_and_not_the_divisor(alpha):
    # real = a x_s, fake = b x_s: product rule on ((a - b) x_s) (a x_s - x - alpha (a - b) x_s) / c
    x, n, a, b = random(4, 5), random(4, 5, seed=1), 0.6, 0.9
    x.requires_grad_()
    x_s = x + 0.7 * n
    (found,) = torch.autograd.grad(sid_loss(x, a * x_s, b * x_s, alpha), x)
    x, x_s, d = x.detach(), x_s.detach(), a - b
    c = (x - a * x_s).abs().mean(1, keepdim=True)
    expected = (d * (a * x_s - x - alpha * d * x_s) + d * x_s * (a - 1 - alpha * d)) / c / 20
    torch.testing.assert_close(found, expected)


def test_sid_loss_stays_finite_where_the_teacher_agrees():
    x = torch.zeros(1, 4, requires_grad=True)
    # divisor |real - fake| / 10 = 0.3: (0 - 3) (0 - 0 - 1.2 (0 - 3)) / 0.3
    assert sid_loss(x, x.detach(), torch.full((1, 4), 3.0), alpha=1.2).item() == pytest.approx(-36)
    assert sid_loss(x, x.detach(), x.detach()).item() == 0


# --- f-distill ---------------------------------------------------------------------------------------------------------

FASTGEN = {
    "reverse_kl": "rkl",
    "kl": "kl",
    "js": "js",
    "softened_reverse_kl": "sf",
    "neyman": "neyman",
    "hellinger": "sh",
    "jeffreys": "jf",
}


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_divergence_weights_are_fastgen_s(name):
    golden = load_file(GOLDEN / "fastgen_dmd2.safetensors")
    ratio = golden["in.ratio"][1:]  # the first is 1e-9, whose inverse is cut off there
    expected = golden[f"fweight.{FASTGEN[name]}"].to(ratio)
    expected = expected.expand_as(ratio) if not expected.ndim else expected[1:]
    torch.testing.assert_close(f_divergence_weight(ratio, name), expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in F_DIVERGENCES if name != "reverse_kl"])
@pytest.mark.parametrize("grouped", [False, True])
def test_weights_of_logits_are_fastgen_s_with_and_without_its_bins(name, grouped):
    """Its bins are linear in t, and keep a quarter of what they were; weights have mean 1."""
    golden = load_file(GOLDEN / "fastgen_dmd2.safetensors")
    ratio = density_ratio(golden["in.h_logits"], 0.1, 20.0)
    means = torch.ones(10)
    group = (golden["in.t"] / 80 * 10).long().clamp_max(9)
    if grouped:
        means = ratio_means(means, ratio, group, decay=0.25)
    weight = f_divergence_weight(ratio / means[group], name)
    short = FASTGEN[name]
    torch.testing.assert_close(means, golden[f"h.{short}.norm{int(grouped)}.bins"], rtol=1e-5, atol=0)
    torch.testing.assert_close((weight / weight.mean()).double(), golden[f"h.{short}.norm{int(grouped)}"], rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "f"), [("reverse_kl", lambda r: -r.log()), ("kl", lambda r: r * r.log()), ("hellinger", lambda r: 2 - 4 * r.sqrt())]
)
def test_weights_make_the_step_that_descends_the_divergence(name, f):
    """Fake N(a, 1), real N(m, 1): ``d/da E_q f(p / q) = -E_q h(r) (s_p - s_q)`` with s_p - s_q = m - a and ``h = f'' r^2``."""
    m, a, e = 0.7, 0.1, 1e-4
    x = torch.linspace(-12, 12, 200_001, dtype=torch.float64)

    def density(mean):
        return (-((x - mean) ** 2) / 2).exp() / (2 * torch.pi) ** 0.5

    def divergence(at):
        return torch.trapezoid(density(at) * f(density(m) / density(at)), x)

    slope = (divergence(a + e) - divergence(a - e)) / (2 * e)
    weight = f_divergence_weight(density(m) / density(a), name)
    torch.testing.assert_close(slope, -torch.trapezoid(density(a) * weight, x) * (m - a), rtol=1e-5, atol=0)


def test_density_ratio_is_clipped_and_averages_heads():
    logits = torch.tensor([[-9.0, 1.0], [0.5, -0.5], [8.0, 2.0], [1.0, 0.0]])
    torch.testing.assert_close(density_ratio(logits), torch.tensor([0.1, 1.0, 20.0, torch.tensor(0.5).exp()]))
    torch.testing.assert_close(density_ratio(logits[:, 0]), torch.tensor([0.1, torch.tensor(0.5).exp(), 20.0, torch.tensor(1.0).exp()]))


def test_unknown_divergence_is_refused():
    with pytest.raises(ValueError, match="divergence is 'tv'; allowed: reverse_kl"):
        f_divergence_weight(torch.ones(2), "tv")
