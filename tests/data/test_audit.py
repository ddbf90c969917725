"""Every source of data says what was found, what is used, and how it was split; and the numbers add up."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import own_sets
from fewstep.build import load_data, training_data
from fewstep.data import ImageData, load_digits, photo_crops, point_file, toy_data
from fewstep.data.audit import audit, changes
from fewstep.data.checks import Kind
from fewstep.data.iterables import stream_data
from fewstep.data.origin import LeftOut
from fewstep.data.own import item_data
from fewstep.recipe import load_recipe
from picture_folders import encoded, lines, numbered, opened, put, refusal, two_classes


@pytest.fixture(autouse=True)
def _cache_here(monkeypatch, tmp_path_factory):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def test_a_folder(tmp_path):
    two_classes(tmp_path)
    put(tmp_path / "notes.txt", b"words")
    assert lines(opened(tmp_path)).splitlines() == [
        f"{tmp_path.name}: 25 files found in {tmp_path}, 24 used, 1 left out.",
        "left out: 1 file whose content is no image of a known kind (notes.txt).",
        "2 classes by the sub-folder, number = name (items trained on + held out): 0 = cat (9 + 3), 1 = dog (9 + 3).",
        "trained on: 18; held out: 6 (the fraction 0.25 of the images (data.holdout), at random by seed 0, in equal shares of each class).",
    ]


@pytest.mark.parametrize(
    ("places", "options", "why"),
    [
        (["{}.png"], {}, "no classes: the images lie in no sub-folders."),
        (["cat/{}.png"], {}, "no classes: all images lie in the one sub-folder cat."),
        (["cat/{}.png", "dog/{}.png"], {"label_column": "none"}, "no classes: data.label_column is none."),
    ],
)
def test_why_there_are_no_classes(places, options, why, tmp_path):
    for number, place in enumerate(places):
        for k in range(8):
            put(tmp_path / place.format(k), encoded(seed=8 * number + k))
    assert why in lines(opened(tmp_path, **options))


def test_many_classes_are_told_in_part_and_kept_whole(tmp_path):
    numbered(tmp_path, range(1, 31), 4)
    found = audit(opened(tmp_path, holdout=0.25))
    told = next(line for line in found.lines() if "classes by" in line)
    assert told.startswith("30 classes by the sub-folder, number = name (items trained on + held out): 0 = 1 (3 + 1), 1 = 2 (3 + 1)")
    assert told.count(" = ") - 1 == 12
    assert told.endswith(" and 18 more.")
    assert [(entry["number"], entry["name"]) for entry in found.config["classes"]] == [(k, str(k + 1)) for k in range(30)]
    assert json.loads(json.dumps(found.config))["used"] == 120


def rows(num, **columns):
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([{"bytes": encoded(seed=k), "path": None} for k in range(num)], struct)
    return pa.table({"image": images, **columns})


def test_a_table(tmp_path):
    pq.write_table(rows(12, digit=pa.array([3, 7] * 6)), tmp_path / "t.parquet")
    text = lines(opened(tmp_path / "t.parquet"))
    assert f"t: 12 rows found in {tmp_path / 't.parquet'}, all used, none left out." in text
    assert "2 classes by the column 'digit', number = name (items trained on + held out): 0 = 3 (5 + 1), 1 = 7 (4 + 2)." in text or (
        "0 = 3 (4 + 2), 1 = 7 (5 + 1)." in text
    )


@pytest.mark.parametrize(
    ("columns", "options", "why"),
    [
        ({}, {}, "no classes: no column is called like labels."),
        (
            {"kind": pa.array([0, 1] * 6)},
            {},
            "no classes: no column is called like labels, and of kind none is named in data.label_column.",
        ),
        ({"label": pa.array([0, 1] * 6)}, {"label_column": "none"}, "no classes: data.label_column is none."),
        ({"label": pa.array([None] * 12, pa.int64())}, {}, "no classes: the column 'label' is empty."),
    ],
)
def test_why_a_table_has_no_classes(columns, options, why, tmp_path):
    pq.write_table(rows(12, **columns), tmp_path / "t.parquet")
    assert why in lines(opened(tmp_path / "t.parquet", **options))


def test_splits_of_a_table_that_are_not_used(tmp_path):
    (tmp_path / "data").mkdir()
    for name, num, labels in (("train", 8, [0, 1]), ("test", 4, [-1, -1]), ("validation", 6, [0, 1])):
        pq.write_table(rows(num, label=pa.array(labels * (num // 2))), tmp_path / "data" / f"{name}-0.parquet")
    text = lines(opened(tmp_path))
    assert "18 rows found in" in text
    assert "14 used, 4 left out." in text
    assert "left out: 4 rows of the split test, whose labels are withheld." in text
    assert "trained on: 8 (the split train); held out: 6 (the split validation)." in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (load_digits, ["1,797 images found in scikit-learn's digits, all used", "10 classes by the digit", "trained on: 1,437 (80% of"]),
        (lambda: photo_crops(64, 64), ["crops found in two photographs", "0 = china (", "held out: ", "(of the lowest fifth)"]),
    ],
)
def test_what_scikit_learn_brings(data, said):
    text = lines(data())
    for part in said:
        assert part in text


def test_points_of_a_file(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(200, 3)))
    text = lines(point_file(str(tmp_path / "x.npy"), 0.25))
    assert f"x: 200 points found in {tmp_path / 'x.npy'}, all used, none left out." in text
    assert "trained on: 150; held out: 50 (the fraction 0.25 of the points (data.holdout), at random by seed 0)." in text
    assert "standardized for training (data.standardize)" in text
    assert "standardize" not in "".join(audit(point_file(str(tmp_path / "x.npy"), 0.25, standardize=False)).lines())


def test_a_density():
    found = audit(toy_data("ring", 500, 3)).lines()
    assert found == [
        "ring: points drawn from the density ring, which is known exactly.",
        "no classes: points have none.",
        "trained on: 500 (drawn from seed 3); held out: 10,000 (other points, the same for every data.size).",
    ]


def test_a_reweighted_density_keeps_its_origin():
    data = training_data(load_recipe("drift/ring", ["data.size=500", "method.gamma=2", "method.gamma_by=data"]))
    assert audit(data).lines()[0] == "ring: points drawn from the density ring, which is known exactly."


def test_a_set_of_one_s_own():
    text = lines(item_data(own_sets.Patches(size=40), "Patches", holdout=0.25))
    assert "Patches: 40 items found in a data set of one's own, own_sets:Patches, all used, none left out." in text
    assert "2 classes by the data set itself, number = name: 0 = dark, 1 = light." in text
    assert "the items of each class are not counted, because items are read on demand." in text
    assert "trained on: 30; held out: 10 (the fraction 0.25 of the items (data.holdout), chosen by seed 0)." in text


def test_a_set_with_a_held_out_part_of_its_own():
    text = lines(item_data(own_sets.Patches(size=40), "Patches", heldout=own_sets.Patches(size=8)))
    assert "48 items found" in text
    assert "trained on: 40; held out: 8 (a data set of its own)." in text


def test_a_stream():
    found = audit(stream_data(own_sets.Plain(60), "plain", heldout_items=6))
    assert found.used is None
    assert "trained on: not counted (all other items of the stream); held out: 6 (the first items (data.heldout_items))." in found.lines()


def test_what_was_made_in_python():
    pixels = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    data = ImageData("mine", pixels, pixels[:2], torch.tensor([0, 1, 1, 1]), torch.tensor([0, 1]), 127.5, ("a", "b"))
    assert audit(data).lines() == [
        "mine: made in Python.",
        "2 classes, number = name (items trained on + held out): 0 = a (1 + 1), 1 = b (3 + 1).",
        "trained on: 4; held out: 2.",
    ]


@pytest.mark.parametrize("recipe", ["teacher/digits", "teacher/photos", "drift/ring", "teacher/ring"])
def test_what_recipes_name_has_an_origin(recipe):
    data = load_data(load_recipe(recipe).data)
    assert audit(data).origin.place != "made in Python"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "left out: 1 odd thing (p0); mend"),
        (3, "left out: 3 odd things (p0, p1, p2); mend"),
        (5, "left out: 5 odd things (p0, p1, p2 and 2 more); mend"),
    ],
)
def test_what_is_left_out_in_words(count, said):
    assert str(LeftOut.of(Kind("odd thing{s}", "mend"), [f"p{k}" for k in range(count)])) == said


def test_what_has_changed_since(tmp_path):
    two_classes(tmp_path)
    before = json.loads(json.dumps(audit(opened(tmp_path)).config))
    assert changes(before, audit(opened(tmp_path))) == []
    put(tmp_path / "cat" / "more.png", encoded(seed=99))
    put(tmp_path / "dog" / "more.png", encoded(seed=98))
    assert changes(before, audit(opened(tmp_path))) == ["18 images were trained on, now 19", "6 images were held out, now 7"]
    assert changes({}, audit(opened(tmp_path))) == []


def test_what_has_changed_in_as_many_items(tmp_path):
    two_classes(tmp_path)
    before = json.loads(json.dumps(audit(opened(tmp_path)).config))
    put(tmp_path / "cat" / "0.png", encoded(seed=99))
    changed = changes(before, audit(opened(tmp_path)))
    assert len(changed) == 1  # one image, which is either trained on or held out
    assert "are not those of then" in changed[0]
    for part in before["parts"]:
        part["digest"] = None  # as of an older version
    assert changes(before, audit(opened(tmp_path))) == []


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "tab\there", "zero\u200bwidth"])
def test_names_that_a_screen_would_obey_are_shown_as_python_writes_them(name, tmp_path):
    for number, label in enumerate((name, "dog")):
        for k in range(8):
            put(tmp_path / label / f"{k}.png", encoded(seed=8 * number + k))
    put(tmp_path / name / "notes.txt", b"words")
    found = audit(opened(tmp_path)).lines()
    assert all(line.isprintable() for line in found)
    assert f" = {name.encode('unicode_escape').decode()} (6 + 2)" in "".join(found)


def test_a_stream_of_a_folder_tells_of_what_is_no_shard(tmp_path):
    for number in range(2):
        pq.write_table(rows(12, label=pa.array([0, 1] * 6)), tmp_path / f"{number}.parquet")
    put(tmp_path / "notes.txt", b"words")
    section = f"data={{name: stream, path: '{tmp_path}', size: 8, num_classes: 2, heldout_items: 4}}"
    text = lines_of(load_data(load_recipe("teacher/digits", [section]).data))
    assert f"2 shards of {tmp_path}, read on demand" in text
    assert "2 classes by the column 'label', number = name: 0 = 0, 1 = 1." in text
    assert "1 file there is no shard, and not read (notes.txt)." in text
    assert "held out: 4 (the first items (data.heldout_items), spread over 2 of 2 shards)." in text


def lines_of(data):
    return "\n".join(audit(data).lines())


def test_the_class_is_the_folder_that_tells_images_apart(tmp_path):
    """Tiny ImageNet has train/CLASS/images/: there the folder above is the class, which was lost."""
    for k in range(12):
        put(tmp_path / "one" / "cat" / "images" / f"{k}.png", encoded(seed=k))
        put(tmp_path / "one" / "dog" / "images" / f"{k}.png", encoded(seed=12 + k))
        put(tmp_path / "two" / "train" / "cat" / "images" / f"{k}.png", encoded(seed=k))
        put(tmp_path / "two" / "train" / "dog" / "images" / f"{k}.png", encoded(seed=12 + k))
        put(tmp_path / "two" / "val" / "images" / f"{k}.png", encoded(seed=30 + k))
        put(tmp_path / "alone" / "images" / f"{k}.png", encoded(seed=k))
    for name in ("one", "two"):
        data = opened(tmp_path / name)
        assert (data.class_names, len(data.train)) == (("cat", "dog"), 18)
        assert "all images lie in sub-folders called images, and the class of an image is the folder above" in lines(data)
    assert "the images of val/ lie in no class sub-folders and have no labels" in lines(data)
    data = opened(tmp_path / "alone")
    assert data.class_names == ()
    assert "no classes: all images lie in the one sub-folder images" in lines(data)


def test_a_class_of_several_folders_is_told(tmp_path):
    for k in range(6):
        for number, place in enumerate(("cats/old", "cats/young", "dogs/old", "dogs/puppies")):
            put(tmp_path / place / f"{k}.png", encoded(seed=6 * number + k))
    data = opened(tmp_path)
    assert data.class_names == ("old", "puppies", "young")
    assert "1 class gathered from sub-folders of the same name (old from cats/old, dogs/old): the class of an image is its" in lines(data)


def test_an_image_that_metadata_names_twice_is_refused(tmp_path):
    for k in range(6):
        put(tmp_path / f"{k}.png", encoded(seed=k))
    rows = [f"{k}.png,{'ab'[k % 2]}" for k in (0, 1, 2, 3, 4, 5, 3)]
    put(tmp_path / "metadata.csv", "\n".join(["file_name,label", *rows]).encode())
    assert "metadata.csv names 1 image more than once (3.png), which would be trained on as often" in refusal(tmp_path)
