"""How much memory a parquet or Arrow file would take, judged from its headers: a repeated value is stored once, but read many times."""

import struct
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from fewstep.data.errors import DataError
from fewstep.limits import BATCH_BYTES, COLUMN_BYTES, EXPANSION, IMAGE_BYTES, ROWS, check_expansion, in_units, memory

DICTIONARY_PAGE = 2  # page type of a dictionary in the parquet format
GROUP_BYTES = 2**30  # memory that one row group may take, if its values are larger than LARGE
LARGE = 2**24  # bytes of distinct values in one row group, which libraries that write images do not exceed by default
REMEDY = "take another copy, or write the table anew"
STREAM, FILE = b"\xff\xff\xff\xff", b"ARROW1\0\0"  # first bytes of Arrow's streams and files


def check_rows(source: str, num: int, each: int = 0) -> None:
    """Raise DataError if `num` rows, with images of `each` bytes, are too many to hold in memory; `source` names the data set."""
    instead = "read them on demand, with data.name: stream, or take fewer"
    if num > ROWS:
        raise DataError(f"{source}, which claims {num:,} rows, where at most {ROWS:,} are held in memory; {instead}")
    if num * each > memory():
        raise DataError(
            f"{source}, which claims {num:,} images, {in_units(num * each)} at this size, and {in_units(memory())} of memory are "
            f"available; {instead}, or lower data.size"
        )


def runs(table: Any, file: BinaryIO, source: str, name: str, columns: tuple[str, ...], most: int) -> Iterator[tuple[list[int], int]]:
    """Yield lists of consecutive row groups of `table`, a `pq.ParquetFile`, and how many rows of their `columns` to read at a time.

    These are at most `most` rows, and at most as many as `BATCH_BYTES` hold if every value has the largest possible size. Raises DataError
    if a row group claims to be far larger than its bytes in the `file`, which messages call `name`.
    """
    groups = [
        (number, rows_at_once(table.metadata.row_group(number), file, source, name, columns, most))
        for number in range(table.metadata.num_row_groups)
    ]
    for rows, together in groupby(groups, key=lambda group: group[1]):
        yield [number for number, _ in together], rows


def rows_at_once(group: Any, file: BinaryIO, source: str, name: str, columns: tuple[str, ...], most: int) -> int:
    """Return how many rows of one row group to read at a time. The arguments and errors are those of `runs`."""
    return max(1, min(most, BATCH_BYTES // max(1, _largest(group, file, source, name, columns))))


def check_parquet(files: Iterable[Path], source: str) -> None:
    """Raise DataError if one of `files` would become far larger in memory when `datasets` reads its row groups whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            with path.open("rb") as file:
                metadata = pq.read_metadata(file)
                for number in range(metadata.num_row_groups):
                    group = metadata.row_group(number)
                    largest = _largest(group, file, source, path.name, ())
                    if largest > LARGE and largest * group.num_rows > GROUP_BYTES:
                        raise DataError(
                            f"{source}, whose file {path.name} has {group.num_rows:,} rows in a row group that may all hold one value of "
                            f"{in_units(largest)}, and {in_units(GROUP_BYTES)} are allowed; {REMEDY}"
                        )
        except (pa.ArrowException, OSError):
            continue  # a damaged file is reported when it is opened


def _largest(group: Any, file: BinaryIO, source: str, name: str, columns: tuple[str, ...]) -> int:
    """Return the largest possible size in bytes of a value that a row group may repeat in many rows.

    Only `columns` are looked at, or all columns if these are empty. Raises DataError as `runs` does, and for a value larger than an image
    file may be.
    """
    largest = 0
    for k in range(group.num_columns):
        chunk = group.column(k)
        if columns and chunk.path_in_schema.split(".")[0] not in columns:
            continue
        claimed, there = chunk.total_uncompressed_size, chunk.total_compressed_size
        if claimed > max(COLUMN_BYTES, EXPANSION * there):
            raise DataError(
                f"{source}, whose file {name} has {in_units(there)} of column {chunk.path_in_schema!r} that claim to become "
                f"{in_units(claimed)}, more than {EXPANSION} times as much; {REMEDY}"
            )
        if chunk.physical_type == "BYTE_ARRAY":
            largest = max(largest, _largest_repeated(chunk, file))
    if largest > IMAGE_BYTES:
        raise DataError(
            f"{source}, whose file {name} claims values of {in_units(largest)}, where {in_units(IMAGE_BYTES)} are allowed; {REMEDY}"
        )
    return largest


def _largest_repeated(chunk: Any, file: BinaryIO) -> int:
    """Return the largest possible size in bytes of a value that a column chunk may store once and repeat; 0 if it repeats none."""
    if any("DELTA" in encoding for encoding in chunk.encodings):  # values stored as differences from the value before
        return int(chunk.total_uncompressed_size)
    if not any("DICTIONARY" in encoding for encoding in chunk.encodings):
        return 0
    file.seek(chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset)
    kind, size = _page(file.read(12))
    return size if kind == DICTIONARY_PAGE else int(chunk.total_uncompressed_size)


def _page(head: bytes) -> tuple[int, int]:
    """Return the type and the uncompressed size of a page from `head`, the beginning of its header in Thrift's compact form.

    Returns -1 and 0 if `head` is not the beginning of a page header.
    """
    values, place = [], 0
    for _ in range(2):  # fields 1 and 2, each a byte 0x15 (the next field, an i32) and a zigzag varint
        if head[place : place + 1] != b"\x15":
            return -1, 0
        place, number, shift = place + 1, 0, 0
        while place < len(head):
            byte, place = head[place], place + 1
            number, shift = number | (byte & 127) << shift, shift + 7
            if byte < 128:
                break
        values.append((number >> 1) ^ -(number & 1))
    return values[0], values[1]


def check_arrow(path: Path, source: str) -> None:
    """Raise DataError if the compressed buffers of an Arrow file claim to become far larger than the file; damaged files pass."""
    try:
        claimed = arrow_expanded(path)
    except (struct.error, IndexError, OSError, ValueError):
        return
    try:
        check_expansion(path.name, path.stat().st_size, claimed, REMEDY)
    except ValueError as error:
        raise DataError(f"{source}, where {error}") from None


def arrow_expanded(path: Path) -> int:
    """Return how many bytes the compressed buffers of an Arrow file claim to become. Raises struct.error for a truncated file."""
    claimed, size = 0, path.stat().st_size
    with path.open("rb") as file:
        place = len(FILE) if file.read(len(FILE)) == FILE else 0
        while place + 8 <= size:
            file.seek(place)
            head = file.read(8)
            length = struct.unpack("<i", head[4:])[0]
            if head[:4] != STREAM or not 0 < length <= size - place:
                break
            message = file.read(length)
            body = place + 8 + length
            root = _at(message, "<I", 0)
            place = body + (_at(message, "<q", field) if (field := _field(message, root, 3)) else 0)
            header = _field(message, root, 2)
            if header is None:
                continue
            batch = header + _at(message, "<I", header)
            kind = _field(message, root, 1)
            if kind is not None and message[kind] == 2:  # a dictionary batch, which contains a record batch
                inner = _field(message, batch, 1)
                batch = batch if inner is None else inner + _at(message, "<I", inner)
            elif kind is None or message[kind] != 3:
                continue
            buffers = _field(message, batch, 2)
            if buffers is None or _field(message, batch, 3) is None:  # field 3, the compression, is present if the buffers are compressed
                continue
            vector = buffers + _at(message, "<I", buffers)
            for k in range(_at(message, "<I", vector)):
                offset, there = (_at(message, "<q", vector + 4 + 16 * k + 8 * part) for part in (0, 1))
                if there >= 8:
                    file.seek(body + offset)
                    claimed += max(0, struct.unpack("<q", file.read(8))[0])  # -1 for a buffer that is stored uncompressed
    return claimed


def _at(message: bytes, kind: str, place: int) -> int:
    return int(struct.unpack_from(kind, message, place)[0])


def _field(message: bytes, table: int, number: int) -> int | None:
    """Return the position of field `number` of the flatbuffer table at position `table`; None if the table does not have the field."""
    fields = table - _at(message, "<i", table)
    if 4 + 2 * number >= _at(message, "<H", fields):
        return None
    offset = _at(message, "<H", fields + 4 + 2 * number)
    return table + offset if offset else None
