"""CIFAR-10's binary files, whole and in the real layout: made here, byte by byte, and read through the real code."""

import hashlib
import io
import tarfile

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.build import load_data
from fewstep.data import DataError, cifar10, cifar10_of_the_hub
from fewstep.data.cifar import cifar10_of
from fewstep.errors import UserError
from fewstep.recipe import load_recipe

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
TRAIN = [f"data_batch_{k}.bin" for k in range(1, 6)]


def content(number):
    """Ten thousand records: of each image the number of its file, its own, and where the first bytes of each plane and row lie."""
    records = np.zeros((10_000, 3073), np.uint8)
    row = np.arange(10_000)
    records[:, 0] = (row + number) % 10
    records[:, 1], records[:, 2], records[:, 3] = number, row // 256, row % 256  # red, the first row
    records[:, 1 + 32] = 11  # red, the second row
    records[:, 1 + 1024], records[:, 1 + 2048] = 22, 33  # green, blue
    return records.tobytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    path.mkdir()
    for number, name in enumerate([*TRAIN, "test_batch.bin"]):
        (path / name).write_bytes(content(number))
    (path / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n\n")
    (path / "readme.html").write_text("<a/>")
    return path


@pytest.fixture(scope="module")
def archive(folder, tmp_path_factory):
    """In the order of the official one, which is none; and its checksum."""
    path = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    order = ["data_batch_1.bin", "batches.meta.txt", *(f"data_batch_{k}.bin" for k in (3, 4)), "test_batch.bin", "readme.html"]
    with tarfile.open(path, "w:gz", compresslevel=1) as members:
        members.add(folder, folder.name, recursive=False)
        for name in [*order, "data_batch_5.bin", "data_batch_2.bin"]:
            members.add(folder / name, f"{folder.name}/{name}")
    return path, hashlib.md5(path.read_bytes()).hexdigest()


def check(data):
    assert (data.name, data.class_names, data.shape) == ("cifar10", tuple(CLASSES), (3, 32, 32))
    for images, labels, first in ((data.train, data.train_label, 0), (data.heldout, data.heldout_label, 5)):
        row = torch.arange(len(images))
        assert torch.equal(images[:, 0, 0, 0].long(), first + row // 10_000)
        assert torch.equal(256 * images[:, 0, 0, 1].long() + images[:, 0, 0, 2], row % 10_000)
        assert images[:, 0, 1, 0].unique().tolist() == [11]
        assert images[:, 1:, 0, 0].unique(dim=0).tolist() == [[22, 33]]
        assert torch.equal(labels, (row + first + row // 10_000) % 10)
        assert (images.dtype, labels.dtype, images.is_contiguous()) == (torch.uint8, torch.int64, True)
    assert (len(data.train), len(data.heldout)) == (50_000, 10_000)


def test_the_folder_itself_and_the_one_that_holds_it(folder):
    check(cifar10(str(folder)))
    check(data := cifar10(str(folder.parent), flip=True))
    assert data.flip


def test_the_archive_is_read_without_unpacking(archive):
    path, md5 = archive
    check(cifar10_of(str(path), md5=md5))
    check(cifar10_of(str(path.parent), md5=md5))
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_archive_than_the_official_is_refused(archive):
    path, md5 = archive
    with pytest.raises(DataError, match=f"{path.name} has the MD5 checksum {md5}, and not c32a1d4ab5d03f1284b67883e8d87530; fetch"):
        cifar10(str(path.parent))


def test_a_broken_archive_is_refused(tmp_path, archive):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(archive[0].read_bytes()[:100_000])
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz cannot be read \(") as error:
        cifar10_of(str(tmp_path), md5=hashlib.md5(path.read_bytes()).hexdigest())
    assert "data.dir" in str(error.value)


def damaged(folder, tmp_path, **files):
    """A copy with `files` (name without ending = content) in their places, or without those that are None; the message."""
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    for name, new in files.items():
        file = next(file for file in tmp_path.iterdir() if file.name.startswith(name))
        file.unlink()
        if new is not None:
            file.write_bytes(new)
    with pytest.raises(DataError) as error:
        cifar10(str(tmp_path))
    assert str(error.value).startswith(f"data.dir is {str(tmp_path)!r}: ")
    return str(error.value)


def test_files_of_a_wrong_length_and_labels_above_nine_are_named(folder, tmp_path):
    wrong = bytearray(content(0))
    for row in (7, 1234, 9998, 9999):
        wrong[row * 3073] = 10
    message = damaged(folder, tmp_path, data_batch_2=wrong, data_batch_4=content(0)[:-1], test_batch=b"")
    places = (
        "data_batch_2.bin record 7 (label 10), data_batch_2.bin record 1234 (label 10), data_batch_2.bin record 9998 (label 10) and 1 more"
    )
    assert f"4 records with a label above 9: {places}; " in message
    assert "2 files not of 30,730,000 bytes: data_batch_4.bin (30,729,999), test_batch.bin (0); " in message


def test_missing_files_are_named(folder, tmp_path):
    message = damaged(folder, tmp_path, data_batch_3=None, batches=None, test_batch=None, data_batch_5=None)
    assert "4 missing files: batches.meta.txt, data_batch_3.bin, data_batch_5.bin and 1 more; " in message


def test_ten_names_are_needed(folder, tmp_path):
    assert "1 file without 10 class names: batches.meta.txt (2); " in damaged(folder, tmp_path, batches=b"cat\ndog\n")


def test_the_recipe_s_keys_reach_the_reader(folder, archive, tmp_path):
    def data(*overrides):
        return load_data(load_recipe("teacher/photos", ["data={name: cifar10}", *overrides]).data)

    check(found := data(f"data.dir={folder}", "data.flip=true"))
    assert found.flip
    with pytest.raises(UserError, match="MD5 checksum"):
        data(f"data.dir={archive[0].parent}")
    with pytest.raises(UserError, match=r"neither cifar-10-binary\.tar\.gz nor cifar-10-batches-bin nor train.*FOLDER"):
        data(f"data.dir={tmp_path}")
    with pytest.raises(UserError, match=r"data.dir is missing.*HF_HUB_OFFLINE forbids.*and say data.dir=FOLDER"):
        data()  # there is no network


def test_the_hub_s_copy_goes_by_the_same_name(tmp_path, monkeypatch):
    """From a folder of its layout and its name, in a working directory where the id of the Hub is that folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=CLASSES)})
    where = tmp_path / "uoft-cs" / "cifar10" / "plain_text"
    where.mkdir(parents=True)
    for split in ("train", "test"):
        images = []
        for k in range(10):
            file = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), 10 * k + (split == "test"), np.uint8)).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        datasets.Dataset.from_dict({"img": images, "label": [*range(10)]}, features).to_parquet(where / f"{split}-00000-of-00001.parquet")
    data = cifar10_of_the_hub(flip=True)
    assert (data.name, data.class_names, data.flip) == ("cifar10", tuple(CLASSES), True)
    assert data.train[:, 2, 31, 31].tolist() == [10 * k for k in range(10)]
    assert data.heldout[:, 2, 31, 31].tolist() == [10 * k + 1 for k in range(10)]
