import math

import pytest
import torch

from fewstep.data import make_density
from fewstep.metrics.point_suite import PointSuite, split

NUM = 1000
DISTANCES = ("energy", "mmd", "sliced_wasserstein")
MODES = ("modes", "weight_tv", "variance", "median_radius", "inside")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def suite(name, with_modes=True):
    density = make_density(name)
    modes = (density.modes, density.mode_stds, density.mode_weights) if with_modes else None
    return density, PointSuite(density.sample(NUM, seeded(1)), density.sample(NUM, seeded(2)), modes)


@pytest.fixture(scope="module", params=["ring", "mixture8d"])
def case(request):
    """A density, its suite, and exact, shifted and collapsed samples measured."""
    density, measure = suite(request.param)
    exact = density.sample(NUM, seeded(3))
    first = exact[torch.cdist(exact.double(), density.modes).argmin(1) == 0]
    rows = {
        "exact": measure.measure(exact),
        "shifted": measure.measure(exact + density.mode_stds[0].item()),
        "one mode": measure.measure(first.repeat(-(-NUM // len(first)), 1)[:NUM]),
        "centres": measure.measure(density.modes[torch.arange(NUM) % len(density.modes)]),
    }
    return density, measure, rows


def test_every_figure_comes_with_its_error(case):
    _, measure, rows = case
    names = {name + ending for name in (*DISTANCES, *MODES) for ending in ("", "_error")}
    for row in (*rows.values(), measure.floor_row()):
        assert set(row) == names
        assert all(math.isfinite(value) for value in row.values())
        assert all(value >= 0 for name, value in row.items() if name.endswith("_error"))


def test_two_exact_sets_are_apart_by_no_more_than_their_errors(case):
    _, measure, rows = case
    for row in (rows["exact"], measure.floor_row()):
        for name in ("energy", "mmd"):  # unbiased: 0 in expectation
            assert abs(row[name]) < 4 * row[f"{name}_error"]
    assert measure.floor == measure.floor_row()["energy"]
    # biased upwards by sampling alone, and alike for all exact sets
    floor = measure.floor_row()
    error = math.hypot(rows["exact"]["sliced_wasserstein_error"], floor["sliced_wasserstein_error"])
    assert abs(rows["exact"]["sliced_wasserstein"] - floor["sliced_wasserstein"]) < 4 * error


def test_exact_samples_read_as_exact_in_their_modes(case):
    density, _, rows = case
    row, count = rows["exact"], len(density.modes)
    assert row["modes"] == count
    # in any dimension `within` holds what 3 stds hold in the plane
    inside = 1 - math.exp(-4.5)
    assert row["inside"] == pytest.approx(inside, abs=4 * math.sqrt(inside * (1 - inside) / NUM))
    assert abs(row["variance"] - 1) < 4 * row["variance_error"]
    assert abs(row["median_radius"] - 1) < 4 * row["median_radius_error"]
    assert row["weight_tv"] < 2.5 * count / 2 * math.sqrt(1 / count / NUM)


def test_a_shift_is_seen_by_every_distance_and_by_the_widths(case):
    _, _, rows = case
    for name in DISTANCES:  # of the same samples, whose chance is in both
        assert rows["shifted"][name] > 1.1 * rows["exact"][name], name
    for name in ("variance", "median_radius"):
        assert rows["shifted"][name] > rows["exact"][name] + 3 * rows["exact"][f"{name}_error"], name
    assert rows["shifted"]["inside"] < rows["exact"]["inside"]


def test_a_collapsed_set_is_seen(case):
    density, _, rows = case
    one, centres, count = rows["one mode"], rows["centres"], len(density.modes)
    for name in DISTANCES:
        assert one[name] > rows["shifted"][name] > rows["exact"][name]
    assert one["modes"] == 1
    assert one["weight_tv"] == pytest.approx(1 - 1 / count)
    assert one["inside"] > 0.98889 - 4 * math.sqrt(0.98889 * 0.01111 / 120)  # each of some 120 different samples is a good one
    assert centres["modes"] == count
    assert centres["variance"] == pytest.approx(0, abs=1e-9)
    assert centres["energy"] > rows["exact"]["energy"] + rows["exact"]["energy_error"]


def test_all_sets_are_measured_with_the_bandwidth_of_the_exact_ones():
    _, measure = suite("ring")
    before = measure.bandwidth
    far = measure.measure(100 + torch.randn(NUM, 2, generator=seeded()))
    assert measure.bandwidth == before
    # nothing of one set is near the other: 2 E k = 0, and the rest does not depend on where they are
    assert far["mmd"] == pytest.approx(measure.measure(1000 + torch.randn(NUM, 2, generator=seeded()))["mmd"], rel=1e-3)


def test_densities_without_modes_get_the_distances_alone():
    density, measure = suite("checkerboard", with_modes=False)
    row = measure.measure(density.sample(NUM, seeded(3)))
    assert set(row) == {name + ending for name in DISTANCES for ending in ("", "_error")}
    assert abs(row["energy"]) < 4 * row["energy_error"]


def test_split_halves_at_random():
    points = torch.arange(101.0)[:, None]
    first, second = split(points, seeded())
    assert (len(first), len(second)) == (51, 50)
    assert sorted(torch.cat([first, second])[:, 0].tolist()) == points[:, 0].tolist()
    assert torch.equal(split(points, seeded())[0], first)
    assert not torch.equal(split(points, seeded(1))[0], first)
    assert abs(first.mean() - second.mean()) < 4 * 29 / 5  # not the lower and the upper half
