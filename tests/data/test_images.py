from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import torch
from PIL import Image
from sklearn.model_selection import train_test_split

from fewstep.data import DataError, image_folder, load_digits, photo_crops

CPU = torch.device("cpu")


# --- digits --------------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learn_s_in_its_own_split():
    source, digits = sklearn.datasets.load_digits(), load_digits()
    splits = train_test_split(np.arange(1797), test_size=0.2, stratify=source.target, random_state=0)
    assert (len(splits[0]), len(splits[1])) == (1437, 360)
    for name, index in zip(("train", "heldout"), splits, strict=True):
        assert np.array_equal(digits.images(name)[:, 0].numpy(), source.images[index] / 8 - 1)  # 0 to 16 becomes -1 to 1
        assert np.array_equal(digits.labels(name), source.target[index])
    assert digits.shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert (digits.images("train").min(), digits.images("train").max()) == (-1, 1)


def test_a_digits_batch_is_the_images_asked_for():
    digits, index = load_digits(), torch.tensor([5, 1436, 5])
    x, label = digits.batch(index, torch.Generator(), CPU)
    assert torch.equal(x, digits.images("train")[index])
    assert torch.equal(label, digits.labels("train")[index])


# --- photographs ---------------------------------------------------------------------------------------------------------


def test_photo_crops_are_windows_of_either_the_upper_or_the_lower_part(monkeypatch):
    """On photographs whose pixels say where they are: red and green count the rows, blue the columns."""
    row, column = np.meshgrid(np.arange(427), np.arange(200), indexing="ij")
    photo = np.stack([row // 256, row % 256, column], -1).astype(np.uint8)
    names = ["/some/china.jpg", "/some/flower.jpg"]
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: SimpleNamespace(images=[photo, photo], filenames=names))
    photos = photo_crops(16, 5)
    border = 341  # four fifths of 427 rows: 341.6
    for split, label, first, last in (("train", photos.train_label, 0, border), ("heldout", photos.heldout_label, border, 427)):
        crops = (photos.train if split == "train" else photos.heldout).int()
        rows, columns = 256 * crops[:, 0] + crops[:, 1], crops[:, 2]
        corners = [(k, r, c) for k in range(2) for r in range(first, last - 15, 5) for c in range(0, 200 - 15, 5)]
        assert list(zip(label.tolist(), rows[:, 0, 0].tolist(), columns[:, 0, 0].tolist(), strict=True)) == corners
        assert torch.equal(rows, rows[:, :1, :1] + torch.arange(16)[:, None].expand(16, 16))
        assert torch.equal(columns, columns[:, :1, :1] + torch.arange(16).expand(16, 16))
        assert rows.min() >= first
        assert rows.max() < last
    assert photos.class_names == ("china", "flower")


def test_photo_crops_are_of_the_real_photographs():
    photos = photo_crops(32, 64)
    china, flower = sklearn.datasets.load_sample_images().images
    assert np.array_equal(photos.train[0].permute(1, 2, 0), china[:32, :32])
    assert np.array_equal(photos.heldout[-1].permute(1, 2, 0), flower[341 : 341 + 32, 576:608])
    assert photos.images("train").min() == -1
    assert photos.images("train").max() == 1
    assert photos.num_classes == 2


def test_half_of_the_photo_crops_are_mirrored():
    photos = photo_crops(32, 16)
    index = torch.arange(400)
    x, label = photos.batch(index, torch.Generator().manual_seed(0), CPU)
    plain = photos.images("train")[index]
    mirrored = torch.tensor([torch.equal(a, b.flip(2)) for a, b in zip(x, plain, strict=True)])
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, x, plain, strict=True))
    assert abs(mirrored.sum().item() - 200) < 4 * 10  # four standard deviations, sqrt(400 / 4)
    assert torch.equal(label, photos.labels("train")[index])
    assert not torch.equal(photos.batch(index, torch.Generator().manual_seed(1), CPU)[0], x)


def test_photo_crops_that_leave_nothing_to_hold_out_are_refused():
    with pytest.raises(DataError, match=r"data.size is 87; .* at most 86"):
        photo_crops(87)
    assert len(photo_crops(86, 64).heldout) > 0


# --- folders of images ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _cache_here(monkeypatch, tmp_path_factory):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(seed, shape=(8, 8, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def as_set(images):
    return {image.permute(1, 2, 0).numpy().tobytes() for image in images}


def test_folder_gives_its_pixels_and_its_sub_folders_as_classes(tmp_path):
    pixels = {name: [picture(10 * k + i) for i in range(10)] for k, name in enumerate(("ant", "bee", "cat"))}
    for name, images in pixels.items():
        for i, image in enumerate(images):
            write(tmp_path / "insects" / name / f"{i}.png", image)
    data = image_folder(str(tmp_path / "insects"), 8, holdout=0.2)
    assert data.class_names == ("ant", "bee", "cat")
    assert (len(data.train), len(data.heldout)) == (24, 6)
    for k, images in enumerate(pixels.values()):
        train, heldout = as_set(data.train[data.train_label == k]), as_set(data.heldout[data.heldout_label == k])
        assert (len(train), len(heldout)) == (8, 2)  # stratified
        assert train | heldout == {image.tobytes() for image in images}
    expected = data.train.double() / 127.5 - 1
    torch.testing.assert_close(data.images("train"), expected.float())
    assert data.name == "insects"
    assert not data.flip
    assert torch.equal(image_folder(str(tmp_path / "insects"), 8, holdout=0.2).train, data.train)


def test_grey_and_colour_are_converted_both_ways(tmp_path):
    grey = picture(0, (8, 8))
    for i in range(4):
        write(tmp_path / f"{i}.png", grey)
    colour = image_folder(str(tmp_path), 8, channels=3, holdout=0.25)
    assert np.array_equal(colour.train[0].numpy(), np.stack([grey] * 3))
    for i in range(4):
        write(tmp_path / "rgb" / f"{i}.png", picture(1))
    found = image_folder(str(tmp_path / "rgb"), 8, channels=1, holdout=0.25)
    luma = picture(1) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(found.train[0, 0].numpy() - luma).max() <= 1
    assert found.train.shape[1:] == (1, 8, 8)


def test_larger_images_are_fitted_and_cropped_in_the_centre(tmp_path):
    wide, tall = picture(0, (8, 14, 3)), picture(1, (12, 8, 3))
    smooth = np.repeat(np.repeat(picture(2, (2, 2, 3)), 16, 0), 16, 1)
    for name, image in (("a", wide), ("b", tall), ("c", smooth)):
        for i in range(2):
            write(tmp_path / name / f"{i}.png", image)
    data = image_folder(str(tmp_path), 8, holdout=0.5)
    found = data.train[data.train_label.argsort()].permute(0, 2, 3, 1).numpy()
    assert np.array_equal(found[0], wide[:, 3:11])
    assert np.array_equal(found[1], tall[2:10])
    assert np.array_equal(found[2][[0, 0, -1, -1], [0, -1, 0, -1]], smooth[[0, 0, -1, -1], [0, -1, 0, -1]])  # four to one: corners stay


@pytest.mark.parametrize("name", ["test", "validation"])
def test_a_split_of_that_name_is_held_out(tmp_path, name):
    train, heldout = [picture(i) for i in range(6)], [picture(100 + i) for i in range(3)]
    for k in range(6):
        write(tmp_path / "train" / f"class{k % 2}" / f"{k}.png", train[k])
    for k in range(3):
        write(tmp_path / name / f"class{k % 2}" / f"{k}.png", heldout[k])
    data = image_folder(str(tmp_path), 8, holdout=0.5, flip=True)
    assert as_set(data.train) == {image.tobytes() for image in train}
    assert as_set(data.heldout) == {image.tobytes() for image in heldout}
    assert sorted(data.train_label.tolist()) == [0, 0, 0, 1, 1, 1]
    assert sorted(data.heldout_label.tolist()) == [0, 0, 1]
    assert data.flip


def test_splits_without_sub_folders_have_no_classes(tmp_path):
    for i in range(4):
        write(tmp_path / ("train" if i else "test") / f"{i}.png", picture(i))
    data = image_folder(str(tmp_path), 8)
    assert as_set(data.train) == {picture(i).tobytes() for i in (1, 2, 3)}
    assert as_set(data.heldout) == {picture(0).tobytes()}
    assert data.num_classes is data.train_label is data.heldout_label is None


def test_a_flat_folder_has_no_classes(tmp_path):
    for i in range(8):
        write(tmp_path / f"{i}.png", picture(i))
    data = image_folder(str(tmp_path), 8, holdout=0.25)
    assert (len(data.train), len(data.heldout)) == (6, 2)
    assert len(as_set(data.train) | as_set(data.heldout)) == 8
    assert data.num_classes is data.train_label is data.heldout_label is None
    assert data.batch(torch.tensor([0]), torch.Generator(), CPU)[1] is None


def test_a_place_without_images_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        image_folder(str(tmp_path / "nowhere"), 8)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match="empty folder"):
        image_folder(str(tmp_path / "empty"), 8)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "a.txt").write_text("no image\n")
    with pytest.raises(DataError, match=r"holds no image that can be read, but 1 file whose content .* \(a\.txt\)"):
        image_folder(str(tmp_path / "words"), 8)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "a.xyz").write_text("?")
    with pytest.raises(DataError, match=r"1 file whose content is no image of a known kind \(a\.xyz\)"):
        image_folder(str(tmp_path / "odd"), 8)


def test_a_damaged_image_is_refused(tmp_path):
    for i in range(4):
        write(tmp_path / f"{i}.png", picture(i))
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"data.path"):
        image_folder(str(tmp_path), 8)


def test_too_few_images_to_split_are_refused(tmp_path):
    write(tmp_path / "one" / "0.png", picture(0))
    with pytest.raises(DataError, match="with 1 image; at least 2 are needed"):
        image_folder(str(tmp_path / "one"), 8)
    for k, num in enumerate((5, 1)):
        for i in range(num):
            write(tmp_path / "two" / f"class{k}" / f"{i}.png", picture(i))
    with pytest.raises(DataError, match="1 in its smallest class"):
        image_folder(str(tmp_path / "two"), 8)


@pytest.mark.parametrize("holdout", [0.1, 0.95])
def test_a_fraction_that_leaves_a_class_out_is_refused_by_its_key(tmp_path, holdout):
    for k in range(2):
        for i in range(5):
            write(tmp_path / f"class{k}" / f"{i}.png", picture(i))
    with pytest.raises(DataError, match=r"data\.holdout"):  # one image cannot show two classes
        image_folder(str(tmp_path), 8, holdout=holdout)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_on_a_gpu_is_the_one_on_the_cpu():
    """Copies from pinned memory that nobody waits for, many at a time."""
    photos, index = photo_crops(32, 16), torch.arange(256)
    plain = photos.images("train")
    for first in range(0, 2560, 10):
        x, label = photos.batch((index + first) % len(plain), torch.Generator("cuda").manual_seed(0), torch.device("cuda"))
        which = (index + first) % len(plain)
        back = x.cpu()
        same = (back == plain[which]).flatten(1).all(1) | (back.flip(3) == plain[which]).flatten(1).all(1)
        assert same.all()
        assert torch.equal(label.cpu(), photos.labels("train")[which])
