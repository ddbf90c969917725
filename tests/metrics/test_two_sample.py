import math
from functools import partial
from itertools import product

import pytest
import torch
from scipy.special import hyp1f1

from fewstep.metrics import two_sample
from fewstep.metrics.two_sample import (
    GROUPS,
    energy_distance,
    finite_rows,
    jackknife_error,
    jackknife_groups,
    median_bandwidth,
    mmd,
    sliced_wasserstein,
)

mmd_1 = partial(mmd, bandwidth=1.0)
sliced = partial(sliced_wasserstein, projections=16)
BOTH = pytest.mark.parametrize("measure", [energy_distance, mmd_1])
ALL = pytest.mark.parametrize("measure", [energy_distance, mmd_1, sliced])


def normal(num, dims, rng, mean=0.0, std=1.0):
    """N(mean e, std^2 I) with e along the first axis: float64 [num, dims]."""
    x = std * torch.randn(num, dims, generator=rng, dtype=torch.float64)
    x[:, 0] += mean
    return x


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def ring(num, rng, std=0.2, modes=8):
    """Radius 3; the first `modes` of its eight modes."""
    angle = torch.randint(modes, (num,), generator=rng) * (2 * math.pi / 8)
    return 3 * torch.stack([angle.cos(), angle.sin()], 1).double() + normal(num, 2, rng, 0, std)


def mean_distance(dims, mean, std):
    """E|z| of z ~ N(mean e, std^2 I)."""
    gamma = math.exp(math.lgamma((dims + 1) / 2) - math.lgamma(dims / 2))
    return std * math.sqrt(2) * gamma * hyp1f1(-0.5, dims / 2, -(mean**2) / (2 * std**2))


def mean_kernel(dims, mean, std, h):
    """E exp(-|z|^2 / (2 h^2)) of z ~ N(mean e, std^2 I): the integral of a product of two Gaussians."""
    total = h**2 + std**2
    return (h**2 / total) ** (dims / 2) * math.exp(-(mean**2) / (2 * total))


def exact(measure, dims, mean, std, h=1.0):
    """Of N(0, I) and N(mean e, std^2 I)."""
    across, within_x, within_y = (mean, math.hypot(1, std)), (0, math.sqrt(2)), (0, math.sqrt(2) * std)
    if measure is energy_distance:
        return 2 * mean_distance(dims, *across) - mean_distance(dims, *within_x) - mean_distance(dims, *within_y)
    if measure is sliced:
        return math.sqrt(mean**2 / dims + (1 - std) ** 2)
    return mean_kernel(dims, *within_x, h) + mean_kernel(dims, *within_y, h) - 2 * mean_kernel(dims, *across, h)


# ---------------------------------------------------------------- the definitions


def kernel_mean(a, b, k, same, biased):
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if biased or not same or i != j]
    return sum(k(math.dist(a[i], b[j])) for i, j in pairs) / len(pairs)


def by_pairs(a, b, k, biased=False):
    means = kernel_mean(a, a, k, True, biased), kernel_mean(b, b, k, True, biased), kernel_mean(a, b, k, False, biased)
    return means[0] + means[1] - 2 * means[2]


def jackknifed(x, y, figure):
    """The figure and its error, group by group, from lists of rows."""
    groups = [jackknife_groups(len(a)).tolist() for a in (x, y)]
    kept = [
        [[row for row, of in zip(a, in_group, strict=True) if of != g] for a, in_group in zip((x, y), groups, strict=True)]
        for g in range(20)
    ]
    without = [figure(*sets) for sets in kept]
    mean = sum(without) / 20
    return figure(x, y), math.sqrt(19 / 20 * sum((value - mean) ** 2 for value in without))


@pytest.mark.parametrize(
    ("measure", "figure"),
    [
        (energy_distance, lambda a, b: -by_pairs(a, b, lambda r: r)),
        (partial(mmd, bandwidth=0.7), lambda a, b: by_pairs(a, b, lambda r: math.exp(-(r**2) / (2 * 0.7**2)))),
        (partial(mmd, bandwidth=0.7, biased=True), lambda a, b: by_pairs(a, b, lambda r: math.exp(-(r**2) / (2 * 0.7**2)), biased=True)),
    ],
)
def test_value_and_error_are_the_definition_pair_by_pair(measure, figure):
    rng = seeded(0)
    x, y = normal(41, 3, rng), normal(53, 3, rng, 0.5, 1.5)  # groups of unequal size
    assert measure(x, y) == pytest.approx(jackknifed(x.tolist(), y.tolist(), figure), rel=1e-10)


@pytest.mark.parametrize(("n", "m", "dims"), [(60, 60, 3), (48, 60, 3), (61, 43, 2), (48, 60, 1)])
def test_sliced_wasserstein_is_its_definition_by_repeated_rows(n, m, dims):
    """Repeated until both sets have lcm(n, m) rows, sorted rows are matched one to one."""
    rng = seeded(1)
    x, y = normal(n, dims, rng), normal(m, dims, rng, 1.0, 2.0)
    directions = two_sample._directions(5, dims, 3)

    def figure(a, b):
        size = math.lcm(len(a), len(b))
        a, b = ((torch.tensor(rows, dtype=torch.float64) @ directions.T).repeat(size // len(rows), 1).sort(0).values for rows in (a, b))
        return ((a - b) ** 2).mean().sqrt().item()

    assert sliced_wasserstein(x, y, projections=5, seed=3) == pytest.approx(jackknifed(x.tolist(), y.tolist(), figure), rel=1e-10)


@ALL
def test_blocks_add_up(measure, monkeypatch):
    rng = seeded(2)
    x, y = normal(90, 3, rng), normal(70, 3, rng, 1.0)
    whole = measure(x, y)
    monkeypatch.setattr(two_sample, "BLOCK", 300)
    assert measure(x, y) == pytest.approx(whole, rel=1e-12)


# ---------------------------------------------------------------- closed forms


@BOTH
@pytest.mark.parametrize(("dims", "mean", "std"), [(1, 0.5, 1.0), (1, 0.0, 2.0), (2, 1.0, 1.0), (2, 0.3, 1.5), (16, 0.5, 1.2)])
def test_two_gaussians(measure, dims, mean, std):
    """Unbiased: the mean over 400 draws lies within 4 standard errors, which are small beside the figure itself."""
    rng, repeats = seeded(3), 400
    values = torch.tensor([measure(normal(60, dims, rng), normal(80, dims, rng, mean, std)).value for _ in range(repeats)])
    error, value = values.std().item() / math.sqrt(repeats), exact(measure, dims, mean, std)
    assert abs(values.mean().item() - value) < 4 * error
    assert 4 * error < 0.5 * value


@ALL
def test_two_large_sets_agree_with_the_closed_form(measure):
    """Within 4 of the errors they state. The bias of sliced Wasserstein, about 1/n over twice the figure, is far smaller."""
    rng = seeded(4)
    estimate = measure(normal(3000, 2, rng), normal(2500, 2, rng, 1.0, 1.5))
    value = exact(measure, 2, 1.0, 1.5)
    assert abs(estimate.value - value) < 4 * estimate.error
    assert 4 * estimate.error < 0.25 * value


def test_the_closed_forms_by_quadrature():
    """The forms used above, against integrals over the law of x - y: a line in D = 1, a grid in D = 2."""
    z = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    h, mean, std = 0.7, 1.3, 1.5
    density = torch.exp(-((z - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    other = torch.exp(-(z**2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))
    both, radius = density[:, None] * other, torch.hypot(z[:, None], z)
    for dims, weight, r in ((1, density, z.abs()), (2, both, radius)):
        step = 0.01**dims
        # |z| has a kink at 0, where the error of the rule is a few step^2
        assert mean_distance(dims, mean, std) == pytest.approx((weight * r).sum().item() * step, abs=2e-5)
        assert mean_kernel(dims, mean, std, h) == pytest.approx((weight * (-(r**2) / (2 * h * h)).exp()).sum().item() * step, rel=1e-9)


@pytest.mark.parametrize(("dims", "projections"), [(1, 128), (2, 128), (3, 6), (8, 16)])
def test_a_difference_of_means_enters_sliced_wasserstein_exactly(dims, projections):
    rng = seeded(5)
    x, shift = normal(50, dims, rng), normal(1, dims, rng)[0]
    value = sliced_wasserstein(x, x + shift, projections).value
    assert value == pytest.approx(shift.norm().item() / math.sqrt(dims), rel=1e-12)


def test_sliced_wasserstein_of_a_scaled_set_in_one_dimension():
    x = normal(50, 1, seeded(6)).sub(5)
    assert sliced_wasserstein(x, 2 * x).value == pytest.approx(x.square().mean().sqrt().item(), rel=1e-12)


def test_directions_are_orthonormal_bases_and_uniform():
    bases = two_sample._directions(4096, 2, 0).view(2048, 2, 2)
    torch.testing.assert_close(bases @ bases.mT, torch.eye(2).double().expand(2048, 2, 2))
    # uniform angles: cos 4 phi, the same for both of a basis, has mean 0 and variance 1/2
    angle = torch.atan2(bases[:, 0, 1], bases[:, 0, 0])
    assert abs((4 * angle).cos().mean().item()) < 4 * math.sqrt(0.5 / 2048)
    few = two_sample._directions(3, 100, 0)
    torch.testing.assert_close(few @ few.T, torch.eye(3).double())
    assert not torch.equal(few, two_sample._directions(3, 100, 1))


def test_the_median_bandwidth():
    x, y = torch.arange(40.0)[:, None], torch.arange(40.0, 90.0)[:, None]
    distances = sorted(abs(i - j) for i in range(90) for j in range(i))
    assert median_bandwidth(x, y) == distances[(len(distances) - 1) // 2]
    assert mmd(x, y) == mmd(x, y, bandwidth=median_bandwidth(x, y))
    # many rows: 500 of each set, so 1000 of the law; |x - x'| of N(0, 1) has median 0.6745 sqrt(2)
    many = median_bandwidth(normal(3000, 1, seeded(7)), normal(2000, 1, seeded(8)))
    # the median of 5e5 pairs of 1000 rows: its spread, over 500 such sets, is 0.023
    assert many == pytest.approx(0.67449 * math.sqrt(2), abs=4 * 0.023)


# ---------------------------------------------------------------- statistics


@BOTH
def test_equal_laws_give_zero_in_expectation(measure):
    rng, repeats = seeded(9), 2000
    values = torch.tensor([measure(normal(40, 2, rng), normal(50, 2, rng)).value for _ in range(repeats)])
    error = values.std().item() / math.sqrt(repeats)
    assert abs(values.mean().item()) < 4 * error
    # with the diagonal kept the mean would be (1/40 + 1/50) (E|x - x'| = 1.77, or 1 - E k = 2/3)
    assert 4 * error < 0.1 * (1 / 40 + 1 / 50)


def test_the_biased_mmd_at_equal_laws():
    """(1 - E k) (1/n + 1/m) with E k = h^2 / (h^2 + 2) = 1/3 in D = 2."""
    rng, repeats = seeded(10), 1000
    values = torch.tensor([mmd(normal(40, 2, rng), normal(50, 2, rng), 1.0, biased=True).value for _ in range(repeats)])
    assert values.min() > 0
    assert abs(values.mean().item() - 2 / 3 * (1 / 40 + 1 / 50)) < 4 * values.std().item() / math.sqrt(repeats)


def calibration(measure, draw, repeats):
    """Mean stated error over the standard deviation of the values."""
    values, errors = torch.tensor([measure(*draw()) for _ in range(repeats)]).double().T
    return (errors.mean() / values.std()).item()


@ALL
@pytest.mark.parametrize(("n", "m"), [(200, 200), (200, 130)])
def test_the_error_is_the_spread_over_repetitions(measure, n, m):
    """Unequal laws. Over R = 300 draws the spread is known to 1 / sqrt(2 R) = 4 %, the mean error to 16 % / sqrt(R) = 1 %."""
    rng = seeded(11)
    ratio = calibration(measure, lambda: (normal(n, 2, rng), normal(m, 2, rng, 0.7, 1.3)), 300)
    assert abs(ratio - 1) < 4 * 0.042


@ALL
def test_the_error_at_equal_laws_is_too_large_rather_than_too_small(measure):
    rng = seeded(12)
    ratio = calibration(measure, lambda: (normal(200, 2, rng), normal(200, 2, rng)), 300)
    assert 1 < ratio < 1.7


@ALL
def test_paired_rows_get_the_error_of_a_paired_comparison(measure):
    rng = seeded(13)

    def paired():
        x = normal(200, 2, rng)
        return x, 1.3 * x + 0.7 + 0.1 * normal(200, 2, rng)

    pairs = [paired() for _ in range(300)]
    ratio = calibration(measure, iter(pairs).__next__, 300)
    assert abs(ratio - 1) < 4 * 0.042
    # and it is another one than that of independent sets
    x, y = pairs[0]
    shuffled = torch.tensor([measure(x, y[torch.randperm(200, generator=rng)]).error for _ in range(20)])
    assert measure(x, y).error < 0.8 * shuffled.mean().item()


def test_the_jackknife_error_of_a_mean_is_its_standard_error():
    """Exact for 20 groups of one; the groups are all of a size, and another set of rows is dealt alike."""
    x = normal(20, 3, seeded(14))
    without = (x.sum(0) - x) / 19
    torch.testing.assert_close(jackknife_error(without), x.std(0) / math.sqrt(20))
    assert jackknife_groups(105).bincount().tolist() == [6] * 5 + [5] * (GROUPS - 5)
    assert torch.equal(jackknife_groups(105), jackknife_groups(105))
    assert not torch.equal(jackknife_groups(105), jackknife_groups(105).sort().values)


# ---------------------------------------------------------------- direction and invariance


def damaged(damage, num, rng):
    if damage == "a mode is missing":
        return ring(num, rng, modes=7)
    if damage == "modes are points":
        return ring(num, rng, std=0.0)
    return torch.cat([ring(num - num // 5, rng), 0.4 * ring(num // 5, rng)])


@ALL
@pytest.mark.parametrize("damage", ["a mode is missing", "modes are points", "a fifth lies between the modes"])
def test_damage_shows_above_the_floor(measure, damage):
    """Over 40 draws: chance alone moves the weights of eight modes by more than some damage does in a single draw."""
    rng, measure = seeded(15), partial(mmd, bandwidth=0.3) if measure is mmd_1 else measure
    draws = [(ring(400, rng), ring(400, rng), damaged(damage, 400, rng)) for _ in range(40)]
    excess = torch.tensor([measure(x, bad).value - measure(x, y).value for x, y, bad in draws])
    assert excess.mean() > 4 * excess.std() / math.sqrt(40)


@ALL
def test_shift_permutation_and_a_quarter_turn_change_nothing(measure):
    rng = seeded(16)
    x, y = normal(60, 2, rng), normal(75, 2, rng, 1.0, 1.4)
    value = measure(x, y).value
    turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()  # takes each pair of directions to itself
    assert measure(x + 7, y + 7).value == pytest.approx(value, rel=1e-10)
    assert measure(x @ turn, y @ turn).value == pytest.approx(value, rel=1e-10)
    assert measure(x[torch.randperm(60, generator=rng)], y[torch.randperm(75, generator=rng)]).value == pytest.approx(value, rel=1e-10)
    assert measure(y, x).value == pytest.approx(value, rel=1e-10)


@ALL
def test_any_rotation(measure):
    rng = seeded(17)
    x, y = normal(60, 5, rng), normal(75, 5, rng, 1.0, 1.4)
    rotation = torch.linalg.qr(normal(5, 5, rng)).Q
    # sliced Wasserstein by its directions only: W2^2 varies by some 10 % over directions, and 3 bases of them are averaged
    tolerance = 0.1 if measure is sliced else 1e-10
    assert measure(x @ rotation, y @ rotation).value == pytest.approx(measure(x, y).value, rel=tolerance)


def test_units():
    rng = seeded(18)
    x, y = normal(60, 2, rng), normal(75, 2, rng, 1.0)
    for measure in (energy_distance, sliced):
        assert measure(3 * x, 3 * y) == pytest.approx([3 * part for part in measure(x, y)], rel=1e-10)
    assert mmd(3 * x, 3 * y) == pytest.approx(mmd(x, y), rel=1e-10)  # the bandwidth scales along


@ALL
def test_far_from_the_origin_nothing_is_lost(measure):
    """x.y products would lose all digits of distances of 1e-3 at 1e6."""
    rng = seeded(19)
    x, y = (1e-3 * torch.randint(-4, 5, (60, 2), generator=rng).double() * 1.024 * 2**-3 for _ in range(2))
    grid = 2.0**-13  # multiples of it are exact at 2^20
    x, y = (x / grid).round() * grid + 2.0**20, (y / grid).round() * grid + 2.0**20
    assert measure(x, y).value == pytest.approx(measure(x - 2.0**20, y - 2.0**20).value, rel=1e-6, abs=1e-12)


# ---------------------------------------------------------------- refusals


@ALL
@pytest.mark.parametrize(("x", "y"), [((39, 2), (40, 2)), ((40, 2), (39, 2)), ((40, 2), (40, 3)), ((40,), (40,)), ((40, 0), (40, 0))])
def test_sets_that_cannot_be_compared_are_refused(measure, x, y):
    with pytest.raises(ValueError, match=r"shape.*\[N, D\]"):
        measure(torch.zeros(x), torch.zeros(y))


@ALL
@pytest.mark.parametrize(("bad", "at"), list(product([math.nan, math.inf], ["x", "y"])))
def test_rows_that_are_not_finite_are_counted(measure, bad, at):
    sets = {"x": normal(50, 2, seeded(20)), "y": normal(50, 2, seeded(21))}
    sets[at][[3, 7, 7], [0, 0, 1]] = bad
    with pytest.raises(ValueError, match=f"2 of the 50 rows of {at} are not finite"):
        measure(**sets)


def test_what_the_options_allow():
    x = normal(50, 2, seeded(22))
    for bandwidth in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"bandwidth is {bandwidth}; give a number > 0"):
            mmd(x, x, bandwidth)
    with pytest.raises(ValueError, match=r"median distance .* is 0"):
        mmd(torch.ones(50, 2), torch.ones(50, 2))
    with pytest.raises(ValueError, match="projections is 0"):
        sliced_wasserstein(x, x, projections=0)


def test_rows_come_as_float64_without_gradient():
    rows = finite_rows(torch.ones(40, 2, requires_grad=True), "x")
    assert rows.dtype == torch.float64
    assert not rows.requires_grad


@ALL
def test_the_global_generator_is_left_alone(measure):
    state = torch.get_rng_state()
    measure(normal(40, 2, seeded(23)), normal(40, 2, seeded(24)))
    assert torch.equal(state, torch.get_rng_state())
