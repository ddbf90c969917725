"""Images in tables, by the `datasets` library: parquet, ``save_to_disk``, a folder with metadata, and the Hugging Face Hub.

This module finds the splits, the one to train on and the one to hold out, the columns of images and labels, and the classes.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep import hub
from fewstep.data.archives import check_archives
from fewstep.data.checks import SHOWN, Kind, Mistakes
from fewstep.data.errors import DataError
from fewstep.data.origin import LeftOut, Origin
from fewstep.data.parquet import check_arrow, check_rows, runs
from fewstep.data.scanning import HIDDEN, IMAGE_FILES, Scan
from fewstep.data.splits import CHUNK, EMPTY_CLASS, HELD_OUT, NO_LABELS, TRAIN, Found, Split

# usual names, in upper or lower case, of a column of numbers or words that holds the labels; the first one wins
LABELS = ("label", "labels", "class", "classes", "category", "target", "digit", "fine_label")
WHOLE = r"u?int\d+|bool"
WORDS = r"(large_)?string(_view)?"
BYTES = r"(large_)?binary(_view)?|fixed_size_binary\[\d+\]"

READ_ALONG = ("README.md", "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # files for `datasets` itself

FILE = Kind("file{s} that cannot be read", "fetch again or remove what is named")
OUTSIDE = Kind("image{s} with a label outside the classes", "mend the labels, or set data.label_column: none")
UNLABELLED = Kind("image{s} without a label", "label or remove what is named, or set data.label_column: none")


def table_splits(
    path: str,
    config: str | None,
    image_column: str | None,
    label_column: str | None,
    mistakes: Mistakes,
    scan: Scan | None = None,
    each: int = 0,
) -> Found:
    """Return the splits of the tables at `path` to train on and, if there is one, to hold out, and how to read them.

    Mistakes in files and labels are recorded in `mistakes`. `scan` is the scan of `path`, if that is a folder; the other arguments are
    those of `fewstep.data.image_folder`. Raises DataError if `path` holds no such tables, for columns that do not exist, for splits that
    differ, and if the rows, of `each` bytes, do not fit into memory.
    """
    splits, is_of_folders = _open(path, config, mistakes)
    import datasets

    features = (splits.get(TRAIN) or next(iter(splits.values()))).features
    image = find_image_column(mistakes.source, features, image_column)
    label, others = _label_column(mistakes.source, features, label_column, image, rf"{WHOLE}|float\d+|{WORDS}", all_forms=True)
    if label is None and others:
        mistakes.notes.append(
            f"no column of {mistakes.source.removeprefix('data.path is ')} is called like labels, and its images have no classes; "
            f"{', '.join(others)} could be some: name one in data.label_column"
        )
    for split in splits.values():
        check_rows(f"{mistakes.source}, split {split.name}", split.num)
    used, withheld = _choose(mistakes.source, splits, image, label)
    check_rows(mistakes.source, sum(split.num for split in used), each)
    names, labels = _classes(used, label, mistakes)
    is_declared = label is not None and isinstance(used[0].features[label], datasets.ClassLabel)
    is_word = label is not None and not is_declared and _holds_words(used[0].features[label])
    out = []
    for split in splits.values():
        if split not in used and split.num:
            why = ", whose labels are withheld" if split.name in withheld else ", which is not needed beside those that are used"
            out.append(LeftOut(split.num, f"row{'s' * (split.num > 1)} of the split {split.name}{why}", (), ""))
    many, others_there = len(splits) > 1, _other_files(scan)
    origin = Origin(
        path,
        "file" if others_there else "row",
        sum(split.num for split in splits.values()) + sum(entry.count for entry in others_there),
        (*out, *others_there),
        f"the column {label!r}" if names else _no_classes(label_column, label, others),
        f"the split {used[0].name}" if many else "",
        f"the split {used[1].name}" if len(used) > 1 else "",
        _beside(scan),
    )
    # `datasets` numbers sub-folders in alphabetical order, which the user has not chosen
    return Found(used, image, names, labels, origin, is_word or (is_of_folders and is_declared and list(names) == sorted(names)))


def _no_classes(wanted: str | None, label: str | None, others: list[str]) -> str:
    if wanted == NO_LABELS:
        return "data.label_column is none"
    if label is not None:
        return f"the column {label!r} is empty"
    return "no column is called like labels" + (f", and of {', '.join(others)} none is named in data.label_column" if others else "")


def _holds_words(feature: Any) -> bool:
    return re.fullmatch(rf"{WORDS}|{BYTES}", getattr(feature, "dtype", "")) is not None


def _other_files(scan: Scan | None) -> list[LeftOut]:
    """Return the files that are left out beside images with metadata."""
    return [LeftOut.of(kind, places) for kind, places in scan.left_out.items()] if scan is not None and scan.metadata else []


def _beside(scan: Scan | None) -> tuple[str, ...]:
    """Return the remark on files in a folder of tables that are not read; empty if there are none."""
    if scan is None or scan.metadata:
        return ()
    others = [place for kind, places in scan.left_out.items() if kind is not HIDDEN for place in places if place not in READ_ALONG]
    places = ["/".join(parts) for parts in scan.images] + sorted(others)
    if not places:
        return ()
    what = f"{len(places):,} file{'s' * (len(places) > 1)} beside the tables{f', {len(scan.images):,} of them images,' * bool(scan.images)}"
    first = ", ".join(places[:SHOWN]) + ", ..." * (len(places) > SHOWN)
    return (f"{what} {'are' if len(places) > 1 else 'is'} not read ({first}).",)


def _open(path: str, config: str | None, mistakes: Mistakes) -> tuple[dict[str, Split], bool]:
    """Return the splits of the tables at `path`, by name, and whether `datasets` made them from images in folders.

    Unreadable parquet files are recorded in `mistakes`. Raises DataError if the tables cannot be opened.
    """
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
    from datasets.packaged_modules.parquet.parquet import Parquet

    place = Path(path)
    is_parquet = place.is_file() and place.suffix == ".parquet"
    of_hub = not place.exists() and hub.is_id(path)
    if not of_hub:
        if not (place.is_dir() or is_parquet):
            allowed = "give a folder of images, a .parquet file, a save_to_disk folder, or the Hub id of a data set"
            raise DataError(f"{mistakes.source}, which is not a folder; {allowed}")
        for file in [place] if is_parquet else sorted(place.rglob("*.parquet")):
            try:
                pq.read_metadata(file)
            except (pa.ArrowException, OSError) as error:
                mistakes.add(FILE, file.name if is_parquet else str(file.relative_to(place)), " ".join(str(error).split())[:100])
        mistakes.check()
        check_files(place, mistakes.source)
    datasets.disable_progress_bars()
    # the folders in which `datasets` keeps the files that it unpacked
    own = (Path(datasets.config.HF_DATASETS_CACHE), Path(datasets.config.EXTRACTED_DATASETS_PATH), Path(datasets.config.HF_CACHE_HOME))
    folders = (place.parent if is_parquet else place,) if place.exists() else ()
    is_of_folders = False
    try:
        with hub.data_set(mistakes.source, path) if of_hub else nullcontext():
            if any((place / name).is_file() for name in ("state.json", "dataset_dict.json")):
                loaded = datasets.load_from_disk(path)
            else:
                data_files = {TRAIN: str(place)} if is_parquet else None
                builder = datasets.load_dataset_builder("parquet" if is_parquet else path, config, data_files=data_files)
                is_of_folders = isinstance(builder, ImageFolder)
                if isinstance(builder, Parquet) and place.exists():  # read from the original files, without a copy in the cache
                    return {
                        str(name): _parquet(mistakes.source, str(name), files, builder.info.features, folders)
                        for name, files in builder.config.data_files.items()
                    }, False
                builder.download_and_prepare()
                loaded = builder.as_dataset()
    except hub.NotHad as error:
        raise DataError(str(error)) from error
    except Exception as error:  # `datasets` raises many types of exception, depending on the source
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        needs = "; name one of them in data.config" if "onfig name is missing" in reason else ""
        raise DataError(f"{mistakes.source}, which `datasets` cannot open: {reason}{needs}") from error
    pa.default_memory_pool().release_unused()  # memory that preparing the data set took
    return {
        str(name): _arrow(mistakes.source, str(name), rows, (*folders, *own))
        for name, rows in (loaded if isinstance(loaded, dict) else {TRAIN: loaded}).items()
    }, is_of_folders


def check_files(place: Path, source: str) -> None:
    """Raise DataError for an archive or Arrow file at `place` or below it that would become far larger than its file."""
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    others = [file for file in files if not file.name.lower().endswith((".parquet", *IMAGE_FILES))]
    check_archives([file for file in others if file.suffix != ".arrow"], source)
    for file in others:
        if file.suffix == ".arrow":
            check_arrow(file, source)


def _arrow(source: str, name: str, rows: Any, folders: tuple[Path, ...]) -> Split:
    """Return a `datasets.Dataset` as a split that is read from its Arrow files."""
    import pyarrow as pa

    check_rows(source, rows.num_rows)
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

    return Split(name, dict(rows.features), rows.num_rows, arrays, None, folders)


def _parquet(source: str, name: str, files: Sequence[str], features: Any, folders: tuple[Path, ...]) -> Split:
    """Return parquet files as a split with `features`, or with those of the first file's schema if `features` is None."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    def arrays(column: str) -> Iterator[Any]:
        for file in files:
            try:
                with pq.ParquetFile(file, buffer_size=1 << 16, pre_buffer=False) as table, open(file, "rb") as raw:
                    if column not in table.schema_arrow.names:
                        raise DataError(f"{source}, whose file {file} has no column {column!r}; give all files the same columns")
                    for groups, rows in runs(table, raw, source, file, (column,), 2 * CHUNK):
                        for batch in table.iter_batches(rows, groups, columns=[column], use_threads=False):
                            yield batch.column(column)
            except (pa.ArrowException, OSError) as error:
                raise _unreadable(source, file, error) from error

    if features is None:
        features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    return Split(name, dict(features), sum(pq.read_metadata(file).num_rows for file in files), arrays, None, folders)


def _unreadable(source: str, file: str, error: Exception) -> DataError:
    return DataError(f"{source}, whose file {file} cannot be read ({' '.join(str(error).split())[:100]}); fetch again or remove it")


def _choose(source: str, splits: dict[str, Split], image: str, label: str | None) -> tuple[list[Split], list[str]]:
    """Return the splits to train on and, if there is one, to hold out; and the names of splits without labels, which are passed over.

    Raises DataError for a training split without rows, and for a held-out split whose columns differ.
    """
    withheld: list[str] = []
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
                return [train, other], withheld
            withheld.append(name)
    return [train], withheld


def find_image_column(source: str, features: Any, wanted: str | None) -> str:
    """Return the column `wanted`, or the first that holds encoded images: `datasets` Images, else structs of bytes and path, else bytes.

    Raises DataError if `wanted` holds no images, or if no column does.
    """
    import datasets

    def rank(feature: Any) -> int:
        if isinstance(feature, dict):
            return 1 if set(feature) == {"bytes", "path"} else 3
        binary = isinstance(feature, datasets.Value) and re.fullmatch(BYTES, feature.dtype)
        return 0 if isinstance(feature, datasets.Image) else 2 if binary else 3

    ranks = {name: rank(feature) for name, feature in features.items() if rank(feature) < 3}
    if wanted is not None and wanted not in ranks:
        raise DataError(f"data.image_column is {wanted!r}; {source}, whose columns of images are {sorted(ranks)} of {sorted(features)}")
    if not ranks:
        raise DataError(f"{source}, whose columns {sorted(features)} hold no images")
    return wanted or min(ranks, key=lambda name: (ranks[name], name.lower() in LABELS))  # labels may be bytes, too


def find_label_column(source: str, features: Any, wanted: str | None, image: str) -> str | None:
    """Return the column `wanted`, or the first of ClassLabels, or one of integers or words with a usual name; None if there is none.

    `LABELS` are the usual names, and `image` is the column of images. Raises DataError if `wanted` holds no labels, and if the only columns
    with a usual name hold none.
    """
    return _label_column(source, features, wanted, image, rf"{WHOLE}|{WORDS}", all_forms=False)[0]


def _label_column(source: str, features: Any, wanted: str | None, image: str, kinds: str, all_forms: bool) -> tuple[str | None, list[str]]:
    """Return the column of labels as `find_label_column` does, and all columns, besides those of ClassLabels, that could hold labels.

    These have types that match `kinds`, or, if `all_forms` is true, are lists of numbers, or bytes in a column with a usual name.
    """
    import datasets

    if wanted == NO_LABELS:
        return None, []
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    plain = [name for name, f in features.items() if isinstance(f, datasets.Value) and re.fullmatch(kinds, f.dtype)]
    called = [name for known in LABELS for name in features if name.lower() == known and name != image]
    if all_forms:
        plain += [name for name, feature in features.items() if _is_list(feature)]
        plain += [name for name in dict.fromkeys([*called, wanted]) if name != image and _is_of_bytes(features.get(name))]
    if wanted is not None and wanted not in classes + plain:
        raise DataError(
            f"data.label_column is {wanted!r}; {source}, whose columns of classes, integers or words are {sorted(classes + plain)} "
            f"of {sorted(features)}; name one of them, or {NO_LABELS!r}"
        )
    usual = [name for name in called if name in plain]
    odd = [name for name in called if getattr(features[name], "dtype", "") != "null"]  # a column without any value has no type
    if wanted is None and not (classes or usual) and odd:
        kind = getattr(features[odd[0]], "dtype", type(features[odd[0]]).__name__)
        raise DataError(
            f"{source}, whose column {odd[0]!r} is called like labels, and is of type {kind}; classes are whole numbers or words: write it "
            f"as such, name another column in data.label_column, or set that to {NO_LABELS!r}"
        )
    return wanted or next(iter(classes + usual), None), plain


def _is_of_bytes(feature: Any) -> bool:
    return re.fullmatch(BYTES, getattr(feature, "dtype", "")) is not None


def _is_list(feature: Any) -> bool:
    """Return whether a column holds lists of numbers, such as one-hot labels."""
    inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else getattr(feature, "feature", None)
    return re.fullmatch(rf"{WHOLE}|float\d+", getattr(inner, "dtype", "")) is not None


def plain_label(value: Any) -> Any:
    """Return a label in plain form: an integer for a float without a fraction, the position of the 1 for a one-hot list, None for NaN.

    Bytes become the word that they spell in UTF-8, other lists become tuples, and other values are unchanged.
    """
    if isinstance(value, bytes):
        with suppress(UnicodeDecodeError):
            return value.decode()
    if isinstance(value, list) and set(value) <= {0, 1} and sum(value) == 1:
        return [int(entry) for entry in value].index(1)
    if isinstance(value, float):
        return None if value != value else int(value) if value.is_integer() else value
    return tuple(value) if isinstance(value, list) else value


def _classes(used: list[Split], column: str | None, mistakes: Mistakes) -> tuple[tuple[str, ...], list[Tensor]]:
    """Return the names of the classes, and the labels int64 [N] of each split; both empty without classes.

    Mistakes in the labels are recorded in `mistakes`. Raises DataError for labels that are fractions, or lists that are not one-hot.
    """
    import datasets

    values = [[plain_label(value) for value in split.values(column)] for split in used] if column else []
    if column is None or all(value is None for value in values[0]):
        return (), []
    feature = used[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        words = tuple(feature.names)
        number: dict[Any, int] = {k: k for k in range(len(words))} | {word: k for k, word in enumerate(words)}
    else:
        odd = next((value for value in values[0] if isinstance(value, float | tuple | bytes)), None)
        if odd is not None:
            shown = list(odd) if isinstance(odd, tuple) else f"bytes that are no text ({odd[:8]!r})" if isinstance(odd, bytes) else odd
            raise DataError(
                f"{mistakes.source}, whose column {column!r} holds {shown}; classes are whole numbers, "
                f"words, or lists with one 1: mend it, name another column in data.label_column, or set it to {NO_LABELS!r}"
            )
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
