"""Powers of densities against quadrature, closed forms, and what the rejection promises."""

import math

import pytest
import torch

from fewstep.data.errors import DataError
from fewstep.data.mixtures import Mixture
from fewstep.data.powers import _log_bound, product_proposal
from fewstep.data.toys import DENSITIES, make_density
from tabulated import CHI, CROWD, OVERLAP, SIGMAS, cells, chi_square, density, masses, seeded, tabulated


@pytest.mark.parametrize(
    ("name", "gamma", "num"),
    [
        *((name, gamma, 20_000) for name in ("overlap", "unequal", "ring", "grid25", "pinwheel") for gamma in (0.5, 1.5, 2.0, 3.0)),
        *(("overlap", gamma, 20_000) for gamma in (0.2, 0.9, 2.4, 5.5)),
        ("crowd", 4.5, 20_000),  # 25^5 products are too many: 3 factors, and what is left is thinned
        *(("moons", gamma, 8_000) for gamma in (0.5, 1.5, 2.0, 3.0)),
        *(("swiss_roll", gamma, 4_000) for gamma in (0.5, 3.0)),
        ("spirals", 1.5, 4_000),
        ("checkerboard", 2.0, 20_000),
    ],
)
def test_samples_of_a_power_are_distributed_as_it_says(name, gamma, num):
    x = density(name).power(gamma).sample(num, seeded(2))
    assert (x.dtype, x.shape) == (torch.float32, (num, 2))
    assert abs(chi_square(x, name, gamma)) < CHI


@pytest.mark.parametrize("gamma", [0.5, 1.5, 2.0, 3.0])
def test_moments_of_a_power_whose_modes_overlap(gamma):
    num, sharp = 20_000, OVERLAP.power(gamma)
    x, _, _ = tabulated("overlap")
    points, mass = x.flatten(0, 1), masses("overlap", gamma).flatten()
    features = [
        lambda x: x[:, 0],
        lambda x: x[:, 1],
        lambda x: x[:, 0] ** 2,
        lambda x: x[:, 0] * x[:, 1],
        lambda x: x[:, 1] ** 2,
        OVERLAP.log_prob,
    ]
    expected = torch.stack([(mass * f(points)).sum() for f in features])
    found = torch.stack([f(sharp.sample(num, seeded()).double()) for f in features])
    off = (found.mean(1) - expected).abs() / (found.std(1) / math.sqrt(num))
    assert off.max() < SIGMAS
    # what the formula of well-separated modes gives is not the same here: without the rejection the samples would be wrong
    apart = Mixture("apart", sharp.modes, sharp.mode_stds, sharp.mode_weights).sample(num, seeded()).double()
    naive = torch.stack([f(apart) for f in features])
    assert ((naive.mean(1) - expected).abs() / (naive.std(1) / math.sqrt(num))).max() > 1.5 * SIGMAS


@pytest.mark.parametrize("gamma", [0.5, 0.7, 1.5, 2.0])
def test_weights_and_stds_of_the_modes_of_a_power(gamma):
    p = make_density("unequal").power(gamma)
    x, _, _ = tabulated("unequal")
    points, mass = x.flatten(0, 1), masses("unequal", gamma).flatten()
    nearest = (torch.cdist(points, p.modes) / p.mode_stds).argmin(1)
    for k in range(3):
        share = mass * (nearest == k)
        assert share.sum().item() == pytest.approx(p.mode_weights[k].item(), abs=1e-3)
        variance = (share * (points - p.modes[k]).square().sum(1)).sum() / share.sum() / 2
        assert variance.sqrt().item() == pytest.approx(p.mode_stds[k].item(), rel=1e-3)
    assert torch.equal(p.modes, make_density("unequal").modes)


def test_mode_weights_by_hand():
    p = make_density("unequal")
    # D = 2: pi^2 s^-2 is 1/.01, 4/.04, 16/.16, all the same; pi^.5 s is .1, 2^.5 .2, 2 .4
    torch.testing.assert_close(p.power(2).mode_weights, torch.full((3,), 1 / 3, dtype=torch.float64))
    flat = torch.tensor([0.1, 0.2 * math.sqrt(2), 0.8], dtype=torch.float64)
    torch.testing.assert_close(p.power(0.5).mode_weights, flat / flat.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(p.power(4).mode_stds, p.mode_stds / 2)
    # D = 8, gamma 2: pi^2 s^-8
    both = Mixture("both", torch.eye(8)[:2] * 9, torch.tensor([0.5, 1.0]), torch.tensor([1.0, 16.0]))
    torch.testing.assert_close(both.power(2).mode_weights, torch.full((2,), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("gamma", [0.5, 2.5])
def test_a_power_in_eight_dimensions(gamma):
    num, means = 20_000, make_density("mixture8d").modes
    p = Mixture("unequal8d", means, torch.tensor([0.3, 0.25, 0.2, 0.3, 0.25]), torch.tensor([1.0, 2, 3, 4, 5])).power(gamma)
    distance, nearest = torch.cdist(p.sample(num, seeded()).double(), means).min(1)
    share = nearest.bincount(minlength=5) / num
    error = SIGMAS * (p.mode_weights * (1 - p.mode_weights) / num).sqrt()
    assert ((share - p.mode_weights).abs() < error).all()
    scaled = (distance / p.mode_stds[nearest]) ** 2  # chi-square with 8 degrees of freedom
    assert scaled.mean().item() == pytest.approx(8, abs=SIGMAS * 4 / math.sqrt(num))


@pytest.mark.parametrize("gamma", [0.3, 40.0])
def test_a_power_of_one_gaussian_is_one_and_every_draw_is_accepted(gamma):
    p = make_density("gaussian").power(gamma)
    _, log_accept = p._propose(1000, seeded())
    assert log_accept.abs().max() < 1e-10
    x, num = p.sample(20_000, seeded()), 40_000
    assert x.square().mean().item() == pytest.approx(0.25 / gamma, rel=SIGMAS * math.sqrt(2 / num))  # variance of z^2 is 2


@pytest.mark.parametrize("name", ["overlap", "crowd", "pinwheel", "moons"])
@pytest.mark.parametrize("gamma", [0.4, 1.0, 1.7, 2.0, 2.5, 3.0, 6.2])
def test_a_probability_of_acceptance_is_one_and_as_large_as_promised(name, gamma):
    propose = density(name)._proposal(gamma)
    _, log_accept = propose(500, seeded())
    num_parts = {"overlap": 3, "crowd": 25, "pinwheel": 5, "moons": 200}[name]
    assert log_accept.max() < 1e-9
    if num_parts ** math.ceil(gamma) <= 2**18:
        assert log_accept.min() > (gamma - math.ceil(gamma)) * math.log(num_parts) - 1e-9  # so all of them for a whole gamma


@pytest.mark.parametrize("gamma", [0.5, 1.5, 2.6])
def test_the_share_of_accepted_draws_is_the_ratio_of_the_integrals(gamma):
    m = math.ceil(gamma)
    x, w, log_p = tabulated("overlap")
    parts = OVERLAP._log_parts(x.flatten(0, 1)).view(*x.shape[:2], 3)
    above = (gamma / m * parts).exp().sum(2) ** m
    expected = (w * (gamma * log_p).exp()).sum() / (w * above).sum()
    accept = OVERLAP._proposal(gamma)(20_000, seeded())[1].exp()
    assert accept.mean().item() == pytest.approx(expected.item(), abs=SIGMAS * accept.std().item() / math.sqrt(20_000) + 1e-4)


def test_modes_in_one_place_are_the_worst_case_of_the_promise():
    four = Mixture("four", torch.zeros(4, 2), 0.7)
    _, log_accept = four._proposal(1.5)(100, seeded())
    torch.testing.assert_close(log_accept, torch.full((100,), -0.5 * math.log(4), dtype=torch.float64))


def test_where_products_would_be_too_many_draws_are_thinned_by_a_bound_that_holds():
    p = CROWD
    precisions = torch.eye(2, dtype=torch.float64) / p.stds[:, None, None] ** 2
    parts = (p.weights.log(), p.means, precisions)
    grid = torch.cartesian_prod(*[torch.linspace(-3, 3, 200, dtype=torch.float64)] * 2)
    highest, bound = p.log_prob(grid).max().item(), _log_bound(*parts)
    assert highest < bound < highest + 1  # not far above, or few would be accepted
    x, log_accept = product_proposal(4.5, *parts, p._log_parts)(100, seeded())
    torch.testing.assert_close(log_accept, 1.5 * (p.log_prob(x) - bound))
    for means in (torch.zeros(6, 2), 100 * torch.arange(12.0).view(6, 2)):  # in one place, and far apart: the bound is reached
        p = Mixture("p", means, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]))
        precisions = torch.eye(2, dtype=torch.float64) / p.stds[:, None, None] ** 2
        assert _log_bound(p.weights.log(), p.means, precisions) == pytest.approx(p.log_prob(p.means).max().item())


@pytest.mark.parametrize("name", [*DENSITIES, "overlap"])
def test_the_log_density_of_a_power_up_to_a_constant(name):
    p = density(name)
    x = p.sample(20, seeded())
    torch.testing.assert_close(p.power(1.7).log_prob(x).diff(), (1 if name == "checkerboard" else 1.7) * p.log_prob(x).diff())
    assert p.power(1) is p
    assert p.power(1.7).power(1.0).name == p.power(1.7).name
    twice = p.power(2).power(1.5)
    torch.testing.assert_close(twice.log_prob(x), p.power(3).log_prob(x))
    assert twice.name == p.power(3).name


@pytest.mark.parametrize("name", ["ring", "unequal", "pinwheel", "moons", "overlap"])
def test_the_limits_of_a_power_hold_its_mass(name):
    flat = density(name).power(0.5)
    low, high = flat.limits
    x, w = cells(low - 2, high + 2, 60)
    mass = w * flat.log_prob(x.flatten(0, 1)).view(x.shape[:2]).exp()
    outside = ((x < low) | (x > high)).any(2)
    assert 0 < mass[outside].sum() / mass.sum() < 1e-4


@pytest.mark.parametrize("gamma", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["ring", "checkerboard", "moons", "pinwheel"])
def test_a_gamma_that_is_not_a_power_is_refused(name, gamma):
    p = make_density(name)
    for ask in (p.power, p.power(2).power):
        with pytest.raises(DataError, match=rf"gamma is {gamma}; allowed is any finite number above 0"):
            ask(gamma)


def test_a_gamma_that_would_never_end_is_refused():
    with pytest.raises(DataError, match=r"gamma is 1e\+08: \d+ of \d+ draws for 'ring\^1e\+08' were accepted; choose a smaller gamma"):
        make_density("ring").power(1e8).sample(100, seeded())
