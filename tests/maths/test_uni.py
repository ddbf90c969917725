"""Uni-Instruct between two Gaussians, by quadrature in float64: the weighted sum of SiD's and DMD's terms is the divergence's gradient.

Fake N(m, v), made as ``x = m + sqrt(v) z``; real N(M, V). At noise level s both densities, both denoisers and r are closed forms.
"""

import math

import numpy as np
import pytest
import torch

from fewstep.denoisers import MixtureDenoiser
from fewstep.maths.matching import F_DIVERGENCES, f_divergence_weight, sid_loss, uni_loss, uni_terms

MEAN, STD = 0.4, 0.9  # real
FAKE = (-0.2, 0.7)  # mean and standard deviation, which move
F64 = torch.float64


def nodes(num):
    """Points and weights with which a sum is the mean over a standard normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(num)
    return torch.from_numpy(points), torch.from_numpy(weights / weights.sum())


def number(value):
    return torch.tensor(value, dtype=F64)


def log_ratio(x, mean, std, s):
    """log p_real / p_fake at level s."""
    real, fake = (torch.distributions.Normal(m, (d**2 + s**2) ** 0.5) for m, d in ((number(MEAN), number(STD)), (mean, std)))
    return real.log_prob(x) - fake.log_prob(x)


def expanded(mean, std, s, divergence):
    """``E_fake[ h(r) |score_real - score_fake|^2 ]`` at level s: what is to be differentiated."""
    points, weights = nodes(160)
    variance = std**2 + s**2
    x = mean + variance**0.5 * points
    scores = (MEAN - x) / (STD**2 + s**2) - (mean - x) / variance
    return (weights * f_divergence_weight(log_ratio(x, mean, std, s).exp(), divergence) * scores**2).sum()


def by_differences(function, at=FAKE, e=1e-4):
    """Central differences of the second order, extrapolated to the fourth, in each of the numbers `at`."""

    def slope(i, e):
        up, down = (function(*[number(a + sign * e * (i == j)) for j, a in enumerate(at)]) for sign in (1, -1))
        return (up - down) / (2 * e)

    return torch.stack([(4 * slope(i, e / 2) - slope(i, e)) / 3 for i in range(len(at))])


def by_terms(s, divergence, keep=None, num=80):
    """The gradient of the mean of `uni_terms`, over every z and n, in mean and standard deviation of the fake side."""
    points, weights = nodes(num)
    z, n = (a.reshape(-1, 1) for a in torch.meshgrid(points, points, indexing="ij"))
    at = [number(a).requires_grad_() for a in FAKE]
    x = at[0] + at[1] * z
    x_s = x + s * n
    level = x.new_full((len(x),), s)
    frozen = [a.item() for a in at]
    real = MixtureDenoiser(number([[MEAN]]), STD)(x_s, level)
    fake = MixtureDenoiser(number([[frozen[0]]]), frozen[1])(x_s, level)
    ratio = log_ratio(x_s.detach(), number(frozen[0]), number(frozen[1]), s).exp().flatten()
    if keep is not None:
        ratio = torch.full_like(ratio, keep)
    total = (weights[:, None] * weights).flatten() @ uni_terms(x, x_s, level, real, fake, ratio, divergence)
    return torch.stack(torch.autograd.grad(total, at))


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
@pytest.mark.parametrize("s", [0.3, 1.0, 4.0])
def test_the_weighted_sum_is_the_gradient_of_the_expanded_divergence(divergence, s):
    expected = s**4 / 2 * by_differences(lambda mean, std: expanded(mean, std, s, divergence))
    assert expected.abs().min() > 1e-5
    torch.testing.assert_close(by_terms(s, divergence), expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("divergence", [name for name in F_DIVERGENCES if name != "reverse_kl"])
def test_each_weight_counts(divergence):
    """With a ratio of 1 everywhere the sum is not the gradient: the agreement above is no accident of two near Gaussians."""
    expected = by_differences(lambda mean, std: expanded(mean, std, 1.0, divergence)) / 2
    assert (by_terms(1.0, divergence, keep=1.0) - expected).norm() > 0.03 * expected.norm()


def kl(mean, std, other, spread):
    return (spread / std).log() + (std**2 + (mean - other) ** 2) / (2 * spread**2) - 0.5


def bhattacharyya(mean, std):
    both = std**2 + STD**2
    return 4 - 4 * (2 * std * STD / both).sqrt() * (-((mean - MEAN) ** 2) / (4 * both)).exp()


@pytest.mark.parametrize(
    ("divergence", "closed"),
    [
        ("reverse_kl", lambda mean, std: kl(mean, std, MEAN, number(STD))),
        ("kl", lambda mean, std: kl(number(MEAN), number(STD), mean, std)),
        ("jeffreys", lambda mean, std: kl(mean, std, MEAN, number(STD)) + kl(number(MEAN), number(STD), mean, std)),
        ("hellinger", bhattacharyya),  # f'' r^2 = sqrt(r): f = 4 - 4 sqrt(r)
    ],
)
def test_over_all_levels_it_is_the_gradient_of_the_divergence_itself(divergence, closed):
    """``D_f(real | fake) = 1/2 int E[...] d(s^2)`` from clean data on, and so ``int by_terms / s^4 d(s^2)`` has its gradient."""
    # s = exp(u), d(s^2) = 2 s^2 du: trapezoids over u, which converge fast; what lies beyond e^-9 and e^9 is 1e-7 of it
    u = torch.linspace(-9, 9, 145, dtype=F64)
    values = torch.stack([2 * s**-2 * by_terms(s, divergence, num=40) for s in u.exp().tolist()])
    torch.testing.assert_close(torch.trapezoid(values, u, dim=0), by_differences(closed), rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(5,), (1, 4, 4)])
def test_reverse_kl_is_sid_with_an_alpha_of_one_half(shape):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(6, *shape, generator=rng, dtype=F64).requires_grad_()
    s = torch.rand(6, generator=rng, dtype=F64) + 0.1
    x_s = x + s.reshape(-1, *[1] * len(shape)) * torch.randn(x.shape, generator=rng, dtype=F64)
    real, fake = x_s * 0.7 + 0.1, x_s * 0.5
    found = uni_loss(x, x_s, s, real, fake, torch.rand(6, generator=rng, dtype=F64), "reverse_kl")
    expected = sid_loss(x, real, fake, alpha=0.5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (found, expected)))


@pytest.mark.parametrize("divergence", [name for name in F_DIVERGENCES if name != "reverse_kl"])
def test_dmd_s_weight_is_bounded_by_h(divergence):
    """Where the ratio does not belong to the denoisers: one number apart by 3 at a fine level, w would be in the thousands."""
    x = torch.tensor([[1.0], [0.3]], dtype=F64).requires_grad_()
    s, ratio = torch.tensor([0.01, 0.01], dtype=F64), torch.tensor([4.0, 0.25], dtype=F64)
    x_s = x + 0.0
    real, fake = x.detach() + 3, x.detach() - 0.01  # which stand still, so that DMD's term alone has a gradient in x_s

    def slope(bound):
        return torch.autograd.grad(uni_terms(x.detach(), x_s, s, real, fake, ratio, divergence, bound).sum(), x_s, retain_graph=True)[0]

    h = f_divergence_weight(ratio, divergence)
    free, held = slope(math.inf).flatten(), slope(10.0).flatten()
    assert free.abs().max() > 100
    torch.testing.assert_close(held.abs(), torch.minimum(free.abs(), 10 * h * (real - fake).flatten()))
    assert torch.equal(held.sign(), free.sign())


@pytest.mark.parametrize("divergence", F_DIVERGENCES)
def test_nothing_pulls_where_real_and_fake_agree(divergence):
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    x_s = x + 0.5
    loss = uni_loss(x, x_s, torch.full((4,), 0.5, dtype=F64), 0.8 * x_s, 0.8 * x_s, torch.ones(4, dtype=F64), divergence)
    assert loss == 0
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-12


def test_an_unknown_divergence_is_refused():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="divergence is 'tv'; allowed: reverse_kl"):
        uni_loss(x, x, torch.ones(2), x, x, torch.ones(2), "tv")
