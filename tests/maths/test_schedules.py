import decimal
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.maths.schedules import (
    bridge,
    karras_sigmas,
    level_sigmas,
    linear_path,
    lognormal_sigmas,
    sigmoid_weight,
    student_sigmas,
    uniform_times,
)

GOLDEN = Path(__file__).parents[1] / "golden"
DDDM = load_file(GOLDEN / "dddm.safetensors")


def test_karras_grid_is_the_reference_s():
    reference = load_file(GOLDEN / "dmd2_edm.safetensors")["np64.karras_sigmas"]  # ascending there
    torch.testing.assert_close(karras_sigmas(1000).flip(0), reference, rtol=1e-12, atol=0)


def test_karras_grid_by_hand():
    # rho 2 from 1 to 9: roots 3, 2.5, 2, 1.5, 1
    expected = torch.tensor([9, 6.25, 4, 2.25, 1], dtype=torch.float64)
    torch.testing.assert_close(karras_sigmas(5, 1.0, 9.0, 2.0), expected, rtol=1e-14, atol=0)


def test_a_grid_of_one_level_is_the_largest():
    torch.testing.assert_close(karras_sigmas(1, 0.1, 7.0), torch.tensor([7.0], dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((0,), "num is 0"), ((3, 2.0, 1.0), "sigma_min 2.0"), ((3, 0.0, 1.0), "sigma_min 0.0"), ((3, -1.0), "sigma_min -1")],
)
def test_impossible_grids_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        karras_sigmas(*arguments)


def test_student_levels_by_hand():
    # c is 1/2 for two levels, 1/(num + 1) for more: (1 - j c)^2 of 16
    for num, expected in ((1, [16]), (2, [16, 4]), (3, [16, 9, 4]), (4, [16, 16 * 0.64, 16 * 0.36, 16 * 0.16])):
        sigmas = student_sigmas(num, 16.0, 2.0)
        assert sigmas.dtype == torch.float64
        torch.testing.assert_close(sigmas, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("num", [3, 4, 8])
def test_student_levels_are_a_karras_grid_that_ends_at_0(num):
    # of num + 2 levels, the last of which is 0; a sigma_min as small as this moves no level by more than 1e-5 of it
    grid = karras_sigmas(num + 2, 1e-50, 80.0)[:num]
    torch.testing.assert_close(student_sigmas(num, 80.0), grid, rtol=1e-5, atol=0)


@pytest.mark.parametrize("num", [2, 3, 4, 8])
def test_student_levels_are_those_of_the_stock_consistency_scheduler(num):
    from diffusers import CMStochasticIterativeScheduler

    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=3 if num == 2 else num + 2, sigma_min=0.0, sigma_max=80.0)
    scheduler.set_timesteps(num)
    torch.testing.assert_close(scheduler.sigmas[:-1], student_sigmas(num, 80.0).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("arguments", "said"), [((0, 80.0), "num is 0"), ((2, 0.0), "sigma_max is 0.0"), ((1, -1.0), "sigma_max is -1")])
def test_impossible_student_levels_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        student_sigmas(*arguments)


def test_lognormal_moments():
    num, mean, std = 40_000, -0.4, 1.3
    logs = lognormal_sigmas(num, mean, std, torch.Generator().manual_seed(0)).double().log()
    # standard errors: std / sqrt(N) of the mean, std / sqrt(2 N) of the standard deviation; four of each
    assert abs(logs.mean().item() - mean) < 4 * std / math.sqrt(num)
    assert abs(logs.std().item() - std) < 4 * std / math.sqrt(2 * num)


def test_levels_are_uniform_between_first_and_last_inclusive():
    num, grid = 40_000, torch.arange(10, dtype=torch.float64) * 0.5
    drawn = level_sigmas(grid, num, 2, 5, torch.Generator().manual_seed(0))
    counts = torch.stack([(drawn == level).sum() for level in grid]).tolist()
    tolerance = 4 * math.sqrt(num * 0.25 * 0.75)  # four standard deviations of a binomial count
    assert counts[:2] == [0, 0]
    assert counts[6:] == [0, 0, 0, 0]
    assert all(abs(count - num / 4) < tolerance for count in counts[2:6])


@pytest.mark.parametrize(("first", "last"), [(-1, 3), (0, 10), (4, 3)])
def test_levels_outside_the_grid_are_refused(first, last):
    with pytest.raises(ValueError, match=f"levels {first} to {last} .* grid of 10"):
        level_sigmas(torch.arange(10.0), 5, first, last)


def test_only_the_generator_is_drawn_from():
    before = torch.get_rng_state()
    first, second = (
        [lognormal_sigmas(5, generator=rng), level_sigmas(karras_sigmas(9), 5, 0, 8, rng)]
        for rng in (torch.Generator().manual_seed(3), torch.Generator().manual_seed(3))
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_uniform_times_by_hand():
    assert uniform_times(4).tolist() == [1.0, 0.75, 0.5, 0.25]
    assert uniform_times(1).tolist() == [1.0]
    assert uniform_times(20).dtype == torch.float64
    with pytest.raises(ValueError, match="num is 0"):
        uniform_times(0)


def test_linear_path_runs_from_data_to_noise():
    alpha, sigma = linear_path(torch.tensor([0.0, 0.25, 1.0]))
    assert alpha.tolist() == [1, 0.75, 0]
    assert sigma.tolist() == [0, 0.25, 1]


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_sigmoid_weight_is_the_golden_one(bias):
    found = sigmoid_weight(DDDM["energy.t"], bias)
    # the reference's logarithm is of alpha^2 / (sigma^2 + 1e-12) + 1e-12, which at t = .99 is 1e-8 more than the ratio
    torch.testing.assert_close(found, DDDM[f"energy.weight_b{bias:.0f}"], rtol=1.1e-8, atol=0)


@pytest.mark.parametrize("bias", [-2.0, 0.0, 1.0])
def test_sigmoid_weight_is_a_sigmoid_and_finite_at_both_ends(bias):
    t = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    expected = torch.sigmoid(2 * ((1 - t) / t).log() - bias)
    torch.testing.assert_close(sigmoid_weight(t, bias), expected, rtol=1e-12, atol=0)
    assert sigmoid_weight(torch.tensor([0.0, 1.0]), bias).tolist() == [1, 0]


def coefficients(s, t, churn):
    """(A, C, std), each [N], of ``x_s = A x_t + C x0 + std n``: read off `bridge`, which is linear in x_t and x0."""
    s, t = torch.as_tensor(s, dtype=torch.float64).view(-1), torch.as_tensor(t, dtype=torch.float64).view(-1)
    zero, one = torch.zeros(len(t), dtype=torch.float64), torch.ones(len(t), dtype=torch.float64)
    (of_xt, std), (of_x0, _) = bridge(zero, one, s, t, churn), bridge(one, zero, s, t, churn)
    return of_xt, of_x0, std


@pytest.mark.parametrize("i", range(4))
def test_bridge_is_the_golden_one(i):
    churn, x0, x_t = DDDM["bridge.eps"][i].item(), DDDM["bridge.x0"], DDDM["bridge.xt"]
    for (s, t), mean, std in zip(DDDM["bridge.st"].tolist(), DDDM["bridge.exact.mean"][:, i], DDDM["bridge.exact.std"][:, i], strict=True):
        found = bridge(x0, x_t, s, t, churn)
        torch.testing.assert_close(found[0], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found[1], std, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("churn", [0.0, 1e-3, 0.1, 0.5, 0.77, 0.95, 1.0])
def test_bridge_keeps_the_marginals(churn):
    s, t = torch.rand(2, 2_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64).sort(0).values
    s, t = torch.cat([s, s, torch.zeros_like(t)]), torch.cat([t, torch.ones_like(t), t])
    of_xt, of_x0, std = coefficients(s, t, churn)
    # with x_t = alpha_t x0 + sigma_t eps, x_s must be alpha_s x0 + sigma_s times standard normal noise
    torch.testing.assert_close(of_xt * (1 - t) + of_x0, 1 - s, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close((of_xt * t) ** 2 + std**2, s**2, rtol=1e-12, atol=0)


def test_bridge_to_time_0_is_the_data():
    x0, x_t = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for t in (0.001, 0.3, 1.0):
        for churn in (0.0, 0.5, 1.0):
            mean, std = bridge(x0, x_t, 0, t, churn)
            assert torch.equal(mean, x0)
            assert std.item() == 0


@pytest.mark.parametrize("t", [1e-3, 0.3, 0.7, 1.0])
def test_bridge_to_the_same_time_stays(t):
    x0, x_t = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    for churn in (0.0, 0.5, 1.0):
        mean, std = bridge(x0, x_t, t, t, churn)
        assert torch.equal(mean, x_t)
        assert std.item() == 0


def test_bridge_without_churn_is_ddim():
    s, t = torch.rand(2, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64).sort(0).values
    x0, x_t = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mean, std = bridge(x0, x_t, s, t, 0.0)
    s, t = s[:, None], t[:, None]
    eps = (x_t - (1 - t) * x0) / t  # the noise that x_t is said to hold
    torch.testing.assert_close(mean, (1 - s) * x0 + s * eps, rtol=1e-11, atol=1e-12)
    assert torch.equal(std, torch.zeros_like(s))


def test_bridge_with_churn_1_is_ddpm_s_posterior():
    """``q(x_s | x_t, x0)`` of ``x_t = a x_s + sqrt(v) n`` by Bayes' rule: precisions add up (arXiv 2006.11239, Eqs. 6-7)."""
    s, t = torch.rand(2, 200, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sort(0).values
    x0, x_t = torch.randn(2, 200, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    default, (mean, std) = bridge(x0, x_t, s, t), bridge(x0, x_t, s, t, 1.0)
    s, t = s[:, None], t[:, None]
    a = (1 - t) / (1 - s)
    v = t**2 - (a * s) ** 2
    variance = 1 / (1 / s**2 + a**2 / v)
    torch.testing.assert_close(std, variance.sqrt(), rtol=1e-9, atol=0)
    torch.testing.assert_close(mean, variance * ((1 - s) * x0 / s**2 + a * x_t / v), rtol=1e-9, atol=1e-10)
    assert torch.equal(default[0], mean)
    assert torch.equal(default[1], std)


@pytest.mark.parametrize("churn", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("t", [1e-4, 0.3, 0.5, 0.9, 1.0])
def test_bridge_is_precise_between_near_times(t, churn):
    """Against 60 digits: ``1 - k^2`` worked out in float64 would have lost half of its digits here."""
    for gap in (1e-3, 1e-6, 1e-9, 1e-12):
        s = t * (1 - gap)
        with decimal.localcontext() as context:
            context.prec = 60
            s_, t_, c = (decimal.Decimal(value) for value in (s, t, churn))
            k = c * c * (1 - t_) * s_ / ((1 - s_) * t_) + 1 - c * c
            exact = float(s_ * (1 - k * k).sqrt())
        std = bridge(torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), s, t, churn)[1].item()
        assert std == pytest.approx(exact, rel=1e-13)


def test_bridge_takes_times_by_item_and_numbers_alike():
    x0, x_t = torch.randn(2, 4, 3, 2, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    s, t = torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.tensor([0.125, 0.75, 0.5, 1.0])
    noise = torch.ones_like(x0)
    mean, std = bridge(x0, x_t, s, t, 0.6)
    assert mean.shape == x0.shape
    for i in range(4):
        expected = bridge(x0[i : i + 1], x_t[i : i + 1], s[i].item(), t[i].item(), 0.6)
        torch.testing.assert_close(mean[i : i + 1], expected[0], rtol=1e-14, atol=1e-14)
        torch.testing.assert_close((std * noise)[i : i + 1], expected[1] * noise[:1], rtol=1e-14, atol=0)
    # a number for the one, an entry an item for the other
    mixed, numbers = bridge(x0, x_t, 0.125, t, 0.6), bridge(x0, x_t, torch.full((4,), 0.125), t, 0.6)
    assert torch.equal(mixed[0], numbers[0])
    assert torch.equal(mixed[1] * noise, numbers[1] * noise)


def test_bridge_of_float32_is_worked_out_in_float64():
    x0, x_t = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0))
    s, t = 0.7 - 1e-6, 0.7  # in float32, 1 - k^2 would be off by several per cent
    mean, std = bridge(x0, x_t, s, t, 1.0)
    exact_mean, exact_std = bridge(x0.double(), x_t.double(), s, t, 1.0)
    assert mean.dtype == std.dtype == torch.float32
    torch.testing.assert_close(std.double(), exact_std, rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("s", "t", "churn", "said"),
    [
        (0.5, 0.4, 1.0, r"s 0.5 and t 0.4 must satisfy 0 <= s <= t <= 1 and t > 0"),
        (-0.1, 0.4, 1.0, r"s -0.1 and t 0.4 must satisfy"),
        (0.5, 1.1, 1.0, r"s 0.5 and t 1.1 must satisfy"),
        (0.0, 0.0, 1.0, r"s 0.0 and t 0.0 must satisfy"),
        (math.nan, 0.5, 1.0, r"s nan and t 0.5 must satisfy"),
        (torch.tensor([0.25, 0.75]), torch.tensor([0.5, 0.5]), 1.0, r"s \[0.25, 0.75\] and t \[0.5, 0.5\] must satisfy"),
        (0.2, 0.4, -0.1, "churn is -0.1; allowed are values from 0 to 1"),
        (0.2, 0.4, 1.1, "churn is 1.1; allowed are values from 0 to 1"),
        (0.2, 0.4, math.nan, "churn is nan; allowed are values from 0 to 1"),
    ],
)
def test_impossible_bridges_are_refused(s, t, churn, said):
    with pytest.raises(ValueError, match=said):
        bridge(torch.zeros(2, 3), torch.zeros(2, 3), s, t, churn)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("grid", [uniform_times(20).tolist(), [1.0, 0.97, 0.5, 0.499, 0.2, 0.01, 1e-4], [1.0]])
def test_bridges_compose_to_the_marginals(grid, churn):
    """N(1, .5^2) data, x0 drawn from its exact posterior at each time: mean and variance of x_s, carried along in closed form."""
    mu, variance_0 = 1.0, 0.25
    mean, variance = 0.0, 1.0  # of x at t = 1
    for t, s in pairwise([*grid, 0.0]):
        of_xt, of_x0, std = (c.item() for c in coefficients(s, t, churn))
        # x0 | x_t = mu + gain (x_t - alpha_t mu) + spread n
        total = (1 - t) ** 2 * variance_0 + t**2
        gain, spread = (1 - t) * variance_0 / total, variance_0 * t**2 / total
        slope = of_xt + of_x0 * gain
        mean = slope * mean + of_x0 * (1 - gain * (1 - t)) * mu
        variance = slope**2 * variance + of_x0**2 * spread + std**2
        assert mean == pytest.approx((1 - s) * mu, rel=1e-12)
        assert variance == pytest.approx((1 - s) ** 2 * variance_0 + s**2, rel=1e-12)
    assert (mean, variance**0.5) == pytest.approx((1.0, 0.5), rel=1e-12)
