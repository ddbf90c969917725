from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.metrics import frechet_distance
from fewstep.metrics.frechet import Gaussian, Moments, add_up, expected_bias, gaussian_distance

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "metrics_features.safetensors")


def exactly(mean, root, num=50, seed=0):
    """`num` rows whose sample mean is `mean` and whose unbiased sample covariance is ``root @ root.T``."""
    z = torch.randn(num, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    z = z - z.mean(0)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T @ z / (num - 1)), z.T, upper=False).T
    return z @ root.T + torch.tensor(mean, dtype=torch.float64)


ROOT_A = torch.tensor([[2.0, 0.0], [0.6, 0.9]], dtype=torch.float64)
ROOT_B = torch.tensor([[0.5, 0.0], [-1.1, 1.4]], dtype=torch.float64)


def distance_2d():
    """|mu|^2 + tr A + tr B - 2 tr (A B)^(1/2), where tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)) for 2x2 matrices."""
    a, b = ROOT_A @ ROOT_A.T, ROOT_B @ ROOT_B.T
    root = ((a @ b).trace() + 2 * torch.det(a @ b).sqrt()).sqrt()
    return (9 + 16 + a.trace() + b.trace() - 2 * root).item()


def test_commuting_gaussians_by_hand():
    a = exactly([1.0, 0.0, -2.0], torch.diag(torch.tensor([1.0, 2.0, 3.0])).double())
    b = exactly([1.0, 2.0, -1.0], torch.diag(torch.tensor([4.0, 2.0, 1.0])).double(), 70, seed=1)
    assert frechet_distance(a, b) == pytest.approx((4 + 1) + (9 + 0 + 4), rel=1e-10)  # |mu|^2 + sum (s_a - s_b)^2


def test_gaussians_that_do_not_commute():
    a, b = exactly([0.0, 1.0], ROOT_A), exactly([3.0, -3.0], ROOT_B, 80, seed=1)
    assert frechet_distance(a, b) == pytest.approx(distance_2d(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(distance_2d(), rel=1e-10)


def test_rank_deficient_covariances_do_no_harm():
    # the same two Gaussians in a plane of 100 dimensions, from 50 and 80 rows
    plane = torch.linalg.qr(torch.randn(100, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    a, b = exactly([0.0, 1.0], ROOT_A) @ plane.T, exactly([3.0, -3.0], ROOT_B, 80, seed=1) @ plane.T
    assert frechet_distance(a, b) == pytest.approx(distance_2d(), rel=1e-5)


@pytest.mark.parametrize(
    ("case", "rows", "kind"), [("full", 2000, torch.float64), ("f32", 2000, torch.float32), ("lowrank", 40, torch.float64)]
)
def test_torch_fidelity_agrees(case, rows, kind):
    """`lowrank` is 40 rows of 64 dimensions."""
    generated, real = (GOLDEN[f"in.features_{i}"][:rows].to(kind) for i in (1, 2))
    expected = GOLDEN[f"fid.{case}.torch_fidelity"].item()
    assert frechet_distance(generated, real) == pytest.approx(expected, rel=1e-6)
    parts = [add_up(Moments.of(part) for part in x.split(7)).gaussian() for x in (generated, real)]
    assert gaussian_distance(*parts) == pytest.approx(expected, rel=1e-6)
    assert gaussian_distance(*parts[::-1]) == pytest.approx(expected, rel=1e-6)


def test_moments_are_torch_fidelity_s():
    for i in (1, 2):
        gaussian = Moments.of(GOLDEN[f"in.features_{i}"]).gaussian()
        torch.testing.assert_close(gaussian.mean, GOLDEN[f"fid.full.mu{i}"], rtol=0, atol=1e-7)  # the features were rounded to float32
        torch.testing.assert_close(gaussian.covariance, GOLDEN[f"fid.full.sigma{i}"], rtol=0, atol=1e-6)
    known = [Gaussian(GOLDEN[f"fid.full.mu{i}"], GOLDEN[f"fid.full.sigma{i}"]) for i in (1, 2)]
    assert gaussian_distance(*known) == pytest.approx(GOLDEN["fid.full.torch_fidelity"].item(), rel=1e-9)


def test_a_set_is_nowhere_from_itself():
    assert abs(GOLDEN["fid.same.torch_fidelity"].item()) < 1e-9
    features = GOLDEN["in.features_1"]
    assert abs(frechet_distance(features, features)) < 1e-9


def test_moments_add_up_however_the_rows_are_dealt_out():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e6
    for sizes in ([50], [1, 49], [20, 30], [1] * 50):
        total = add_up(Moments.of(part) for part in x.split(sizes))
        assert total.num == 50
        torch.testing.assert_close(total.gaussian().mean, x.mean(0), rtol=1e-14, atol=0)
        torch.testing.assert_close(total.gaussian().covariance, (x - x[0]).T.cov(), rtol=1e-9, atol=1e-9)


def test_the_expected_bias_of_standard_normal_features():
    """To first order E F(n) = (D + D (D + 1) / 4) / n against N(0, I): the mean's error, and tr(E^2) / 4 of the covariance's."""
    n, dims, repeats = 1000, 6, 60
    exact = Gaussian(torch.zeros(dims).double(), torch.eye(dims).double())
    rng, found, distances = torch.Generator().manual_seed(0), [], []
    for _ in range(repeats):
        parts = [Moments.of(torch.randn(n // 2, dims, generator=rng)) for _ in range(2)]
        whole = add_up(parts).gaussian()
        found.append(expected_bias((parts[0].gaussian(), parts[1].gaussian()), whole, exact))
        distances.append(gaussian_distance(whole, exact))
    closed = (dims + dims * (dims + 1) / 4) / n
    for values in (found, distances):
        values = torch.tensor(values)
        assert abs(values.mean().item() - closed) < 4 * values.std().item() / repeats**0.5
        assert 4 * values.std().item() / repeats**0.5 < 0.3 * closed


def test_gaussians_of_other_dimensions_are_refused():
    one, other = (Gaussian(torch.zeros(d).double(), torch.eye(d).double()) for d in (3, 4))
    with pytest.raises(ValueError, match="features have 3 and 4 dimensions"):
        gaussian_distance(one, other)


def test_large_means_do_not_spoil_float32_features():
    a, b = exactly([0.0, 1.0], ROOT_A) + 1000, exactly([3.0, -3.0], ROOT_B, seed=1) + 1000
    assert frechet_distance(a.float(), b.float()) == pytest.approx(distance_2d(), rel=1e-3)  # rounding of the inputs: 3e-5 each


@pytest.mark.parametrize(("a", "b"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((5,), (5, 3)), ((5, 3, 1), (5, 3, 1))])
def test_sets_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="features have shapes"):
        frechet_distance(torch.zeros(a), torch.zeros(b))
