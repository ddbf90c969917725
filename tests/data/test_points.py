import math

import numpy as np
import pytest
import torch

from fewstep.data import DataError, PointData, point_file
from fewstep.data.points import check_points


def points(num=200, dims=3, seed=0):
    return np.random.default_rng(seed).normal(size=(num, dims))


@pytest.fixture
def save(tmp_path):
    """``save(array) -> path`` of a .npy file."""

    def write(array, **options):
        np.save(tmp_path / "mine.npy", array, **options)
        return str(tmp_path / "mine.npy")

    return write


# --- a file


def test_a_file_is_split_at_random_and_the_same_each_time(save):
    array = points()
    path = save(array)
    data, again = point_file(path, 0.25), point_file(path, 0.25)
    assert (data.name, data.shape, len(data.train), len(data.heldout), data.density) == ("mine", (3,), 150, 50, None)
    assert data.train.dtype == data.heldout.dtype == torch.float32
    assert torch.equal(data.train, again.train)
    assert torch.equal(data.heldout, again.heldout)
    standard = ((array - array.mean(0)) / array.std(0)).astype(np.float32)
    whole = torch.cat([data.train, data.heldout]).numpy()
    np.testing.assert_allclose(whole[whole[:, 0].argsort()], standard[standard[:, 0].argsort()], atol=1e-5)  # each row once, in one part
    position = [np.abs(standard - row).sum(1).argmin() for row in data.heldout.numpy()]
    assert np.mean(position) == pytest.approx(99.5, abs=4 * 58 / math.sqrt(50))  # from all over the file


def test_the_split_does_not_touch_the_global_generator(save):
    before = torch.get_rng_state()
    point_file(save(points()), 0.25)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["float16", "float64", "int32", "uint8", ">f8"])
def test_numbers_of_any_type_become_float32(save, kind):
    array = np.arange(300).reshape(100, 3) % 100
    data = point_file(save(array.astype(kind)), 0.4, standardize=False)
    assert data.train.dtype == torch.float32
    assert sorted(torch.cat([data.train, data.heldout])[:, 0].tolist()) == sorted(array[:, 0].tolist())


@pytest.mark.parametrize(
    ("array", "what"),
    [
        (np.zeros(100), r"shape \[100\] and type float64"),
        (np.zeros((100, 2, 2)), r"shape \[100, 2, 2\]"),
        (np.zeros((100, 2), dtype=complex), "type complex128"),
        (np.zeros((100, 2), dtype=bool), "type bool"),
        (np.full((100, 2), "a"), "type <U1"),
    ],
)
def test_an_array_of_something_else_is_refused(save, array, what):
    with pytest.raises(DataError, match=rf"data.path is .*mine.npy', which holds .*{what}.*; give one array of numbers \[N, D\]"):
        point_file(save(array), 0.2)


def test_what_is_no_npy_file_is_refused(tmp_path, save):
    text, empty, folder, several, torn = (tmp_path / name for name in ("a.npy", "b.npy", "c.npy", "d.npz", "e.npz"))
    text.write_text("1,2\n3,4\n")
    empty.write_bytes(b"")
    folder.mkdir()
    torn.write_bytes(b"PK\x03\x04 and no more")  # begins as an archive does
    np.savez(several, a=points(), b=points())
    for path in (text, empty, folder, torn, tmp_path / "none.npy"):
        with pytest.raises(DataError, match=r"which is no readable .npy file .*; save an array \[N, D\] with numpy.save"):
            point_file(str(path), 0.2)
    with pytest.raises(DataError, match="which holds several arrays"):
        point_file(str(several), 0.2)
    with pytest.raises(DataError, match="which is no readable"):
        point_file(save(np.array([{"a": 1}], dtype=object), allow_pickle=True), 0.2)  # a pickle is not opened


def test_points_that_are_not_finite_are_refused(save):
    array = points()
    array[5, 2], array[9] = np.nan, np.inf
    with pytest.raises(DataError, match="2 of 200 points hold NaN or infinity, the first in row 5"):
        point_file(save(array), 0.25)


@pytest.mark.parametrize(("num", "holdout", "held"), [(199, 0.2, 40), (0, 0.2, 0), (79, 0.5, 40), (100, 0.3, 30), (100, 0.7, 70)])
def test_each_part_needs_40_points(save, num, holdout, held):
    path = save(points(num))
    if num == 199:
        assert len(point_file(path, holdout).heldout) == held
        return
    with pytest.raises(DataError, match=rf"with {num} points, of which data.holdout {holdout} takes {held}; each part needs 40"):
        point_file(path, holdout)


# --- in memory


def test_points_as_the_loop_and_the_evaluation_ask_for_them():
    train, heldout = (torch.from_numpy(points(num, seed=num)).float() for num in (50, 60))
    data = PointData("mine", train, heldout)
    assert data.images("train") is train
    assert data.images("heldout") is heldout
    assert (data.shape, data.num_classes, data.class_names, data.labels("train")) == ((3,), None, (), None)
    rng = torch.Generator().manual_seed(0)
    before = rng.get_state()
    x, label = data.batch(torch.tensor([4, 4, 1]), rng, torch.device("cpu"))
    assert torch.equal(x, train[[4, 4, 1]])
    assert label is None
    assert torch.equal(rng.get_state(), before)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_points_in_memory_must_be_finite(split):
    good = torch.zeros(50, 2)
    bad = good.clone()
    bad[1, 0] = math.nan
    with pytest.raises(DataError, match="1 of 50 points hold NaN or infinity, the first in row 1"):
        PointData("mine", **{"train": good, "heldout": good, split: bad})


# --- a data set of one's own


def test_a_data_set_of_points_that_are_not_finite_is_refused():
    x = torch.zeros(10, 2)
    check_points(x)
    x[3, 1], x[7, 0], x[7, 1] = math.nan, math.inf, -math.inf
    with pytest.raises(DataError, match=r"2 of 10 points hold NaN or infinity, the first in row 3; mend or remove these rows"):
        check_points(x)
    for train, heldout in ((x, x[:3]), (x[:3], x)):
        with pytest.raises(DataError, match="NaN or infinity"):
            PointData("x", train, heldout)
