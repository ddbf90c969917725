from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.metrics import manifold
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


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("case", ["full", "f32", "self", "cluster"])
def test_torch_fidelity_agrees(case, k):
    generated, real = (GOLDEN[f"in.features_{i}"].to(torch.float32 if case == "f32" else torch.float64) for i in (1, 2))
    if case == "self":
        real = generated
    elif case == "cluster":  # all beside one real row
        generated = real[:1] + 0.05 + 1e-3 * points(2000, 0, 64)
    precision, recall, _ = GOLDEN[f"prc.k{k}.{case}"].tolist()
    assert precision_recall(real, generated, k) == pytest.approx((precision, recall), abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_precision_and_recall_by_brute_force_in_more_than_one_block(offset, monkeypatch):
    monkeypatch.setattr(manifold, "ROWS", 7)
    monkeypatch.setattr(manifold, "COLUMNS", 11)
    real, fake = points(60, 0) + offset, 0.8 * points(45, 1) + offset + 0.3

    def distances(a, b):
        return [[(x - y).norm().item() for y in b] for x in a]

    def covered(rows, centres, k=3):
        radii = [sorted(row)[k] for row in distances(centres, centres)]  # the first is itself
        return sum(any(d <= r for d, r in zip(row, radii, strict=True)) for row in distances(rows, centres)) / len(rows)

    assert precision_recall(real, fake) == (covered(fake, real), covered(real, fake))
    nearest = [sorted(row)[1] for row in distances(fake, real)]
    torch.testing.assert_close(nearest_distance(fake, real, 2), torch.tensor(nearest, dtype=torch.float64), rtol=1e-12, atol=0)


def test_bytes_are_measured_as_they_are():
    a, b = (torch.randint(256, (30, 20), generator=torch.Generator().manual_seed(i), dtype=torch.uint8) for i in (0, 1))
    assert torch.equal(nearest_distance(a, b), nearest_distance(a.double(), b.double()))


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
