"""Densities against quadrature, closed forms and their own samples.

A chi-square statistic of d degrees of freedom has mean d and variance 2 d; CHI of its standard deviations are allowed, about one
false alarm in 10,000 of these fixed seeds. Means of samples are allowed SIGMAS standard errors.
"""

import functools
import itertools
import math
import re

import numpy as np
import pytest
import torch
from scipy import integrate
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from fewstep.data.curves import Pinwheel
from fewstep.data.errors import DataError
from fewstep.data.mixtures import Mixture
from fewstep.data.points import PointData, check_points
from fewstep.data.powers import Power, _log_bound, product_proposal
from fewstep.data.toys import DENSITIES, make_density, toy_data
from fewstep.denoisers import MixtureDenoiser

CHI, SIGMAS = 4.0, 4.5
PLANE = [name for name in DENSITIES if name != "mixture8d"]
MIXTURES = ["ring", "grid25", "unequal", "mixture8d", "gaussian", "bimodal"]
CURVES = ["moons", "swiss_roll", "spirals"]

OVERLAP = Mixture("overlap", [[-0.3, 0.0], [0.4, 0.2], [0.0, 0.9]], torch.tensor([0.2, 0.5, 0.7]), torch.tensor([1.0, 4.0, 2.0]))
CROWD = Mixture("crowd", torch.randn(25, 2, generator=torch.Generator().manual_seed(5)), 0.3 + torch.arange(25) / 50)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def density(name):
    return {"overlap": OVERLAP, "crowd": CROWD}.get(name) or make_density(name)


def cells(low, high, num):
    """num x num square cells, each with 4 x 4 Gauss-Legendre nodes: points [num^2, 16, 2] and weights [16]."""
    z, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(4))
    width = (high - low) / num
    corner = low + width * torch.arange(num, dtype=torch.float64)
    inside = torch.cartesian_prod(width / 2 * (z + 1), width / 2 * (z + 1))
    return torch.cartesian_prod(corner, corner)[:, None] + inside, torch.outer(w, w).flatten() * width**2 / 4


@functools.cache
def tabulated(name, num=44):
    """log p at the nodes of cells over the limits of p^0.5: points, weights, log p [num^2, 16]."""
    p = density(name)
    x, w = cells(*p.power(0.5).limits, num)
    return x, w, p.log_prob(x.flatten(0, 1)).view(x.shape[:2])


def masses(name, gamma):
    """Normalised mass of p^gamma at every node, [num^2, 16], over those limits."""
    _, w, log_p = tabulated(name)
    mass = w * (gamma * (log_p - log_p.max())).exp()
    return mass / mass.sum()


def chi_square(x, name, gamma, num=44):
    """The statistic in standard deviations; cells that expect fewer than 5 of the points are one bin, and all the rest another."""
    low, high = density(name).power(0.5).limits
    expected = len(x) * masses(name, gamma).sum(1)
    index = ((x.double() - low) / (high - low) * num).floor().long()
    inside = ((index >= 0) & (index < num)).all(1)
    counts = torch.bincount((index[inside] @ torch.tensor([num, 1])), minlength=num**2).double()
    full = expected >= 5
    expected = torch.cat([expected[full], expected[~full].sum()[None].clamp(min=1e-3)])
    counts = torch.cat([counts[full], (counts[~full].sum() + (~inside).sum())[None]])
    degrees = len(counts) - 1
    return (((counts - expected) ** 2 / expected).sum().item() - degrees) / math.sqrt(2 * degrees)


# --- log-densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANE)
def test_a_density_in_the_plane_integrates_to_one_over_its_limits(name):
    p = make_density(name)
    x, w = cells(*p.limits, 44)
    total = (w * p.log_prob(x.flatten(0, 1)).view(x.shape[:2]).exp()).sum().item()
    # 4.5 standard deviations leave out at most 4 x 3.4e-6; the quadrature is off by less than 2e-6
    assert -2e-5 < total - 1 < 2e-6


@pytest.mark.parametrize("name", ["ring", "unequal", "pinwheel", "moons", "overlap"])
def test_the_limits_of_a_power_hold_its_mass(name):
    flat = density(name).power(0.5)
    low, high = flat.limits
    x, w = cells(low - 2, high + 2, 60)
    mass = w * flat.log_prob(x.flatten(0, 1)).view(x.shape[:2]).exp()
    outside = ((x < low) | (x > high)).any(2)
    assert 0 < mass[outside].sum() / mass.sum() < 1e-4


@pytest.mark.parametrize("name", [*MIXTURES, "overlap", "crowd"])
def test_a_mixture_is_that_of_torch(name):
    p = density(name)
    x = 3 * torch.randn(200, p.dim, generator=seeded(), dtype=torch.float64)
    modes = Independent(Normal(p.modes, p.mode_stds[:, None].expand_as(p.modes)), 1)
    expected = MixtureSameFamily(Categorical(p.mode_weights), modes).log_prob(x)
    torch.testing.assert_close(p.log_prob(x), expected, rtol=1e-12, atol=1e-12)
    single = p.log_prob(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, expected.float(), rtol=1e-5, atol=1e-5)


def half_circle(u):
    return np.array([2 * np.cos(u) - 1, 2 * np.sin(u) - 0.5])


def roll(u):
    return u / 4 * np.array([np.cos(u), np.sin(u)])


def spiral(u):
    return 0.375 * np.sqrt(u) * np.array([np.cos(np.sqrt(u)), np.sin(np.sqrt(u))])


@pytest.mark.parametrize(
    ("name", "curves", "low", "high", "noise"),
    [
        ("moons", [half_circle, lambda u: -half_circle(u)], 0, math.pi, 0.15),
        ("swiss_roll", [roll], 1.5 * math.pi, 4.5 * math.pi, 0.12),
        ("spirals", [spiral, lambda u: -spiral(u)], math.pi**2 / 4, 9 * math.pi**2, 0.15),
    ],
)
def test_a_curve_against_adaptive_quadrature(name, curves, low, high, noise):
    rng = np.random.default_rng(0)
    u = np.concatenate([[low, high], rng.uniform(low, high, 8)])
    away = rng.standard_normal((2, 10))
    x = curves[0](u) + noise * rng.uniform(0, 5, 10) * away / np.linalg.norm(away, axis=0)  # up to 5 noise off the curve, ends too
    expected = []
    for point in x.T:
        total = 0.0
        for curve in curves:

            def near(u, curve=curve, point=point):
                return math.exp(-((curve(u) - point) ** 2).sum() / (2 * noise**2))

            for a, b in itertools.pairwise(np.linspace(low, high, 60)):  # so that no piece holds a peak that the rule overlooks
                total += integrate.quad(near, a, b, epsabs=0, epsrel=1e-10)[0]
        expected.append(math.log(total / (len(curves) * (high - low) * 2 * math.pi * noise**2)))
    x = torch.from_numpy(x.T.copy())
    torch.testing.assert_close(make_density(name).log_prob(x), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)
    assert make_density(name).log_prob(x.float()).dtype == torch.float32


@pytest.mark.parametrize("name", CURVES)
def test_twice_the_nodes_change_a_curve_by_less_than_1e_10(name):
    p, finer = make_density(name), make_density(name)
    finer.nodes *= 2
    x = p.sample(300, seeded()).double()
    x[:150] += 0.3 * torch.randn(150, 2, generator=seeded(1))
    assert (p.log_prob(x) - finer.log_prob(x)).abs().max() < 1e-10
    spacing = max((arm[1:] - arm[:-1]).norm(dim=1).max() for arm in p.quadrature.means.split(p.nodes))
    assert spacing < 0.7 * p.noise


def test_a_pinwheel_by_change_of_variables():
    """x = R(2 pi k / 5 + 0.7 |f|) f in the test's own complex numbers; areas stay what they are, by the Jacobian."""
    f = torch.randn(50, 2, generator=seeded(), dtype=torch.float64) * torch.tensor([0.5, 0.15]) + torch.tensor([2.0, 0.0])

    def bend(f):
        z = torch.complex(f[0], f[1])
        z = z * torch.exp(0.7j * z.abs())
        return torch.stack([z.real, z.imag])

    jacobians = torch.stack([torch.autograd.functional.jacobian(bend, one) for one in f])
    torch.testing.assert_close(torch.linalg.det(jacobians), torch.ones(50, dtype=torch.float64))
    turned = [torch.complex(f[:, 0], f[:, 1]) * complex(math.cos(0.4 * math.pi * k), math.sin(0.4 * math.pi * k)) for k in range(5)]
    normal = Independent(Normal(torch.tensor([2.0, 0.0]).double(), torch.tensor([0.5, 0.15]).double()), 1)
    expected = torch.stack([normal.log_prob(torch.view_as_real(z)) for z in turned]).logsumexp(0) - math.log(5)
    x = torch.stack([bend(one) for one in f])
    torch.testing.assert_close(Pinwheel().log_prob(x), expected)
    torch.testing.assert_close(Pinwheel(rate=0.0).log_prob(f), expected)


def test_a_checkerboard_by_hand():
    x = torch.tensor(
        [[-3.9, -3.9], [-1.0, -3.0], [1.0, 1.0], [-1.0, 1.0], [0.0, 0.0], [2.0, 0.0], [3.9, 3.9], [4.0, 3.9], [-4.1, -4.1], [5, 5]]
    )
    inside = torch.tensor([True, False, True, False, True, False, True, False, False, False])
    log_p = make_density("checkerboard").log_prob(x)
    assert torch.equal(log_p, torch.where(inside, -math.log(32), -math.inf))


@pytest.mark.parametrize(
    ("name", "degrees"), [("ring", 45), ("grid25", 90), ("moons", 180), ("spirals", 180), ("pinwheel", 72), ("checkerboard", 180)]
)
def test_symmetries(name, degrees):
    p, angle = make_density(name), math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64)
    x = p.sample(100, seeded()).double() + 0.1 * torch.randn(100, 2, generator=seeded(1))
    torch.testing.assert_close(p.log_prob(x @ turn.T), p.log_prob(x), rtol=1e-9, atol=1e-9)


def test_order_and_scale_of_weights_do_not_matter_and_a_shift_shifts():
    x = torch.randn(30, 2, generator=seeded(), dtype=torch.float64)
    order, shift = torch.tensor([2, 0, 1]), torch.tensor([1.5, -3.0], dtype=torch.float64)
    other = Mixture("other", OVERLAP.means[order] + shift, OVERLAP.stds[order], 7 * OVERLAP.weights[order])
    torch.testing.assert_close(other.log_prob(x + shift), OVERLAP.log_prob(x))


@pytest.mark.parametrize("name", ["ring", "unequal", "mixture8d", "overlap"])
def test_the_score_is_that_of_the_exact_denoiser_as_sigma_goes_to_zero(name):
    p = density(name)
    x = p.sample(50, seeded()).double().requires_grad_()
    (score,) = torch.autograd.grad(p.log_prob(x).sum(), x)
    denoiser = MixtureDenoiser(p.modes, p.mode_stds, p.mode_weights)
    x = x.detach()
    errors = [((denoiser(x, sigma) - x) / sigma**2 - score).abs().max().item() for sigma in (2e-3, 1e-3)]
    assert errors[1] < 1e-3 * score.abs().max()
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.01)  # Tweedie at sigma is the score of p_sigma, off by order sigma^2


@pytest.mark.parametrize("name", ["moons", "pinwheel", "checkerboard"])
def test_the_gradient_of_the_log_density_is_that_of_differences(name):
    p = make_density(name)
    x = p.sample(20, seeded()).double().requires_grad_()
    log_p = p.log_prob(x)
    grad = torch.autograd.grad(log_p.sum(), x)[0] if log_p.requires_grad else torch.zeros_like(x)  # a constant has none
    for axis in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[axis]
        torch.testing.assert_close(((p.log_prob(x + step) - p.log_prob(x - step)) / 2e-5).detach(), grad[:, axis], rtol=1e-6, atol=1e-6)


# --- samples -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PLANE, "overlap", "crowd"])
def test_samples_are_distributed_as_the_density_says(name):
    p = density(name)
    x = p.sample(20_000, seeded(1))
    assert (x.dtype, x.shape) == (torch.float32, (20_000, 2))
    assert abs(chi_square(x, name, 1.0)) < CHI
    _, _, log_p = tabulated(name)
    expected = (masses(name, 1.0) * log_p.nan_to_num(neginf=0)).sum().item()  # minus the entropy
    found = p.log_prob(x.double())
    assert found.mean().item() == pytest.approx(expected, abs=SIGMAS * found.std().item() / math.sqrt(20_000) + 1e-4)


def test_the_chi_square_test_notices_another_density():
    x = make_density("moons").sample(20_000, seeded())
    assert chi_square(x + torch.tensor([0.03, 0.0]), "moons", 1.0) > 2 * CHI  # a fifth of the noise
    assert chi_square(x, "moons", 1.2) > 2 * CHI


def test_samples_in_eight_dimensions():
    p, num = make_density("mixture8d"), 20_000
    x = p.sample(num, seeded()).double()
    distance, nearest = torch.cdist(x, p.modes).min(1)
    assert torch.cdist(p.modes, p.modes)[~torch.eye(5, dtype=torch.bool)].min() == pytest.approx(4)
    torch.testing.assert_close(nearest.bincount() / num, torch.full((5,), 0.2), rtol=0, atol=SIGMAS * math.sqrt(0.16 / num))
    # distance^2 / s^2 is chi-square with 8 degrees of freedom: mean 8, variance 16
    assert (distance**2).mean().item() / 0.09 == pytest.approx(8, abs=SIGMAS * 4 / math.sqrt(num))
    # log p = -log 5 - 4 log(2 pi s^2) - distance^2 / 2 s^2 where modes are far apart
    torch.testing.assert_close(p.log_prob(x), -math.log(5) - 4 * math.log(2 * math.pi * 0.09) - distance**2 / 0.18)


def test_float32_never_rounds_a_sample_out_of_its_square(monkeypatch):
    p = make_density("checkerboard")
    real = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **how: torch.full_like(real(*size, **how), 1 - 2**-53))
    assert p.log_prob(p.sample(100, seeded())).isfinite().all()


@pytest.mark.parametrize("name", [*DENSITIES, "power of ring", "power of moons", "power of pinwheel"])
def test_samples_depend_on_the_generator_alone(name):
    p = make_density(name.removeprefix("power of "))
    p = p.power(1.5) if name.startswith("power") else p
    before = torch.get_rng_state()
    first = p.sample(50, seeded(3))
    torch.manual_seed(99)
    assert torch.equal(p.sample(50, seeded(3)), first)
    assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(99).get_state())
    assert not torch.equal(p.sample(50, seeded(4)), first)
    assert p.sample(0, seeded()).shape == (0, p.dim)
    torch.set_rng_state(before)


# --- powers --------------------------------------------------------------------------------------------------------------


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


# --- what is refused -----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("asked", ["modes", "mode_stds", "mode_weights"])
@pytest.mark.parametrize("name", ["checkerboard", "pinwheel", *CURVES])
def test_densities_without_modes_say_what_has_them(name, asked):
    for p in (make_density(name), make_density(name).power(2)):
        with pytest.raises(
            DataError,
            match=rf"{asked} of '{name}.* was asked for; only mixtures have modes \(fewstep.data.Mixture; make_density\('ring'\) is",
        ):
            getattr(p, asked)


@pytest.mark.parametrize("name", DENSITIES)
def test_points_of_another_shape_are_refused(name):
    p = make_density(name)
    for shape in ([5, 1], [p.dim]):
        said = re.escape(f"points of shape {shape} were given to {name!r}; its points have shape [N, {p.dim}]")
        with pytest.raises(DataError, match=said):
            p.power(2).log_prob(torch.zeros(shape))


@pytest.mark.parametrize(
    ("means", "stds", "weights", "said"),
    [
        ([1.0, 2.0], 1.0, None, r"mixture 'm': means have shape \(2,\); give \[K, D\]"),
        ([[1.0], [2.0]], [1.0, math.nan], None, r"mixture 'm': stds are \[1.0, nan\]; all must be positive and finite"),
        ([[1.0], [2.0]], 1.0, [1.0, 0.0], r"mixture 'm': weights are \[1.0, 0.0\]; all must be positive and finite"),
    ],
)
def test_mixtures_that_do_not_fit_are_refused(means, stds, weights, said):
    with pytest.raises(DataError, match=said):
        Mixture("m", means, stds, weights)


def test_a_mixture_is_in_float64_whatever_it_is_given():
    p = Mixture("m", torch.zeros(2, 3), 0.1, torch.tensor([1, 2]))
    assert {a.dtype for a in (p.modes, p.mode_stds, p.mode_weights)} == {torch.float64}
    assert p.mode_stds.tolist() == [0.1, 0.1]


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all():
    with pytest.raises(DataError, match=r"no density 'moon'; did you mean 'moons'\? allowed are ring, grid25, .*, pinwheel$"):
        make_density("moon")
    with pytest.raises(DataError, match="did you mean"):
        make_density("")


# --- data sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DENSITIES)
def test_a_data_set_of_a_density(name):
    data = toy_data(name, 100)
    assert (data.name, data.density.name, data.shape) == (name, name, (data.density.dim,))
    assert (data.num_classes, data.class_names, data.labels("train"), data.labels("heldout")) == (None, (), None, None)
    assert (data.images("train").shape, data.images("heldout").shape) == ((100, *data.shape), (10_000, *data.shape))
    assert data.train.dtype == data.heldout.dtype == torch.float32
    assert data.density.log_prob(data.heldout).isfinite().all()


def test_a_batch_is_the_points_asked_for():
    data, index = toy_data("ring", 50), torch.tensor([49, 0, 49])
    x, label = data.batch(index, seeded(), torch.device("cpu"))
    assert torch.equal(x, data.images("train")[[49, 0, 49]])
    assert label is None


def test_a_seed_fixes_both_splits_which_share_nothing():
    data = toy_data("moons")
    assert (len(data.train), len(data.heldout)) == (20_000, 10_000)
    assert torch.equal(toy_data("moons").train, data.train)
    assert torch.equal(toy_data("moons", 10).heldout, data.heldout)
    assert not torch.equal(toy_data("moons", seed=1).train, data.train)
    assert not torch.equal(toy_data("moons", seed=1).heldout, data.heldout)
    assert not torch.equal(toy_data("moons", 10_000).train, data.heldout)  # of one size: the same stream would give the same points
    assert not torch.equal(make_density("moons").sample(20_000, seeded(0)), data.train)  # nor anything with a loop seeded with 0
    assert len(toy_data("moons", 10, seed=-1).train) == 10


def test_a_data_set_of_a_density_of_one_s_own():
    data = toy_data(OVERLAP.power(2), 10)
    assert (data.name, data.density.gamma, isinstance(data.density, Power)) == ("overlap^2", 2.0, True)


def test_a_size_that_is_too_small_is_refused():
    with pytest.raises(DataError, match=r"data\.size is 1; at least 2 points are needed"):
        toy_data("ring", 1)


def test_points_that_are_not_finite_are_refused():
    x = torch.zeros(10, 2)
    check_points(x)
    x[3, 1], x[7, 0], x[7, 1] = math.nan, math.inf, -math.inf
    with pytest.raises(DataError, match=r"2 of 10 points hold NaN or infinity, the first in row 3; mend or remove these rows"):
        check_points(x)
    for train, heldout in ((x, x[:3]), (x[:3], x)):
        with pytest.raises(DataError, match="NaN or infinity"):
            PointData("x", train, heldout, OVERLAP)
