import math

import pytest
import torch

from fewstep.maths.parametrization import edm_coefficients, edm_weight, expand_like, path_coefficients

SIGMA = torch.logspace(-3, 2, 30, dtype=torch.float64)


def test_coefficients_by_hand():
    # sigma 1.2, sigma_data 0.5: sigma^2 + sigma_data^2 = 1.69 = 1.3^2
    found = edm_coefficients(torch.tensor(1.2, dtype=torch.float64), 0.5)
    expected = (0.25 / 1.69, 0.6 / 1.3, 1 / 1.3, math.log(1.2) / 4)
    assert [c.item() for c in found] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_unit_variance_in_and_out(sigma_data):
    c_skip, c_out, c_in, _ = edm_coefficients(SIGMA, sigma_data)
    one = torch.ones_like(SIGMA)
    torch.testing.assert_close(c_in**2 * (SIGMA**2 + sigma_data**2), one)
    # the network's target (x0 - c_skip (x0 + sigma n)) / c_out for data of standard deviation sigma_data
    torch.testing.assert_close(((1 - c_skip) ** 2 * sigma_data**2 + (c_skip * SIGMA) ** 2) / c_out**2, one)


def test_identity_without_noise():
    c_skip, c_out, _, _ = edm_coefficients(torch.tensor(1e-6, dtype=torch.float64), 0.5)
    assert c_skip.item() == pytest.approx(1, abs=1e-11)
    assert c_out.item() == pytest.approx(1e-6, rel=1e-9)


def test_the_weight_undoes_c_out():
    for sigma_data in (0.5, 0.75):
        _, c_out, _, _ = edm_coefficients(SIGMA, sigma_data)
        torch.testing.assert_close(edm_weight(SIGMA, sigma_data) * c_out**2, torch.ones_like(SIGMA))
    # by hand: (1.44 + 0.25) / (1.2 * 0.5)^2
    assert edm_weight(torch.tensor(1.2, dtype=torch.float64), 0.5).item() == pytest.approx(1.69 / 0.36, rel=1e-14)


def test_expand_like_multiplies_item_by_item():
    x = torch.randn(4, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([1.0, 2.0, -3.0, 0.5])
    expected = torch.stack([item * value for item, value in zip(x, sigma.tolist(), strict=True)])
    assert torch.equal(expand_like(sigma, x) * x, expected)
    assert torch.equal(expand_like(torch.tensor(2.0), x) * x, 2 * x)


TIMES = torch.tensor([0.0, 1e-4, 0.1, 0.37, 0.5, 0.8, 0.999, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_path_coefficients_are_edm_s_at_the_same_noise(sigma_data):
    t = TIMES[1:-1]  # at 0 and 1 the noise level or its logarithm is infinite
    found = path_coefficients(t, sigma_data)
    c_skip, c_out, c_in, _ = edm_coefficients(t / (1 - t), sigma_data)
    for ours, edm in zip(found, (c_skip / (1 - t), c_out, c_in / (1 - t)), strict=True):  # EDM's x is x_t / (1 - t)
        torch.testing.assert_close(ours, edm, rtol=1e-12, atol=0)


def test_path_coefficients_at_both_ends():
    c_skip, c_out, c_in = path_coefficients(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.5)
    assert c_skip.tolist() == [1, 0]
    assert c_out.tolist() == [0, 0.5]
    assert c_in.tolist() == [2, 1]


@pytest.mark.parametrize("sigma_data", [0.3, 0.5, 1.7])
def test_unit_variance_in_and_out_on_the_path(sigma_data):
    c_skip, c_out, c_in = path_coefficients(TIMES, sigma_data)
    alpha, one = 1 - TIMES, torch.ones_like(TIMES)
    torch.testing.assert_close(c_in**2 * ((alpha * sigma_data) ** 2 + TIMES**2), one)
    # the network's target (x0 - c_skip x_t) / c_out, which at t = 0 is 0 / 0
    target = (((1 - c_skip * alpha) * sigma_data) ** 2 + (c_skip * TIMES) ** 2) / c_out**2
    torch.testing.assert_close(target[1:], one[1:])
    # and it is uncorrelated with the input: the least c_out there is
    torch.testing.assert_close((1 - c_skip * alpha) * alpha * sigma_data**2 - c_skip * TIMES**2, 0 * one, rtol=0, atol=1e-12)
