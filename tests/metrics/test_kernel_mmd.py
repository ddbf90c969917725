import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewstep.metrics import kernel_distance
from fewstep.metrics.kernel_mmd import kernel_distance_subsets

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "metrics_features.safetensors")


def by_pairs(a, b):
    """The definition, pair by pair."""

    def k(x, y):
        return (float(x @ y) / len(x) + 1) ** 3

    n, m = len(a), len(b)
    within_a = sum(k(a[i], a[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    within_b = sum(k(b[i], b[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return within_a + within_b - 2 * sum(k(x, y) for x in a for y in b) / (n * m)


def test_it_is_the_definition_pair_by_pair():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(9, 5)), rng.normal(1, 2, size=(13, 5))
    assert kernel_distance(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(by_pairs(a, b), rel=1e-10)


def test_blocks_of_rows_add_up():
    # 4,100 rows are three blocks: 2,050 copies each of the points 0 and 1, where the sums can be worked out
    n = 4100
    a = torch.cat([torch.zeros(n // 2, 1), torch.ones(n // 2, 1)])
    within = ((n / 2) ** 2 * (1 + 1 + 1 + 8) - (n / 2) * (1 + 8)) / (n * (n - 1))
    across = (1 + 1 + 1 + 8) / 4
    assert kernel_distance(a, a.clone()) == pytest.approx(2 * within - 2 * across, rel=1e-9)


def test_torch_fidelity_agrees_on_its_own_subsets():
    generated, real = GOLDEN["in.features_1"], GOLDEN["in.features_2"]
    rng = np.random.RandomState(2020)
    for expected in GOLDEN["kid.subset_values"][:5].tolist():
        rows = [torch.from_numpy(rng.choice(2000, 1000, replace=False)) for _ in range(2)]
        assert kernel_distance(generated[rows[0]], real[rows[1]]) == pytest.approx(expected, rel=1e-6)
    assert kernel_distance(generated, real) == pytest.approx(GOLDEN["kid.full_unbiased"].item(), rel=1e-6)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_torch_fidelity_s_mean_and_deviation_over_its_hundred_subsets(kind):
    generated, real = (GOLDEN[f"in.features_{i}"].to(kind) for i in (1, 2))
    mean, deviation = kernel_distance_subsets(generated, real)
    assert mean == pytest.approx(GOLDEN["kid.mean"].item(), rel=1e-6)
    assert deviation == pytest.approx(GOLDEN["kid.std"].item(), rel=1e-5)


def test_subsets_larger_than_a_set_are_refused():
    with pytest.raises(ValueError, match="have 30 and 20 rows; subsets of 25"):
        kernel_distance_subsets(torch.zeros(30, 2), torch.zeros(20, 2), size=25)


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_it_is_unbiased(shift):
    """In one dimension MMD^2 is sum_j C(3, j) (difference of the j-th moments)^2; here of N(0, 1) and N(shift, 1)."""
    exact = 3 * shift**2 + 3 * shift**4 + (shift**3 + 3 * shift) ** 2
    rng, repeats, n, m = torch.Generator().manual_seed(0), 4000, 20, 30
    pairs = ((torch.randn(n, 1, generator=rng), torch.randn(m, 1, generator=rng) + shift) for _ in range(repeats))
    values = torch.tensor([kernel_distance(a, b) for a, b in pairs])
    standard_error = values.std().item() / math.sqrt(repeats)
    assert abs(values.mean().item() - exact) < 4 * standard_error
    # at shift 0, E k(x, x) = 28 and E k(x, x') = 4: with the diagonal kept the mean would be 24 (1/20 + 1/30) = 2
    assert 4 * standard_error < 1


@pytest.mark.parametrize(("a", "b"), [((1, 3), (5, 3)), ((5, 3), (1, 3)), ((5, 3), (5, 4)), ((5,), (5,))])
def test_sets_that_cannot_be_compared_are_refused(a, b):
    with pytest.raises(ValueError, match="features have shapes"):
        kernel_distance(torch.zeros(a), torch.zeros(b))
