"""Small files that claim to be large: refused in one sentence before memory or disk is taken; honest ones of the same kinds are read."""

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fewstep.data.archives import check_archives, expanded
from fewstep.data.errors import DataError
from fewstep.data.parquet import arrow_expanded
from fewstep.limits import IMAGE_PIXELS, JSON_BYTES, TooLarge, check_size, in_units, memory
from fewstep.recipe.reading import parse_yaml

GIB = 2**30
ALLOWED = 3 * GIB  # more than the process has when it has imported everything
TAKEN = 1.2 * GIB  # by what is refused, or is small


class Opener:
    """A process that opens files, with so much memory."""

    def __init__(self, folder):
        self.folder, self.process = folder, None

    def start(self):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HOME": str(self.folder), "HF_HUB_OFFLINE": "1", "MALLOC_ARENA_MAX": "2"}
        command = [sys.executable, str(Path(__file__).with_name("bomb.py")), str(ALLOWED)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=self.folder, bufsize=1
        )

    def __call__(self, kind, path):
        if self.process is None or self.process.poll() is not None:
            self.start()
        self.process.stdin.write(json.dumps([kind, str(path)]) + "\n")
        answer = self.process.stdout.readline()
        assert answer, f"the process that opened {path} is gone"
        return json.loads(answer)


@pytest.fixture(scope="module")
def opener(tmp_path_factory):
    serving = Opener(tmp_path_factory.mktemp("opener"))
    yield serving
    if serving.process is not None:
        serving.process.stdin.close()
        serving.process.wait(20)


# -- images


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *more, rows=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def grey_png(width, height, *more):
    return png(width, height, *more, rows=(b"\0" * (width + 1)) * height)


def tiff(width, height, tile):
    """An 8-bit grey TIFF whose one tile is larger than itself, and holds zeros."""
    data = zlib.compress(b"\0" * min(tile * tile, 2**27), 9)
    tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (277, 1), (322, tile), (323, tile), (324, 8), (325, len(data))]
    content = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags))
    return content + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags) + struct.pack("<I", 0)


def encoded(form, size=(8, 8), mode="RGB", **options):
    content = io.BytesIO()
    Image.new(mode, size).save(content, form, **options)
    return content.getvalue()


def webp(width, height):
    content = bytearray(encoded("WEBP", lossless=True))
    place = content.index(b"VP8L") + 9
    bits = int.from_bytes(content[place : place + 4], "little")
    content[place : place + 4] = ((bits & ~0xFFFFFFF) | (width - 1) | (height - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def jpeg2000(side):
    content = bytearray(encoded("JPEG2000"))
    header = content.index(b"ihdr") + 4
    content[header : header + 8] = struct.pack(">II", side, side)
    code = content.index(b"\xff\x51") + 6
    content[code : code + 8] = struct.pack(">II", side, side)
    return bytes(content)


def avif(side):
    content = bytearray(encoded("AVIF"))
    place = content.index(b"ispe") + 8
    content[place : place + 8] = struct.pack(">II", side, side)
    return bytes(content)


HUGE = 60_000
HUGE_IMAGES = {
    "png": lambda: png(HUGE, HUGE),
    "png that holds its zeros": lambda: grey_png(13_000, 13_000),
    "png just above": lambda: png(2**14, 2**13 + 1),
    "ppm": lambda: b"P6 60000 60000 255\n" + b"\0" * 100,
    "pgm": lambda: b"P5 100000 100000 255\n" + b"\0" * 100,
    "bmp": lambda: b"BM" + struct.pack("<IHHIIiiHHIIIIII", 100, 0, 0, 54, 40, HUGE, HUGE, 1, 24, 0, 0, 0, 0, 0, 0) + b"\0" * 50,
    "gif": lambda: (
        b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\0;"
    ),
    "tga": lambda: struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, HUGE, HUGE, 24, 32) + b"\0" * 100,
    "jpg": lambda: encoded("JPEG").replace(struct.pack(">HH", 8, 8), struct.pack(">HH", 65500, 65500), 1),
    "webp": lambda: webp(16_000, 16_000),
    "tiff": lambda: tiff(HUGE, HUGE, 16),
    "tiff of a large tile": lambda: tiff(8, 8, 65_536),
    "jp2": lambda: jpeg2000(HUGE),
}
DAMAGED_IMAGES = {
    "avif": lambda: avif(HUGE),
    "png of a large iCCP": lambda: grey_png(8, 8, chunk(b"iCCP", b"p\0\0" + zlib.compress(b"\0" * 2**27, 9))),
    "png of a large zTXt": lambda: grey_png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 2**27, 9))),
    "png of a large iTXt": lambda: grey_png(8, 8, chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 2**27, 9))),
}


def one_sentence(text, *words):
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text, text
    assert len(text) < 600, text
    for word in words:
        assert word in text, text


def refused(opener, kind, path, *words):
    fine, text, said, taken = opener(kind, path)
    assert fine is False, text
    one_sentence(text, *words)
    assert "Warning" not in said, said
    assert taken < TAKEN, f"{in_units(taken)} for {text}"
    return text


def accepted(opener, kind, path, told, taken=ALLOWED):
    fine, text, _, found = opener(kind, path)
    assert fine is True, text
    assert told in text, text
    assert found < taken, in_units(found)


def among_images(folder, content, name="large.png"):
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.png").write_bytes(grey_png(8 + number, 8))
    (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("name", HUGE_IMAGES)
def test_an_image_that_claims_too_many_pixels_is_named(name, opener, tmp_path):
    path = among_images(tmp_path / "d", HUGE_IMAGES[name]())
    refused(opener, "images", path, "large.png", "1 image too large to be read", "allowed", "make the image smaller")


@pytest.mark.parametrize("name", DAMAGED_IMAGES)
def test_an_image_whose_other_chunks_expand_is_named(name, opener, tmp_path):
    content = DAMAGED_IMAGES[name]()
    assert len(content) < 2**20
    refused(opener, "images", among_images(tmp_path / "d", content), "large.png", "1 image that cannot be read", "mend or remove")


def test_a_file_of_images_that_is_far_too_large_is_not_read(opener, tmp_path):
    path = among_images(tmp_path / "d", encoded("WEBP"))
    with (path / "large.png").open("ab") as file:
        file.truncate(40 * GIB)  # a hole, which takes no disk
    refused(opener, "images", path, "large.png", "40.0 GiB", "1.0 GiB are allowed")


@pytest.mark.parametrize(("form", "options"), [("GIF", {}), ("WEBP", {}), ("TIFF", {}), ("PNG", {})])
def test_many_frames_are_refused_without_being_decoded(form, options, opener, tmp_path):
    content = io.BytesIO()
    frames = [Image.effect_noise((64, 64), 40 + k) for k in range(60)]
    frames[0].save(content, form, save_all=True, append_images=frames[1:], **options)
    refused(opener, "images", among_images(tmp_path / "d", content.getvalue()), "large.png", "several frames", "60 frames")


def test_large_images_that_are_allowed_are_read(opener, tmp_path):
    folder = among_images(tmp_path / "d", grey_png(10_000, 9_200))  # 92 million, of which Pillow would warn
    (folder / "rgb.png").write_bytes(encoded("PNG", (4000, 3000), "RGBA"))
    (folder / "noted.png").write_bytes(grey_png(8, 8, chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 500_000))))
    fine, text, said, _ = opener("images", folder)
    assert (fine, text) == (True, "3 and 3 images")
    assert "Bomb" not in said


def test_images_in_a_table_are_held_to_the_same(opener, tmp_path):
    rows = [{"bytes": grey_png(8, 8 + k), "path": None} for k in range(5)] + [{"bytes": png(HUGE, HUGE), "path": None}]
    pq.write_table(pa.table({"image": rows}), tmp_path / "t.parquet")
    refused(opener, "images", tmp_path / "t.parquet", "row 5 of train", "60000 x 60000 pixels")
    refused(opener, "stream", tmp_path / "t.parquet", "too large to be read")


# -- tables


def repeated(path, size, num, **options):
    """The same image in every row, with zeros behind it, so that it has `size` bytes."""
    content = grey_png(8, 8)
    one = pa.array([content + b"\0" * (size - len(content))], pa.binary())
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), one)
    column = column if options.get("use_dictionary", True) else column.cast(pa.binary())
    images = pa.StructArray.from_arrays([column, pa.nulls(num, pa.string())], ["bytes", "path"])
    pq.write_table(pa.table({"image": images}), path, compression="zstd", store_schema=False, **options)
    return path


def rows_of_nothing(path, num):
    """`num` rows of one label and no image."""
    indices = pa.array(np.zeros(2**20, np.int8))
    table = pa.table({"image": pa.nulls(2**20, pa.binary()), "label": indices})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(num // 2**20):
            writer.write_table(table)
    return path


def test_a_table_that_claims_too_many_rows_is_refused(opener, tmp_path):
    path = rows_of_nothing(tmp_path / "t.parquet", 64 * 2**20)
    assert path.stat().st_size < 2**20
    refused(opener, "images", path, "67,108,864 rows", "50,000,000", "data.name: stream")


def test_more_images_than_there_is_memory_for_are_refused(opener, tmp_path):
    path = rows_of_nothing(tmp_path / "t.parquet", 40 * 2**20)
    refused(opener, "images", path, "41,943,040 images", "7.5 GiB", "lower data.size")


def test_a_table_whose_values_are_stored_once_is_read_a_few_rows_at_a_time(opener, tmp_path):
    path = repeated(tmp_path / "t.parquet", 32 * 2**20, 40)
    assert path.stat().st_size < 2**17
    accepted(opener, "images", path, "20 and 20", GIB)
    refused(opener, "stream", path, "t.parquet", "40 rows", "one value of 32.0 MiB", "1.0 GiB are allowed")


@pytest.mark.parametrize("kind", ["images", "stream"])
def test_a_column_that_expands_beyond_belief_is_refused(kind, opener, tmp_path):
    path = repeated(tmp_path / "t.parquet", 2**22, 100, use_dictionary=False)
    refused(opener, kind, path, "t.parquet", "'image.bytes'", "claim to become", "take another copy")


def test_a_label_that_is_a_book_is_refused(opener, tmp_path):
    rows = {"image": [grey_png(8, 8 + k) for k in range(6)], "label": ["a" * 2**20] * 6}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet", compression="zstd")
    refused(opener, "images", tmp_path / "t.parquet", "'label'", "1,048,576", "data.label_column")


def test_arrow_files_say_what_they_become(tmp_path):
    table = pa.table({"image": pa.array([b"\0" * 1000] * 1000), "n": pa.array(range(1000))})
    for name, kind in (("a", pa.ipc.new_stream), ("b", pa.ipc.new_file)):
        for compression, least in ((None, 0), ("zstd", 1_000_000), ("lz4", 1_000_000)):
            with (
                pa.OSFile(str(tmp_path / name), "wb") as sink,
                kind(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as file,
            ):
                file.write_table(table, max_chunksize=300)
            assert least <= arrow_expanded(tmp_path / name) <= 1.1 * least + 20_000 * bool(least)


@pytest.mark.parametrize("kind", ["images", "stream"])
def test_an_arrow_file_that_expands_is_refused(kind, opener, tmp_path):
    path = tmp_path / "d"
    import datasets

    datasets.Dataset.from_dict({"image": [grey_png(8, 8)] * 4}).save_to_disk(path)
    file = next(path.glob("*.arrow"))
    table = pa.table({"image": pa.array([b"\0" * 2**27] * 2)})
    with (
        pa.OSFile(str(file), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as to,
    ):
        for _ in range(8):
            to.write_table(table)
    refused(opener, kind, path if kind == "images" else file, file.name, "unpacks to 2.0 GiB", "take another copy")


# -- archives


def zeros(name, size, kind):
    """A gzip of so many zeros, and its like, from one block that is repeated."""
    block = kind(b"\0" * 2**26)
    return block * (size // 2**26)


ARCHIVES = {
    "gz": lambda: zeros("gz", 2**30, gzip.compress),
    "bz2": lambda: zeros("bz2", 2**30, bz2.compress),
    "xz": lambda: zeros("xz", 2**30, lambda part: lzma.compress(part, preset=0)),
}


@pytest.mark.parametrize("name", ["zip", "tar", *ARCHIVES])
def test_an_archive_that_would_fill_the_disk_is_refused(name, opener, tmp_path):
    folder = tmp_path / "d"
    folder.mkdir()
    path = folder / f"train.{name}"
    if name == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for number in range(20):
                archive.writestr(f"{number}.png", b"\0" * 2**16)
                archive.getinfo(f"{number}.png").file_size = 2**26
    elif name == "tar":  # as GNU tar writes a file with a hole: 512 bytes of a file of 10 TiB
        sparse = tarfile.TarInfo("0.png")
        sparse.size, sparse.type = 512, b"S"
        header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
        header[386:410] = b"00000000000\0" + b"00000001000\0"  # where its one part lies, and how long that is
        header[483:495] = b"\x80" + (10 * 2**40).to_bytes(11, "big")
        header[148:156] = b"        "
        header[148:156] = b"%06o\0 " % sum(header)
        path.write_bytes(bytes(header) + b"\0" * 512 + b"\0" * 1024)
    else:
        path.write_bytes(ARCHIVES[name]())
    assert path.stat().st_size < 2**22
    with pytest.raises(DataError, match=rf"{path.name} has .* and unpacks to .* are allowed; take another copy, or unpack it yourself"):
        check_archives([path], "the set")
    if name == "tar":
        refused(opener, "images", folder, path.name, "unpacks to", "are allowed; take another copy, or unpack it yourself")
        refused(opener, "stream", path, path.name, "unpacks to 10.0 TiB")
    else:  # a folder of nothing else is not even looked into
        refused(opener, "images", folder, path.name, "no image that lies unpacked; unpack it")


def test_a_shard_that_holds_packed_files_is_refused(opener, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as shard:
        content = zeros("gz", 2**26, gzip.compress)
        info = tarfile.TarInfo("0.png.gz")
        info.size = len(content)
        shard.addfile(info, io.BytesIO(content))
    refused(opener, "stream", tmp_path / "s.tar", "s.tar", "0.png.gz", "unpack it")


def test_archives_are_told_by_how_they_begin(tmp_path):
    content = os.urandom(5000)
    path = tmp_path / "x"
    for packed in (gzip.compress(content), bz2.compress(content), lzma.compress(content)):
        path.write_bytes(packed)
        assert expanded(path, packed[:512]) == 5000
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", content)
    assert expanded(path, path.read_bytes()[:512]) == 5000
    path.write_bytes(content)
    assert expanded(path, content[:512]) == 0


# -- arrays


def npy(shape, dtype="<f8", data=b""):
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {"descr": dtype, "fortran_order": False, "shape": shape})
    return content.getvalue() + data


@pytest.mark.parametrize("shape", [(2**40, 2**10), (10**9, 10), (2**62, 4), (1000, 3)])
def test_a_npy_that_claims_more_than_it_holds_is_refused(shape, opener, tmp_path):
    (tmp_path / "x.npy").write_bytes(npy(shape, data=b"\0" * 1000))
    refused(opener, "points", tmp_path / "x.npy", "x.npy", "claims", str(list(shape)), "the file holds 1,000 bytes", "save an array [N, D]")


def test_a_npy_with_a_hole_is_held_to_the_memory_that_there_is(opener, tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        file.write(npy((10**9, 10)))
        file.truncate(file.tell() + 8 * 10**10)
    refused(opener, "points", tmp_path / "x.npy", "x.npy", "[1000000000, 10]", "298.0 GiB", "save fewer rows")


def test_a_npy_of_a_long_header_is_refused(opener, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 100)
    refused(opener, "points", tmp_path / "x.npy", "x.npy", "save an array [N, D]")


def test_large_points_are_read(opener, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((1_000_000, 8), np.float32))
    accepted(opener, "points", tmp_path / "x.npy", "750000 points")


def statistics(path, *, mu=None, sigma=None, **more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"mu": mu or npy((3,), data=bytes(24)), "sigma": sigma or npy((3, 3), data=bytes(72)), **more}.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                member.write(content)
    return path


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"mu": npy((2**50,))}, ("mu", "8.0 PiB", "are allowed")),
        ({"sigma": npy((2**20, 2**20))}, ("sigma", "8.0 TiB", "are allowed")),
        ({"sigma": npy((2**14, 2**14))}, ("sigma", "2.0 GiB", "are allowed")),
        ({"sigma": npy((2**13, 2**13))}, ("sigma", "512.0 MiB", "more than the file holds")),
        ({"sigma": npy((100, 100), data=bytes(800))}, ("sigma", "more than the file holds")),
        ({"mu": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 2**27}, ("not a whole .npz",)),
        ({"rows": npy((2**31, 2048), "<f4")}, ("rows", "are allowed")),
        ({"key": npy((), "<U300000000")}, ("key", "are allowed")),
    ],
)
def test_statistics_that_claim_too_much_are_refused(what, words, opener, tmp_path):
    path = statistics(tmp_path / "s.npz", **what)
    refused(opener, "statistics", path, "s.npz", *words)


def test_other_arrays_of_a_npz_are_not_read_and_large_statistics_are(opener, tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2048), sigma=np.eye(2048), rows=np.zeros((10_000, 2048), np.float32))
    with zipfile.ZipFile(tmp_path / "s.npz", "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("other.npy", npy((2**50,)))
    accepted(opener, "statistics", tmp_path / "s.npz", "2048 features")


# -- text


def sparse(path, size, begin=b"{"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(begin)
        file.truncate(size)
    return path


@pytest.mark.parametrize(
    ("kind", "name", "size", "limit"),
    [
        ("recipe", "r.yaml", 20 * GIB, "256.0 KiB"),
        ("results", "results.json", 20 * GIB, "32.0 MiB"),
        ("results", "results.json", JSON_BYTES + 1, "32.0 MiB"),
        ("metrics", "metrics.jsonl", 20 * GIB, "256.0 MiB"),
        ("model", "config.json", 20 * GIB, "32.0 MiB"),
        ("checkpoint", "manifest.json", 20 * GIB, "32.0 MiB"),
    ],
)
def test_text_of_absurd_size_is_not_read(kind, name, size, limit, opener, tmp_path):
    path = sparse(tmp_path / name, size)
    if kind == "model":
        (tmp_path / "model.safetensors").write_bytes(b"")
    text = refused(opener, kind, path if kind == "recipe" else tmp_path, name, in_units(size), limit)
    assert "take another copy" in text


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, '{"rows": ' + "9" * 10_000 + "}"])
def test_json_that_is_nested_or_counted_too_far_is_one_sentence(content, opener, tmp_path):
    (tmp_path / "results.json").write_text(content)
    refused(opener, "results", tmp_path, "results.json", "cannot be read")


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}]}}\n" for k in range(1, 12))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]", "steps: " + "[" * 20_000, "\n".join(f"k{k}: 1" for k in range(12_000))])
def test_yaml_that_grows_by_its_aliases_is_refused(text, opener, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    begin = time.monotonic()
    refused(opener, "recipe", tmp_path / "r.yaml", "r.yaml is not YAML")
    assert time.monotonic() - begin < 20


def test_yaml_with_aliases_is_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\nc: {<<: &d {e: 1}, f: 2}\n") == {"a": [1, 2], "b": [1, 2], "c": {"e": 1, "f": 2}}
    assert parse_yaml("") is None


# -- weights


def test_a_feature_network_that_expands_is_refused(opener, tmp_path):
    path = tmp_path / "f.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f/code/a.py", b"#" * 2**20)
        archive.getinfo("f/code/a.py").file_size = 3 * GIB
    refused(opener, "features", path, "f.pt", "unpacks to 3.0 GiB", "take another copy")


def test_a_checkpoint_whose_optimisers_expand_is_damaged(opener, tmp_path):
    import hashlib

    import safetensors.torch

    folder = tmp_path / "step_1"
    folder.mkdir()
    content = io.BytesIO()
    torch.save({"a": {"state": torch.zeros(10)}}, content)
    bomb = io.BytesIO()
    with zipfile.ZipFile(content) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, b"\0" * 2**28 if "data/0" in member.filename else plain.read(member))
    for number, optimizers in enumerate((content, bomb)):
        contents = {
            "optimizers.pt": optimizers.getvalue(),
            "state.json": b'{"step": 1}',
            "rng.safetensors": safetensors.torch.save({"cpu": torch.zeros(1)}),
        }
        for name, written in contents.items():
            (folder / name).write_bytes(written)
        (folder / "manifest.json").write_text(json.dumps({name: hashlib.sha256(w).hexdigest() for name, w in contents.items()}))
        if number:
            refused(opener, "checkpoint", folder, "step_1 is damaged", "unpack to more than its own size")
        else:
            accepted(opener, "checkpoint", folder, "step 1")


# -- the limits themselves


def test_sizes_are_read_by_people():
    sizes = (0, 1023, 1024, 1.5 * 2**20, 2**40, 2**60)
    assert [in_units(size) for size in sizes] == ["0 bytes", "1,023 bytes", "1.0 KiB", "1.5 MiB", "1.0 TiB", "1,024.0 PiB"]


def test_a_file_at_the_limit_is_read(tmp_path):
    path = sparse(tmp_path / "x", 100)
    check_size(path, 100, "")
    with pytest.raises(TooLarge, match=r"x has 100 bytes, and at most 99 bytes of it are read; take less"):
        check_size(path, 99, "take less")
    with pytest.raises(OSError, match="no plain file"):
        check_size(Path("/dev/zero"), 100, "")
    assert 0 < memory() <= 2**60
    assert IMAGE_PIXELS > 12_000 * 9_000
