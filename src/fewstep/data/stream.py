"""Images from shards of parquet, Arrow or WebDataset, local or remote, which `datasets` reads in streaming mode during training."""

from dataclasses import replace
from glob import glob
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from fewstep import hub
from fewstep.data.archives import check_shards
from fewstep.data.checks import SHOWN
from fewstep.data.errors import DataError
from fewstep.data.items import in_words
from fewstep.data.iterables import StreamData, stream_data
from fewstep.data.parquet import check_arrow, check_parquet
from fewstep.data.pixels import Resize, Unfit, inside, read_pixels
from fewstep.data.tables import find_image_column, find_label_column

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".arrow": "arrow"}


def image_stream(
    path: str,
    size: int,
    channels: int = 3,
    resize: Resize = "fit",
    image_column: str | None = None,
    label_column: str | None = None,
    num_classes: int | None = None,
    class_names: list[str] | None = None,
    heldout_items: int = 2000,
    buffer: int = 1000,
    flip: bool = False,
    config: str | None = None,
    split: str = "train",
    heldout_split: str | None = None,
) -> StreamData:
    """Return the images in the shards at `path`: a pattern of files, a folder of them, a URL, or a data set of the Hugging Face Hub.

    Images become `size` x `size` as `resize` says, see `fewstep.data.pixels.read_pixels`. Columns are found as in
    `fewstep.data.image_folder`. Labels are ClassLabels, integers below `num_classes`, or words in `class_names`. The first `heldout_items`
    images are held out, or as many of the split `heldout_split`. `buffer` images are shuffled together, and `flip` mirrors half of the
    training images. Raises DataError if the shards cannot be opened, or for columns or classes that do not exist.
    """
    source = f"data.path is {path!r}"
    name = Path(path.split("*")[0].rstrip("/")).name or "stream"
    rows = _opened(source, path, config, split)
    features = rows.features
    if features is None:
        raise DataError(f"{source}, whose columns are not known before they are read; give parquet or WebDataset shards")
    image = find_image_column(source, features, image_column)
    label = find_label_column(source, features, label_column, image)
    names, number = _classes(source, features, label, num_classes, class_names)

    place = Path(path.split("*")[0])
    folders = () if "://" in path else (place if place.is_dir() else place.parent,)

    def only(rows: Any) -> Any:
        import datasets

        columns = [image] if label is None else [image, label]
        rows = rows.select_columns(columns)
        return rows.cast_column(image, datasets.Image(decode=False)) if isinstance(features[image], datasets.Image) else rows

    def convert(row: dict[str, Any]) -> Any:
        content = row[image]
        if isinstance(content, dict):
            content = content["path"] if content["bytes"] is None else content["bytes"]
        try:
            if content is None:
                raise DataError("has no image")
            if isinstance(content, str):
                content = inside(folders, content)
            pixels = read_pixels(BytesIO(content) if isinstance(content, bytes) else content, size, channels, resize)
        except Unfit as reason:
            raise DataError(f"is one of {reason.kind.what.format(s='s', es='es')} ({reason}); {reason.kind.remedy}") from None
        x = torch.from_numpy(pixels.copy())
        if label is None:
            return x
        value = row[label]
        if value not in number:
            raise DataError(f"has the label {value!r}, which is none of the {len(names)} classes; mend it, or set data.label_column: none")
        return x, number[value]

    held = None if heldout_split is None else only(_opened(source, path, config, heldout_split))
    by = "" if label is None else f"the column {label!r}"
    classes = 0 if label is None else None
    data = stream_data(only(rows), name, held, classes, heldout_items, buffer, convert, names, flip, False, path, by)
    assert data.origin is not None
    data.origin = replace(data.origin, remarks=(*data.origin.remarks, *_others(place)))
    return data


def _others(folder: Path) -> tuple[str, ...]:
    """Return the remark on files in a folder of shards that are not shards; empty if there are none."""
    files = folder.rglob("*") if folder.is_dir() else ()
    others = sorted(str(file.relative_to(folder)) for file in files if file.is_file() and file.suffix not in BUILDERS)
    if not others:
        return ()
    several = len(others) > 1
    names = ", ".join(others[:SHOWN]) + ", ..." * (len(others) > SHOWN)
    return (f"{len(others):,} file{'s' * several} there {'are' if several else 'is'} no shard{'s' * several}, and not read ({names}).",)


def _opened(source: str, path: str, config: str | None, split: str) -> Any:
    """Return the data set in streaming mode. Raises DataError if it cannot be opened."""
    import datasets

    files = _files(path)
    datasets.disable_progress_bars()
    try:
        if files:
            kinds = sorted({Path(file.split("?")[0]).suffix for file in files})
            if len(kinds) > 1 or kinds[0] not in BUILDERS:
                raise DataError(f"{source}, files that end in {', '.join(kinds)}; give shards of one kind: {', '.join(BUILDERS)}")
            hub.check_address(source, files[0])
            if "://" not in path:
                _check(kinds[0], [Path(file) for file in files], source)
            return datasets.load_dataset(BUILDERS[kinds[0]], data_files={split: files}, split=split, streaming=True)
        if Path(path).exists() or not hub.is_id(path):
            raise DataError(
                f"{source}, where there are no shards; give a pattern of .parquet or .tar files, their folder, a URL, or a Hub id"
            )
        with hub.data_set(source, path):
            return datasets.load_dataset(path, config, split=split, streaming=True)
    except DataError:
        raise
    except hub.NotHad as error:
        raise DataError(str(error)) from error
    except Exception as error:  # `datasets` raises many types of exception, depending on the source
        raise DataError(f"{source}, which `datasets` cannot open: {in_words(error)}") from error


def _check(kind: str, files: list[Path], source: str) -> None:
    """Raise DataError for a shard that would become far larger than its file when it is read."""
    if kind == ".parquet":
        check_parquet(files, source)
    for file in files:
        if kind == ".arrow":
            check_arrow(file, source)
    if kind == ".tar":
        check_shards(files, source)


def _files(path: str) -> list[str]:
    """Return the shards that `path` names, in order: for a URL the URL itself, for a Hub id none."""
    if "://" in path:
        return [path]
    folder = Path(path)
    if folder.is_dir():
        return sorted(str(file) for file in folder.rglob("*") if file.suffix in BUILDERS)
    return sorted(glob(path, recursive=True))


def _classes(
    source: str, features: Any, label: str | None, num_classes: int | None, class_names: list[str] | None
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the names of the classes, and the number of each value of the column `label`; both empty without labels.

    Raises DataError if the classes are unknown, or if `num_classes` or `class_names` contradict the column.
    """
    import datasets

    for key, value in (("num_classes", num_classes), ("class_names", class_names)):
        if value is not None and label is None:
            raise DataError(f"data.{key} is {value}, and there is no column of labels; name it in data.label_column")
    if label is None:
        return (), {}
    feature = features[label]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
        if num_classes not in (None, len(names)) or class_names not in (None, list(names)):
            raise DataError(f"{source}, whose column {label!r} has {len(names)} classes of its own; leave num_classes and class_names out")
        return names, {k: k for k in range(len(names))}
    if class_names is not None:
        words = tuple(class_names)
        return words, {word: k for k, word in enumerate(words)}
    if num_classes is None or "string" in feature.dtype:
        raise DataError(
            f"{source}, whose column {label!r} is of type {feature.dtype} and does not say its classes; give data.num_classes (numbers "
            "from 0) or data.class_names (words), or set data.label_column: none"
        )
    return tuple(map(str, range(num_classes))), {k: k for k in range(num_classes)}
