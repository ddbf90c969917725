import math

import pytest
import torch

from fewstep.maths.parametrization import edm_coefficients, edm_weight, expand_like

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
