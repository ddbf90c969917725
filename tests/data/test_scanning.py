"""Each file of a folder is an image, or left out for a reason that names it: none is passed over in silence."""

import os
import zipfile

import pytest

from fewstep.data.scanning import EMPTY, HEIC, HIDDEN, LISTS, NO_IMAGE, NO_PLAIN_FILE, RAW, image_kind, scan
from fewstep.pil import FORMATS
from picture_folders import encoded, lines, opened, put, refusal, two_classes

WRITTEN = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000"]


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_pillow_writes_is_known_by_its_first_bytes(kind):
    """All formats that are opened, but for DIB and TGA, which have no mark, and MPO, which is a JPEG."""
    assert image_kind(encoded(kind)[:32]) == kind
    assert {*WRITTEN, "DIB", "TGA", "MPO"} == set(FORMATS)


@pytest.mark.parametrize(
    "text", [b"BMW, Audi and other cars of this kind", b"P1 is a file of words", b"P6 \nnotes", b"GIF", b"RIFF....WAVE", b"\xff\xd8", b""]
)
def test_words_that_begin_like_an_image_are_none(text):
    assert image_kind(text[:32]) is None


@pytest.mark.parametrize("name", ["{}", "{}.jpg_large", "{}.PNG.bak", "img.{}", "{}.dat"])
def test_images_of_any_name_are_used_by_their_content(name, tmp_path):
    two_classes(tmp_path, name=name)
    data = opened(tmp_path)
    assert (len(data.train) + len(data.heldout), data.class_names) == (24, ("cat", "dog"))
    assert "24 files found" in lines(data)
    assert "24 of the images have none of the usual endings, and were told by content (cat/" in lines(data)


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40)
REASONS = {
    "a.heic": (HEIC_HEAD, HEIC),
    "a": (HEIC_HEAD, HEIC),
    "a.heif": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", HEIC),
    "a.dng": (b"II*\0" + bytes(60), RAW),
    "a.NEF": (b"MM\0*" + bytes(60), RAW),
    "empty": (b"", EMPTY),
    "labels.csv": (b"file,label\n", LISTS),
    "captions.jsonl": (b"{}\n", LISTS),
    "notes.txt": (b"words", NO_IMAGE),
    "Thumbs.db": (b"\xd0\xcf\x11\xe0" + bytes(60), NO_IMAGE),
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", NO_IMAGE),
    "a.mp4": (b"\0\0\0\x18ftypisom" + bytes(40), NO_IMAGE),
    ".DS_Store": (b"x", HIDDEN),
    "._0.png": (b"x", HIDDEN),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_is_no_image_is_counted_with_its_reason_and_name(name, tmp_path):
    content, reason = REASONS[name]
    two_classes(tmp_path)
    put(tmp_path / "cat" / name, content)
    found = scan(tmp_path, "here")
    assert (found.left_out, len(found.images), found.found) == ({reason: [f"cat/{name}"]}, 24, 25)
    text = lines(opened(tmp_path))
    assert "25 files found in" in text
    assert "24 used, 1 left out." in text
    assert f"left out: 1 {reason.what.format(s='', es='')} (cat/{name})" in text


def test_all_reasons_at_once_add_up(tmp_path):
    two_classes(tmp_path)
    for name, (content, _) in REASONS.items():
        put(tmp_path / "dog" / name, content)
    put(tmp_path / "__MACOSX" / "cat" / "0.png", encoded())  # one thing that is hidden, whatever it holds
    os.mkfifo(tmp_path / "cat" / "pipe")
    (tmp_path / "cat" / "gone").symlink_to("nowhere")
    found = scan(tmp_path, "here")
    assert found.left_out[NO_PLAIN_FILE] == ["cat/gone", "cat/pipe"]
    assert found.left_out[HIDDEN] == ["__MACOSX/", "dog/.DS_Store", "dog/._0.png"]
    assert found.found == 24 + len(REASONS) + 3
    text = lines(opened(tmp_path))
    assert "24 used, 17 left out." in text
    assert "left out: 3 HEIC images (dog/a, dog/a.heic, dog/a.heif); save them as JPEG or PNG" in text


def test_more_than_three_are_counted(tmp_path):
    two_classes(tmp_path)
    for k in range(5):
        put(tmp_path / "cat" / f"{k}.heic", HEIC_HEAD)
    assert "5 HEIC images (cat/0.heic, cat/1.heic, cat/2.heic and 2 more)" in lines(opened(tmp_path))


def test_nothing_but_other_files_is_told_with_its_reasons(tmp_path):
    for k in range(5):
        put(tmp_path / "cat" / f"{k}.heic", HEIC_HEAD)
    put(tmp_path / "notes.txt", b"words")
    told = refusal(tmp_path)
    assert "holds no image that can be read, but 1 file whose content is no image of a known kind (notes.txt); 5 HEIC images" in told


# --- archives and tables beside images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz", "photos.tgz", "photos.7z", "PHOTOS.ZIP"])
def test_an_archive_beside_what_was_unpacked_from_it_is_left_out(name, tmp_path):
    two_classes(tmp_path)
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        for file in sorted(tmp_path.rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path))
    data = opened(tmp_path)
    assert (len(data.train) + len(data.heldout), data.class_names) == (24, ("cat", "dog"))
    assert f"left out: 1 archive beside images that lie unpacked ({name}); unpack what is not yet" in lines(data)


def test_archives_alone_are_to_be_unpacked(tmp_path):
    for name in ("cat", "dog"):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr(f"{name}/0.png", encoded())
    assert "holds 2 archives (cat.zip, ...) and no image that lies unpacked; unpack them there" in refusal(tmp_path)


def test_a_table_beside_images_could_be_meant_as_well(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    two_classes(tmp_path)
    pq.write_table(pa.table({"image": [encoded(seed=k) for k in range(8)]}), tmp_path / "t.parquet")
    assert "holds 24 images and 1 table (t.parquet), and either could be meant" in refusal(tmp_path)
    assert len(opened(tmp_path / "t.parquet").train) == 6
    (tmp_path / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: t.parquet\n---\n")  # as on the Hub
    data = opened(tmp_path)
    assert len(data.train) == 6
    assert "24 files beside the tables, 24 of them images, are not read (cat/0.png" in lines(data)


# --- metadata ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _cache_here(monkeypatch, tmp_path_factory):
    import datasets

    datasets.disable_progress_bars()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def described(root, places, form="csv", label=lambda place: "ab"[int("dog" in place)], column="label"):
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"file_name": place} | ({} if label is None else {column: label(place)}) for place in places]
    if form == "csv":
        text = ",".join(rows[0]) + "\n" + "".join(",".join(row.values()) + "\n" for row in rows)
        (root / "metadata.csv").write_text(text)
    elif form == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")


def places_in(root):
    return sorted(str(file.relative_to(root)) for file in root.rglob("*.png"))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_that_names_half_of_the_images_is_refused(form, tmp_path):
    two_classes(tmp_path)
    described(tmp_path, places_in(tmp_path)[:12], form)
    told = refusal(tmp_path)
    assert f"metadata.{form} names 12 of the 24 images, and the other 12 (dog/0.png, dog/1.png, dog/10.png and 9 more)" in told
    assert f"or move metadata.{form} away: then the class of an image is its sub-folder" in told
    (tmp_path / f"metadata.{form}").unlink()  # which is what it says
    assert opened(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_that_names_all_images_gives_their_labels(form, tmp_path):
    two_classes(tmp_path)
    described(tmp_path, places_in(tmp_path), form)
    data = opened(tmp_path)
    assert (len(data.train) + len(data.heldout), data.class_names) == (24, ("a", "b"))
    assert "2 classes by the column 'label'" in lines(data)


@pytest.mark.parametrize("num", [12, 24])
def test_metadata_without_labels_leaves_the_classes_to_the_folders(num, tmp_path):
    two_classes(tmp_path)
    described(tmp_path, places_in(tmp_path)[:num], label=lambda place: "a nice one", column="caption")
    data = opened(tmp_path)
    assert (len(data.train) + len(data.heldout), data.class_names) == (24, ("cat", "dog"))
    assert "left out: 1 metadata file without a column of labels (metadata.csv); the class of an image is its sub-folder" in lines(data)


def test_metadata_that_names_what_is_not_there_is_refused(tmp_path):
    two_classes(tmp_path)
    described(tmp_path, [*places_in(tmp_path), "cat/99.png"])
    assert "names 1 file that is no image there (cat/99.png)" in refusal(tmp_path)


def test_metadata_without_names_is_refused(tmp_path):
    two_classes(tmp_path)
    (tmp_path / "metadata.csv").write_text("id,label\n1,a\n")
    assert "metadata.csv has no column file_name that names images; rename its column, or move it away" in refusal(tmp_path)


def test_metadata_of_images_without_an_ending_is_refused(tmp_path):
    two_classes(tmp_path, name="{}")
    described(tmp_path, sorted(f"{label}/{k}" for label in ("cat", "dog") for k in range(12)))
    assert "names 24 images without one of the usual endings" in refusal(tmp_path)


@pytest.mark.parametrize("above", [None, "..", "cat/../../x"])
def test_metadata_that_names_files_elsewhere_is_refused(above, tmp_path):
    two_classes(tmp_path)
    first, *others = places_in(tmp_path)
    described(tmp_path, [*others, f"{tmp_path if above is None else above}/{first}"])
    told = refusal(tmp_path)
    assert "metadata.csv names 1 file outside its folder (" in told
    assert "write paths as they are from that folder" in told


def test_what_lies_beside_images_with_metadata_is_told(tmp_path):
    two_classes(tmp_path)
    described(tmp_path, places_in(tmp_path))
    put(tmp_path / "cat" / "a.heic", HEIC_HEAD)
    put(tmp_path / "notes.txt", b"words")
    text = lines(opened(tmp_path))
    assert "26 files found in" in text
    assert "24 used, 2 left out." in text
    assert "left out: 1 HEIC image (cat/a.heic)" in text


def test_what_lies_beside_tables_is_told(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [encoded(seed=k) for k in range(8)]}), tmp_path / "t.parquet")
    (tmp_path / "README.md").write_text("words")
    assert "not read" not in lines(opened(tmp_path))
    put(tmp_path / "notes.txt", b"words")
    put(tmp_path / "cat" / "a.heic", HEIC_HEAD)
    assert "2 files beside the tables are not read (cat/a.heic, notes.txt)." in lines(opened(tmp_path))
