"""Image data sets of any origin: folders of images, parquet, ``save_to_disk``, and the Hugging Face Hub, by the `datasets` library.

What is found becomes one or two `Split`, which give Arrow arrays of encoded images a few at a time, read from the files themselves: what is
memory-mapped or read whole would be a second copy of the data. Each image is decoded into its place in the final array, so that memory is
the pixels and a batch.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from fewstep.data.images import ImageData, stratified_split
from fewstep.data.pixels import DAMAGED, Resize, Unfit, read_pixels

TRAIN, HELD_OUT = "train", ("test", "validation")  # the first of the latter that there is
SPLIT_FOLDERS = {
    "train": TRAIN,
    "training": TRAIN,
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
LABELS = ("label", "labels", "class")  # a column of integers or words of such a name is taken for the classes
NO_LABELS = "none"
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
CHUNK = 64  # images that a thread decodes before it asks for more

FILE = Kind("file{s} that cannot be read", "fetch again or remove what is named")
OUTSIDE = Kind("image{s} with a label outside the classes", "mend the labels, or set data.label_column: none")
UNLABELLED = Kind("image{s} without a label", "label or remove what is named, or set data.label_column: none")
STRAY = Kind("image{s} outside the class sub-folders", "put each into the sub-folder of its class, or set data.label_column: none")
EMPTY_FOLDER = Kind("class sub-folder{s} without an image", "fill or remove what is named")
EMPTY_CLASS = Kind("class{es} without a training image", "add images or take the class out, or set data.label_column: none")


@dataclass(frozen=True)
class Split:
    """One split of a data set that has been found.

    Attributes:
        name: of the split.
        features: the `datasets` features of its columns.
        num: rows.
        arrays: Arrow arrays of the column that is asked for, of a few rows each.
        root: the folder whose files these are, for a folder of images.

    """

    name: str
    features: dict[str, Any]
    num: int
    arrays: Callable[[str], Iterator[Any]]
    root: Path | None = None

    def values(self, column: str) -> list[Any]:
        """All values of `column`, as Python has them."""
        return [value for array in self.arrays(column) for value in array.to_pylist()]

    def place(self, row: int, path: str | None) -> str:
        """What to call an image in a message."""
        if self.root is not None and path is not None:
            return str(Path(path).relative_to(self.root))
        return f"row {row} of {self.name}" + (f", {path}" if path else "")


def _encoded(array: Any) -> tuple[Any, Any]:
    """The bytes (or null) and the paths (or null) of a column of images: a struct of both, or one alone."""
    import pyarrow as pa

    if pa.types.is_struct(array.type):
        fields = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        return fields["bytes"].cast(pa.large_binary()), fields["path"]  # a file that has none may not say of which type
    if pa.types.is_string(array.type):
        return pa.nulls(len(array), pa.binary()), array
    return array, pa.nulls(len(array), pa.string())


def image_folder(
    path: str,
    size: int,
    channels: int = 3,
    holdout: float = 0.1,
    flip: bool = False,
    resize: Resize = "fit",
    image_column: str | None = None,
    label_column: str | None = None,
    config: str | None = None,
) -> ImageData:
    """The images at `path`: a folder (class = sub-folder), parquet, a ``save_to_disk`` folder, or a data set of the Hugging Face Hub.

    Each image becomes `size` x `size` as `resize` says, see `fewstep.data.pixels.read_pixels`; `channels` 1 makes them grey. A split named
    "test" or "validation" is held out (one whose labels are withheld is passed over), else the fraction `holdout` of the only one,
    stratified. Columns are found by their type, or named: `image_column`, and `label_column`, which is a ClassLabel, integers or words
    ("none": no classes). Integers and words become classes in ascending order, of those that the training split holds. `config` names one
    of several configurations of a data set.

    Raises:
        DataError: for a place that holds no images; and, naming file or row, for images that are damaged, of several frames, of more than
            8 bits or of a wrong size, for labels that are missing, negative or outside the classes, and for classes without images.

    """
    source = f"data.path is {path!r}"
    mistakes = Mistakes(source)
    root = Path(path)
    if files := _files(root):
        label = None if label_column == NO_LABELS else label_column
        for key, value in (("image_column", image_column), ("label_column", label), ("config", config)):
            if value is not None:
                raise DataError(f"data.{key} is {value!r}; {source}, a folder of images, which has none to name; leave the key out")
        used, names, labels = _folder(source, root, files, label_column != NO_LABELS, mistakes)
        image = "path"
    else:
        splits = _open(path, config, mistakes)
        features = (splits.get(TRAIN) or next(iter(splits.values()))).features
        image, label = _image_column(source, features, image_column), _label_column(source, features, label_column)
        used = _choose(source, splits, image, label)
        names, labels = _classes(used, label, mistakes)
    mistakes.check()
    if len(used) > 1:
        pixels = [_decode(split, image, np.arange(split.num), size, channels, resize, mistakes) for split in used]
        mistakes.check()
    else:
        keep, out = _hold_out(source, used[0].num, labels[0] if labels else None, holdout)
        # each image goes to where it is wanted: a selection afterwards would hold all of them twice
        place = torch.cat([keep, out]).argsort().numpy()
        whole = _decode(used[0], image, place, size, channels, resize, mistakes)
        mistakes.check()
        pixels = [whole[: len(keep)], whole[len(keep) :]]
        labels = [labels[0][keep], labels[0][out]] if labels else labels
    train_label, heldout_label = labels or (None, None)
    known = root.resolve() if root.exists() else root
    return ImageData(known.stem if known.is_file() else known.name, pixels[0], pixels[1], train_label, heldout_label, 127.5, names, flip)


# --- folders of images ---------------------------------------------------------------------------------------------------


def _files(root: Path) -> list[tuple[str, ...]]:
    """The images below `root` as parts of their paths, in order; none where files of a table lie there too."""
    found = []
    for folder, inner, names in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not _is_hidden(name)]
        parts = Path(folder).relative_to(root).parts
        for name in names:
            if name.lower().endswith(TABLES) and not _is_hidden(name):
                return []
            if name.lower().endswith(IMAGE_FILES) and not _is_hidden(name):
                found.append((*parts, name))
    return sorted(found)


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "__"))


def _folder(
    source: str, root: Path, files: list[tuple[str, ...]], classes: bool, mistakes: Mistakes
) -> tuple[list[Split], tuple[str, ...], list[Tensor]]:
    """The splits in a folder of images, the names of the classes, and the labels of each split."""
    import pyarrow as pa

    tops = sorted({parts[0] for parts in files})  # folders, and images that lie in none
    kinds = {top: SPLIT_FOLDERS.get(top.lower()) for top in tops}
    split_of: dict[str, str] = {}
    if list(kinds.values()) == [TRAIN] or (TRAIN in kinds.values() and any(kind in HELD_OUT for kind in kinds.values())):
        others = [top for top, kind in kinds.items() if kind is None]
        if others:
            raise DataError(
                f"{source}, where {others[0]!r} lies beside the splits {', '.join(top for top in tops if kinds[top])}; "
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


# --- tables --------------------------------------------------------------------------------------------------------------


def _open(path: str, config: str | None, mistakes: Mistakes) -> dict[str, Split]:
    """The splits of the tables at `path`, by name."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.packaged_modules.parquet.parquet import Parquet

    place = Path(path)
    is_parquet = place.is_file() and place.suffix == ".parquet"
    if place.exists() or path.count("/") != 1:
        if not (place.is_dir() or is_parquet):
            allowed = "give a folder of images, a .parquet file, a save_to_disk folder, or the Hub id of a data set"
            raise DataError(f"{mistakes.source}, which is not a folder; {allowed}")
        if place.is_dir() and not any(place.rglob("*.*")):
            raise DataError(f"{mistakes.source}, an empty folder; put images into it, one sub-folder a class")
        for file in [place] if is_parquet else sorted(place.rglob("*.parquet")):
            try:
                pq.read_metadata(file)
            except (pa.ArrowException, OSError) as error:
                mistakes.add(FILE, file.name if is_parquet else str(file.relative_to(place)), " ".join(str(error).split())[:100])
        mistakes.check()
    datasets.disable_progress_bars()
    try:
        if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
            loaded = datasets.load_from_disk(path)
        else:
            data_files = {TRAIN: str(place)} if is_parquet else None
            builder = datasets.load_dataset_builder("parquet" if is_parquet else path, config, data_files=data_files)
            if isinstance(builder, Parquet) and place.exists():  # read as it lies, without a copy in the cache
                return {
                    str(name): _parquet(mistakes.source, str(name), files, builder.info.features)
                    for name, files in builder.config.data_files.items()
                }
            builder.download_and_prepare()
            loaded = builder.as_dataset()
    except Exception as error:  # the library raises many kinds, by where the data set lies
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        needs = "; name one of them in data.config" if "onfig name is missing" in reason else ""
        raise DataError(f"{mistakes.source}, which `datasets` cannot open: {reason}{needs}") from error
    pa.default_memory_pool().release_unused()  # what preparing it took
    return {
        str(name): _arrow(mistakes.source, str(name), rows)
        for name, rows in (loaded if isinstance(loaded, dict) else {TRAIN: loaded}).items()
    }


def _arrow(source: str, name: str, rows: Any) -> Split:
    """A `datasets.Dataset`, read from its files."""
    import pyarrow as pa

    rows = rows.flatten_indices()

    def arrays(column: str) -> Iterator[Any]:
        files = [file["filename"] for file in rows.cache_files]
        for batch in () if files else rows.data.to_batches():
            yield batch.column(column)
        for file in files:
            try:
                with pa.OSFile(file) as stream, pa.ipc.open_stream(stream) as batches:
                    for batch in batches:
                        yield batch.column(column)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(source, file, error) from error

    return Split(name, dict(rows.features), rows.num_rows, arrays)


def _parquet(source: str, name: str, files: Sequence[str], features: Any) -> Split:
    """Parquet files with `features`, or else those that the first file tells."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrays(column: str) -> Iterator[Any]:
        for file in files:
            try:
                with pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False) as table:
                    if column not in table.schema_arrow.names:
                        raise DataError(f"{source}, whose file {file} has no column {column!r}; give all files the same columns")
                    for batch in table.iter_batches(2 * CHUNK, columns=[column], use_threads=False):
                        yield batch.column(column)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(source, file, error) from error

    if features is None:
        features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    return Split(name, dict(features), sum(pq.read_metadata(file).num_rows for file in files), arrays)


def _unreadable(source: str, file: str, error: Exception) -> DataError:
    return DataError(f"{source}, whose file {file} cannot be read ({' '.join(str(error).split())[:100]}); fetch again or remove it")


def _choose(source: str, splits: dict[str, Split], image: str, label: str | None) -> list[Split]:
    """The split to train on, and the one to hold out where there is one whose labels are not withheld."""
    train = splits[TRAIN] if TRAIN in splits else next(iter(splits.values()))
    if not train.num:
        raise DataError(f"{source}, whose split {train.name} holds no rows; give at least 2 images")

    def labelled(split: Split) -> bool:
        return label is not None and any(value not in (None, -1) for value in split.values(label))

    for name in HELD_OUT:
        if name in splits and splits[name] is not train and splits[name].num:
            other = splits[name]
            for column in (image, label):
                if column is not None and other.features.get(column) != train.features[column]:
                    raise DataError(f"{source}, whose splits {train.name} and {name} differ in column {column!r}; give both the same")
            if label is None or labelled(other) or not labelled(train):
                return [train, other]
    return [train]


def _image_column(source: str, features: Any, wanted: str | None) -> str:
    """The column `wanted`, or the first that holds encoded images: as `datasets` marks them, as a struct of bytes and path, or bare."""
    import datasets

    def rank(feature: Any) -> int:
        if isinstance(feature, dict):
            return 1 if set(feature) == {"bytes", "path"} else 3
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return 0 if isinstance(feature, datasets.Image) else 2 if binary else 3

    ranks = {name: rank(feature) for name, feature in features.items() if rank(feature) < 3}
    if wanted is not None and wanted not in ranks:
        raise DataError(f"data.image_column is {wanted!r}; {source}, whose columns of images are {sorted(ranks)} of {sorted(features)}")
    if not ranks:
        raise DataError(f"{source}, whose columns {sorted(features)} hold no images")
    return wanted or min(ranks, key=lambda name: ranks[name])


def _label_column(source: str, features: Any, wanted: str | None) -> str | None:
    """The column `wanted`, or the first ClassLabel, or integers or words of a usual name, or None."""
    import datasets

    if wanted == NO_LABELS:
        return None
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [
        name for name, f in features.items() if isinstance(f, datasets.Value) and re.fullmatch(r"u?int\d+|bool|(large_)?string", f.dtype)
    ]
    if wanted is not None and wanted not in classes + plain:
        raise DataError(
            f"data.label_column is {wanted!r}; {source}, whose columns of classes, integers or words are {sorted(classes + plain)} "
            f"of {sorted(features)}; name one of them, or {NO_LABELS!r}"
        )
    return wanted or next(iter(classes + [name for name in LABELS if name in plain]), None)


def _classes(used: list[Split], column: str | None, mistakes: Mistakes) -> tuple[tuple[str, ...], list[Tensor]]:
    """The names of the classes and the labels int64 [N] of each split; both empty without classes."""
    import datasets

    values = [split.values(column) for split in used] if column else []
    if column is None or all(value is None for value in values[0]):
        return (), []
    feature = used[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        words = tuple(feature.names)
        number: dict[Any, int] = {k: k for k in range(len(words))} | {word: k for k, word in enumerate(words)}
    else:
        names = sorted({value for value in values[0] if value is not None and not (isinstance(value, int) and value < 0)})
        words, number = tuple(map(str, names)), {name: k for k, name in enumerate(names)}
    labels = []
    for split, found in zip(used, values, strict=True):
        mistakes.add_all(UNLABELLED, [split.place(row, None) for row, value in enumerate(found) if value is None])
        for row, value in enumerate(found):
            if value is not None and value not in number:
                mistakes.add(OUTSIDE, split.place(row, None), f"label {value!r}")
        labels.append(torch.tensor([number.get(value, 0) for value in found]))
    present = {number[value] for value in values[0] if value in number}
    mistakes.add_all(EMPTY_CLASS, [word for k, word in enumerate(words) if k not in present])
    return words, labels


def _hold_out(source: str, num: int, labels: Tensor | None, holdout: float) -> tuple[Tensor, Tensor]:
    """Indices to train on and to hold out, of `num` images."""
    smallest = None if labels is None else int(labels.bincount().min())
    if num < 2 or (smallest is not None and smallest < 2):
        raise DataError(f"{source}, with {num} images and {smallest} in its smallest class; at least 2 are needed")
    try:
        return stratified_split(None if labels is None else labels.numpy(), num, holdout)
    except ValueError as error:
        classes = f" of {len(labels.unique())} classes" if labels is not None else ""
        raise DataError(f"data.holdout is {holdout}, which cannot split {num} images{classes}: {error}; change it") from error


def _decode(split: Split, column: str, place: NDArray[np.int64], size: int, channels: int, resize: Resize, mistakes: Mistakes) -> Tensor:
    """All images uint8 [N, C, size, size], that of row r at place[r], in as many threads as there are cores: Pillow lets go of the lock."""
    pixels = torch.empty((split.num, channels, size, size), dtype=torch.uint8)
    array, first = pixels.numpy(), 0

    def decode(chunk: tuple[NDArray[np.int64], Any, Any]) -> list[tuple[int, str | None, Unfit]]:
        """What will not do of a chunk: its number in the chunk, its path, and why."""
        unfit = []
        for k, (to, content, path) in enumerate(zip(*chunk, strict=True)):
            content, path = content.as_buffer(), path.as_py()
            source = path if content is None else BytesIO(content)
            try:
                if source is None:
                    raise Unfit(DAMAGED, "the row is empty")
                array[to] = read_pixels(source, size, channels, resize)
            except Unfit as reason:
                unfit.append((k, path, reason))
        return unfit

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # the former not on macOS
    with ThreadPoolExecutor(cores) as pool:
        for batch in split.arrays(column):
            content, paths = _encoded(batch)
            here = place[first : first + len(batch)]
            slices = [slice(begin, begin + CHUNK) for begin in range(0, len(batch), CHUNK)]
            for part, unfit in zip(slices, pool.map(decode, [(here[s], content[s], paths[s]) for s in slices]), strict=True):
                for k, path, reason in unfit:
                    mistakes.add(reason.kind, split.place(first + part.start + k, path), reason.detail)
            first += len(batch)
    assert first == split.num
    return pixels
