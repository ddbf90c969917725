"""Features of sets too large to hold, and the files that keep them."""

import os

import numpy as np
import pytest
import torch

from fewstep.metrics.features import PooledPixels
from fewstep.metrics.inception import FeatureError, ScriptedFeatures
from fewstep.metrics.statistics import (
    describe,
    in_random_order,
    load_statistics,
    network_id,
    pixel_sha256,
    real_features,
    save_statistics,
    statistics_for,
)
from scripted import script

PIXELS = torch.randint(256, (30, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
KEY = {"version": 0}


class Counted:
    """A feature network that counts the images it has seen."""

    def __init__(self, network):
        self.network, self.name, self.sha256, self.seen = network, network.name, network.sha256, 0

    def __call__(self, images):
        self.seen += len(images)
        return self.network(images)


@pytest.fixture
def network(tmp_path):
    return Counted(ScriptedFeatures(script(tmp_path / "small.pt")))


@pytest.mark.parametrize("size", [1, 7, 10, 30])
def test_a_set_is_described_the_same_in_batches_of_any_size(size):
    images = PIXELS.float() / 127.5 - 1
    seen = []
    found = describe(PooledPixels(), images.split(size), lambda x, features: seen.append((x, features)))
    rows = images.flatten(1)
    torch.testing.assert_close(found.rows, rows)
    assert found.num == 30
    torch.testing.assert_close(found.gaussian.mean, rows.double().mean(0))
    torch.testing.assert_close(found.gaussian.covariance, rows.double().T.cov())
    assert torch.equal(torch.cat([x for x, _ in seen]), images)
    assert torch.equal(torch.cat([features for _, features in seen]), rows)
    if size == 10:  # the first five and the last five of each
        first = torch.cat([rows[0:5], rows[10:15], rows[20:25]]).double()
        torch.testing.assert_close(found.halves[0].mean, first.mean(0))
        torch.testing.assert_close(found.halves[1].mean, 2 * rows.double().mean(0) - first.mean(0))
    assert (found.halves is None) == (size == 1)


def test_one_image_is_too_few():
    with pytest.raises(ValueError, match="there are 1 images; give at least 2"):
        describe(PooledPixels(), [torch.zeros(1, 3, 8, 8)])


def test_an_order_in_which_the_first_are_a_sample_of_all():
    assert in_random_order(5, 5).tolist() == [0, 1, 2, 3, 4]
    order = in_random_order(1000, 100)
    assert sorted(order.tolist()) == list(range(1000))
    assert abs(order[:100].double().mean() - 499.5) < 4 * 1000 / 12**0.5 / 10  # a data set sorted by class is not cut off
    assert torch.equal(order, in_random_order(1000, 100))


def test_real_features_are_made_once(network, tmp_path):
    first = real_features(network, PIXELS, 127.5, tmp_path / "cache")
    assert network.seen == 30
    second = real_features(network, PIXELS, 127.5, tmp_path / "cache")
    assert network.seen == 30
    torch.testing.assert_close(first.rows, network.network(PIXELS.float() / 127.5 - 1))
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.gaussian.covariance, second.gaussian.covariance)
    assert (first.num, first.sha256) == (second.num, second.sha256) == (30, pixel_sha256(PIXELS, 127.5))
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_other_data_another_scale_and_another_network_are_kept_apart(network, tmp_path):
    changed = PIXELS.clone()
    changed[7, 1, 2, 3] ^= 1
    sets = [(PIXELS, 127.5), (changed, 127.5), (PIXELS, 100.0), (PIXELS[:29], 127.5), (PIXELS.reshape(30, 3, 4, 16), 127.5)]
    for pixels, half in sets:
        before = network.seen
        real_features(network, pixels, half, tmp_path / "cache")
        assert network.seen == before + len(pixels)
    for attribute in ("name", "sha256"):
        setattr(network, attribute, "another")
        before = network.seen
        real_features(network, PIXELS, 127.5, tmp_path / "cache")
        assert network.seen == before + 30
    assert len(list((tmp_path / "cache").iterdir())) == len(sets) + 2


@pytest.mark.parametrize("what", ["truncated", "of other data", "empty"])
def test_a_file_that_is_not_what_its_name_says_is_made_again(what, network, tmp_path):
    cache = tmp_path / "cache"
    expected = real_features(network, PIXELS, 127.5, cache)
    (path,) = cache.iterdir()
    if what == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif what == "empty":
        path.write_bytes(b"")
    else:  # under this name: the key inside gives it away
        real_features(network, PIXELS.flip(0), 127.5, tmp_path / "elsewhere")
        (other,) = (tmp_path / "elsewhere").iterdir()
        other.replace(path)
    seen = network.seen
    found = real_features(network, PIXELS, 127.5, cache)
    assert network.seen == seen + 30
    assert torch.equal(found.rows, expected.rows)
    real_features(network, PIXELS, 127.5, cache)
    assert network.seen == seen + 30


def test_a_disk_that_fails_leaves_nothing(tmp_path, monkeypatch):
    found = describe(PooledPixels(), [PIXELS.float()])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_statistics(tmp_path / "a.npz", found, KEY)
    assert list(tmp_path.iterdir()) == []


def test_published_statistics_are_read(tmp_path):
    rng = np.random.default_rng(0)
    mu, sigma = rng.normal(size=5), np.cov(rng.normal(size=(5, 40)))
    np.savez(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    found, key = load_statistics(tmp_path / "edm.npz")
    assert np.array_equal(found.gaussian.mean.numpy(), mu)
    assert np.array_equal(found.gaussian.covariance.numpy(), sigma)
    assert (found.num, found.rows, key) == (None, None, None)
    assert len(found.sha256) == 64


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_statistics_in_other_features_of_equally_many_dimensions_are_refused(network, tmp_path):
    """A distance to them would be a number like any other."""
    found = describe(network, [PIXELS.float() / 127.5 - 1])
    save_statistics(tmp_path / "own.npz", found, {"features": network_id(network)})
    assert torch.equal(statistics_for(network, tmp_path / "own.npz").gaussian.mean, found.gaussian.mean)
    renamed = {"name": "renamed", "sha256": network.sha256}
    save_statistics(tmp_path / "renamed.npz", found, {"features": renamed})
    assert statistics_for(network, tmp_path / "renamed.npz").num == 30
    save_statistics(tmp_path / "others.npz", found, {"features": {"name": "mnist-second", "sha256": "12" * 32}})
    with pytest.raises(
        FeatureError, match=r"in the features mnist-second, whose sha256 is 121212121212, and samples are measured in small"
    ):
        statistics_for(network, tmp_path / "others.npz")
    np.savez(tmp_path / "published.npz", mu=found.gaussian.mean, sigma=found.gaussian.covariance)
    assert statistics_for(network, tmp_path / "published.npz").num is None


def test_what_is_no_statistics_is_refused(tmp_path):
    mu, sigma = np.zeros(3), np.eye(3)
    bad = {
        "has no array sigma": {"mu": mu},
        "has no array mu and no sigma": {"mean": mu},
        r"has mu \[3\] and sigma \[2, 2\]": {"mu": mu, "sigma": np.eye(2)},
        r"has mu \[3, 1\]": {"mu": mu[:, None], "sigma": sigma},
        "give finite arrays": {"mu": mu * np.nan, "sigma": sigma},
    }
    for message, arrays in bad.items():
        np.savez(tmp_path / "bad.npz", **arrays)
        with pytest.raises(FeatureError, match=message):
            load_statistics(tmp_path / "bad.npz")
    np.savez(tmp_path / "bomb.npz", mu=np.array([Bomb(tmp_path / "ran")], dtype=object), sigma=sigma)
    (tmp_path / "text.npz").write_text("hello")
    np.save(tmp_path / "array.npy", mu)
    for name in ("bomb.npz", "text.npz", "array.npy"):
        with pytest.raises(FeatureError, match=r"is not a whole \.npz of plain arrays"):
            load_statistics(tmp_path / name)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(FeatureError, match="there is no file"):
        load_statistics(tmp_path / "none.npz")


def spread(dims=4):
    x = np.random.default_rng(0).standard_normal((50, dims))
    return np.cov(x, rowvar=False)


def negative(sigma):
    values, vectors = np.linalg.eigh(sigma)
    return (vectors * np.where(np.arange(len(values)) == 1, -0.5, values)) @ vectors.T


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (negative, "not a covariance: an eigenvalue is negative, -"),
        (lambda sigma: -sigma, "not a covariance"),
        (lambda sigma: sigma + np.triu(np.ones_like(sigma), 1), "is not symmetric"),
        (lambda sigma: sigma + 0.1j, "complex numbers"),
        (lambda sigma: sigma * np.nan, "finite"),
    ],
)
def test_what_is_no_covariance_is_refused(change, said, tmp_path):
    np.savez(tmp_path / "bad.npz", mu=np.zeros(4), sigma=change(spread()))
    with pytest.raises(FeatureError, match=said):
        load_statistics(tmp_path / "bad.npz")


@pytest.mark.parametrize("sigma", [spread(), spread().astype(np.float32), np.zeros((4, 4)), np.diag([1.0, 0, 0, 1e-9])])
def test_a_covariance_may_be_flat_and_rounded(sigma, tmp_path):
    rounding = 1e-8 * np.random.default_rng(1).standard_normal(sigma.shape)
    np.savez(tmp_path / "good.npz", mu=np.zeros(4), sigma=sigma + rounding * np.abs(sigma).max())
    load_statistics(tmp_path / "good.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_named(bad):
    images = PIXELS.float() / 127.5 - 1
    images[3, 0, 0, 0] = images[17, 1, 2, 3] = bad
    with pytest.raises(FeatureError, match=f"features {PooledPixels().name} of 2 of 30 images are not finite"):
        describe(PooledPixels(), [images])
