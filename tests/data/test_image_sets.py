"""Data sets in the formats that people have them in, made by the test and read through the real code."""

import io
import re
import struct
import zlib

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fewstep.build import load_data
from fewstep.data import DataError, image_folder
from fewstep.errors import UserError
from fewstep.recipe import load_recipe

NAMES = ["ant", "bee"]
FEATURES = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


@pytest.fixture(autouse=True)
def _cache_here(monkeypatch, tmp_path_factory):
    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(seed, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encode(pixels, kind="PNG", **options):
    content = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(content, kind, **options)
    return content.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else encode(content))


def rows(labels, features=FEATURES, first=0, images=None):
    """A `datasets.Dataset` in the Hub's layout; image k is picture(first + k)."""
    image, label = list(features)
    contents = images or [encode(picture(first + k)) for k in range(len(labels))]
    columns = {image: [{"bytes": c, "path": f"{first + k}.png"} for k, c in enumerate(contents)], label: labels}
    return datasets.Dataset.from_dict(columns, features)


def raw(path, labels, **options):
    """Parquet whose labels nothing has looked at."""
    table = pa.table(rows([0] * len(labels), **options).data.table).set_column(1, "label", pa.array(labels, pa.int64()))
    pq.write_table(table.replace_schema_metadata(FEATURES.arrow_schema.metadata), path)


def hub(path, readme=True, image="img"):
    """Twelve training images and four of a test split, as they lie in a repository of the Hub."""
    features = datasets.Features({image: datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    (path / "data").mkdir(parents=True)
    rows([k % 2 for k in range(6)], features).to_parquet(path / "data" / "train-00000-of-00002.parquet")
    rows([1 - k % 2 for k in range(6)], features, 6).to_parquet(path / "data" / "train-00001-of-00002.parquet")
    rows([1, 0, 1, 1], features, 100).to_parquet(path / "data" / "test-00000-of-00001.parquet")
    card = (
        f"---\ndataset_info:\n  features:\n  - name: {image}\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n"
        "        names:\n          '0': ant\n          '1': bee\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: data/train-*\n  - split: test\n    path: data/test-*\n---\n"
    )
    if readme:
        (path / "README.md").write_text(card)
    return path


def check_hub(data):
    """What `hub` wrote, in order, whole."""
    labels = [k % 2 for k in range(6)] + [1 - k % 2 for k in range(6)]
    assert np.array_equal(data.train.permute(0, 2, 3, 1), np.stack([picture(k) for k in range(12)]))
    assert np.array_equal(data.heldout.permute(0, 2, 3, 1), np.stack([picture(100 + k) for k in range(4)]))
    assert (data.train_label.tolist(), data.heldout_label.tolist()) == (labels, [1, 0, 1, 1])
    assert data.class_names == ("ant", "bee")
    assert data.train.is_contiguous()


def refused(path, size=8, **options):
    with pytest.raises(DataError) as error:
        image_folder(str(path), size, **options)
    assert f"data.path is {str(path)!r}" in str(error.value)
    return str(error.value)


# --- formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", ["img", "image"])
def test_a_repository_of_the_hub(tmp_path, image):
    check_hub(data := image_folder(str(hub(tmp_path / "insects", image=image)), 8))
    assert data.name == "insects"


def test_a_folder_of_parquet_files(tmp_path):
    check_hub(image_folder(str(hub(tmp_path / "insects", readme=False)), 8))


def test_splits_saved_to_disk(tmp_path):
    splits = {"train": rows([0, 1, 0]), "test": rows([1], first=100)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    data = image_folder(str(tmp_path / "set"), 8)
    assert np.array_equal(data.train.permute(0, 2, 3, 1), np.stack([picture(k) for k in range(3)]))
    assert np.array_equal(data.heldout[0].permute(1, 2, 0), picture(100))
    assert (data.train_label.tolist(), data.heldout_label.tolist(), data.class_names) == ([0, 1, 0], [1], ("ant", "bee"))


def test_one_split_saved_to_disk_and_one_parquet_file_are_split_alike(tmp_path):
    """In record batches whose length no chunk divides, and in several shards; each image stays with its label."""
    whole = rows([k % 2 for k in range(300)])
    whole.select([*range(299, -1, -1)]).save_to_disk(str(tmp_path / "set"), num_shards=2)  # an order of its own, which is written out
    whole.to_parquet(tmp_path / "set.parquet", batch_size=70)
    number = {picture(k).tobytes(): k for k in range(300)}
    found = {}
    for kind in ("set", "set.parquet"):
        data = image_folder(str(tmp_path / kind), 8, holdout=0.2)
        assert (data.name, len(data.train), len(data.heldout)) == ("set", 240, 60)
        for images, labels in ((data.train, data.train_label), (data.heldout, data.heldout_label)):
            which = [number[image.permute(1, 2, 0).numpy().tobytes()] for image in images]
            assert [k % 2 for k in which] == labels.tolist()
            assert labels.sum() == len(labels) // 2  # stratified
            found.setdefault(kind, []).extend(which)
        assert sorted(found[kind]) == list(range(300))


def test_parquet_without_a_word_of_what_it_holds(tmp_path):
    """Bare bytes, and a struct of bytes and path; labels are words and integers, numbered in ascending order."""
    contents = [encode(picture(k)) for k in range(8)]
    pq.write_table(pa.table({"picture": contents, "class": ["wasp", "ant"] * 4}), tmp_path / "words.parquet")
    data = image_folder(str(tmp_path / "words.parquet"), 8, holdout=0.25)
    assert data.class_names == ("ant", "wasp")
    for image, label in zip(data.train, data.train_label, strict=True):
        assert any(np.array_equal(image.permute(1, 2, 0), picture(k)) for k in range(1 - int(label), 8, 2))
    struct_of = pa.array([{"bytes": c, "path": None} for c in contents])
    pq.write_table(pa.table({"image": struct_of, "label": [10, 2] * 4, "sort": [0, 1] * 4}), tmp_path / "numbers.parquet")
    assert image_folder(str(tmp_path / "numbers.parquet"), 8, holdout=0.25).class_names == ("2", "10")
    assert image_folder(str(tmp_path / "numbers.parquet"), 8, holdout=0.25, label_column="sort").class_names == ("0", "1")
    data = image_folder(str(tmp_path / "numbers.parquet"), 8, holdout=0.25, label_column="none")
    assert (data.class_names, data.train_label) == ((), None)


def test_columns_by_name(tmp_path):
    features = datasets.Features(
        {
            "small": datasets.Image(),
            "large": datasets.Image(),
            "coarse": datasets.ClassLabel(names=["x", "y"]),
            "fine": datasets.Value("int8"),
        }
    )
    images = [{"bytes": encode(picture(k)), "path": None} for k in range(4)]
    other = [{"bytes": encode(picture(50 + k)), "path": None} for k in range(4)]
    columns = {"small": images, "large": other, "coarse": [0, 1, 0, 1], "fine": [5, 5, 6, 6]}
    datasets.Dataset.from_dict(columns, features).to_parquet(path := tmp_path / "a.parquet")
    found = image_folder(str(path), 8, holdout=0.5)
    assert found.class_names == ("x", "y")
    assert {i.permute(1, 2, 0).numpy().tobytes() for i in found.train} <= {picture(k).tobytes() for k in range(4)}
    found = image_folder(str(path), 8, holdout=0.5, image_column="large", label_column="fine")
    assert found.class_names == ("5", "6")
    assert {i.permute(1, 2, 0).numpy().tobytes() for i in found.train} <= {picture(50 + k).tobytes() for k in range(4)}
    assert "['large', 'small']" in refused(path, image_column="coarse")
    assert "['coarse', 'fine']" in refused(path, label_column="small")


def test_a_test_split_whose_labels_are_withheld_is_not_held_out(tmp_path):
    splits = {"train": rows([0, 1]), "test": rows([-1, -1], first=50), "validation": rows([1], first=100)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    data = image_folder(str(tmp_path / "set"), 8)
    assert np.array_equal(data.heldout.permute(0, 2, 3, 1), picture(100)[None])


def test_splits_that_disagree_are_refused(tmp_path):
    other = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["bee", "ant"])})
    datasets.DatasetDict({"train": rows([0, 1]), "test": rows([0], other)}).save_to_disk(str(tmp_path / "set"))
    assert "train and test differ in column 'label'" in refused(tmp_path / "set")


def test_one_of_several_configurations(tmp_path):
    for name in ("first", "second"):
        rows([0, 1] * 2, first=len(name)).to_parquet(tmp_path / f"{name}.parquet")
    lines = [f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("first", "second")]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(lines) + "---\n")
    data = image_folder(str(tmp_path), 8, holdout=0.5, config="second")
    assert {i.permute(1, 2, 0).numpy().tobytes() for i in data.train} <= {picture(6 + k).tobytes() for k in range(4)}
    assert "data.config" in refused(tmp_path)


def test_pictures_with_a_table_of_their_labels(tmp_path):
    """What `datasets` calls an image folder with metadata; it is read by that library, through its cache."""
    for k in range(4):
        write(tmp_path / f"{k}.png", picture(k))
    (tmp_path / "metadata.csv").write_text("file_name,label\n" + "".join(f"{k}.png,{'yx'[k % 2]}\n" for k in range(4)))
    data = image_folder(str(tmp_path), 8, holdout=0.5)
    assert data.class_names == ("x", "y")
    for image, label in zip(data.train, data.train_label, strict=True):
        assert any(np.array_equal(image.permute(1, 2, 0), picture(k)) for k in (1 - int(label), 3 - int(label)))


# --- folders -------------------------------------------------------------------------------------------------------------


def test_sub_folders_of_unequal_depth_are_classes_by_the_last(tmp_path):
    for k in range(4):
        write(tmp_path / "ant" / f"{k}.png", picture(k))
        write(tmp_path / "others" / "bee" / f"{k}.JPG", encode(np.full((8, 8, 3), 200, np.uint8), "JPEG"))
    (tmp_path / "ant" / "._0.png").write_bytes(b"what macOS leaves behind")
    (tmp_path / "notes.txt").write_text("none of our business")
    data = image_folder(str(tmp_path), 8, holdout=0.25)
    assert data.class_names == ("ant", "bee")
    assert all((image == 200).all() == bool(label) for image, label in zip(data.train, data.train_label, strict=True))
    assert (len(data.train), data.train_label.sum().item()) == (6, 3)


def test_a_class_may_be_called_like_a_split(tmp_path):
    for k in range(4):
        for name in ("car", "train"):
            write(tmp_path / name / f"{k}.png", picture(k))
    assert image_folder(str(tmp_path), 8, holdout=0.5).class_names == ("car", "train")
    assert image_folder(str(tmp_path / "car"), 8, holdout=0.5).class_names == ()


def test_what_lies_beside_splits_is_refused(tmp_path):
    for place in ("train/a", "train/b", "test/a", "extra/a"):
        write(tmp_path / place / "0.png", picture(0))
    assert "'extra' lies beside the splits test, train" in refused(tmp_path)


def test_images_without_a_class_among_those_with_one(tmp_path):
    for k in range(5):
        write(tmp_path / f"{k}.png", picture(k))
        write(tmp_path / "ant" / f"{k}.png", picture(k))
    message = refused(tmp_path)
    assert "5 images outside the class sub-folders: 0.png, 1.png, 2.png and 2 more; " in message
    assert len(image_folder(str(tmp_path), 8, holdout=0.5, label_column="none").train) == 5
    for place in ("train/ant/0.png", "train/bee/1.png", "test/ant/3.png", "test/2.png"):
        write(tmp_path / "split" / place, picture(0))
    assert "1 image outside the class sub-folders: test/2.png;" in refused(tmp_path / "split")


def test_empty_classes(tmp_path):
    for place in ("train/ant/0.png", "train/ant/1.png", "train/bee/2.png", "test/cat/3.png"):
        write(tmp_path / place, picture(0))
    for name in ("dog", "elk", ".cache"):
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "train" / "elk" / "0.heic").write_text("not an image we know")
    message = refused(tmp_path)
    assert "2 class sub-folders without an image: train/dog, train/elk; " in message
    assert "1 class without a training image: cat; " in message
    rows([0, 0, 0], datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})).to_parquet(
        path := tmp_path / "a.parquet"
    )
    assert "2 classes without a training image: b, c; " in refused(path)


def test_a_folder_of_images_has_no_columns(tmp_path):
    write(tmp_path / "0.png", picture(0))
    for key in ("image_column", "label_column", "config"):
        assert f"data.{key} is 'x'; " in refused(tmp_path, **{key: "x"})


def test_the_recipe_s_keys_reach_the_reader(tmp_path):
    """MNIST's way: 28 x 28, grey, in the Hub's columns, padded to 32 x 32; and a column of labels by its name."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    digits = [picture(k, (28, 28)) for k in range(4)]
    rows([3, 5, 5, 3], features, images=[encode(d) for d in digits]).to_parquet(tmp_path / "digits.parquet")
    section = f"data={{name: images, path: '{tmp_path}/digits.parquet', size: 32, channels: 1, resize: pad, holdout: 0.5}}"

    def data(*overrides):
        return load_data(load_recipe("teacher/photos", [section, *overrides]).data)

    found = data("data.image_column=image", "data.label_column=label", "data.flip=true")
    assert (found.shape, found.class_names, found.flip) == ((1, 32, 32), ("3", "5"), True)
    for image, label in zip(found.images("train"), found.train_label, strict=True):
        k = next(k for k in range(4) if np.abs(image[0, 2:30, 2:30].numpy() - (digits[k] / 127.5 - 1)).max() < 1e-6)
        assert int(label) == (k in (1, 2))
        assert (image[0, :2] == -1).all()
    assert data("data.label_column=none").class_names == ()
    with pytest.raises(UserError, match=r"data\.image_column is 'label'"):
        data("data.image_column=label")
    with pytest.raises(UserError, match=r"not of data\.size: row 0 of train, 0\.png \(28 x 28\)"):
        data("data.resize=none")
    with pytest.raises(UserError, match=r"data\.resize"):
        data("data.resize=crop")


# --- sizes ---------------------------------------------------------------------------------------------------------------


def shape_of(tmp_path, pixels, size, resize, channels=3):
    for k in range(2):
        write(tmp_path / f"{k}.png", pixels)
    return image_folder(str(tmp_path), size, channels, 0.5, resize=resize).train[0].permute(1, 2, 0).numpy()


def test_stretch_takes_both_sides(tmp_path):
    columns = np.repeat(np.repeat(picture(0, (4, 2, 3)), 4, 0), 16, 1)  # 16 x 32 of blocks, to be 16 x 16
    found = shape_of(tmp_path, columns, 16, "stretch")
    assert np.array_equal(found[:, 0], columns[:, 0])
    assert np.array_equal(found[:, -1], columns[:, -1])


def test_pad_adds_and_does_not_resample(tmp_path):
    """As 28 x 28 becomes 32 x 32; what is odd goes below and to the right."""
    digit = picture(0, (28, 27))
    found = shape_of(tmp_path, digit, 32, "pad", channels=1)[..., 0]
    expected = np.zeros((32, 32), np.uint8)
    expected[2:30, 2:29] = digit
    assert np.array_equal(found, expected)
    assert "2 images larger than data.size: 0.png (27 x 28), 1.png (27 x 28); " in refused(tmp_path, 27, resize="pad")


def test_none_wants_the_size_itself(tmp_path):
    for k in range(6):
        write(tmp_path / f"{k}.png", picture(k, (8, 8 + (k > 1), 3)))
    assert "4 images not of data.size: 2.png (9 x 8), 3.png (9 x 8), 4.png (9 x 8) and 1 more; data.resize is none" in refused(
        tmp_path, resize="none"
    )
    for k in range(2, 6):
        (tmp_path / f"{k}.png").unlink()
    assert len(image_folder(str(tmp_path), 8, holdout=0.5, resize="none").train) == 1


# --- what Pillow would do without a word -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_can_be_seen_through_is_laid_on_white(tmp_path, mode):
    colour = np.full((8, 8, 4), (100, 50, 200, 255), np.uint8)
    colour[:4, :, 3] = 0
    if mode == "RGBA":
        colour[4:, :, 3] = 128
        image = Image.fromarray(colour)
    elif mode == "LA":
        image = Image.fromarray(colour[..., [0, 3]])
    else:
        image = Image.fromarray((colour[..., 3] == 0).astype(np.uint8), "P")
        image.putpalette([100, 50, 200, 1, 2, 3])
    for k in range(2):
        image.save(tmp_path / f"{k}.png", **({"transparency": 1} if mode == "P" else {}))
    found = image_folder(str(tmp_path), 8, holdout=0.5).train[0].permute(1, 2, 0).numpy()
    assert (found[:4] == 255).all()
    below = {"RGBA": 255 + 128 / 255 * (np.array([100, 50, 200]) - 255), "LA": 100, "P": (100, 50, 200)}[mode]
    assert np.abs(found[4:].astype(int) - below).max() <= 1


def test_a_camera_s_orientation_is_followed(tmp_path):
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    for k in range(2):
        Image.fromarray(np.rot90(upright).copy()).save(tmp_path / f"{k}.png", exif=exif)
    assert np.array_equal(image_folder(str(tmp_path), 8, holdout=0.5).train[0].permute(1, 2, 0), upright)


def test_several_frames_and_more_than_8_bits_are_refused(tmp_path):
    frames = [Image.fromarray(picture(k)) for k in range(3)]
    frames[0].save(tmp_path / "gif.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "apng.png", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "webp.webp", save_all=True, append_images=frames[1:])
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "deep.png")
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    frames[0].save(tmp_path / "still.gif")
    message = refused(tmp_path)
    assert "3 images of several frames: apng.png (3 frames), gif.gif (3 frames), webp.webp (3 frames); " in message
    deep = Image.open(tmp_path / "deep.png").mode  # I;16, and I in older versions of Pillow
    assert f"2 images of more than 8 bits a pixel and channel: deep.png (mode {deep}), float.tiff (mode F); " in message
    assert "still" not in message


@pytest.mark.parametrize("bits", [16, 14, 12])
def test_colours_of_16_bits_keep_their_high_byte_and_darkness_is_noted(bits, tmp_path):
    """Pillow reads these rightly where all bits are used; a PNG put together by hand."""
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 8, 3)).astype(">u2")
    values[0, 0] = 2**bits - 1

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    lines = b"".join(b"\0" + line.tobytes() for line in values)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    for k in range(2):
        write(tmp_path / f"{k}.png", b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))
    data = image_folder(str(tmp_path), 8, holdout=0.5)
    assert np.array_equal(data.train[0].permute(1, 2, 0).numpy(), values // 256)
    assert ("nearly black" in data.note) == (bits < 16)
    assert (f"no pixel of any image is above {2 ** (bits - 8) - 1} of 255" in data.note) == (bits < 16)


# --- damage --------------------------------------------------------------------------------------------------------------


def test_damaged_images_are_named_all_at_once(tmp_path):
    good = [encode(picture(k, (32, 32, 3)), kind) for k, kind in enumerate(("PNG", "JPEG", "BMP", "GIF", "WEBP"))]
    broken = bytearray(good[0])
    broken[len(broken) // 2] ^= 255
    damaged = [content[: len(content) // 2] for content in good] + [b"", b"words", bytes(broken)]
    for k in range(4):
        write(tmp_path / "ant" / f"good{k}.png", good[0])
        write(tmp_path / "bee" / f"good{k}.png", good[1])
    for k, content in enumerate(damaged):
        write(tmp_path / "bee" / f"bad{k}.png", content)
    message = refused(tmp_path)
    assert f"{len(damaged)} images that cannot be read: bee/bad0.png (" in message
    assert message.count("bad") == 3
    assert f"and {len(damaged) - 3} more; " in message


def test_damaged_rows_are_named(tmp_path):
    images = [encode(picture(k)) for k in range(8)]
    images[3], images[5] = images[3][:60], encode(picture(0, (8, 9, 3)))
    rows([0, 1] * 4, images=images).to_parquet(path := tmp_path / "a.parquet")
    message = refused(path, resize="none", holdout=0.5)
    assert "1 image that cannot be read: row 3 of train, 3.png (" in message
    assert "1 image not of data.size: row 5 of train, 5.png (9 x 8); " in message
    images = [encode(picture(0))] * 300
    for k in (70, 199, 299):  # in later chunks and batches
        images[k] = b"words"
    rows([0, 1] * 150, images=images).to_parquet(tmp_path / "long.parquet", batch_size=100)
    rows([0, 1] * 150, images=images).save_to_disk(str(tmp_path / "long"), num_shards=2)
    for name in ("long", "long.parquet"):
        found = re.findall(r"row (\d+) of train, \1\.png", refused(tmp_path / name))
        assert found == ["70", "199", "299"]
    empty = pa.array([{"bytes": None, "path": None}] * 2 + [{"bytes": None, "path": "gone.png"}])
    pq.write_table(pa.table({"image": empty}), tmp_path / "empty.parquet")
    message = refused(tmp_path / "empty.parquet")
    assert (
        "3 images that cannot be read: row 0 of train (the row is empty), row 1 of train (the row is empty), row 2 of train, gone"
        in message
    )


def test_wrong_labels_are_named_by_row(tmp_path):
    raw(tmp_path / "a.parquet", [0, 1, 2, -1, 0, None, 1, 7, 9])
    message = refused(tmp_path / "a.parquet")
    places = "row 2 of train (label 2), row 3 of train (label -1), row 7 of train (label 7) and 1 more"
    assert f"4 images with a label outside the classes: {places}; " in message
    assert "1 image without a label: row 5 of train; " in message
    assert len(image_folder(str(tmp_path / "a.parquet"), 8, label_column="none").train) == 8
    pq.write_table(pa.table({"image": [encode(picture(k)) for k in range(4)], "label": [3, -2, 3, 4]}), tmp_path / "plain.parquet")
    assert "1 image with a label outside the classes: row 1 of train (label -2); " in refused(tmp_path / "plain.parquet")
    plain = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    splits = {"train": rows(["x", "y"], plain), "test": rows(["z"], plain)}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "words"))
    assert "1 image with a label outside the classes: row 0 of test (label 'z'); " in refused(tmp_path / "words")


def test_damaged_parquet_is_named(tmp_path):
    hub(tmp_path / "set")
    file = tmp_path / "set" / "data" / "train-00001-of-00002.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    assert "1 file that cannot be read: data/train-00001-of-00002.parquet (" in refused(tmp_path / "set")
    file.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    assert "train-00001-of-00002.parquet cannot be read (" in refused(tmp_path / "set")
    (tmp_path / "a.parquet").write_text("words")
    assert "1 file that cannot be read: a.parquet (" in refused(tmp_path / "a.parquet")


def test_the_hub_without_a_network_is_one_sentence():
    message = refused("nobody/nothing-of-the-kind")
    assert "there is no such folder, the local cache of the Hub has no such data set, and HF_HUB_OFFLINE forbids" in message
    assert "\n" not in message
