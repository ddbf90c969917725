import math

import pytest
import torch

from fewstep.maths.flow import folded_lognormal, ode_step, stage_at, stage_gap, towards
from fewstep.maths.parametrization import expand_like

MU, V = torch.tensor([0.7, -0.4], dtype=torch.float64), 0.3


def denoised(x, sigma):
    """The exact denoiser of N(MU, V I)."""
    return MU + (x - MU) * V / (V + expand_like(sigma, x) ** 2)


def flowed(x, sigma, s):
    """The exact flow of N(MU, V I) from sigma to s."""
    return MU + (x - MU) * ((V + expand_like(s, x) ** 2) / (V + expand_like(sigma, x) ** 2)).sqrt()


def points(num=64):
    rng = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-0.5, 0.9, num, dtype=torch.float64)
    return MU + (V + sigma[:, None] ** 2).sqrt() * torch.randn(num, 2, generator=rng, dtype=torch.float64), sigma


def rms(x):
    return x.square().mean().sqrt().item()


def test_gap_by_hand():
    sigma = torch.tensor([0.0, 2.0, 1e6], dtype=torch.float64)
    n = [1 + 8 / 2, 1 + 8 / (1 + math.exp(2.0)), 1.0]
    for stage in (0, 1, 3, 5):
        expected = [min(1.0, value / 2**stage) for value in n]
        torch.testing.assert_close(stage_gap(sigma, stage), torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(stage_gap(sigma, 3, k=0.0), torch.full((3,), 1 / 8, dtype=torch.float64))


def test_stages_share_the_run_equally_and_the_last_one_holds_its_end():
    assert [stage_at(step / 12, 4) for step in range(13)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    assert stage_at(0.0, 4, first=2) == 2
    assert stage_at(1.0, 4, first=2) == 5


def test_levels_are_lognormal_below_the_fold_and_none_above():
    rng = torch.Generator().manual_seed(1)
    sigma = folded_lognormal(200_000, 0.5, 1.0, 0.01, math.exp(1.5), rng)
    assert sigma.max() <= math.exp(1.5) * (1 + 1e-6)
    assert sigma.min() >= 0.01
    # P(ln sigma < t) for t below the fold at 1.5: Phi(t - .5), and what was folded down from above 3 - t
    for t in (-0.5, 0.5, 1.2):
        expected = (1 + math.erf((t - 0.5) / 2**0.5)) / 2 + (1 - math.erf((3 - t - 0.5) / 2**0.5)) / 2
        found = (sigma.log() < t).double().mean().item()
        assert found == pytest.approx(expected, abs=4 * 0.5 / 200_000**0.5)  # four standard errors


def test_a_step_towards_a_target_ends_at_its_share_of_the_way():
    x, sigma = points()
    s = 0.25 * sigma
    torch.testing.assert_close(towards(x, MU.expand_as(x), sigma, s), 0.25 * x + 0.75 * MU)
    torch.testing.assert_close(towards(x, MU.expand_as(x), sigma, 0 * s), MU.expand_as(x))
    torch.testing.assert_close(towards(x, MU.expand_as(x), sigma, sigma), x)


@pytest.mark.parametrize(("second_order", "ratio"), [(False, 4), (True, 8)])
def test_order_of_the_ode_step(second_order, ratio):
    """A single step's error goes with the square of its length for Euler, with the cube for Heun."""
    x, sigma = points()
    errors = []
    for gap in (0.08, 0.04):
        s = sigma * (1 - gap)
        errors.append(rms(ode_step(denoised, x, sigma, s, second_order) - flowed(x, sigma, s)))
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)


def test_at_level_zero_either_step_is_the_denoiser():
    x, sigma = points()
    for second_order in (False, True):
        torch.testing.assert_close(ode_step(denoised, x, sigma, 0 * sigma, second_order), denoised(x, sigma))
