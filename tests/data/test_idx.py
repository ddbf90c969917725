"""MNIST in each of the forms in which it comes: parquet, the authors' files made here byte by byte, and the Hub's."""

import gzip
import io
import re
import struct
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.build import load_data
from fewstep.data import DataError, cifar10, mnist
from fewstep.data.audit import audit
from fewstep.errors import UserError
from fewstep.recipe import load_recipe

NUMBERS = {"train": 40, "t10k": 20}
SHARED = Path(__file__).parents[3] / "shared" / "data"
NAMES = tuple(map(str, range(10)))


def images(part):
    num = NUMBERS[part]
    return (np.arange(num)[:, None, None] + np.arange(28)[:, None] + 3 * np.arange(28)).astype(np.uint8) + (part == "t10k")


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def files():
    """The content of each file by its name."""
    found = {}
    for part, num in NUMBERS.items():
        found[f"{part}-images-idx3-ubyte"] = idx(images(part))
        found[f"{part}-labels-idx1-ubyte"] = idx(np.arange(num) % 10)
    return found


def check(data):
    assert (data.name, data.class_names, data.shape, data.half) == ("mnist", NAMES, (1, 28, 28), 127.5)
    assert torch.equal(data.train, torch.from_numpy(images("train"))[:, None])
    assert torch.equal(data.heldout, torch.from_numpy(images("t10k"))[:, None])
    assert torch.equal(data.train_label, torch.arange(40) % 10)
    assert torch.equal(data.heldout_label, torch.arange(20) % 10)
    assert (data.train.dtype, data.train_label.dtype, data.train.is_contiguous()) == (torch.uint8, torch.int64, True)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("hyphen", ["-idx", ".idx"])
def test_the_authors_files_packed_or_not(packed, hyphen, tmp_path):
    for name, content in files().items():
        (tmp_path / (name.replace("-idx", hyphen) + ".gz" * packed)).write_bytes(gzip.compress(content) if packed else content)
    check(data := mnist(str(tmp_path)))
    data.train[0, 0, 0, 0] = 7  # memory of its own
    lines = "\n".join(audit(data).lines())
    assert f"mnist: 60 images found in {tmp_path}, all used" in lines
    assert "held out: 20 (t10k-images-idx3-ubyte, as its authors split it)" in lines


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("train-images-idx3-ubyte", None, "which has no train-images-idx3-ubyte; fetch what is missing"),
        ("t10k-labels-idx1-ubyte", None, "which has no t10k-labels-idx1-ubyte; fetch"),
        ("train-images-idx3-ubyte", idx(np.arange(40)), "does not begin as an IDX file"),
        ("train-images-idx3-ubyte", b"", "does not begin as an IDX file"),
        ("train-images-idx3-ubyte", idx(images("train"))[:-1], "has fewer than the 31,360 bytes that its header claims"),
        ("train-images-idx3-ubyte", idx(images("train")) + b"0", "has more than the 31,360 bytes that its header claims"),
        ("train-images-idx3-ubyte", idx(images("train")[:, :27]), "claims images of 27 x 28, where MNIST has 28 x 28"),
        ("train-images-idx3-ubyte", idx(images("train")[:39]), "has 39 images and 40 labels"),
        ("train-labels-idx1-ubyte", idx(np.arange(40)), "has the label 10 in place 10; labels are 0 to 9: fetch it anew"),
        ("t10k-images-idx3-ubyte", gzip.compress(idx(images("t10k")))[:-20], "cannot be read"),
        ("t10k-images-idx3-ubyte", bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 28, 28), "claims 4,294,967,295 rows, where at most"),
        ("t10k-images-idx3-ubyte", gzip.compress(bytes((0, 0, 8, 3)) + struct.pack(">3I", 9, 28, 28) + bytes(10**7)), "has more than"),
    ],
    ids=range(12),
)
def test_a_file_that_will_not_do_is_named(name, content, says, tmp_path):
    for other, whole in files().items():
        (tmp_path / other).write_bytes(whole)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        mnist(str(tmp_path))
    assert says in str(error.value)
    assert str(error.value).startswith(f"data.dir is {str(tmp_path)!r}, ")
    assert "\n" not in str(error.value)


def parquet(where, shape, column, name="label", classes=NAMES, splits=("train", "test")):
    """A folder of tables of the Hub's layout, of the images of `images`, as many channels as `shape` has."""
    where.mkdir(parents=True, exist_ok=True)
    features = datasets.Features({column: datasets.Image(), name: datasets.ClassLabel(names=list(classes))})
    for split, part in zip(splits, NUMBERS, strict=False):
        rows = []
        for image in images(part):
            file, pixels = io.BytesIO(), np.zeros((shape[1], shape[1]), np.uint8)
            pixels[:28, :28] = image
            Image.fromarray(pixels if shape[0] == 1 else np.stack([pixels, pixels + 1, pixels + 2], 2)).save(file, "PNG")
            rows.append({"bytes": file.getvalue(), "path": None})
        labels = [k % len(classes) for k in range(NUMBERS[part])]
        table = datasets.Dataset.from_dict({column: rows, name: labels}, features)
        table.to_parquet(where / f"{split}-00000-of-00001.parquet")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("inside", ["", "mnist"])
def test_a_folder_of_parquet_as_the_hub_has_it(inside, tmp_path):
    parquet(tmp_path / "data" / inside, (1, 28), "image")
    check(mnist(str(tmp_path / "data")))


def test_the_hub_s_copy_goes_by_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "ylecun" / "mnist" / "mnist", (1, 28), "image")
    check(mnist())


def test_cifar_10_as_parquet_and_at_half_its_size(tmp_path):
    parquet(tmp_path / "data" / "plain_text", (3, 32), "img")
    data, small = (cifar10(str(tmp_path / "data"), flip=True, size=size) for size in (32, 16))
    assert (data.name, data.shape, data.flip, small.name, small.shape, small.flip) == (
        "cifar10",
        (3, 32, 32),
        True,
        "cifar10",
        (3, 16, 16),
        True,
    )
    for whole, half in ((data.train, small.train), (data.heldout, small.heldout)):
        means = torch.nn.functional.avg_pool2d(whole.double(), 2)
        assert torch.equal(half, (means + 0.5).floor().byte())
    assert "16 pixels wide: each is the mean of a square of four" in "\n".join(audit(small).lines())
    assert torch.equal(data.train[:, 0, :28, :28], torch.from_numpy(images("train")))


def test_tables_that_will_not_do_are_one_sentence(tmp_path):
    parquet(tmp_path / "a", (1, 28), "image", splits=("train",))
    parquet(tmp_path / "b", (1, 28), "image", classes=("x", "y", "z"))
    parquet(tmp_path / "c", (1, 32), "image")
    parquet(tmp_path / "d", (1, 28), "picture")
    parquet(tmp_path / "e", (1, 28), "image")
    (tmp_path / "e" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    parquet(tmp_path / "f", (1, 28), "image", name="kind")
    for name, says in (
        ("a", "has train*.parquet, and no test*.parquet; fetch that, too: the files in mnist/ of huggingface.co/datasets/ylecun/mnist"),
        ("b", "has 3 classes, and mnist has 10; take another copy"),
        ("c", "images not of 28 x 28: row 0 of train (32 x 32)"),
        ("d", "whose columns of images are ['picture'] of ['label', 'picture']; mnist has 'image' and 'label': give the folder of its own"),
        ("f", "whose columns of classes, integers or words are ['kind'] of ['image', 'kind']; mnist has 'image' and 'label': give the"),
        ("e", "train-00000-of-00001.parquet"),
    ):
        with pytest.raises(DataError) as error:
            mnist(str(tmp_path / name))
        assert says in str(error.value)
        assert set(re.findall(r"data\.\w+", str(error.value))) == {"data.dir"}  # which is the only key that there is


def test_what_is_missing_says_what_to_fetch_and_how_to_name_it(tmp_path):
    def data(*overrides):
        return load_data(load_recipe("teacher/photos", ["data={name: mnist}", *overrides]).data)

    with pytest.raises(UserError, match=r"which holds no MNIST; fetch the files in mnist/ of .*ylecun/mnist, or train-images-.*=FOLDER"):
        data(f"data.dir={tmp_path}")
    with pytest.raises(UserError, match=r"data.dir is missing.*HF_HUB_OFFLINE forbids.*say data.dir=FOLDER"):
        data()
    parquet(tmp_path / "here", (1, 28), "image")
    check(data(f"data.dir={tmp_path / 'here'}"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size", "num"), [("mnist", 28, 60_000), ("cifar10", 32, 50_000)])
def test_the_shared_copy_is_read_whole(name, size, num):
    if not (SHARED / name).is_dir():
        pytest.skip(f"there is no {SHARED / name}")
    began = time.process_time()
    data = {"mnist": mnist, "cifar10": cifar10}[name](str(SHARED / name))
    assert (len(data.train), len(data.heldout), data.shape[1], data.num_classes) == (num, 10_000, size, 10)
    assert data.train_label.bincount().min() > 5_000
    assert time.process_time() - began < 60  # of a core
