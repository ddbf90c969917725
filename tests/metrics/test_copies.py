"""Training images again in samples, byte for byte and nearly."""

import pytest
import torch

from fewstep.data import load_digits
from fewstep.metrics import manifold
from fewstep.metrics.copies import Known, as_bytes, near_copies, nearest_two
from fewstep.metrics.manifold import nearest_distance, nearest_distances

DIGITS = load_digits()
TRAIN = DIGITS.images("train")


def share(samples):
    return near_copies(nearest_two(((samples + 1) * 8).flatten(1), DIGITS.train.flatten(1)))


def test_copies_are_counted_byte_for_byte():
    known = Known(DIGITS.train, 8.0)
    other = TRAIN[:20].clone()
    other[7:, 0, 3, 3] += 0.125  # one byte more
    other[7:, 0, 3, 3] -= 0.25 * (other[7:, 0, 3, 3] > 1)
    assert known.count(TRAIN[:50] + 0.02) == 50  # a rounding away
    assert known.count(other) == 7
    assert known.count(DIGITS.images("heldout")) == 0


def test_images_that_come_as_floats_are_rounded_as_pictures_are():
    images = torch.rand(9, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert Known(images, None).count(images.clone()) == 9
    assert as_bytes(torch.tensor([-1.0, 0.0, 1.0, 7.0]), 127.5).tolist() == [0, 128, 255, 255]


def test_near_copies_are_those_that_real_images_are_not():
    noise = torch.randn(300, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert share(DIGITS.images("heldout")) < 0.01
    assert share(TRAIN[:300]) == 1
    assert share(TRAIN[:300] + 0.02 * noise) > 0.95
    assert share(TRAIN[:300] + 0.4 * noise) < 0.05


@pytest.mark.parametrize("spread", [1.0, 1e-3, 1e-6, 0.0])
@pytest.mark.parametrize("same", [True, False])
def test_neighbours_are_the_same_in_single_precision_where_it_hides_any(spread, same, monkeypatch):
    """Also of sets so tight, far from their centre, that single precision sees nothing of them."""
    rng = torch.Generator().manual_seed(0)
    places = 10 * torch.randn(4, 20, generator=rng)
    a = places[torch.arange(60) % 4] + spread * torch.randn(60, 20, generator=rng)
    b = a if same else places[torch.arange(90) % 4] + spread * torch.randn(90, 20, generator=rng)
    whole = nearest_distances(a, b, 3, same)
    every = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").sort(1).values
    torch.testing.assert_close(whole, every[:, int(same) : 3 + int(same)])
    monkeypatch.setattr(manifold, "LARGE", 0)
    assert torch.equal(nearest_distances(a, b, 3, same), whole)
    assert torch.equal(nearest_distance(a, b, 2, same), whole[:, 1])
