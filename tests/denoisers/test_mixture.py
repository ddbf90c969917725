import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fewstep.denoisers import MixtureDenoiser

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


@pytest.mark.parametrize(
    ("stds", "weights"),
    [(0.0, None), (-1.0, None), (1.0, [1.0, 0.0, 1.0]), (1.0, [1.0, -1.0, 1.0]), (1.0, [0.5, 0.5]), ([1.0, 1.0], None)],
)
def test_values_that_do_not_fit_are_refused(stds, weights):
    with pytest.raises(ValueError, match=r"std|weight"):
        MixtureDenoiser(MEANS, torch.tensor(stds), None if weights is None else torch.tensor(weights))
