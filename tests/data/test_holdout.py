"""A holdout that cannot be split is refused with a value that would do, and that value does."""

import random

import numpy as np
import pytest
import torch

from fewstep.data.errors import DataError
from fewstep.data.holdout import count_fitting, fitting, hold_out
from fewstep.data.own import item_data
from fewstep.data.points import LEAST, point_file
from picture_folders import encoded, lines, opened, put, refusal, two_classes


def suggested(told):
    return float(told.rpartition("data.holdout=")[2].removesuffix(" would do"))


@pytest.mark.parametrize("seed", range(120))
def test_the_value_that_is_given_splits_classes_of_any_sizes(seed):
    chance = random.Random(seed)
    counts = [chance.choice([2, 2, 3, 4, 7, 30, 200]) for _ in range(chance.randint(1, 30))]
    labels = torch.tensor([k for k, count in enumerate(counts) for _ in range(count)])
    names = tuple(f"c{k}" for k in range(len(counts)))
    holdout = chance.choice([1e-6, 0.001, 0.01, 0.05, 0.5, 0.9, 0.99, 0.999999])
    try:
        keep, out, how = hold_out("data.path is 'x'", len(labels), labels, names, holdout)
    except DataError as error:
        keep, out, how = hold_out("data.path is 'x'", len(labels), labels, names, suggested(str(error)))
    assert sorted([*keep.tolist(), *out.tolist()]) == list(range(len(labels)))
    assert len(out) >= 1
    assert set(labels[keep].tolist()) == set(range(len(counts)))  # each class is trained on
    assert "data.holdout" in how


@pytest.mark.parametrize("num", [2, 3, 5, 39, 1000])
@pytest.mark.parametrize("holdout", [1e-9, 0.999999999])
def test_the_value_that_is_given_splits_images_without_classes(num, holdout):
    try:
        keep, out, _ = hold_out("data.path is 'x'", num, None, (), holdout)
    except DataError as error:
        keep, out, _ = hold_out("data.path is 'x'", num, None, (), suggested(str(error)))
    assert min(len(keep), len(out)) >= 1
    assert len(keep) + len(out) == num


def test_a_class_that_would_not_be_trained_on_is_named():
    """Of 100 and 2 images scikit-learn would put both of the latter into the held-out part."""
    labels = torch.tensor([0] * 100 + [1] * 2)
    with pytest.raises(DataError, match=r"it leaves the class rare no image to train on; data\.holdout=0\.7 would do"):
        hold_out("data.path is 'x'", 102, labels, ("usual", "rare"), 0.98)


def test_classes_of_one_image_are_named():
    labels = torch.tensor([0, 0, 1, 2])
    with pytest.raises(DataError, match=r"1 in its smallest class; .* classes b, c have fewer: add images, take these classes out"):
        hold_out("data.path is 'x'", 4, labels, ("a", "b", "c"), 0.5)


@pytest.mark.parametrize("holdout", [0.01, 0.99])
def test_the_value_that_is_given_splits_a_folder(holdout, tmp_path):
    two_classes(tmp_path, 5)
    value = suggested(refusal(tmp_path, holdout=holdout))
    data = opened(tmp_path, holdout=value)
    assert len(data.train) + len(data.heldout) == 10
    assert f"the fraction {value:.15g} of the images (data.holdout)" in lines(data)


@pytest.mark.parametrize("num", [1, 2, 7, 50, 79, 80, 81, 123, 1000, 99_991])
@pytest.mark.parametrize("least", [1, 40])
@pytest.mark.parametrize("asked", [1e-9, 0.0004, 0.2, 0.5, 0.77, 0.999999])
def test_a_value_is_found_wherever_there_is_one(num, least, asked):
    value = count_fitting(asked, num, least)
    assert (value is None) == (num < 2 * least)
    if value is not None:
        assert 0 < value < 1
        assert least <= round(float(f"{value:.15g}") * num) <= num - least


def test_the_nearest_usual_value_is_given():
    assert fitting(0.02, 100, lambda value: value * 100 >= 9.9) == 0.1
    assert fitting(0.97, 100, lambda value: value <= 0.85) == 0.8
    assert fitting(0.5, 100, lambda value: False) is None


@pytest.mark.parametrize(("num", "holdout"), [(100, 0.1), (85, 0.2), (81, 0.9), (80, 0.01), (1000, 0.999)])
def test_the_value_that_is_given_splits_points(num, holdout, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(num, 2)))
    with pytest.raises(DataError) as caught:
        point_file(str(tmp_path / "x.npy"), holdout)
    data = point_file(str(tmp_path / "x.npy"), suggested(str(caught.value)))
    assert min(len(data.train), len(data.heldout)) >= LEAST


def test_too_few_points_for_any_value(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(79, 2)))
    with pytest.raises(DataError, match="each part needs 40: give at least 80 points"):
        point_file(str(tmp_path / "x.npy"), 0.5)


class Few(list):
    """A data set of one's own."""


@pytest.mark.parametrize(("num", "holdout"), [(3, 0.1), (4, 0.95), (2, 0.01)])
def test_the_value_that_is_given_splits_a_set_of_one_s_own(num, holdout):
    items = Few(torch.zeros(1, 4, 4) for _ in range(num))
    with pytest.raises(DataError) as caught:
        item_data(items, "few", holdout=holdout)
    data = item_data(items, "few", holdout=suggested(str(caught.value)))
    assert min(data.train_size, data.heldout_size) >= 1


def test_one_item_cannot_be_split():
    with pytest.raises(DataError, match="each part needs one: add items"):
        item_data(Few([torch.zeros(1, 4, 4)]), "few", holdout=0.5)


# --- splits that lie there --------------------------------------------------------------------------------------------------------


def kaggle(root, test="test/{}.png", num=5):
    for number, label in enumerate(("cat", "dog")):
        for k in range(12):
            put(root / "train" / label / f"{k}.png", encoded(seed=12 * number + k))
    for k in range(num):
        put(root / test.format(k), encoded(seed=100 + k))


PLACES = ["test/{}.png", "test/test/{}.png", "test/unknown/{}.png", "Test/{}.png", "val/{}.png", "test/Images/{}.png"]


@pytest.mark.parametrize("test", PLACES)
def test_a_split_without_labels_is_passed_over_and_told_with_the_keys_to_set(test, tmp_path):
    kaggle(tmp_path, test)
    data = opened(tmp_path)
    assert (len(data.train), len(data.heldout), data.class_names) == (18, 6, ("cat", "dog"))
    folder = test.partition("/")[0]
    assert data.note.startswith(
        f"the images of {folder}/ lie in no class sub-folders and have no labels, so data.holdout of train/ is held"
    )
    text = lines(data)
    assert f"left out: 5 images of {folder}/, without class sub-folders ({test.format(0)}, {test.format(1)}, {test.format(2)} and 2" in text
    assert data.note in text
    assert "trained on: 18 (train/); held out: 6 (the fraction 0.25 of the images (data.holdout)" in text
    # which is what it says
    without = opened(tmp_path, label_column="none")
    assert (len(without.train), len(without.heldout), without.class_names) == (24, 5, ())
    assert f"held out: 5 ({folder}/, which lies there as a split of its own)" in lines(without)


def test_a_labelled_validation_split_is_held_out_instead(tmp_path):
    kaggle(tmp_path)
    for label in ("cat", "dog"):
        put(tmp_path / "val" / label / "0.png", encoded(seed=7))
    data = opened(tmp_path)
    assert (len(data.train), len(data.heldout)) == (24, 2)
    text = lines(data)
    assert "left out: 5 images of test/, without class sub-folders" in text
    assert "held out: 2 (val/, which lies there as a split of its own)" in text


def test_a_third_split_is_left_out_and_told(tmp_path):
    kaggle(tmp_path, "test/cat/{}.png")
    for k in range(4):
        put(tmp_path / "val" / "dog" / f"{k}.png", encoded(seed=50 + k))
    text = lines(opened(tmp_path))
    assert "left out: 4 images of val/, which is not needed beside test/ (val/dog/0.png" in text


def test_a_class_of_the_test_split_alone_is_still_a_mistake(tmp_path):
    kaggle(tmp_path, "test/zebra/{}.png")
    assert "1 class without a training image: zebra" in refusal(tmp_path)
