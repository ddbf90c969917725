"""A split of an image data set that has been found: its columns a few rows at a time, and its images in one array.

Its columns are Arrow arrays, read from the files themselves: what is memory-mapped or read whole would be a second copy of the data. Each
image is decoded into its place in the final array, so that memory is the pixels and a batch.
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

TRAIN, HELD_OUT = "train", ("test", "validation")  # the first of the latter that there is
SPLIT_FOLDERS = {
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
NO_LABELS = "none"  # instead of a column of labels
CHUNK = 64  # images that a thread decodes before it asks for more

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far a piece of work of a title and a total is: what it gives is called with the number of items just done."""

EMPTY_CLASS = Kind("class{es} without a training image", "add images or take the class out, or set data.label_column: none")


@contextmanager
def no_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """The `Bar` that shows nothing."""
    yield lambda count: None


@dataclass(frozen=True)
class Split:
    """One split of a data set that has been found.

    Attributes:
        name: of the split.
        features: the `datasets` features of its columns.
        num: rows.
        arrays: Arrow arrays of the column that is asked for, of a few rows each.
        root: the folder whose files these are, for a folder of images.
        folders: where files may lie that rows of a table name.

    """

    name: str
    features: dict[str, Any]
    num: int
    arrays: Callable[[str], Iterator[Any]]
    root: Path | None = None
    folders: tuple[Path, ...] = ()

    def values(self, column: str) -> list[Any]:
        """All values of `column`, as Python has them."""
        known: dict[str, str] = {}  # words, each of which is kept once however often it stands
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
        """What to call an image in a message."""
        if self.root is not None and path is not None:
            return str(Path(path).relative_to(self.root))
        return f"row {row} of {self.name}" + (f", {path}" if path else "")


@dataclass(frozen=True)
class Found:
    """An image data set before its images are read.

    Attributes:
        splits: what to train on, and what to hold out if there is a split for it.
        image: the column of images.
        names: of the classes; empty without.
        labels: int64 [N] of each split; empty without classes.
        origin: how it was found; how a part is held out, where that is still to be done, is left open.
        named: whether the classes are known by their names alone, and their numbers are ours to give. They are in the order of words here.

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
    """All images uint8 [N, C, size, size], that of row r at place[r], in as many threads as there are cores: Pillow lets go of the lock.

    `advance` is told of each few images that are done.
    """
    pixels = torch.empty((split.num, channels, size, size), dtype=torch.uint8)
    array, first = pixels.numpy(), 0

    def decode(chunk: tuple[NDArray[np.int64], Any, Any]) -> list[tuple[int, str | None, Unfit]]:
        """What will not do of a chunk: its number in the chunk, its path, and why."""
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
    """The bytes (or null) and the paths (or null) of a column of images: a struct of both, or one alone."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        return fields["bytes"].cast(pa.large_binary()), fields["path"]  # a file that has none may not say of which type
    if pa.types.is_string(array.type):
        return pa.nulls(len(array), pa.binary()), array
    return array, pa.nulls(len(array), pa.string())
