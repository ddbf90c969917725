import time

import numpy as np
import pytest
import torch

from fewstep.data import load_digits
from fewstep.metrics import frechet_distance, kernel_distance, precision_recall
from fewstep.metrics.features import PooledPixels, extract, feature_network
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
    assert row["frechet"] == frechet_distance(samples, heldout)
    assert row["frechet_train"] == frechet_distance(samples, train)
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
    assert row["spacing"] == pytest.approx(mean_spacing(ours) / mean_spacing(pixels[:300]))


def test_floor_row_is_real_data_against_real_data(suite):
    row = suite.floor_row()
    assert row["frechet_over_floor"] == 1
    assert row["within_class_std"] == row["spacing"] == row["train_distance"] == 1
    assert row["frechet_train"] == 0
    assert row["class_accuracy"] > 0.98
    assert (row["precision"], row["recall"]) == precision_recall(suite.heldout_features, suite.train_features)
    assert row["frechet"] == suite.floor == frechet_distance(suite.train_features, suite.heldout_features)
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


def test_within_class_std_weighs_classes_alike():
    rng = np.random.default_rng(0)
    groups = [rng.normal(k, k + 1, size=(num, 5)) for k, num in enumerate((4, 40, 11))]
    variances = [np.mean([np.var(column, ddof=1) for column in group.T]) for group in groups]
    x, label = torch.from_numpy(np.concatenate(groups)), torch.tensor([0] * 4 + [1] * 40 + [2] * 11)
    assert within_class_std(x, label) == pytest.approx(np.sqrt(np.mean(variances)))
    assert within_class_std(x, None) == pytest.approx(np.sqrt(np.mean(np.var(x.numpy(), axis=0, ddof=1))))
    alone = torch.cat([x, torch.full((1, 5), 99.0)]), torch.cat([label, torch.tensor([3])])
    assert within_class_std(*alone) == within_class_std(x, label)  # one item has no spread


def test_speed_is_the_median_after_a_warm_up(monkeypatch):
    calls, ticks = [], iter([0.0, 8.0, 100.0, 101.0, 200.0, 202.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert images_per_second(calls.append, 10) == 5  # 10 images in 2 seconds
    assert calls == [10, 10, 10, 10]
