"""CIFAR-10 from parquet files as the Hugging Face Hub has them, from its authors' archive (cs.toronto.edu/~kriz/cifar.html), or the Hub.

The binary archive holds the files ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``, of 10,000 records each. A record is
one byte for the label, then 3 x 32 x 32 bytes: the red, the green and the blue plane, each row by row. ``batches.meta.txt`` holds one class
name per line.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fewstep.data.checks import Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.hub_tables import HubTables
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin
from fewstep.data.splits import Bar, no_bar

ARCHIVE, MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
HUB = "uoft-cs/cifar10"
TRAIN, TEST, META = tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin", "batches.meta.txt"
RECORDS, SHAPE, CLASSES = 10_000, (3, 32, 32), 10
RECORD = 1 + 3 * 32 * 32
TABLES = HubTables("cifar10", HUB, SHAPE, "img", CLASSES, "plain_text")
AT_ONCE = 1000  # records read together; divides RECORDS

MISSING = Kind("missing file{s}", f"unpack {ARCHIVE} anew, or name the folder that it lies in")
LENGTH = Kind(f"file{{s}} not of {RECORDS * RECORD:,} bytes", f"unpack {ARCHIVE} anew")
LABEL = Kind(f"record{{s}} with a label above {CLASSES - 1}", f"unpack {ARCHIVE} anew")
NAMES = Kind(f"file{{s}} without {CLASSES} class names", f"unpack {ARCHIVE} anew")


def cifar10(dir: str | None = None, flip: bool = False, size: int = SHAPE[-1], *, bar: Bar = no_bar) -> ImageData:
    """Return CIFAR-10 from the folder `dir`, or from the Hugging Face Hub if `dir` is None.

    `dir` holds parquet files as ``uoft-cs/cifar10`` does, or is what `cifar10_of` takes as its path. `size` 16 averages squares of 2 x 2
    pixels. `flip` mirrors half of the training images, and `bar` shows the progress of reading. Raises DataError if the data is missing or
    invalid.
    """
    if dir is None:
        data = cifar10_of_the_hub(flip, bar)
    elif (place := TABLES.place(Path(dir))) is not None:
        data = replace(TABLES.read(place, f"data.dir is {dir!r}", bar), flip=flip)
    else:
        data = cifar10_of(dir, flip)
    return data if size == SHAPE[-1] else averaged(data)


def averaged(data: ImageData) -> ImageData:
    """Return `data` at half its height and width; each byte is the rounded mean of a square of 2 x 2 pixels."""

    def halved(pixels: Tensor) -> Tensor:
        parts = []
        for part in pixels.split(AT_ONCE):
            wide = part.to(torch.int16)
            parts.append(((wide[..., ::2, ::2] + wide[..., ::2, 1::2] + wide[..., 1::2, ::2] + wide[..., 1::2, 1::2] + 2) // 4).byte())
        return torch.cat(parts)

    remark = f"Images are {data.shape[-1] // 2} pixels wide: each is the mean of a square of four."
    origin = None if data.origin is None else replace(data.origin, remarks=(*data.origin.remarks, remark))
    return replace(data, train=halved(data.train), heldout=halved(data.heldout), origin=origin)


def cifar10_of(path: str, flip: bool = False, md5: str = MD5) -> ImageData:
    """Return CIFAR-10 from its authors' archive: 50,000 training and 10,000 held-out images, RGB, 32 x 32, 10 classes.

    `path` is the archive, the folder that contains the archive, the folder to which it unpacks, or the parent of the unpacked folder. The
    archive is read without unpacking it, and must have the MD5 checksum `md5`; the files of an unpacked folder have no checksum to compare.
    Raises DataError, naming the file, if a file is missing, has another checksum, or does not follow the format.
    """
    source, place = f"data.dir is {path!r}", Path(path)
    candidates = (place, place / ARCHIVE, place / FOLDER)
    archive = next((c for c in candidates if c.is_file()), None)
    folder = next((c for c in candidates if any((c / name).is_file() for name in (*TRAIN, TEST, META))), None)
    if archive is None and folder is None:
        raise DataError(
            f"{source}, which holds neither {ARCHIVE} nor {FOLDER} nor train*.parquet; fetch the archive from "
            f"cs.toronto.edu/~kriz/cifar.html, or {TABLES.where}, and name their folder in data.dir=FOLDER"
        )
    files = _packed(archive) if archive is not None else _unpacked(folder or place)
    if archive is not None and (found := _md5(archive)) != md5:
        raise DataError(f"{source}, where {archive.name} has the MD5 checksum {found}, and not {md5}; fetch it again")
    mistakes = Mistakes(source)
    pixels = [torch.empty((num * RECORDS, *SHAPE), dtype=torch.uint8) for num in (len(TRAIN), 1)]
    labels = [torch.empty(len(images), dtype=torch.int64) for images in pixels]
    names: tuple[str, ...] = ()
    missing = {*TRAIN, TEST, META}
    try:
        for name, length, content in files:
            if name not in missing:
                continue
            missing.remove(name)
            if name == META:
                names = tuple(content.read(10_000).decode(errors="replace").split())
                if len(names) != CLASSES:
                    mistakes.add(NAMES, name, f"{len(names)}")
            elif length != RECORDS * RECORD:
                mistakes.add(LENGTH, name, f"{length:,}")
            else:
                k, first = (1, 0) if name == TEST else (0, TRAIN.index(name) * RECORDS)
                for begin in range(0, RECORDS, AT_ONCE):
                    records = np.frombuffer(content.read(AT_ONCE * RECORD), np.uint8).reshape(AT_ONCE, RECORD)
                    rows = slice(first + begin, first + begin + AT_ONCE)
                    labels[k].numpy()[rows] = records[:, 0]
                    pixels[k].numpy()[rows] = records[:, 1:].reshape(AT_ONCE, *SHAPE)
                    for row in np.flatnonzero(records[:, 0] >= CLASSES):
                        mistakes.add(LABEL, f"{name} record {begin + row}", f"label {records[row, 0]}")
    except (tarfile.TarError, zlib.error, OSError, EOFError) as error:
        raise DataError(f"{source}, where {(archive or folder or place).name} cannot be read ({error}); fetch it again") from error
    mistakes.add_all(MISSING, sorted(missing))
    mistakes.check()
    num = (len(TRAIN) + 1) * RECORDS
    origin = Origin(str(archive or folder), "record", num, (), META, f"{TRAIN[0]} to {TRAIN[-1]}", f"{TEST}, as its authors split it")
    return ImageData("cifar10", pixels[0], pixels[1], labels[0], labels[1], 127.5, names, flip, origin=origin)


def cifar10_of_the_hub(flip: bool = False, bar: Bar = no_bar) -> ImageData:
    """Return CIFAR-10 from ``uoft-cs/cifar10`` on the Hugging Face Hub. Raises DataError if it is not available."""
    return replace(TABLES.of_the_hub(bar, f", or {ARCHIVE} of cs.toronto.edu/~kriz/cifar.html"), flip=flip)


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _packed(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size in bytes, content) of each file in `archive`, in its order: a compressed stream cannot be read in another."""
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            content = members.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name).name, member.size, content


def _unpacked(folder: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield (name, size in bytes, content) of each file in `folder`."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb") as content:
                yield file.name, file.stat().st_size, content
