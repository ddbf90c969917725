import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fewstep.denoisers import MixtureDenoiser
from fewstep.denoisers.mixture import MixturePosterior
from fewstep.maths.schedules import uniform_times
from fewstep.metrics.modes import mode_counts, mode_report, mode_shares
from fewstep.metrics.two_sample import energy_distance
from fewstep.samplers import distributional
from fewstep.streams import Noise

MEANS = torch.tensor([[-1.0, 0.5], [2.0, 0.0], [0.3, -1.2]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.7, 1.1], dtype=torch.float64)
WEIGHTS = torch.tensor([2.0, 1.0, 5.0], dtype=torch.float64)  # not normalised
X = torch.randn(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2


def test_one_gaussian_by_hand():
    # s^2 1, sigma^2 4: (1 x + 4 mu) / 5
    denoised = MixtureDenoiser(torch.tensor([[10.0]]), 1.0)(torch.tensor([[0.0], [5.0]]), 2.0)
    torch.testing.assert_close(denoised, torch.tensor([[8.0], [9.0]]))


@pytest.mark.parametrize("sigma", [0.05, 0.6, 5.0])
def test_posterior_mean_by_quadrature(sigma):
    means, stds, weights = [-1.0, 0.8], [0.4, 0.2], [0.3, 0.7]
    x0 = torch.linspace(-6, 6, 40_001, dtype=torch.float64)  # trapezoid on a smooth integrand: exact to rounding
    prior = sum(w / s * torch.exp(-((x0 - m) ** 2) / (2 * s**2)) for m, s, w in zip(means, stds, weights, strict=True))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    posterior = prior * torch.exp(-((x[:, None] - x0) ** 2) / (2 * sigma**2))
    expected = (posterior * x0).sum(1) / posterior.sum(1)
    denoiser = MixtureDenoiser(torch.tensor(means, dtype=torch.float64)[:, None], torch.tensor(stds), torch.tensor(weights))
    torch.testing.assert_close(denoiser(x[:, None], sigma)[:, 0], expected, rtol=1e-6, atol=1e-7)  # stds given in float32


def test_tweedie_with_a_noise_level_an_item():
    sigma = torch.logspace(-1, 1, len(X), dtype=torch.float64)
    x = X.clone().requires_grad_()
    noised = (STDS**2 + sigma[:, None] ** 2).sqrt()[:, :, None].expand(-1, -1, 2)
    modes = Independent(Normal(MEANS, noised), 1)
    log_p = MixtureSameFamily(Categorical(WEIGHTS.expand(len(X), -1)), modes).log_prob(x)
    (score,) = torch.autograd.grad(log_p.sum(), x)
    torch.testing.assert_close(MixtureDenoiser(MEANS, STDS, WEIGHTS)(X, sigma), X + sigma[:, None] ** 2 * score)


def test_limits_of_no_noise_and_of_nothing_but_noise():
    denoiser = MixtureDenoiser(MEANS, STDS, WEIGHTS)
    torch.testing.assert_close(denoiser(X, 1e-6), X, rtol=0, atol=1e-10)
    overall = (WEIGHTS / WEIGHTS.sum()) @ MEANS
    torch.testing.assert_close(denoiser(X, 1e6), overall.expand_as(X), rtol=0, atol=1e-4)


def test_weights_default_to_equal_and_their_scale_does_not_matter():
    expected = MixtureDenoiser(MEANS, STDS, torch.full((3,), 7.0))(X, 0.8)
    torch.testing.assert_close(MixtureDenoiser(MEANS, STDS)(X, 0.8), expected)
    assert not torch.allclose(MixtureDenoiser(MEANS, STDS, WEIGHTS)(X, 0.8), expected, atol=0.01)


def test_data_of_any_shape_is_taken_as_a_vector():
    means = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x, sigma = means[[0, 2]] + 0.1, torch.tensor([0.5, 2.0], dtype=torch.float64)
    flat = MixtureDenoiser(means.flatten(1), 0.6)(x.flatten(1), sigma)
    assert torch.equal(MixtureDenoiser(means, 0.6)(x, sigma), flat.view_as(x))


def test_far_from_every_mode_it_is_finite():
    denoised = MixtureDenoiser(MEANS.float(), 0.01)(torch.full((1, 2), 1e4), 0.01)
    torch.testing.assert_close(denoised, torch.tensor([[5001.0, 5000.0]]))  # half way to mode 1, the nearest in that direction
    assert math.isfinite(denoised.sum())


# --- draws of the posterior


POSTERIOR = MixturePosterior(MEANS, STDS, WEIGHTS)
APART = torch.tensor([[-2.2, -1.4], [2.2, -1.4], [0.0, 1.8]], dtype=torch.float64)  # ten and more of the larger std
NARROW = torch.tensor([0.1, 0.2, 0.4], dtype=torch.float64)
HEAVY = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)


def draws(posterior, x, t, many, seed=0):
    """Draws [B, many, D]."""
    xi = torch.randn(len(x), many, *posterior.xi_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return posterior(x, torch.tensor(t), None, xi)


@pytest.mark.parametrize("t", [0.02, 0.3, 0.5, 0.8, 0.97])
def test_the_mean_of_many_draws_is_the_denoised_one(t):
    """``x_t / (1 - t) = x0 + t / (1 - t) eps``: the same posterior at another scale."""
    many = 40_000
    x0 = draws(POSTERIOR, X[:8], t, many)
    expected = MixtureDenoiser(MEANS, STDS, WEIGHTS)(X[:8] / (1 - t), t / (1 - t))
    z = (x0.mean(1) - expected) / (x0.std(1) / math.sqrt(many))
    assert z.abs().max() < 4.5  # of 16 numbers, in standard errors
    spread = (expected[:, None] - x0).square().mean().sqrt()
    assert spread < 8 * t  # and they are draws from a posterior, not from the prior
    assert spread > 0.3 * t


@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_draws_have_the_posterior_s_distribution_by_quadrature(t):
    """In one dimension, where Bayes' rule is a sum: the largest distance of the distribution functions (Kolmogorov, Smirnov)."""
    means, stds, weights = (torch.tensor(a, dtype=torch.float64) for a in ([-1.0, 0.8], [0.4, 0.2], [0.3, 0.7]))
    x0 = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    prior = (weights / stds * torch.exp(-((x0[:, None] - means) ** 2) / (2 * stds**2))).sum(1)
    posterior, many = MixturePosterior(means[:, None], stds, weights), 20_000
    for x_t in (-0.7, 0.05, 0.6):
        density = prior * torch.exp(-((x_t - (1 - t) * x0) ** 2) / (2 * t**2))
        expected = density.cumsum(0) / density.sum()
        found = draws(posterior, torch.tensor([[x_t]], dtype=torch.float64), t, many).flatten().sort().values
        below = torch.searchsorted(found, x0, right=True) / many
        assert (below - expected).abs().max() < 1.95 / math.sqrt(many)  # one in a thousand of exact samples


def test_at_time_1_draws_are_the_mixture_itself():
    """Nothing of x_t is left but noise, whichever it is."""
    many = 20_000
    posterior = MixturePosterior(APART, NARROW, HEAVY)
    for x0 in draws(posterior, torch.tensor([[0.0, 0.0], [3.0, -9.0]], dtype=torch.float64), 1.0, many):
        share = HEAVY / HEAVY.sum()
        assert ((mode_shares(x0, APART, NARROW, HEAVY) - share).abs() < 4 * (share * (1 - share) / many).sqrt()).all()
        near = torch.cdist(x0, APART).argmin(1)
        for k, std in enumerate(NARROW):
            mine = x0[near == k] - APART[k]
            assert (mine.mean(0).abs() < 4.5 * std / math.sqrt(len(mine))).all()
            assert abs(mine.std() / std - 1) < 4.5 / math.sqrt(2 * mine.numel())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("t", [0.0, 1e-4])
def test_at_time_0_draws_are_the_point_itself(t, dtype):
    x0 = draws(POSTERIOR, X.to(dtype), t, 5)
    assert x0.dtype == dtype
    expected = X.to(dtype)[:, None].expand_as(x0)
    torch.testing.assert_close(x0, expected, rtol=0, atol=6 * t + 2e-6)  # the largest of 200 normal numbers


def test_a_draw_is_a_normal_one_within_the_mode_that_the_first_number_picks():
    """Modes of weight 1/4 and 3/4 at time 1: the first number is below the lower quartile, -.674, or not."""
    posterior = MixturePosterior(torch.tensor([[-5.0], [5.0]]), torch.tensor([0.5, 2.0]), torch.tensor([1.0, 3.0]))
    xi = torch.tensor([[-9.0, 1.0], [-0.68, -1.0], [-0.67, 1.0], [0.0, 0.0], [9.0, -0.5]])
    x0 = posterior(torch.zeros(1, 1), torch.tensor(1.0), None, xi[None])
    torch.testing.assert_close(x0.flatten(), torch.tensor([-4.5, -5.5, 7.0, 5.0, 4.0]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_mode_that_is_ruled_out_is_never_picked(dtype):
    """Not by the smallest and the largest of first numbers either: where the others' weights are 0 as numbers, all draws are from it."""
    xi = torch.zeros(1, 5, 3, dtype=dtype)
    xi[0, :, 0] = torch.tensor([-40.0, -6.0, 0.0, 6.0, 40.0])
    posterior = MixturePosterior(APART, 0.05, HEAVY)
    for mode in APART:
        x0 = posterior((0.98 * mode).to(dtype)[None], torch.tensor(0.02), None, xi)
        assert ((x0 - mode).abs() < 0.1).all()


def test_shapes_types_and_times_of_draws():
    rng = torch.Generator().manual_seed(1)
    xi = torch.randn(len(X), 4, 3, generator=rng, dtype=torch.float64)
    t = torch.linspace(0.05, 1, len(X), dtype=torch.float64)
    assert POSTERIOR.xi_shape == (3,)
    x0 = POSTERIOR(X, t, None, xi)
    assert x0.shape == (len(X), 4, 2)
    assert torch.equal(POSTERIOR(X, t, torch.arange(len(X)), xi), x0)  # labels say nothing here
    for i in (0, 7, 19):  # a time an item, an xi a particle
        torch.testing.assert_close(POSTERIOR(X[i : i + 1], t[i], None, xi[i : i + 1]), x0[i : i + 1])
    one = POSTERIOR(X, t, None, xi[:, 2])
    assert one.shape == X.shape
    torch.testing.assert_close(one, x0[:, 2])
    low = POSTERIOR(X.float(), t.float(), None, xi)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, x0.float(), rtol=1e-3, atol=1e-4)  # no first number is near the border of two modes
    twice = MixturePosterior(MEANS, STDS, 7 * WEIGHTS)
    torch.testing.assert_close(twice(X, t, None, xi), x0)
    equal = MixturePosterior(MEANS, STDS)(X, t, None, xi)
    torch.testing.assert_close(equal, MixturePosterior(MEANS, STDS, torch.full((3,), 0.2))(X, t, None, xi))
    assert not torch.allclose(equal, x0, atol=0.01)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_sampled_in_any_number_of_steps_the_mixture_comes_out(steps, churn):
    """Which a denoiser that gives the mean cannot: in one step it would put all samples into one place."""
    num, rng = 3000, torch.Generator().manual_seed(17)
    posterior = MixturePosterior(APART, NARROW, HEAVY)
    latents = torch.randn(num, 2, generator=rng)
    x = distributional(posterior, latents, uniform_times(steps), noise=Noise(rng), churn=churn)
    exact = draws(posterior, torch.zeros(1, 2, dtype=torch.float64), 1.0, num, seed=5)[0]
    distance = energy_distance(x, exact)
    assert abs(distance.value) < 4 * distance.error
    assert distance.error < 0.01
    share = HEAVY / HEAVY.sum()
    found = mode_shares(x, APART, NARROW, HEAVY)
    assert ((found - share).abs() < 4 * (share * (1 - share) / num).sqrt()).all()
    report = mode_report(x, APART, NARROW, HEAVY)
    for name, expected in (("modes", 3), ("inside", 0.98889), ("variance", 1), ("median_radius", 1)):
        assert abs(report[name].value - expected) <= 4 * report[name].error, name
    assert mode_counts(x, APART, NARROW, HEAVY).min() > 300


@pytest.mark.parametrize("kind", [MixtureDenoiser, MixturePosterior])
def test_values_that_do_not_fit_are_refused(kind):
    for stds, weights, said in (
        (math.nan, None, r"stds are \[nan, nan, nan\]; all must be positive and finite"),
        ([1.0, 1.0], None, r"stds have shape \(2,\) for 3 means; give one number a mode, or one for all"),
        (1.0, [0.5, 0.5], r"weights have shape \(2,\) for 3 means; give one weight a mode"),
    ):
        with pytest.raises(ValueError, match=said):
            kind(MEANS, stds, weights)
    with pytest.raises(ValueError, match=r"means have shape \(3,\); give \[K, D\]"):
        kind(MEANS[:, 0], 1.0)


def test_means_of_any_shape_keep_it():
    means = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    denoiser, flat = MixtureDenoiser(means, 0.3), MixtureDenoiser(means.flatten(1), 0.3)
    x = torch.randn(5, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(denoiser.means, means)
    assert torch.equal(denoiser(x, 0.7).flatten(1), flat(x.flatten(1), 0.7))
