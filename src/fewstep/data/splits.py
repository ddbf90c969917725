"""A split of an image data set, before its images are read: its columns, a few rows at a time, and the decoding of the images.

Columns are Arrow arrays, read from the files directly: memory-mapping the files or reading them whole would hold the data twice. Each image
is decoded into its place in the final array, so that memory holds the pixels and one batch of files.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.data.checks import Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.origin import Origin
from fewstep.data.pixels import DAMAGED, Resize, Unfit, inside, read_pixels
from fewstep.limits import WORD, cores

TRAIN, HELD_OUT = "train", ("test", "validation")  # of the held-out splits, the first that exists is used
SPLIT_FOLDERS = {
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
NO_LABELS = "none"  # the value of data.label_column that stands for no classes
CHUNK = 64  # images that a thread decodes at a time

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``with bar(title, total) as done`` shows a progress bar; ``done(num)`` advances it by `num` items."""

EMPTY_CLASS = Kind("class{es} without a training image", "add images or take the class out, or set data.label_column: none")


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Return a `Bar` that shows nothing."""
    yield lambda count: None


@dataclass(frozen=True)
class Split:
    """One split of a data set, before its images are read.

    Attributes:
        name: name of the split.
        features: the `datasets` features of the columns, by name.
        num: number of rows.
        arrays: function from the name of a column to its Arrow arrays, of a few rows each.
        root: the folder whose files the rows are, for a folder of images; else None.
        folders: the folders in which files must lie that rows of a table name.

    """

    name: str
    features: dict[str, Any]
    num: int
    arrays: Callable[[str], Iterator[Any]]
    root: Path | None = None
    folders: tuple[Path, ...] = ()

    def values(self, column: str) -> list[Any]:
        """Return all values of `column` as Python objects. Raises DataError for a label that is too long."""
        known: dict[str, str] = {}  # each different word, so that repeated ones share memory
        found: list[Any] = []
        for array in self.arrays(column):
            for value in array.to_pylist():
                if isinstance(value, str | list) and len(value) > WORD:
                    raise DataError(
                        f"column {column!r} of split {self.name} has a label of {len(value):,} characters or numbers in row {len(found)}, "
                        f"where {WORD:,} are allowed; name another column in data.label_column, or set it to {NO_LABELS!r}"
                    )
                found.append(known.setdefault(value, value) if isinstance(value, str) else value)
        return found

    def place(self, row: int, path: str | None) -> str:
        """Return the name of an image in messages: its path below `root`, or its row."""
        if self.root is not None and path is not None:
            return str(Path(path).relative_to(self.root))
        return f"row {row} of {self.name}" + (f", {path}" if path else "")


@dataclass(frozen=True)
class Found:
    """An image data set before its images are read.

    Attributes:
        splits: the training split and, if there is one, the held-out split.
        image: name of the column of images.
        names: names of the classes; empty without classes.
        labels: labels int64 [N] of each split; empty without classes.
        origin: how the data was found; for a single split, how the held-out part is made is still empty.
        named: whether classes are known by name only, so that their numbers, which are in alphabetical order here, may be reassigned.

    """

    splits: list[Split]
    image: str
    names: tuple[str, ...]
    labels: list[Tensor]
    origin: Origin
    named: bool = False


def decode_split(
    split: Split,
    column: str,
    place: NDArray[np.int64],
    size: int,
    channels: int,
    resize: Resize,
    mistakes: Mistakes,
    advance: Callable[[int], None] = lambda count: None,
) -> Tensor:
    """Return all images uint8 [N, C, size, size], that of row r at ``place[r]``.

    They are decoded in one thread per core, since Pillow releases the global interpreter lock. Images that cannot be used are recorded
    in `mistakes`. `advance` is called with the number of images just decoded.
    """
    pixels = torch.empty((split.num, channels, size, size), dtype=torch.uint8)
    array, first = pixels.numpy(), 0

    def decode(chunk: tuple[NDArray[np.int64], Any, Any]) -> list[tuple[int, str | None, Unfit]]:
        """Decode a chunk; return the number in the chunk, the path and the reason for each image that cannot be used."""
        unfit = []
        for k, (to, content, path) in enumerate(zip(*chunk, strict=True)):
            content, path = content.as_buffer(), path.as_py()
            try:
                source = path if content is None else BytesIO(content)
                if source is None:
                    raise Unfit(DAMAGED, "the row is empty")
                if content is None and split.root is None:
                    source = inside(split.folders, path)
                array[to] = read_pixels(source, size, channels, resize)
            except Unfit as reason:
                unfit.append((k, path, reason))
        return unfit

    with ThreadPoolExecutor(cores()) as pool:
        for batch in split.arrays(column):
            content, paths = encoded(batch)
            here = place[first : first + len(batch)]
            slices = [slice(begin, begin + CHUNK) for begin in range(0, len(batch), CHUNK)]
            for part, unfit in zip(slices, pool.map(decode, [(here[s], content[s], paths[s]) for s in slices]), strict=True):
                advance(min(part.stop, len(batch)) - part.start)
                for k, path, reason in unfit:
                    mistakes.add(reason.kind, split.place(first + part.start + k, path), reason.detail)
            first += len(batch)
    assert first == split.num
    return pixels


def encoded(array: Any) -> tuple[Any, Any]:
    """Return the bytes (or nulls) and the paths (or nulls) of a column of images, which holds structs of both, or only one of them."""
    import pyarrow as pa

    if pa.types.is_dictionary(array.type):  # a column that stores each different image once
        array = array.dictionary_decode()
    if pa.types.is_struct(array.type):
        fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        return fields["bytes"].cast(pa.large_binary()), fields["path"]  # a column without any bytes may lack their type
    if pa.types.is_string(array.type):
        return pa.nulls(len(array), pa.binary()), array
    return array.cast(pa.large_binary()), pa.nulls(len(array), pa.string())
