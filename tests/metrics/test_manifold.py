from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.metrics.manifold import nearest_distance, precision_recall

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "metrics_features.safetensors")


def points(num, seed, dims=3):
    return torch.randn(num, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 3])
def test_nearest_distance_by_brute_force(k):
    a, b = points(1030, 0), points(40, 1)  # more than one block of rows
    between = sum((a[:, [d]] - b[:, d]) ** 2 for d in range(3)).sqrt()
    torch.testing.assert_close(nearest_distance(a, b, k), between.sort(1).values[:, k - 1])
    within = torch.tensor([sorted((row - other).norm().item() for j, other in enumerate(b) if j != i)[k - 1] for i, row in enumerate(b)])
    torch.testing.assert_close(nearest_distance(b, b, k, same=True), within.double(), rtol=1e-6, atol=0)


def test_near_neighbours_are_exact_far_from_the_origin():
    a = torch.tensor([[1e4, 1e4]])
    assert nearest_distance(a, a + torch.tensor([[0.0, 0.0078125]])).item() == 0.0078125


def test_torch_fidelity_agrees():
    generated, real = GOLDEN["in.features_1"], GOLDEN["in.features_2"]
    for k in (3, 5):
        precision, recall, _ = GOLDEN[f"prc.k{k}.f32"].tolist()
        assert precision_recall(real, generated, k) == pytest.approx((precision, recall), abs=1e-6)


def test_three_points_on_a_line_by_hand():
    real, fake = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[-1.0], [3.5], [5.5], [9.0]])
    # k 1: radii 1, 1, 2 reach [-1, 1], [0, 2], [1, 5]: two of four fakes. Fakes' radii 4.5, 2, 2, 3.5 reach all three reals
    assert precision_recall(real, fake, 1) == (0.5, 1.0)
    assert precision_recall(fake, real, 1) == (1.0, 0.5)


def test_a_collapsed_set_has_high_precision_and_low_recall():
    real = points(500, 0, 8)
    collapsed = real[:5].repeat(100, 1) + 0.01 * points(500, 1, 8)
    precision, recall = precision_recall(real, collapsed)
    assert precision == 1
    assert recall < 0.02  # five balls of radius about 0.03 round five of the 500
    far = precision_recall(real, real + 100)
    assert far == (0, 0)


@pytest.mark.parametrize(("real", "fake"), [((3, 2), (9, 2)), ((9, 2), (3, 2)), ((9, 2), (9, 3)), ((9,), (9,))])
def test_sets_that_cannot_be_compared_are_refused(real, fake):
    with pytest.raises(ValueError, match=r"features have shapes .* k = 3"):
        precision_recall(torch.zeros(real), torch.zeros(fake), 3)
