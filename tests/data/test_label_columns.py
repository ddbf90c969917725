"""Columns of labels as people have them: found, or named with the key to set; never passed over in silence."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fewstep.build import load_data
from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.stream import image_stream
from fewstep.recipe import load_recipe

NUM = 24


def png(seed):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 8), dtype=np.uint8)).save(buffer, format="png")
    return buffer.getvalue()


CLASSES = [k % 3 for k in range(NUM)]


def parquet(path, **columns):
    images = [{"bytes": png(seed), "path": None} for seed in range(NUM)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(images, struct), **columns}), path)
    return str(path)


def opened(path, **options):
    return image_folder(path, 8, holdout=0.25, **options)


FORMS = {
    "whole numbers": pa.array(CLASSES),
    "floats": pa.array([float(k) for k in CLASSES]),
    "floats of 32 bits": pa.array(np.array(CLASSES, np.float32)),
    "words": pa.array(["abc"[k] for k in CLASSES]),
    "words in views": pa.array(["abc"[k] for k in CLASSES]).cast(pa.string_view()),
    "words in bytes": pa.array([b"abc"[k : k + 1] for k in CLASSES], pa.binary()),
    "words in bytes of one size": pa.array([b"abc"[k : k + 1] for k in CLASSES], pa.binary(1)),
    "one-hot": pa.array([[int(k == place) for place in range(3)] for k in CLASSES]),
    "one-hot floats": pa.array([[float(k == place) for place in range(3)] for k in CLASSES]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["label", "Label", "digit", "category", "fine_label", "TARGET"])
def test_labels_of_a_usual_name_are_found_in_every_form(name, form, tmp_path):
    data = opened(parquet(tmp_path / "x.parquet", **{name: FORMS[form]}))
    assert data.num_classes == 3
    assert data.class_names == (("a", "b", "c") if form.startswith("words") else ("0", "1", "2"))
    assert data.note == ""
    both = sorted([*data.train_label.tolist(), *data.heldout_label.tolist()])
    assert both == sorted(CLASSES)


def test_labels_of_another_name_are_named_with_the_key(tmp_path, capsys):
    path = parquet(tmp_path / "x.parquet", kind=FORMS["whole numbers"], width=pa.array([8] * NUM))
    data = opened(path)
    assert data.num_classes is None
    assert "kind, width could be some: name one in data.label_column" in data.note
    assert opened(path, label_column="kind").num_classes == 3
    assert opened(path, label_column="none").note == ""
    recipe = load_recipe("teacher/digits", [f"data={{name: images, path: {path}, size: 8, channels: 1}}"])
    load_data(recipe.data)
    assert "could be some: name one in data.label_column" in capsys.readouterr().err


def test_a_missing_float_is_a_missing_label(tmp_path):
    values = [float(k) for k in CLASSES]
    values[5] = float("nan")
    with pytest.raises(DataError, match="1 image without a label: row 5"):
        opened(parquet(tmp_path / "x.parquet", label=pa.array(values)))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (pa.array([k + 0.5 for k in CLASSES]), r"holds 0\.5; classes are whole numbers"),
        (pa.array([[1, 1, 0]] * NUM), r"holds \[1, 1, 0\]; classes are whole numbers"),
        (pa.array([[0.2, 0.8]] * NUM), r"holds \[0\.2, 0\.8\]"),
    ],
)
def test_what_are_no_classes_is_refused(values, said, tmp_path):
    with pytest.raises(DataError, match=said):
        opened(parquet(tmp_path / "x.parquet", label=values))


def test_a_hole_in_a_one_hot_label_is_shown(tmp_path):
    labels = [[1, 0] if k % 2 else [0, 1] for k in range(NUM)]
    labels[5] = [1, None]
    with pytest.raises(DataError, match=r"column 'label' holds \[1, None\]; classes are whole numbers, words, or lists with one 1"):
        opened(parquet(tmp_path / "x.parquet", label=pa.array(labels)))


def test_images_stored_once_each_are_read_as_others(tmp_path):
    """A dictionary-encoded column, as Arrow writes for a categorical one, gives what the plain column gives."""
    images = [png(k % 3) for k in range(NUM)]
    found = []
    for name, column in (("plain", pa.array(images)), ("stored once", pa.array(images).dictionary_encode())):
        pq.write_table(pa.table({"image": column, "label": pa.array(CLASSES)}), tmp_path / f"{name}.parquet", row_group_size=10)
        found.append(opened(str(tmp_path / f"{name}.parquet")))
    assert (found[0].train == found[1].train).all()
    assert (found[0].train_label == found[1].train_label).all()


def test_images_and_labels_may_both_be_bytes_in_any_order_and_form(tmp_path):
    images, words = pa.array([png(k) for k in range(NUM)], pa.binary()), FORMS["words in bytes"]
    plain = opened(parquet(tmp_path / "plain.parquet", label=FORMS["words"]))
    for name, form in (("binary", images), ("large", images.cast(pa.large_binary())), ("views", images.cast(pa.binary_view()))):
        pq.write_table(pa.table({"label": words, "image": form}), tmp_path / f"{name}.parquet")
        data = opened(str(tmp_path / f"{name}.parquet"))
        assert (data.train == plain.train).all()
        assert (data.train_label == plain.train_label).all()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            pa.array(CLASSES, pa.int32()).cast(pa.date32()),
            r"whose column 'label' is called like labels, and is of type date32; classes are",
        ),
        (pa.array([{"a": 1}] * NUM), r"whose column 'label' is called like labels, and is of type dict"),
        (pa.array([png(k) for k in range(NUM)]), r"column 'label' holds bytes that are no text .*PNG"),  # masks
    ],
)
def test_a_column_of_a_usual_name_that_holds_no_labels_is_refused_by_name(values, said, tmp_path):
    path = parquet(tmp_path / "x.parquet", label=values)
    with pytest.raises(DataError, match=said):
        opened(path)
    assert opened(path, label_column="none").num_classes is None


def test_a_stream_refuses_it_too(tmp_path):
    """Whose labels are not looked through beforehand, and so are whole numbers or words."""
    path = parquet(tmp_path / "x.parquet", label=FORMS["floats"])
    with pytest.raises(DataError, match="whose column 'label' is called like labels, and is of type float64"):
        image_stream(path, 8)
    assert image_stream(path, 8, label_column="none").num_classes is None
