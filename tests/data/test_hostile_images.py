"""Folders and tables of images that would hang, run, loop or read what is not theirs: each one sentence that names the place."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder

SIZE = {"size": 8, "channels": 3, "resize": "fit", "holdout": 0.25}


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of twelve images."""
    for number in range(24):
        picture(tmp_path / "d" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    return tmp_path / "d"


def opened(path, **options):
    return image_folder(str(path), **{**SIZE, **options})


def refusal(path, **options):
    with pytest.raises(DataError) as caught:
        opened(path, **options)
    return str(caught.value)


def test_sound_images_are_read(folder):
    data = opened(folder)
    assert (len(data.train), len(data.heldout), data.class_names) == (18, 6, ("cat", "dog"))


@pytest.mark.parametrize("target", ["..", "../..", "."])
def test_a_link_that_leads_back_up_is_named(target, folder):
    (folder / "cat" / "up").symlink_to(target)
    told = refusal(folder)
    assert "cat/up" in told.split(" is a link to ")[0]
    assert "whose images are there already" in told


def test_the_same_folder_under_two_names_is_named(folder):
    (folder / "kitten").symlink_to(folder / "cat")
    assert "is a link to" in refusal(folder)


def test_a_link_to_images_elsewhere_is_followed(folder, tmp_path):
    shutil.move(folder / "cat", tmp_path / "elsewhere")
    (folder / "cat").symlink_to(tmp_path / "elsewhere")
    assert len(opened(folder).train) == 18


def test_a_name_that_is_not_utf_8_is_shown(folder):
    shutil.copy(folder / "cat" / "1.png", os.fsencode(folder / "cat") + b"/caf\xe9.png")
    assert r"the name caf\xe9.png in cat is not UTF-8; rename it" in refusal(folder)


@pytest.mark.parametrize("where", ["image", "class"])
def test_a_pipe_among_images_is_not_waited_for(where, folder):
    os.mkfifo(folder / "cat" / "zz.png" if where == "image" else folder / "zz.png")
    told = refusal(folder)
    assert "zz.png" in told


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_what_only_another_program_can_read_is_not_handed_to_it(folder, monkeypatch):
    from PIL import EpsImagePlugin

    def run(*given, **more):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    (folder / "cat" / "0.png").write_bytes(EPS)
    told = refusal(folder)
    assert "cat/0.png" in told
    assert "cannot be read" in told


def table(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, struct)}), path)


def test_rows_that_name_files_of_their_own_folder_are_read(folder):
    table(folder / "t.parquet", [{"bytes": None, "path": f"cat/{k}.png"} for k in range(1, 24, 2)])
    assert len(opened(folder / "t.parquet").train) == 9


@pytest.mark.parametrize("absolute", [True, False])
def test_rows_that_name_other_files_are_refused(absolute, folder, tmp_path):
    picture(tmp_path / "private" / "me.png")
    path = str(tmp_path / "private" / "me.png") if absolute else "../private/me.png"
    table(folder / "t.parquet", [{"bytes": None, "path": f"cat/{k}.png"} for k in range(1, 24, 2)] + [{"bytes": None, "path": path}])
    told = refusal(folder / "t.parquet")
    assert "1 row naming a file outside the data set's folder" in told
    assert "row 12" in told


def test_a_pipe_behind_a_row_is_not_waited_for(folder):
    os.mkfifo(folder / "zz.png")
    table(folder / "t.parquet", [{"bytes": None, "path": f"cat/{k}.png"} for k in range(1, 24, 2)] + [{"bytes": None, "path": "zz.png"}])
    assert "no plain file" in refusal(folder / "t.parquet")


def test_copies_on_both_sides_of_the_split_are_counted_and_said(folder):
    assert opened(folder).note == ""
    for number in range(0, 24, 2):
        shutil.copy(folder / "dog" / f"{number}.png", folder / "dog" / f"again_{number}.png")
    data = opened(folder)
    train = {image.numpy().tobytes() for image in data.train}
    twice = sum(image.numpy().tobytes() in train for image in data.heldout)
    assert twice > 0
    assert f"{twice} of the {len(data.heldout)} images held out are trained on, too, as exact copies" in data.note
