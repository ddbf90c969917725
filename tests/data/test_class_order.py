"""Numbers in the names of classes are numbers, and nobody's labels change their meaning."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fewstep.data import ImageData
from fewstep.data.class_order import in_order_of, natural_order, other_names, renumbered
from fewstep.data.errors import DataError
from fewstep.data.images import stratified_split
from picture_folders import numbered, opened, plain


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([str(k) for k in range(1, 12)], [str(k) for k in range(1, 12)]),
        (["class10", "class2", "class1"], ["class1", "class2", "class10"]),
        (["b", "a", "C"], ["C", "a", "b"]),
        (["x2y10", "x2y9", "x10y1"], ["x2y9", "x2y10", "x10y1"]),
        (["01", "1", "2", "001"], ["001", "01", "1", "2"]),
        (["-1", "0", "1", "-10"], ["-10", "-1", "0", "1"]),
        (["0.5", "0.25", "10", "2"], ["0.25", "0.5", "2", "10"]),
        (["v1.10", "v1.9"], ["v1.9", "v1.10"]),
        (["10", "9", "cat"], ["9", "10", "cat"]),
        (["n02", "n010", "n1"], ["n1", "n02", "n010"]),
        (["9" * 5000, "1" + "0" * 5000, "x"], ["9" * 5000, "1" + "0" * 5000, "x"]),
        ([], []),
    ],
)
def test_the_order_of_names(names, order):
    assert list(natural_order(names)) == order


@pytest.mark.parametrize("seed", range(200))
def test_the_order_is_of_the_set_and_of_numbers(seed):
    chance = random.Random(seed)
    prefix = chance.choice(["", "class", "a_", "7-"])
    numbers = chance.sample(range(10**6), 20)
    names = [f"{prefix}{number}" for number in numbers]
    assert list(natural_order(names)) == [f"{prefix}{number}" for number in sorted(numbers)]
    words = ["".join(chance.choices("abcXYZ_ é", k=chance.randint(1, 6))) for _ in range(20)]
    assert list(natural_order(words)) == sorted(set(words))  # as it always has been without digits
    mixed = ["".join(chance.choices("ab019.-", k=chance.randint(1, 6))) for _ in range(20)]
    again = chance.sample(mixed, len(mixed))
    assert natural_order(mixed) == natural_order(again)
    assert sorted(natural_order(mixed)) == sorted(set(mixed))


def test_renumbered_labels_name_the_same_classes():
    names, order = ("1", "10", "2"), ("1", "2", "10")
    labels = torch.tensor([0, 1, 2, 1])
    assert [order[k] for k in renumbered(labels, names, order).tolist()] == [names[k] for k in labels.tolist()]


def test_folders_of_numbers_are_in_order_and_each_image_stays_with_its_class(tmp_path):
    """The split is the one of the order of words, as it has been: what a run has held out stays held out."""
    numbered(tmp_path, range(1, 12))
    data = opened(tmp_path)
    assert data.class_names == tuple(str(label) for label in range(1, 12))
    for images, labels in ((data.train, data.train_label), (data.heldout, data.heldout_label)):
        assert (images[:, 0, 0, 0] // 6 == labels + 1).all()
    words = [word for word in sorted(map(str, range(1, 12))) for _ in range(6)]
    _, out = stratified_split([sorted(set(words)).index(word) for word in words], 66, 0.25)
    assert sorted(data.heldout[:, 0, 0, 0].tolist()) == sorted(6 * int(words[k]) + int(k) % 6 for k in out)


def test_words_in_a_table_are_in_order_as_well(tmp_path):
    words = [f"level {k % 11}" for k in range(44)]
    pq.write_table(pa.table({"image": [plain(k % 11) for k in range(44)], "label": words}), tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet")
    assert data.class_names == tuple(f"level {k}" for k in range(11))
    assert (data.train[:, 0, 0, 0] == data.train_label).all()


def test_sub_folders_that_datasets_has_numbered_are_in_order_as_well(tmp_path, tmp_path_factory, monkeypatch):
    """As in a repository of the Hub, which holds the images as files."""
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr("fewstep.data.image_sets.is_of_images", lambda *given: False)
    numbered(tmp_path, range(1, 12))
    data = opened(tmp_path)
    assert data.class_names == tuple(str(label) for label in range(1, 12))
    assert (data.train[:, 0, 0, 0] // 6 == data.train_label + 1).all()


def test_classes_that_a_table_declares_keep_their_numbers(tmp_path):
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["1", "10", "2"])})
    images = [{"bytes": plain(k % 3), "path": None} for k in range(12)]
    datasets.Dataset.from_dict({"image": images, "label": [k % 3 for k in range(12)]}, features).to_parquet(tmp_path / "t.parquet")
    data = opened(tmp_path / "t.parquet")
    assert data.class_names == ("1", "10", "2")
    assert (data.train[:, 0, 0, 0] == data.train_label).all()


# --- what a network was trained with --------------------------------------------------------------------------------------------


def images(names, labels):
    label = torch.tensor(labels)
    pixels = torch.tensor(labels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    return ImageData("few", pixels, pixels, label, label, 127.5, tuple(names))


def test_the_recorded_order_wins():
    data = in_order_of(images(("1", "2", "10"), [0, 1, 2, 2]), ["1", "10", "2"], "the teacher")
    assert (data.class_names, data.train_label.tolist(), data.heldout_label.tolist()) == (("1", "10", "2"), [0, 2, 1, 1], [0, 2, 1, 1])
    assert data.train[:, 0, 0, 0].tolist() == [0, 1, 2, 2]


@pytest.mark.parametrize("names", [(), ("1", "2", "10"), ("a", "b", "c"), ("1", "2")])
def test_where_there_is_nothing_to_change_the_data_stays(names):
    data = images(("1", "2", "10"), [0, 1, 2])
    assert in_order_of(data, names, "the teacher") is data


def test_an_order_that_cannot_be_had_is_refused():
    with pytest.raises(DataError, match=r"the teacher has the classes in the order b, a, a, and the data few in the order a, b, a: labels"):
        in_order_of(images(("a", "b", "a"), [0, 1, 2]), ["b", "a", "a"], "the teacher")


@pytest.mark.parametrize(
    ("own", "theirs", "said"),
    [
        (("cat", "dog"), ("Katze", "Hund"), "Katze, Hund there, cat, dog in the data few"),
        (("cat", "dog"), ("0", "1"), None),
        (("0", "1"), ("cat", "dog"), None),
        (("cat", "dog"), ("dog", "cat"), None),
        (("cat", "dog"), (), None),
    ],
)
def test_other_names_are_said_where_both_have_some(own, theirs, said):
    assert other_names(images(own, [0, 1]), theirs) == said
