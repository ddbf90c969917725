"""Images in folders: which files count, which folders are splits, and the class of an image, which is the folder that it lies in."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.data.checks import Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.splits import CHUNK, EMPTY_CLASS, HELD_OUT, TRAIN, Split

SPLIT_FOLDERS = {
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
IMAGE_FILES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
    ".pnm",
    ".avif",
    ".jp2",
    ".tga",
)
# a folder that has one of these, and not only images, is for `datasets`
TABLES = (".parquet", ".arrow", ".zip", ".tar", ".gz", ".tgz", "metadata.csv", "metadata.jsonl")

STRAY = Kind("image{s} outside the class sub-folders", "put each into the sub-folder of its class, or set data.label_column: none")
EMPTY_FOLDER = Kind("class sub-folder{s} without an image", "fill or remove what is named")


def image_files(root: Path, source: str) -> list[tuple[str, ...]]:
    """The images below `root` as parts of their paths, in order; none where files of a table lie there too.

    Raises DataError, of the data set called `source`, for a folder that is come to twice, and for a name that is not UTF-8.
    """
    found: list[tuple[str, ...]] = []
    known: dict[str, str] = {}
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not _is_hidden(name)]
        parts = Path(folder).relative_to(root).parts
        here, there = "/".join(parts) or ".", os.path.realpath(folder)
        if there in known:
            raise DataError(
                f"{source}, where {_shown(here)} is a link to {_shown(known[there])}, whose images are there already; take the link away, "
                "or the same pictures would be on both sides of the split"
            )
        known[there] = here
        for name in (*inner, *names):
            if _shown(name) != name:
                raise DataError(f"{source}, where the name {_shown(name)} in {_shown(here)} is not UTF-8; rename it")
        for name in names:
            if name.lower().endswith(TABLES) and not _is_hidden(name):
                return []
            if name.lower().endswith(IMAGE_FILES) and not _is_hidden(name):
                found.append((*parts, name))
    return sorted(found)


def _shown(name: str) -> str:
    """`name` as it can be printed: bytes that are no UTF-8 as in Python's own notation."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def folder_splits(
    root: Path, files: list[tuple[str, ...]], classes: bool, mistakes: Mistakes
) -> tuple[list[Split], tuple[str, ...], list[Tensor]]:
    """The splits among `files` below `root`, the names of the classes, and the labels int64 [N] of each split.

    The latter two are empty without `classes`, or where there are fewer than two. What is wrong with the classes goes to `mistakes`. Raises
    DataError for a folder that lies beside splits and is none.
    """
    import pyarrow as pa

    tops = sorted({parts[0] for parts in files})  # folders, and images that lie in none
    kinds = {top: SPLIT_FOLDERS.get(top.lower()) for top in tops}
    split_of: dict[str, str] = {}
    if list(kinds.values()) == [TRAIN] or (TRAIN in kinds.values() and any(kind in HELD_OUT for kind in kinds.values())):
        others = [top for top, kind in kinds.items() if kind is None]
        if others:
            raise DataError(
                f"{mistakes.source}, where {others[0]!r} lies beside the splits {', '.join(top for top in tops if kinds[top])}; "
                f"take it elsewhere, or give data.path the folder of one split"
            )
        split_of = {top: kind for top, kind in kinds.items() if kind}
    held = next((name for name in HELD_OUT if name in split_of.values()), None)
    used, words, stray = [], [], []
    for name in (TRAIN, held) if held else (TRAIN,):
        rows = [parts for parts in files if split_of.get(parts[0], TRAIN) == name]
        inner = [parts[1:] if split_of else parts for parts in rows]
        words.append([parts[-2] if len(parts) > 1 else None for parts in inner])

        def arrays(column: str, rows: list[tuple[str, ...]] = rows) -> Iterator[Any]:
            for first in range(0, len(rows), 16 * CHUNK):
                yield pa.array([str(root.joinpath(*parts)) for parts in rows[first : first + 16 * CHUNK]], pa.string())

        used.append(Split(name, {}, len(rows), arrays, root))
        stray.append(["/".join(parts) for parts, word in zip(rows, words[-1], strict=True) if word is None])
    if not classes or not any(words[0]):
        return used, (), []
    for places in stray:
        mistakes.add_all(STRAY, places)
    filled = {parts[:k] for parts in files for k in range(1, len(parts))}
    trained = {parts[:-1] for parts in files if len(parts) > (2 if split_of else 1) and split_of.get(parts[0], TRAIN) == TRAIN}
    for above in sorted({parts[:-1] for parts in trained}):
        inside = sorted(entry.name for entry in os.scandir(root.joinpath(*above)) if entry.is_dir() and not _is_hidden(entry.name))
        mistakes.add_all(EMPTY_FOLDER, ["/".join((*above, name)) for name in inside if (*above, name) not in filled])
    names = sorted({word for column in words for word in column if word is not None})
    mistakes.add_all(EMPTY_CLASS, [name for name in names if name not in set(words[0])])
    if len(names) < 2:
        return used, (), []
    number = {name: k for k, name in enumerate(names)}
    return used, tuple(names), [torch.tensor([number.get(word or "", 0) for word in column]) for column in words]
