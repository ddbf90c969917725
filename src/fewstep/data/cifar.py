"""CIFAR-10 from the binary archive that its authors publish (cs.toronto.edu/~kriz/cifar.html), for machines without a network.

Five files ``data_batch_1.bin`` to ``_5`` and ``test_batch.bin`` of 10,000 records: a byte of label, then 3 x 32 x 32 bytes, red, green and
blue planes, row by row. ``batches.meta.txt`` holds a class name a line.
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

from fewstep.data.checks import Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.image_sets import image_folder
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin

ARCHIVE, MD5 = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
FOLDER = "cifar-10-batches-bin"
HUB = "uoft-cs/cifar10"
TRAIN, TEST, META = tuple(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin", "batches.meta.txt"
RECORDS, SHAPE, CLASSES = 10_000, (3, 32, 32), 10
RECORD = 1 + 3 * 32 * 32
AT_ONCE = 1000  # records; divides RECORDS

MISSING = Kind("missing file{s}", f"unpack {ARCHIVE} anew, or name the folder that it lies in")
LENGTH = Kind(f"file{{s}} not of {RECORDS * RECORD:,} bytes", f"unpack {ARCHIVE} anew")
LABEL = Kind(f"record{{s}} with a label above {CLASSES - 1}", f"unpack {ARCHIVE} anew")
NAMES = Kind(f"file{{s}} without {CLASSES} class names", f"unpack {ARCHIVE} anew")


def cifar10(dir: str | None = None, flip: bool = False) -> ImageData:
    """CIFAR-10: from the official archive in the folder `dir` (see `cifar10_of`), or from the Hugging Face Hub. Raises DataError."""
    return cifar10_of_the_hub(flip) if dir is None else cifar10_of(dir, flip)


def cifar10_of(path: str, flip: bool = False, md5: str = MD5) -> ImageData:
    """CIFAR-10: 50,000 training images and 10,000 held out, RGB, 32 x 32, 10 classes.

    `path` is the official archive, the folder that it lies in, the folder that it unpacks to, or the one which that lies in. The archive is
    read without unpacking it, and must have the checksum `md5`; an unpacked folder has none. Raises DataError for what is missing, has
    another checksum, or is not what the format says, naming the file.
    """
    source, place = f"data.dir is {path!r}", Path(path)
    candidates = (place, place / ARCHIVE, place / FOLDER)
    archive = next((c for c in candidates if c.is_file()), None)
    folder = next((c for c in candidates if any((c / name).is_file() for name in (*TRAIN, TEST, META))), None)
    if archive is None and folder is None:
        raise DataError(f"{source}, which holds neither {ARCHIVE} nor {FOLDER}; fetch the archive from cs.toronto.edu/~kriz/cifar.html")
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


def cifar10_of_the_hub(flip: bool = False) -> ImageData:
    """The same from ``uoft-cs/cifar10`` of the Hugging Face Hub. Raises DataError where it cannot be had."""
    try:
        data = image_folder(HUB, SHAPE[-1], flip=flip, resize="none", image_column="img", label_column="label")
    except DataError as error:
        raise DataError(f"data.dir is missing, and {error}; or name in data.dir the folder that holds {ARCHIVE}") from error
    return replace(data, name="cifar10")


def _md5(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _packed(archive: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """(name, bytes, content) of each file in `archive`, in its order: a compressed stream has no other."""
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            content = members.extractfile(member) if member.isfile() else None
            if content is not None:
                yield PurePosixPath(member.name).name, member.size, content


def _unpacked(folder: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """The same of the files in `folder`."""
    for file in sorted(folder.iterdir()):
        if file.is_file():
            with file.open("rb") as content:
                yield file.name, file.stat().st_size, content
