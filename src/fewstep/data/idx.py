"""MNIST from parquet files as the Hub has them, from its authors' four IDX files (yann.lecun.com/exdb/mnist), or from the Hub itself.

An IDX file begins with two bytes of 0, a byte of 8 (for unsigned bytes), the number of its dimensions, and the size of each dimension in
four bytes, the most significant first; the values follow, row by row. ``train-images-idx3-ubyte`` and ``t10k-images-idx3-ubyte`` hold
images [N, 28, 28], ``train-labels-idx1-ubyte`` and ``t10k-labels-idx1-ubyte`` their labels [N]; each file may be compressed by gzip
(``.gz``).
"""

import gzip
import math
import struct
import zlib
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np
import torch
from numpy.typing import NDArray

from fewstep.data.errors import DataError
from fewstep.data.hub_tables import HubTables
from fewstep.data.images import ImageData
from fewstep.data.origin import Origin
from fewstep.data.parquet import check_rows
from fewstep.data.splits import Bar, no_bar

TABLES = HubTables("mnist", "ylecun/mnist", (1, 28, 28), "image", 10, "mnist")
SIDE, CLASSES = 28, 10
PARTS = ("train", "t10k")  # training and test part, as the authors name them
KINDS = {"images": 3, "labels": 1}  # number of dimensions of each kind of file
UNSIGNED = 8
GZIP = b"\x1f\x8b"
FILES = ", ".join(f"{part}-{kind}-idx{dims}-ubyte" for part in PARTS for kind, dims in KINDS.items())


def mnist(dir: str | None = None, *, bar: Bar = no_bar) -> ImageData:
    """Return MNIST: 60,000 training and 10,000 held-out images, grey, 28 x 28, 10 classes.

    `dir` is a folder of ``train*.parquet`` and ``test*.parquet`` as in ``ylecun/mnist``, or of the four IDX files, compressed or not; None
    reads from the Hugging Face Hub. `bar` shows the progress of reading. Raises DataError, naming the file, if a file is missing or does
    not follow its format.
    """
    authors = f", or {FILES}, packed or not"
    if dir is None:
        return TABLES.of_the_hub(bar, authors)
    source, folder = f"data.dir is {dir!r}", Path(dir)
    place = TABLES.place(folder)
    if place is not None:
        return TABLES.read(place, source, bar)
    found = {(part, kind): _file(folder, part, kind) for part in PARTS for kind in KINDS}
    if not any(found.values()):
        raise DataError(f"{source}, which holds no MNIST; fetch {TABLES.where}{authors}, and name their folder in data.dir=FOLDER")
    if missing := [_name(part, kind) for (part, kind), file in found.items() if file is None]:
        raise DataError(f"{source}, which has no {' and no '.join(missing)}; fetch what is missing into the same folder, packed or not")
    pixels, labels = [], []
    for part in PARTS:
        images, classes = (_array(source, file, KINDS[kind]) for kind in KINDS if (file := found[part, kind]) is not None)
        if len(images) != len(classes) or not len(images):
            raise DataError(
                f"{source}, whose {_name(part, 'images')} has {len(images):,} images and {len(classes):,} labels; fetch both anew"
            )
        if classes.max() >= CLASSES:
            row = int(np.flatnonzero(classes >= CLASSES)[0])
            raise DataError(
                f"{source}, whose {_name(part, 'labels')} has the label {classes[row]} in place {row}; labels are 0 to 9: fetch it anew"
            )
        pixels.append(torch.from_numpy(images)[:, None])
        labels.append(torch.from_numpy(classes.astype(np.int64)))
    names = tuple(map(str, range(CLASSES)))
    how = [_name(part, "images") for part in PARTS]
    num = sum(map(len, pixels))
    origin = Origin(dir, "image", num, (), "the authors' label", how[0], f"{how[1]}, as its authors split it")
    return ImageData("mnist", pixels[0], pixels[1], labels[0], labels[1], 127.5, names, origin=origin)


def _name(part: str, kind: str) -> str:
    return f"{part}-{kind}-idx{KINDS[kind]}-ubyte"


def _file(folder: Path, part: str, kind: str) -> Path | None:
    """Return the IDX file of a `part` and a `kind` in `folder`, compressed or not; None if it is missing.

    Some copies have a point in place of the hyphen before "idx".
    """
    name = _name(part, kind)
    names = (other + end for other in (name, name.replace("-idx", ".idx")) for end in ("", ".gz"))
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _array(source: str, file: Path, dims: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file with `dims` dimensions; no more bytes are read than its header announces.

    Raises DataError if the file is damaged or of another format or size.
    """
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == GZIP
            raw.seek(0)
            with gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw) as content:
                return _numbers(source, file.name, content, dims)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{source}, whose {file.name} cannot be read ({error}); fetch it again") from error


def _numbers(source: str, name: str, content: IO[bytes], dims: int) -> NDArray[np.uint8]:
    head = content.read(4 + 4 * dims)
    if len(head) < 4 + 4 * dims or head[:4] != bytes((0, 0, UNSIGNED, dims)):
        raise DataError(
            f"{source}, whose {name} does not begin as an IDX file of {dims} dimension{'s' * (dims > 1)} of bytes; fetch it again"
        )
    shape = struct.unpack(f">{dims}I", head[4:])
    if shape[1:] != (SIDE,) * (dims - 1):
        raise DataError(
            f"{source}, whose {name} claims images of {' x '.join(map(str, shape[1:]))}, where MNIST has {SIDE} x {SIDE}; fetch it again"
        )
    check_rows(f"{source}, whose {name} is read", shape[0], math.prod(shape[1:]))
    wanted = math.prod(shape)
    parts, left = [], wanted
    while left and (part := content.read(min(left, 2**20))):
        parts.append(part)
        left -= len(part)
    if left or content.read(1):
        raise DataError(
            f"{source}, whose {name} has {'fewer' if left else 'more'} than the {wanted:,} bytes that its header claims; fetch it again"
        )
    return np.frombuffer(bytearray(b"".join(parts)), np.uint8).reshape(shape)
