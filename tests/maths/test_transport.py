"""Entropic transport against closed forms: the plan between two Gaussians, and its limits at high and at low temperature.

Between N(m, a^2) and N(M, b^2), with cost |x - y|^2 and temperature T, the plan is Gaussian; of its covariance C the cost is -2 C and
the entropy's -T/2 log(1 - C^2 / a^2 b^2), least at ``C = (sqrt(T^2 + 16 a^2 b^2) - T) / 4``. So x goes to ``M + C / a^2 (x - m)``.
"""

import itertools
import math

import pytest
import torch

from fewstep.maths.kernels import barycenter, sinkhorn_log_weights
from fewstep.maths.transport import transport, wasserstein_field

F64 = torch.float64


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian(mean, std, num=141):
    """Points [num, 1] and log-weights [num] that stand for N(mean, std^2): an even grid out to 7 deviations."""
    z = torch.linspace(-7, 7, num, dtype=F64)
    return mean + std * z[:, None], (-z.square() / 2).log_softmax(0)


def slope(a, b, temperature):
    """C / a^2, by which the plan from a deviation of a to one of b stretches."""
    return (math.sqrt(temperature**2 + 16 * a**2 * b**2) - temperature) / (4 * a**2)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 6.0])
@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.5, 1.2), (1.5, 0.4)])
def test_between_gaussians_the_plan_is_the_closed_form(a, b, temperature):
    (x, log_x), (y, log_y) = gaussian(0.3, a), gaussian(-0.8, b)
    to, error = transport(x, y, temperature, 150, log_x, log_y)
    assert error < 1e-9
    near = (x - 0.3).abs() < 3 * a  # the grid ends at 7 deviations
    torch.testing.assert_close(to[near], (-0.8 + slope(a, b, temperature) * (x - 0.3))[near], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.3, 6.0])
def test_the_field_between_gaussians_is_the_closed_form_and_rests_at_equality(temperature):
    """V = M - m + (C_qp - C_qq) / a^2 (x - m): nothing is left of the entropy where the two are one distribution."""
    q, p = gaussian(0.2, 0.6), gaussian(-0.5, 1.0)
    field, error = wasserstein_field(q[0], p[0], q[0], temperature, 150, q[1], p[1], q[1])
    stretch = slope(0.6, 1.0, temperature) - slope(0.6, 0.6, temperature)
    near = (q[0] - 0.2).abs() < 3 * 0.6
    torch.testing.assert_close(field[near], (-0.7 + stretch * (q[0] - 0.2))[near], rtol=1e-6, atol=1e-7)
    assert stretch > 0.05
    assert error < 1e-9
    rest, _ = wasserstein_field(p[0], p[0], p[0], temperature, 150, p[1], p[1], p[1])
    assert rest.abs().max() < 1e-9


@pytest.mark.parametrize("seed", range(2))
def test_two_samples_of_one_distribution_have_no_field_on_average(seed):
    """300 points in the plane: what is left at a sample is chance, about 1/sqrt(300); its mean over the samples less."""
    x, y, z = (normal(300, 2, seed=10 * seed + i) for i in range(3))
    field, _ = wasserstein_field(x, y, z, 1.0, 50)
    torch.testing.assert_close(field.mean(0), y.mean(0) - z.mean(0), rtol=0, atol=1e-3)  # plans keep means
    assert field.square().mean().sqrt() < 4 / math.sqrt(300)
    far, _ = wasserstein_field(x, 2 * y, z, 1.0, 50)
    assert far.square().mean().sqrt() > 0.5


def test_hot_plans_send_all_to_the_mean():
    x, y, z = normal(20, 3), normal(31, 3, seed=1) + 2, normal(17, 3, seed=2)
    to, error = transport(x, y, 1e8)
    torch.testing.assert_close(to, y.mean(0).expand(20, 3), rtol=0, atol=1e-5)
    assert error < 1e-9
    torch.testing.assert_close(wasserstein_field(x, y, z, 1e8)[0], (y.mean(0) - z.mean(0)).expand(20, 3), rtol=0, atol=1e-5)


def test_cold_plans_are_the_best_assignment():
    x, y = normal(7, 2), normal(7, 2, seed=1)
    cost = torch.cdist(x, y).square()
    best = min(itertools.permutations(range(7)), key=lambda order: cost[range(7), list(order)].sum())
    to, error = transport(x, y, 0.02, 3000)
    assert error < 1e-2
    torch.testing.assert_close(to, y[list(best)], rtol=0, atol=0.05)
    nearest = y[cost.argmin(1)]
    assert (to - nearest).abs().max() > 0.3  # which is not where each would go by itself


def test_in_one_dimension_a_cold_plan_keeps_the_order():
    x, y = normal(12, 1), normal(12, 1, seed=1)
    to, _ = transport(x, y, 0.01, 3000)
    torch.testing.assert_close(to[x.flatten().argsort()], y.sort(0).values, rtol=0, atol=0.1)


@pytest.mark.parametrize("temperature", [0.2, 3.0])
def test_columns_are_uniform_after_enough_iterations_and_the_error_says_so(temperature):
    x, y = normal(12, 2), normal(9, 2, seed=1)
    errors = [transport(x, y, temperature, iterations)[1].item() for iterations in (1, 10, 1000)]
    assert errors[0] > 1e-3
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-6
    to, _ = transport(x, y, temperature, 1000)
    torch.testing.assert_close(to.mean(0), y.mean(0), rtol=0, atol=1e-6)  # rows and columns are right: the mean goes to the mean


@pytest.mark.parametrize("iterations", [1, 7, 20])
def test_it_is_the_plan_of_sinkhorn_drifting_where_both_know_it(iterations):
    x, y = normal(11, 3), normal(15, 3, seed=1)
    weights = sinkhorn_log_weights(x, y, 0.7, iterations=iterations)
    torch.testing.assert_close(transport(x, y, 0.7, iterations)[0], barycenter(x, y, 0.7, log_weights=weights))


def test_the_field_moves_and_turns_with_the_samples():
    x, y, z = (normal(14, 3, seed=i) + i for i in range(3))
    turn = torch.linalg.qr(normal(3, 3, seed=9))[0]
    shift, order = normal(3, seed=8), torch.randperm(14, generator=torch.Generator().manual_seed(0))
    plain, error = wasserstein_field(x, y, z, 0.5)
    moved, _ = wasserstein_field(*(a @ turn + shift for a in (x, y, z)), 0.5)
    torch.testing.assert_close(moved, plain @ turn)
    permuted, _ = wasserstein_field(x[order], y.flip(0), z[order.flip(0)], 0.5)
    torch.testing.assert_close(permuted, plain[order])
    scaled, same = wasserstein_field(3 * x, 3 * y, 3 * z, 9 * 0.5)
    torch.testing.assert_close(scaled, 3 * plain)
    torch.testing.assert_close(same, error)


def test_sets_are_apart_and_padding_weighs_nothing():
    first, second = (normal(5, 2), normal(7, 2, seed=1)), (normal(3, 2, seed=2), normal(4, 2, seed=3))
    x, y = torch.full((2, 5, 2), 9.0, dtype=F64), torch.full((2, 7, 2), -9.0, dtype=F64)
    log_x, log_y = torch.full((2, 5), -math.inf, dtype=F64), torch.full((2, 7), -math.inf, dtype=F64)
    for i, (a, b) in enumerate((first, second)):
        x[i, : len(a)], y[i, : len(b)] = a, b
        log_x[i, : len(a)], log_y[i, : len(b)] = -math.log(len(a)), -math.log(len(b))
    to, error = transport(x, y, 0.4, 15, log_x, log_y)
    for i, (a, b) in enumerate((first, second)):
        expected, its_error = transport(a, b, 0.4, 15)
        torch.testing.assert_close(to[i, : len(a)], expected)
        torch.testing.assert_close(error[i], its_error)
    assert to.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions_keep_theirs_and_carry_no_gradient(dtype):
    x, y = normal(40, 4).to(dtype).requires_grad_(), (5 * normal(40, 4, seed=1)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        to, _ = transport(x, y, 0.5)
    assert to.dtype == dtype
    assert not to.requires_grad
    expected = transport(x.double(), y.double(), 0.5)[0]
    torch.testing.assert_close(to.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4, 2), (4, 3)), {}, r"x and y have shapes \(4, 2\) and \(4, 3\)"),
        (((2, 4, 2), (3, 4, 2)), {}, "give"),
        (((4,), (4,)), {}, "give"),
        (((0, 2), (4, 2)), {}, "x and y have 0 and 4 rows; each needs 1"),
        (((4, 2), (4, 2)), {"temperature": 0.0}, "temperature is 0.0; it must be positive"),
        (((4, 2), (4, 2)), {"iterations": 0}, "iterations is 0; give at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, message):
    x, y = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        transport(x, y, **{"temperature": 1.0, **options})
