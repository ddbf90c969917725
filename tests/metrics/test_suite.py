import json
import time

import numpy as np
import pytest
import torch

import untrained
from fewstep.data import load_digits
from fewstep.metrics import frechet_distance, kernel_distance, precision_recall
from fewstep.metrics import statistics as metric_statistics
from fewstep.metrics import suite as metric_suite
from fewstep.metrics.features import PooledPixels, extract, feature_network
from fewstep.metrics.frechet import Moments
from fewstep.metrics.kernel_mmd import kernel_distance_subsets
from fewstep.metrics.manifold import nearest_distance
from fewstep.metrics.self_test import self_test
from fewstep.metrics.statistics import FeatureSet, in_random_order, pixel_sha256
from fewstep.metrics.suite import Suite, images_per_second, within_class_std

DIGITS = load_digits()
TRAIN, HELDOUT, LABEL, HELDOUT_LABEL = (*map(DIGITS.images, ("train", "heldout")), *map(DIGITS.labels, ("train", "heldout")))


@pytest.fixture(scope="module")
def suite():
    return Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"))


def test_figures_are_the_metrics_of_the_features(suite):
    noisy = (TRAIN[:300] + 0.3 * torch.randn(TRAIN[:300].shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    row = suite.measure(noisy, LABEL[:300])
    samples, train, heldout = (extract(suite.network, x) for x in (noisy, TRAIN, HELDOUT))
    assert row["frechet"] == pytest.approx(frechet_distance(samples, heldout), rel=1e-9)
    assert row["frechet_train"] == pytest.approx(frechet_distance(samples, train), rel=1e-9)
    assert row["frechet_over_floor"] == pytest.approx(row["frechet"] / frechet_distance(train, heldout))
    assert row["kernel"] == kernel_distance(samples, heldout)
    assert (row["precision"], row["recall"]) == precision_recall(heldout, samples)
    assert row["class_accuracy"] == (suite.network.classify(samples).argmax(1) == LABEL[:300]).double().mean()
    pixels, ours, other = (x.flatten(1).double().numpy() for x in (TRAIN, noisy, HELDOUT))

    def mean_nearest(rows, others):
        return np.mean([np.linalg.norm(others - row, axis=1).min() for row in rows])

    def mean_spacing(rows):
        return np.mean([np.linalg.norm(np.delete(rows, i, 0) - row, axis=1).min() for i, row in enumerate(rows)])

    assert row["train_distance"] == pytest.approx(mean_nearest(ours, pixels) / mean_nearest(other, pixels))
    assert row["spacing"] == pytest.approx(mean_spacing(ours) / mean_spacing(pixels[in_random_order(len(pixels), 300)[:300]]))


def test_spacing_is_compared_with_all_classes_of_a_sorted_set():
    """Half of the images lie close together, and come first; a random set of the same images is as far apart as they are.

    Each mean of 100 images is of about 50 wide distances, all within a few percent of each other in 64 dimensions, so that the ratio has
    a standard deviation of about 0.14 by the number of wide ones; of the first 100 images alone it would be about 5.
    """
    rng = torch.Generator().manual_seed(0)
    train = torch.cat([scale * torch.randn(200, 1, 8, 8, generator=rng) for scale in (0.02, 0.2)])
    heldout = train[torch.randperm(400, generator=rng)[:80]] + 0.01
    samples = train[torch.randperm(400, generator=rng)[:100]]
    row = Suite(train, heldout, None, None, PooledPixels(), num=100).measure(samples, None)
    assert row["spacing"] == pytest.approx(1, abs=0.45)


def test_floor_row_is_real_data_against_real_data(suite):
    row = suite.floor_row()
    assert row["frechet_over_floor"] == 1
    assert row["within_class_std"] == row["spacing"] == row["train_distance"] == 1
    assert row["frechet_train"] == 0
    assert row["class_accuracy"] > 0.98
    assert (row["precision"], row["recall"]) == precision_recall(suite.heldout_features, suite.train_features)
    assert row["frechet"] == suite.floor == pytest.approx(frechet_distance(suite.train_features, suite.heldout_features), rel=1e-9)
    half = len(TRAIN) // 2
    assert row["frechet"] < suite.measure(-TRAIN[:half], LABEL[:half])["frechet"] / 10  # black for white


def test_a_collapsed_set_shows(suite):
    one_each = torch.stack([TRAIN[k == LABEL][0] for k in range(10)])
    label = torch.arange(500) % 10
    collapsed = one_each[label] + 0.02 * torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    row, floor = suite.measure(collapsed, label), suite.floor_row()
    assert row["precision"] > 0.9
    assert row["recall"] < 0.1 < floor["recall"]
    assert row["within_class_std"] < 0.1
    assert row["spacing"] < 0.2
    assert row["frechet"] > 3 * floor["frechet"]
    assert row["kernel"] > floor["kernel"]
    assert row["class_accuracy"] > 0.98


def test_learning_the_train_split_by_heart_shows(suite):
    copies = TRAIN.flip(0)
    row = suite.measure(copies, LABEL.flip(0))
    assert row["train_distance"] == 0  # below 1 is memorising
    assert abs(row["frechet_train"]) < 1e-6 < row["frechet"]
    assert row["frechet_over_floor"] == pytest.approx(1)
    honest = suite.measure(HELDOUT, HELDOUT_LABEL)
    assert honest["train_distance"] == 1


def test_class_accuracy_is_of_the_class_asked_for(suite):
    wrong = HELDOUT_LABEL.clone()
    wrong[:180] = (wrong[:180] + 1) % 10
    assert 0.48 <= suite.measure(HELDOUT, wrong)["class_accuracy"] <= 0.52
    assert "class_accuracy" not in suite.measure(HELDOUT, None)
    assert "class_accuracy" not in Suite(TRAIN[:50], HELDOUT[:50], LABEL[:50], None, PooledPixels()).measure(HELDOUT, HELDOUT_LABEL)


def test_within_class_std_is_of_the_classes_that_both_have():
    """True samples of a narrow and of a wide class; where one sample alone is of the wide class, it says nothing of its spread."""
    rng, label = torch.Generator().manual_seed(0), torch.arange(600) % 2
    images = torch.randn(600, 1, 8, 8, generator=rng) * (0.02 + 0.3 * label[:, None, None, None])
    measured = Suite(images[:400], images[400:], label[:400], label[400:], PooledPixels())
    narrow, wide = ((label[400:] == k).nonzero().flatten() for k in range(2))
    for chosen in (torch.cat([narrow, wide]), torch.cat([narrow, wide[:1]])):
        row = measured.measure(images[400:][chosen], label[400:][chosen])
        assert row["within_class_std"] == pytest.approx(1, abs=0.05)


def test_within_class_std_weighs_classes_alike():
    rng = np.random.default_rng(0)
    groups = [rng.normal(k, k + 1, size=(num, 5)) for k, num in enumerate((4, 40, 11))]
    variances = [np.mean([np.var(column, ddof=1) for column in group.T]) for group in groups]
    x, label = torch.from_numpy(np.concatenate(groups)), torch.tensor([0] * 4 + [1] * 40 + [2] * 11)
    assert within_class_std(x, label) == pytest.approx(np.sqrt(np.mean(variances)))
    assert within_class_std(x, None) == pytest.approx(np.sqrt(np.mean(np.var(x.numpy(), axis=0, ddof=1))))
    alone = torch.cat([x, torch.full((1, 5), 99.0)]), torch.cat([label, torch.tensor([3])])
    assert within_class_std(*alone) == within_class_std(x, label)  # one item has no spread


@pytest.mark.parametrize(("long", "rate", "times"), [(8.0, 5.0, 4), (7.0, 1.25, 1)])
def test_speed_is_the_median_after_a_warm_up_or_that_of_the_warm_up_where_it_takes_long(long, rate, times, monkeypatch):
    calls, ticks = [], iter([0.0, 8.0, 100.0, 101.0, 200.0, 202.0, 300.0, 303.0])  # calls of 8, 1, 2 and 3 seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(metric_suite, "LONG", long)
    assert images_per_second(calls.append, 10) == rate
    assert calls == times * [10]


# --- sets too large to hold, other references, and what takes long ----------------------------------------------------


def test_bytes_give_the_figures_of_the_images_they_stand_for(suite):
    by_bytes = Suite(DIGITS.train, DIGITS.heldout, LABEL, HELDOUT_LABEL, feature_network("digits"), half=8.0)
    samples = TRAIN[:300].flip(2)
    pairs = [(by_bytes.floor_row(), suite.floor_row())]
    for found, expected in (*pairs, (by_bytes.measure(samples, LABEL[:300]), suite.measure(samples, LABEL[:300]))):
        words = {key for key, value in expected.items() if isinstance(value, str)}
        assert {key: found.pop(key) for key in words} == {key: expected.pop(key) for key in words}
        assert found == pytest.approx(expected)


def test_the_size_of_the_batches_does_not_matter(suite):
    samples = TRAIN[:301].flip(2)
    whole = suite.measure(samples, LABEL[:301], slow=True)
    bias = whole.pop("frechet_bias")
    parts = suite.measure_batches(samples.split(100), LABEL[:301], slow=True)
    assert parts.pop("frechet_bias") != bias  # whose halves are others
    for whose in ("least_class_std_of", "least_class_accuracy_of"):
        assert parts.pop(whose) == whole.pop(whose)
    assert parts == pytest.approx(whole, rel=1e-6)
    of_classes = ("class_accuracy", "least_class_accuracy", "least_class_std")
    assert list(suite.measure(samples, None)) == [name for name in whole if name not in of_classes]


def test_only_so_many_rows_and_images_are_kept(monkeypatch):
    """The Frechet distance and the class accuracy are of all; pairs are looked at among the first samples and a random part of the data."""
    monkeypatch.setattr(metric_statistics, "KEPT", 50)
    monkeypatch.setattr(metric_statistics.in_random_order, "__defaults__", (50,))
    monkeypatch.setattr(metric_suite, "PIXELS", 40)
    small = Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"))
    heldout, train = in_random_order(360, 50)[:50], in_random_order(1437, 40)[:40]
    samples, label = TRAIN[:300].flip(2), LABEL[:300]
    row, features = small.measure(samples, label), extract(small.network, samples)
    real = extract(small.network, HELDOUT)
    assert row["frechet"] == pytest.approx(frechet_distance(features, real), rel=1e-9)
    assert row["class_accuracy"] == (small.network.classify(features).argmax(1) == label).double().mean()
    torch.testing.assert_close(small.heldout_features, real[heldout])
    assert (row["precision"], row["recall"]) == precision_recall(real[heldout], features[:50])
    assert row["kernel"] == pytest.approx(kernel_distance(features[:50], real[heldout]))
    ours, theirs = (nearest_distance(x.flatten(1), x.flatten(1), same=True).mean() for x in (samples[:40], TRAIN[train]))
    assert row["spacing"] == pytest.approx((ours / theirs).item())
    both = torch.isin(LABEL, (label[:40].bincount(minlength=10) > 1).nonzero().flatten())  # one item alone has no spread
    assert not both.all()
    assert row["within_class_std"] == pytest.approx(within_class_std(samples[:40], label[:40]) / within_class_std(TRAIN[both], LABEL[both]))
    assert len(set(heldout.tolist())) == 50
    assert (small.floor_row()["frechet"], small.floor_row()["class_accuracy"]) == (small.floor, 1.0)


def test_against_the_train_split(suite):
    other = Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"), reference="train")
    samples = TRAIN[:300].flip(2)
    row, usual = other.measure(samples, LABEL[:300]), suite.measure(samples, LABEL[:300])
    assert row["frechet"] == row["frechet_train"] == usual["frechet_train"]
    features = extract(suite.network, samples)
    assert (row["precision"], row["recall"]) == precision_recall(suite.train_features, features)
    floor = other.floor_row()
    assert other.floor_name == "real held-out split"
    assert floor["frechet"] == floor["frechet_train"] == other.floor == pytest.approx(suite.floor)
    assert floor["train_distance"] == 1
    assert floor["frechet_over_floor"] == 1
    assert 0.9 < floor["within_class_std"] < 1.1
    assert floor["class_accuracy"] > 0.98
    assert other.protocol()["reference"] == {"what": "train split", "num": 1437, "sha256": pixel_sha256(TRAIN, None)}


def test_against_statistics_that_have_no_rows(suite):
    """As published ones: there is no kernel distance, precision or recall to be had."""
    published = FeatureSet(suite.heldout_set.gaussian, None, None, None, "abc")
    other = Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"), reference=published)
    row, usual = other.measure(TRAIN[:300].flip(2), None), suite.measure(TRAIN[:300].flip(2), None)
    assert not {"kernel", "precision", "recall"} & set(row)
    assert row["frechet"] == usual["frechet"]
    assert other.protocol()["reference"] == {"what": "a file of statistics", "num": None, "sha256": "abc"}
    wrong = FeatureSet(Moments.of(torch.randn(9, 5)).gaussian(), None, None)
    with pytest.raises(ValueError, match="the reference has 5 dimensions, and digits-v1 gives 64"):
        Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"), reference=wrong)


def test_what_takes_long(suite, monkeypatch):
    monkeypatch.setattr(metric_suite, "SUBSET", 200)
    samples = TRAIN[:400].flip(2)
    row, quick = suite.measure(samples, None, slow=True), suite.measure(samples, None)
    assert set(row) - set(quick) == {"kernel_subsets", "kernel_subsets_std", "frechet_bias"}
    features = extract(suite.network, samples)
    mean, deviation = kernel_distance_subsets(features, suite.heldout_features, size=200)
    assert (row["kernel_subsets"], row["kernel_subsets_std"]) == pytest.approx((mean, deviation))
    halves = [frechet_distance(half, suite.heldout_features) for half in features.chunk(2)]
    assert row["frechet_bias"] == pytest.approx(sum(halves) / 2 - row["frechet"])
    assert row["frechet_bias"] > 0


def test_the_self_test_finds_nothing_in_real_data_and_something_in_data_of_two_kinds(suite):
    found = self_test(suite.train_features, 8)
    assert found["num"] == 718
    assert found["frechet"] > 0.3  # which is bias
    assert abs(found["rest"]) < 4 * found["spread"] / 8**0.5
    assert abs(found["kernel"]) < 0.02
    assert found["bias"] + found["rest"] == pytest.approx(found["frechet"])
    assert found["frechet"] / 2 < found["bias"] < found["frechet"] * 2
    with pytest.raises(ValueError, match="a self-test needs 8"):
        self_test(suite.train_features[:7])


# --- floors of as many images as samples, classes, copies, and a second judge ------------------------------------------


def small(num=None, **options):
    return Suite(TRAIN, HELDOUT, LABEL, HELDOUT_LABEL, feature_network("digits"), num=num, **options)


@pytest.mark.parametrize("num", [100, 700])
@pytest.mark.parametrize("kept", [10_000, 300])  # rows that are kept of any set
def test_the_floor_is_of_as_many_real_images_as_there_are_samples(num, kept, suite, monkeypatch):
    monkeypatch.setattr(metric_statistics, "KEPT", kept)
    monkeypatch.setattr(metric_statistics.in_random_order, "__defaults__", (kept,))
    found, again = small(num), small(num)
    assert found.floor == again.floor > suite.floor  # always the same images; of fewer, so more bias
    some = found.floor_index
    assert len(some) == len(some.unique()) == min(num, kept)
    if num <= kept:
        assert found.floor == pytest.approx(frechet_distance(extract(found.network, TRAIN[some]), extract(found.network, HELDOUT)))
    row = found.floor_row()
    assert (row["frechet"], row["frechet_over_floor"]) == (found.floor, 1)
    assert row["class_accuracy"] > 0.98
    assert found.protocol()["floor_n"] == num
    halves = found.measure(TRAIN[torch.randperm(1437, generator=torch.Generator().manual_seed(5))[:num]], None)
    assert 0.7 < halves["frechet_over_floor"] < 1.4  # other real images of the same number


@pytest.mark.parametrize("num", [None, 1437, 2000])
def test_the_floor_of_all_images_is_what_it_was(num, suite):
    found = small(num)
    assert found.floor == suite.floor
    assert found.floor_row() == suite.floor_row()
    assert found.protocol() == suite.protocol()
    assert "floor_n" not in found.protocol()


def test_the_floor_against_the_train_split_is_of_held_out_images():
    found = small(100, reference="train")
    assert found.protocol()["floor_n"] == 100
    assert set(found.floor_index.tolist()) <= set(range(360))
    assert found.floor_row()["frechet_train"] == found.floor


def test_the_class_that_is_worst_off_is_named():
    found = small(class_names=tuple("abcdefghij"))
    label = torch.arange(600) % 10
    samples = torch.stack([TRAIN[k == LABEL][i] for i in range(60) for k in range(10)])
    honest = found.measure(samples, label)
    assert honest["least_class_std"] > 0.8
    assert honest["least_class_accuracy"] > 0.95
    collapsed = samples.clone()
    collapsed[label == 3] = samples[3] + 0.01 * torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    row = found.measure(collapsed, label)
    assert (row["least_class_std_of"], row["least_class_std"] < 0.1) == ("d", True)
    assert row["within_class_std"] > 0.8  # of which the mean over classes tells little
    variances = [collapsed[label == k].double().var(0).mean() / TRAIN[k == LABEL].double().var(0).mean() for k in range(10)]
    assert row["least_class_std"] == pytest.approx(min(variances).sqrt().item(), rel=1e-6)
    wrong = label.clone()
    wrong[label == 7] = 8
    row = found.measure(samples, wrong)
    assert row["least_class_accuracy_of"] == "i"
    assert 0.4 < row["least_class_accuracy"] < 0.6
    assert not {"least_class_std", "least_class_accuracy", "least_class_std_of"} & found.measure(samples, None).keys()


def test_copies_of_training_images_are_counted(suite):
    samples = HELDOUT.clone()
    samples[:36] = TRAIN[:36]
    samples[36:72] = (TRAIN[36:72] + 0.01).clamp(-1, 1)
    row = suite.measure(samples, None)
    assert row["copies"] == 0.1  # the others are a byte off
    assert row["near_copies"] == pytest.approx(0.2, abs=0.01)
    floor = suite.floor_row()
    assert floor["copies"] == 0
    assert floor["near_copies"] < 0.01


def test_a_second_judge_has_a_floor_of_its_own(tmp_path):
    network = untrained.network()
    network.name, network.sha256 = "mine", "abc"
    found = small(100, second=network)
    some, samples = found.floor_index, TRAIN[:300].flip(2)
    to = extract(network, HELDOUT)
    expected = frechet_distance(extract(network, samples), to) / frechet_distance(extract(network, TRAIN[some]), to)
    assert found.measure(samples, None)["frechet_second_over_floor"] == pytest.approx(expected, rel=1e-6)
    assert found.floor_row()["frechet_second_over_floor"] == 1
    assert found.protocol()["second"] == {"name": "mine", "sha256": "abc"}
    assert found.floor_row()["precision"] == min(
        precision_recall(real, rows)[0]
        for real, rows in ((found.heldout_features, found.train_features[some]), (to, extract(network, TRAIN[some])))
    )
    published = FeatureSet(found.heldout_set.gaussian, None, None, None, "abc")
    assert small(second=network, reference=published).second is None


def test_precision_and_recall_are_the_lesser_of_two_judges():
    """Two pixels are little to judge by: to this one much looks real that is not."""

    class TwoPixels:
        name = "two pixels"

        def __call__(self, images):
            return images[:, 0, 3:5, 4]

    alone, other = small(), small(second=TwoPixels())
    for samples in (HELDOUT, TRAIN[:300].flip(2), torch.randn(300, *TRAIN.shape[1:], generator=torch.Generator().manual_seed(0))):
        mine, both = alone.measure(samples, None), other.measure(samples, None)
        theirs = precision_recall(TwoPixels()(HELDOUT), TwoPixels()(samples))
        assert (both["precision"], both["recall"]) == (min(mine["precision"], theirs[0]), min(mine["recall"], theirs[1]))
        assert both["frechet"] == mine["frechet"]


@pytest.mark.parametrize(
    ("train", "heldout", "gone"),
    [
        # the held-out images are the training images: their distance to these, and the floor, are 0 but for rounding
        (range(100), range(100), {"frechet_over_floor", "train_distance"}),
        # every image twice: none is apart from its nearest neighbour
        ([*range(60), *range(60)], range(100, 160), {"spacing"}),
        # one image a class, repeated: nothing varies within a class, and none is apart from its nearest neighbour
        ([0, 1] * 50, range(100, 160), {"within_class_std", "least_class_std", "spacing"}),
    ],
)
def test_a_ratio_to_nothing_is_left_out(train, heldout, gone):
    made = torch.rand(120, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    train, heldout = list(train), list(heldout)
    label = torch.tensor(train) % 2
    against = Suite(TRAIN[train], TRAIN[heldout], label, torch.tensor(heldout) % 2, PooledPixels(), num=120)
    row = against.measure(made, torch.arange(120) % 2)
    known = {"frechet", "frechet_over_floor", "frechet_train", "train_distance", "spacing", "within_class_std", "least_class_std"}
    assert known - row.keys() == gone
    assert against.undefined.keys() & known == gone  # it is known before anything is measured
    assert all(np.isfinite(value) for value in row.values() if isinstance(value, float))
    json.dumps(against.floor_row(), allow_nan=False)
