"""Densities against quadrature, closed forms and their own samples."""

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
from fewstep.data.toys import DENSITIES, make_density
from fewstep.denoisers import MixtureDenoiser
from tabulated import CHI, OVERLAP, SIGMAS, cells, chi_square, density, masses, seeded, tabulated

PLANE = [name for name in DENSITIES if name != "mixture8d"]
MIXTURES = ["ring", "grid25", "unequal", "mixture8d", "gaussian", "bimodal"]
CURVES = ["moons", "swiss_roll", "spirals"]

# --- log-densities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLANE)
def test_a_density_in_the_plane_integrates_to_one_over_its_limits(name):
    p = make_density(name)
    x, w = cells(*p.limits, 44)
    total = (w * p.log_prob(x.flatten(0, 1)).view(x.shape[:2]).exp()).sum().item()
    # 4.5 standard deviations leave out at most 4 x 3.4e-6; the quadrature is off by less than 2e-6
    assert -2e-5 < total - 1 < 2e-6


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


# --- what is refused -----------------------------------------------------------------------------------------------------


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
