"""The metadata files that `datasets` reads beside images, with names and labels: whether they name all images, so that none is dropped."""

import csv
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.data.checks import SHOWN
from fewstep.data.errors import DataError
from fewstep.data.scanning import Parts, Scan
from fewstep.data.splits import SPLIT_FOLDERS
from fewstep.data.tables import LABELS
from fewstep.text import parse_json

FILE_NAME = "file_name"


def speaks_for(scan: Scan, root: Path, label_column: str | None, source: str) -> bool:
    """Return whether the metadata files of `scan` in the folder `root` describe the images; False if only sub-folders tell the classes.

    They do if they name every image and have a column of labels (one of the usual names, or `label_column`) wherever sub-folders could
    stand for classes. Raises DataError if they name only some of the images, so that `datasets` would drop the others, if they name files
    that do not exist, lie outside the folder or lack a usual ending, if they name one twice, and if they have no column of file names.
    """
    rows, labelled = Counter[str](), False
    for parts in scan.metadata:
        places, columns = _read(root, parts, source)
        rows += places
        labelled |= any(column == label_column or column.lower() in LABELS for column in columns)
    images = {"/".join(parts) for parts in scan.images}
    file = "/".join(scan.metadata[0]) + (f" and {len(scan.metadata) - 1} more" if len(scan.metadata) > 1 else "")
    folders = {parts[-2] if len(parts) > 1 and parts[-2].lower() not in SPLIT_FOLDERS else "" for parts in scan.images}
    if label_column is None and not labelled and len(folders) > 1:
        return False
    named = set(rows)
    without, gone = sorted(images - named), sorted(named - images)
    if twice := sorted(place for place, count in rows.items() if count > 1):
        raise DataError(
            f"{source}, where {file} names {len(twice)} image{'s' * (len(twice) > 1)} more than once ({_some(twice)}), which would be "
            "trained on as often, and might be held out, too; leave one row for each"
        )
    if outside := [place for place in gone if place.startswith(("/", ".."))]:
        raise DataError(
            f"{source}, where {file} names {len(outside)} file{'s' * (len(outside) > 1)} outside its folder ({_some(outside)}); write "
            "paths as they are from that folder"
        )
    if without:
        raise DataError(
            f"{source}, where {file} names {len(images) - len(without)} of the {len(images)} images, and the other {len(without)} "
            f"({_some(without)}) would be left out; name them in it or move them away, or move {scan.metadata[0][-1]} away: then "
            "the class of an image is its sub-folder"
        )
    if gone:
        what = "files that are no images" if len(gone) > 1 else "file that is no image"
        raise DataError(f"{source}, where {file} names {len(gone)} {what} there ({_some(gone)}); fetch what is missing, or mend it")
    if scan.by_content:
        raise DataError(
            f"{source}, where {file} names {len(scan.by_content)} images without one of the usual endings "
            f"({_some(['/'.join(parts) for parts in scan.by_content])}), which `datasets` would pass over; add .png or .jpg to their names"
        )
    return True


def _some(places: list[str]) -> str:
    return ", ".join(places[:SHOWN]) + (f" and {len(places) - SHOWN} more" if len(places) > SHOWN else "")


def _read(root: Path, parts: Parts, source: str) -> tuple[Counter[str], set[str]]:
    """Return how often the metadata file at `parts` names each path below `root`, and its columns. Raises DataError for an invalid file."""
    places, columns, above = Counter[str](), set[str](), "/".join(parts[:-1])
    try:
        for row in _rows(root.joinpath(*parts)):
            columns |= {str(key) for key in row}
            for key, value in row.items():
                if key is None or not (str(key) == FILE_NAME or str(key).endswith(f"_{FILE_NAME}")) or not isinstance(value, str):
                    continue
                places[posixpath.normpath(posixpath.join(above, value))] += 1
    except (OSError, ValueError, csv.Error, TypeError, AttributeError) as error:
        raise DataError(f"{source}, where {'/'.join(parts)} cannot be read ({' '.join(str(error).split())[:100]}); mend it") from error
    if not places:
        raise DataError(
            f"{source}, where {'/'.join(parts)} has no column {FILE_NAME} that names images; rename its column, or move it away: then "
            "the class of an image is its sub-folder"
        )
    return places, columns


def _rows(file: Path) -> Iterator[Mapping[Any, Any]]:
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from pq.read_table(file).to_pylist()
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
    elif file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8-sig") as lines:
            yield from csv.DictReader(lines)
    else:
        with file.open(encoding="utf-8-sig") as lines:
            yield from (parse_json(line) for line in lines if line.strip())
