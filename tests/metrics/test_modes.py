import math

import pytest
import torch
from scipy.special import erf, gammainc

from fewstep.metrics import modes as module
from fewstep.metrics.modes import (
    COVERED_FRACTION,
    mode_counts,
    mode_report,
    mode_shares,
    mode_table,
    truncated_gaussian,
    usual_radius,
)
from fewstep.metrics.two_sample import Estimate, jackknife_groups

ANGLE = torch.arange(8) * (math.pi / 4)
MEANS = 3 * torch.stack([ANGLE.cos(), ANGLE.sin()], 1).double()
STDS, WEIGHTS = torch.full((8,), 0.2).double(), torch.full((8,), 1 / 8).double()
RING = (MEANS, STDS, WEIGHTS)
INSIDE = 1 - math.exp(-4.5)  # within 3 stds in D = 2


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def draw(num, rng, means=MEANS, stds=STDS, weights=WEIGHTS):
    k = torch.multinomial(weights, num, replacement=True, generator=rng)
    return means[k] + stds[k, None] * torch.randn(num, means.shape[1], generator=rng, dtype=torch.float64)


def truncated_variance(variance, dims=2, within=3.0):
    """What Gaussian modes of `variance` times the target's read."""

    def cut(v):
        return v * gammainc(dims / 2 + 1, within**2 / (2 * v)) / gammainc(dims / 2, within**2 / (2 * v))

    return cut(variance) / cut(1)


# ---------------------------------------------------------------- the truncated Gaussian


@pytest.mark.parametrize("within", [0.5, 2.0, 3.0, 5.0])
def test_the_truncated_gaussian_in_closed_form(within):
    in_one, in_two = truncated_gaussian(1, within), truncated_gaussian(2, within)
    inside = erf(within / math.sqrt(2))
    density = math.exp(-(within**2) / 2) / math.sqrt(2 * math.pi)
    assert in_one[:2] == pytest.approx((inside, 1 - 2 * within * density / inside), rel=1e-12)
    assert erf(in_one.median_radius / math.sqrt(2)) == pytest.approx(inside / 2, rel=1e-12)
    inside = 1 - math.exp(-(within**2) / 2)
    variance = 1 - within**2 / 2 * math.exp(-(within**2) / 2) / inside
    assert in_two == pytest.approx((inside, variance, math.sqrt(-2 * math.log(1 - inside / 2))), rel=1e-12)


def test_the_truncated_gaussian_by_quadrature_in_five_dimensions():
    r = torch.linspace(0, 3, 30001, dtype=torch.float64)
    density = r**4 * torch.exp(-(r**2) / 2) / (3 * math.sqrt(math.pi / 2))
    got = truncated_gaussian(5, 3.0)
    inside = torch.trapezoid(density, r).item()
    assert got[:2] == pytest.approx((inside, torch.trapezoid(density * r**2, r).item() / inside / 5), rel=1e-7)
    below = r <= got.median_radius
    assert torch.trapezoid(density[below], r[below]).item() == pytest.approx(inside / 2, rel=1e-3)


def test_without_a_cut():
    assert truncated_gaussian(2, math.inf) == pytest.approx((1, 1, math.sqrt(2 * math.log(2))), rel=1e-12)
    assert truncated_gaussian(2, 3.0).inside == pytest.approx(0.98889, abs=5e-6)


@pytest.mark.parametrize(("dims", "within"), [(2, 0.0), (2, -1.0), (2, math.nan), (784, 3.0)])
def test_a_cut_that_leaves_nothing_is_refused(dims, within):
    with pytest.raises(ValueError, match=f"within is {within} and holds nothing .* in {dims} dimensions; give about"):
        truncated_gaussian(dims, within)


# ---------------------------------------------------------------- the definitions


def test_a_set_worked_out_by_hand():
    """Modes at 0 and 10, std 1 and 2, weights 3 : 1. 36 samples at 0.5, 4 strays at 5 (in the wide mode: r = 2.5 and 5), 20 at 13."""
    x = torch.tensor([0.5] * 36 + [-3.5] * 4 + [13.0] * 20)[:, None]
    mixture = (torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    exact = truncated_gaussian(1, 3.0)
    report = mode_report(x, *mixture)
    assert {name: figure.value for name, figure in report.items()} == pytest.approx(
        {
            "modes": 2,
            "weight_tv": 0.75 - 40 / 60,
            "variance": (0.25 + 2.25) / 2 / exact.variance,
            "median_radius": 0.5 / exact.median_radius,  # 36 of the 56 inside
            "inside": 56 / 60,
        },
        rel=1e-12,
    )
    assert report["inside"].error == pytest.approx(math.sqrt(56 / 60 * 4 / 60 / 60), rel=1e-12)
    first, second = mode_table(x, *mixture)
    assert list(first) == ["share", "share_error", "weight", "variance", "variance_error", "within"]
    assert (first["share"], first["weight"], first["within"]) == (40 / 60, 0.75, 36)
    assert (second["share"], second["weight"], second["within"]) == (20 / 60, 0.25, 20)
    assert first["variance"] == pytest.approx(0.25 / exact.variance, rel=1e-12)
    assert second["variance"] == pytest.approx(2.25 / exact.variance, rel=1e-12)
    assert (first["variance_error"], second["variance_error"]) == pytest.approx((0, 0), abs=1e-12)
    assert mode_shares(x, *mixture).tolist() == [40 / 60, 20 / 60]


def by_sample(x, means, stds, weights, within, exact):
    """All figures but ``inside``, sample by sample, and per mode the share and the variance ratio."""
    n, dims, num = len(x), len(x[0]), len(means)
    belong, radii = [0] * num, [[] for _ in range(num)]
    for row in x:
        r = [math.dist(row, mean) / std for mean, std in zip(means, stds, strict=True)]
        likelihood = [w * math.exp(-(a**2) / 2) / s**dims for w, a, s in zip(weights, r, stds, strict=True)]
        k = likelihood.index(max(likelihood))
        belong[k] += 1
        radii[k] += [r[k]] if r[k] <= within else []
    shares, ratios = [count / n for count in belong], [sum(r**2 for r in a) / len(a) / dims / exact.variance for a in radii]
    covered = [len(a) >= 0.2 * exact.inside * w * n for a, w in zip(radii, weights, strict=True)]
    ordered = sorted(r for a in radii for r in a)
    half = len(ordered) // 2
    median = ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
    return {
        "modes": sum(covered),
        "weight_tv": sum(abs(share - w) for share, w in zip(shares, weights, strict=True)) / 2,
        "variance": sum(ratio for ratio, yes in zip(ratios, covered, strict=True) if yes) / sum(covered),
        "median_radius": median / exact.median_radius,
        "shares": shares,
        "ratios": ratios,
    }


def test_values_and_errors_sample_by_sample(monkeypatch):
    """Three overlapping modes of unequal stds and weights in D = 3; one is near the threshold, so that its cover has an error."""
    means, stds = torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 4, 1]]).double(), torch.tensor([1, 0.5, 0.7]).double()
    weights, rng = torch.tensor([0.5, 0.2, 0.3]).double(), seeded(0)
    x = draw(523, rng, means, stds, torch.tensor([0.7, 0.035, 0.265]).double())
    groups, rows, exact = jackknife_groups(523).tolist(), x.tolist(), truncated_gaussian(3, 2.5)
    mixture = (means.tolist(), stds.tolist(), weights.tolist(), 2.5, exact)
    whole = by_sample(rows, *mixture)
    without = [by_sample([row for row, of in zip(rows, groups, strict=True) if of != g], *mixture) for g in range(20)]

    def error(values):
        return math.sqrt(19 / 20 * sum((value - sum(values) / 20) ** 2 for value in values))

    monkeypatch.setattr(module, "BLOCK", 100)  # many blocks
    report = mode_report(x, means, stds, 7 * weights, within=2.5)
    for name in ("modes", "weight_tv", "variance", "median_radius"):
        assert report[name] == pytest.approx((whole[name], error([part[name] for part in without])), rel=1e-10), name
    assert report["modes"].error > 0
    smallest = torch.stack([(x - mean).norm(dim=1) / std for mean, std in zip(means, stds, strict=True)]).amin(0)
    assert report["inside"].value == pytest.approx((smallest <= 2.5).double().mean().item(), rel=1e-12)
    for k, row in enumerate(mode_table(x, means, stds, weights, within=2.5)):
        assert row["share"] == pytest.approx(whole["shares"][k], rel=1e-12)
        assert row["share_error"] == pytest.approx(error([part["shares"][k] for part in without]), rel=1e-10)
        assert row["variance"] == pytest.approx(whole["ratios"][k], rel=1e-10)
        assert row["variance_error"] == pytest.approx(error([part["ratios"][k] for part in without]), rel=1e-10)
    assert mode_shares(x, means, stds, weights).tolist() == pytest.approx(whole["shares"], rel=1e-12)


@pytest.mark.parametrize(("present", "modes"), [(100, 2), (99, 1)])
def test_a_mode_counts_from_a_fifth_of_what_exact_samples_would_put_there(present, modes):
    """Of 1,000, weight 1/2, within 3 stds in D = 1: 0.2 * 0.5 * 997.3 = 99.7 samples."""
    assert COVERED_FRACTION == 0.2
    x = torch.tensor([0.0] * (1000 - present) + [10.0] * present)[:, None]
    assert mode_report(x, torch.tensor([[0.0], [10.0]]), torch.ones(2), torch.ones(2))["modes"].value == modes


# ---------------------------------------------------------------- exact samples


def test_exact_samples_of_the_ring():
    """10,000 of them, five times: tolerances are 4 standard errors, worked out from the sample size."""
    num, repeats, rng = 10_000, 5, seeded(1)
    reports = [mode_report(draw(num, rng), *RING) for _ in range(repeats)]
    n, exact = num * repeats, truncated_gaussian(2, 3.0)
    mean = {name: sum(report[name].value for report in reports) / repeats for name in reports[0]}
    assert {report["modes"] for report in reports} == {Estimate(8.0, 0.0)}
    assert mean["inside"] == pytest.approx(INSIDE, abs=4 * math.sqrt(INSIDE * (1 - INSIDE) / n))
    # r^2 / 2 is exponential, cut at 4.5: its mean is 0.949, its variance below 1
    assert mean["variance"] == pytest.approx(1, abs=4 / exact.variance / math.sqrt(n))
    # a median has variance 1 / (4 n f^2); the density of r there is m exp(-m^2 / 2) / inside
    m = exact.median_radius
    density = m * math.exp(-(m**2) / 2) / INSIDE
    assert mean["median_radius"] == pytest.approx(1, abs=4 / (2 * density * math.sqrt(n)) / m)
    # half the sum of E|share - 1/8| = sqrt(2/pi) sqrt(7/64/num); the spread of a single one, from 2,000 draws, is 0.0028
    expected = 4 * math.sqrt(2 / math.pi * 7 / 64 / num)
    assert expected == pytest.approx(0.01055, abs=1e-5)
    assert mean["weight_tv"] == pytest.approx(expected, abs=4 * 0.0028 / math.sqrt(repeats))


@pytest.mark.parametrize(("dims", "within"), [(1, 3.0), (3, 2.0), (16, 5.0)])
def test_exact_samples_of_unequal_modes_in_other_dimensions(dims, within):
    means = torch.zeros(3, dims).double()
    means[:, 0] = torch.tensor([-40.0, 0, 40])
    mixture = (means, torch.tensor([0.5, 1, 2]).double(), torch.tensor([0.2, 0.5, 0.3]).double())
    report, exact = mode_report(draw(8000, seeded(2), *mixture), *mixture, within=within), truncated_gaussian(dims, within)
    for name, value in {"modes": 3, "variance": 1, "median_radius": 1, "inside": exact.inside}.items():
        assert abs(report[name].value - value) <= 4 * report[name].error, name
        assert report[name].error < 0.03
    assert report["weight_tv"].value < 0.02  # expected 0.006


@pytest.mark.parametrize("variance", [0.9, 1.1])
def test_a_wrong_variance_reads_as_its_truncation_says(variance):
    """At 3 stds 1.1 reads 1.078: the tail beyond is cut from both. At 5 stds nothing is hidden."""
    x = draw(10_000, seeded(3), stds=STDS * math.sqrt(variance))
    at_3, at_5 = (mode_report(x, *RING, within=within) for within in (3.0, 5.0))
    assert truncated_variance(variance) == pytest.approx({0.9: 0.9158, 1.1: 1.0779}[variance], abs=1e-4)
    assert truncated_variance(variance, within=5.0) == pytest.approx(variance, abs=2e-4)
    # r^2 / 2 has a standard deviation of at most `variance`: a standard error of 1.1 %
    assert at_3["variance"].value == pytest.approx(truncated_variance(variance), abs=4 * 0.011)
    assert at_5["variance"].value == pytest.approx(variance, abs=4 * 0.011)
    median = math.sqrt(-2 * variance * math.log(1 - (1 - math.exp(-12.5 / variance)) / 2)) / truncated_gaussian(2, 5.0).median_radius
    assert at_5["median_radius"].value == pytest.approx(median, abs=4 * 0.0085)  # as for exact samples, one set of 10,000


# ---------------------------------------------------------------- direction


def test_a_missing_mode():
    weights = WEIGHTS.clone()
    weights[3] = 0
    report, table = (measure(draw(4000, seeded(4), weights=weights), *RING) for measure in (mode_report, mode_table))
    assert report["modes"] == (7, 0)
    # (1/8 + sum of |1/7 + noise - 1/8|) / 2 = 1/8: no noise is large enough to change a sign
    assert report["weight_tv"].value == pytest.approx(1 / 8, rel=1e-9)
    assert report["variance"].value == pytest.approx(1, abs=4 * 0.017)  # of the modes that are there
    assert (table[3]["share"], table[3]["within"]) == (0, 0)
    assert math.isnan(table[3]["variance"])


def test_modes_shrunk_to_points():
    report = mode_report(draw(1000, seeded(5), stds=torch.zeros(8).double()), *RING)
    assert report["modes"].value == 8
    assert report["inside"] == (1, 0)
    assert report["variance"].value < 1e-20
    assert report["median_radius"].value < 1e-10


def test_all_on_one_mode():
    report = mode_report(draw(1000, seeded(6), MEANS[:1], STDS[:1], torch.ones(1)), *RING)
    assert report["modes"].value == 1
    assert report["weight_tv"].value == pytest.approx(7 / 8)


def test_a_displaced_mode_counts_as_a_wide_one():
    """By half a std along an axis: E r^2 / 2 = 1 + 1/8, less at most 0.03 for the cut."""
    report = mode_report(draw(10_000, seeded(7)) + torch.tensor([0.1, 0.0]), *RING)
    assert 1.06 < report["variance"].value < 1.16


def test_strays_between_modes_change_the_share_inside_and_nothing_else():
    x = draw(10_000, seeded(8))
    x[::10] = 0.92388 * 3 * torch.stack([(ANGLE + math.pi / 8).cos(), (ANGLE + math.pi / 8).sin()], 1).double()[torch.arange(1000) % 8]
    report = mode_report(x, *RING)
    assert report["inside"].value == pytest.approx(0.9 * INSIDE, abs=4 * math.sqrt(0.9 * INSIDE * (1 - INSIDE) / 1e4))
    assert report["modes"].value == 8
    assert report["variance"].value == pytest.approx(1, abs=4 * 0.0112)
    assert report["median_radius"].value == pytest.approx(1, abs=4 * 0.009)


def test_all_astray():
    report = mode_report(torch.zeros(100, 2), *RING)
    assert report["modes"] == (0, 0)
    assert report["inside"] == (0, 0)
    assert math.isnan(report["variance"].value)
    assert math.isnan(report["median_radius"].value)


# ---------------------------------------------------------------- errors


@pytest.fixture(scope="module")
def repetitions():
    """300 reports of samples with wrong weights and too wide modes."""
    rng, weights = seeded(9), torch.arange(4, 12) / 60
    return [mode_report(draw(1500, rng, stds=1.15 * STDS, weights=weights), *RING) for _ in range(300)]


@pytest.mark.parametrize("figure", ["weight_tv", "variance", "median_radius", "inside"])
def test_the_error_is_the_spread_over_repetitions(repetitions, figure):
    """Over R = 300 draws the spread is known to 1 / sqrt(2 R) = 4 %, the mean error to 16 % / sqrt(R) = 1 %."""
    values, errors = torch.tensor([report[figure] for report in repetitions]).double().T
    assert abs(errors.mean() / values.std() - 1) < 4 * 0.042


@pytest.mark.parametrize("order", ["as drawn", "sorted by mode"])
def test_the_error_of_a_share_is_binomial_whatever_the_seed_and_order(order):
    """Samples drawn with the groups' own seed, or dealt to them in order, would make it several times too large."""
    ratios = []
    for seed in range(5):
        rng = seeded(seed)
        x = MEANS[torch.randint(8, (2000,), generator=rng)] + 0.2 * torch.randn(2000, 2, generator=rng)
        if order == "sorted by mode":
            x = x[torch.atan2(x[:, 1], x[:, 0]).argsort()]
        ratios += [row["share_error"] ** 2 / (row["share"] * (1 - row["share"]) / 2000) for row in mode_table(x, *RING)]
    # each is chi^2 over its 19 degrees of freedom; 40 of them, 35 of which are independent, spread by sqrt(2 / 19 / 35) = 5.5 %
    assert sum(ratios) / 40 == pytest.approx(1, abs=4 * 0.055)


# ---------------------------------------------------------------- invariance and refusals


def values(report):
    return [figure.value for figure in report.values()]


def test_what_changes_nothing():
    rng = seeded(10)
    x = draw(2000, rng, weights=torch.arange(1, 9) / 36)
    value = values(mode_report(x, *RING))
    turn = torch.linalg.qr(torch.randn(2, 2, generator=rng, dtype=torch.float64)).Q
    order, modes = torch.randperm(2000, generator=rng), torch.randperm(8, generator=rng)
    assert values(mode_report(x + 5, MEANS + 5, STDS, WEIGHTS)) == pytest.approx(value, rel=1e-9)
    assert values(mode_report(x @ turn, MEANS @ turn, STDS, WEIGHTS)) == pytest.approx(value, rel=1e-9)
    assert values(mode_report(7 * x, 7 * MEANS, 7 * STDS, 3 * WEIGHTS)) == pytest.approx(value, rel=1e-9)
    assert values(mode_report(x[order], *RING)) == pytest.approx(value, rel=1e-9)
    assert values(mode_report(x.float().requires_grad_(), *(a.float() for a in RING))) == pytest.approx(value, rel=1e-5)
    shares = mode_shares(x, *RING)
    torch.testing.assert_close(mode_shares(x, MEANS[modes], STDS, WEIGHTS), shares[modes])
    assert shares.sum().item() == pytest.approx(1)


def test_a_narrow_mode_within_a_wide_one_is_told_apart():
    """Both centred at 0, stds 1 and 0.1, alike in weight, D = 1: the narrow one is likelier where exp(-49.5 x^2) > 0.1."""
    edge = math.sqrt(math.log(10) / 49.5)
    x = torch.tensor([0.99 * edge, 1.01 * edge])[:, None].double()
    assert mode_shares(x[:1], torch.zeros(2, 1), torch.tensor([1, 0.1]), torch.ones(2)).tolist() == [0, 1]
    assert mode_shares(x[1:], torch.zeros(2, 1), torch.tensor([1, 0.1]), torch.ones(2)).tolist() == [1, 0]
    # the heavier the wide one, the earlier it takes over
    assert mode_shares(x[:1], torch.zeros(2, 1), torch.tensor([1, 0.1]), torch.tensor([2.0, 1])).tolist() == [1, 0]


@pytest.mark.parametrize("measure", [mode_shares, mode_report, mode_table])
def test_what_does_not_fit_is_refused(measure):
    x = draw(100, seeded(11))
    bad = x.clone()
    bad[[2, 5, 5], [0, 0, 1]] = math.nan
    with pytest.raises(ValueError, match="2 of the 100 rows of x are not finite"):
        measure(bad, *RING)
    with pytest.raises(ValueError, match=r"x and means have shapes \(100, 2\) and \(8, 3\)"):
        measure(x, torch.zeros(8, 3), STDS, WEIGHTS)
    with pytest.raises(ValueError, match=r"x has shape \(100,\)"):
        measure(x[:, 0], *RING)
    with pytest.raises(ValueError, match=r"means are .*nan.*; all must be finite"):
        measure(x, torch.full((8, 2), math.nan), STDS, WEIGHTS)
    with pytest.raises(ValueError, match=r"stds have shape \(7,\) for 8 means"):
        measure(x, MEANS, STDS[:7], WEIGHTS)
    with pytest.raises(ValueError, match=r"weights have shape \(\) for 8 means"):
        measure(x, MEANS, STDS, torch.tensor(1.0))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"stds are .* must be positive and finite"):
            measure(x, MEANS, torch.full((8,), wrong), WEIGHTS)
        with pytest.raises(ValueError, match=r"weights are .* must be positive and finite"):
            measure(x, MEANS, STDS, torch.full((8,), wrong))


@pytest.mark.parametrize("measure", [mode_report, mode_table])
def test_the_jackknife_needs_40_rows(measure):
    measure(draw(40, seeded(12)), *RING)
    with pytest.raises(ValueError, match="N >= 40 rows"):
        measure(draw(39, seeded(12)), *RING)
    with pytest.raises(ValueError, match="within is 0"):
        measure(draw(40, seeded(12)), *RING, within=0)


# ---------------------------------------------------------------- counts and the usual radius


def test_counts_of_a_set_worked_out_by_hand():
    """Modes at 0 and 10, std 1 and 2: 0.5 is in the first, all else in the second: 13, 5 (r = 2.5), -3.5."""
    x = torch.tensor([0.5] * 3 + [-3.5] * 4 + [5.0] * 2 + [13.0] * 5)[:, None]
    mixture = (torch.tensor([[0.0], [10.0]]), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]))
    assert mode_counts(x, *mixture).tolist() == [3, 7]
    assert mode_counts(x, *mixture, within=2.0).tolist() == [3, 5]
    assert mode_counts(x, *mixture, within=10.0).sum() == 14


def test_counts_are_those_of_the_table():
    x = draw(4000, seeded(13), stds=1.5 * STDS)
    for within in (1.0, 3.0):
        assert mode_counts(x, *RING, within=within).tolist() == [row["within"] for row in mode_table(x, *RING, within=within)]
    assert mode_counts(x[:1], *RING).sum() <= 1  # no jackknife, no least number


def test_counts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="1 of the 2 rows of x are not finite"):
        mode_counts(torch.tensor([[0.0, 1.0], [math.nan, 0.0]]), *RING)
    with pytest.raises(ValueError, match=r"stds have shape \(7,\) for 8 means"):
        mode_counts(draw(10, seeded(14)), MEANS, STDS[:7], WEIGHTS)


@pytest.mark.parametrize("dims", [1, 2, 3, 8, 64, 3072])
def test_the_usual_radius_holds_as_much_as_three_in_the_plane(dims):
    radius = usual_radius(dims)
    assert gammainc(dims / 2, radius**2 / 2) == pytest.approx(INSIDE, rel=1e-9)
    if dims == 2:
        assert radius == pytest.approx(3, rel=1e-12)
