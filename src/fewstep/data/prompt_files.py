"""Prompts in files: one on each line of a text file, or a column of a table."""

import contextlib
import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.data.errors import DataError
from fewstep.data.parquet import check_parquet
from fewstep.limits import LINES_BYTES, ROWS, in_units

COLUMNS = ("prompt", "prompts", "caption", "captions", "text")  # usual names of the column of prompts, the preferred ones first
LONGEST = 4_000  # characters of a prompt at most; text encoders use only a small part of a longer text
MARK = "\ufeff"  # the byte order mark, which stays within a text that was put together from several files
SHOWN = 40  # characters of a prompt in a message


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file.

    Attributes:
        texts: the different prompts, in the order of their first lines or rows, with single spaces between words.
        rows: for each line or row that has a prompt, the index of that prompt in `texts`.
        lines: the numbers of these lines or rows in the file, from 1.
        blank: number of lines or rows without a prompt.
        column: the column of a table that they were read from; None for other files.

    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    lines: tuple[int, ...]
    blank: int
    column: str | None = None

    @property
    def repeated(self) -> int:
        """Number of lines or rows that repeat an earlier prompt."""
        return len(self.rows) - len(self.texts)

    def line_of(self, text: int) -> int:
        """Return the number of the first line or row that holds the prompt ``texts[text]``."""
        return self.lines[self.rows.index(text)]


def read_prompts(path: Path, column: str | None = None) -> Prompts:
    """Return the prompts in a .txt file of UTF-8, one per line, or in a column of a .csv or .parquet file.

    `column` names a column of a table; None takes the only column, or the first of `COLUMNS` that exists. Raises DataError for a file that
    is missing, of another kind, not UTF-8 or without any prompt, for a prompt that is too long, for a column that does not exist, and for
    a .csv whose rows have more fields than it has columns.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; give a .txt with a prompt on each line, or a .csv or .parquet with a column of them")
    ending = path.suffix.lower()
    if ending not in (".txt", ".csv", ".parquet"):
        raise DataError(f"{path} is a {path.suffix or 'file without an ending'}; prompts are read from .txt, .csv and .parquet")
    if column is not None and ending == ".txt":
        raise DataError(f"--column is {column!r}, but {path} has no columns: each line is a prompt; leave --column out")
    if (size := path.stat().st_size) > LINES_BYTES and ending != ".parquet":
        raise DataError(f"{path} has {in_units(size)}, where {in_units(LINES_BYTES)} of prompts are read; give fewer, or a .parquet")
    kind = "line" if ending == ".txt" else "row"
    if ending == ".parquet":
        column, texts = _parquet_column(path, column)
    elif ending == ".csv":
        column, texts = _csv_column(path, _decoded(path), column)
    else:
        texts = io.StringIO(_decoded(path), newline=None)  # also with the line ends of Windows and of old Macs
    found = gathered(texts, lambda line: f"{kind} {line} of {path}")
    if not found.rows:
        raise DataError(f"{path} holds no prompt; write one on each line")
    return replace(found, column=column)


def cleaned(text: str) -> str:
    """Return `text` with single spaces between words, and without byte order marks."""
    return " ".join(text.replace(MARK, "").split())


def gathered(texts: Iterable[str], place: Callable[[int], str]) -> Prompts:
    """Return the prompts in `texts`; ``place(k)`` names text number k, from 1, in messages. Raises DataError for one that is too long."""
    numbers: dict[str, int] = {}
    rows, lines, blank = [], [], 0
    for line, raw in enumerate(texts, 1):
        text = cleaned(raw)
        if not text:
            blank += 1
            continue
        if len(text) > LONGEST:
            raise DataError(
                f"the prompt in {place(line)} has {len(text):,} characters, where {LONGEST:,} are allowed ({text[:SHOWN]!r}...); shorten "
                "it, or put each prompt on a line of its own"
            )
        rows.append(numbers.setdefault(text, len(numbers)))
        lines.append(line)
    return Prompts(tuple(numbers), tuple(rows), tuple(lines), blank)


def _decoded(path: Path) -> str:
    """Return the text in a file of UTF-8. Raises DataError for other encodings."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"line {line} of {path} is no UTF-8 (byte {error.start:,}); save the file as UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"line {line} of {path} holds a zero byte, as UTF-16 has and text in UTF-8 has not; save the file as UTF-8")
    return text


def _csv_column(path: Path, text: str, column: str | None) -> tuple[str, Iterator[str]]:
    """Return (column, its values in turn) of the .csv with the content `text`; `column` is the name that was given, or None."""
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    with _reading_csv(path):
        headings = [heading for heading in table.fieldnames or () if heading]
    if len(headings) == 1 and (mark := next((mark for mark in (";", "\t") if mark in headings[0]), None)):
        raise DataError(f"{path} has columns that are divided by {mark!r}, and a .csv has commas; save it with commas")
    name = chosen_column(path, headings, column)
    if headings.count(name) > 1:
        raise DataError(f"{path} has {headings.count(name)} columns called {name}; give each a name of its own")

    def values() -> Iterator[str]:
        with _reading_csv(path):
            for number, row in enumerate(table, 1):
                if None in row:
                    raise DataError(
                        f"row {number} of {path} has {len(headings) + len(row[None])} fields, and its heading names {len(headings)}: put "
                        "what holds a comma into double quotes"
                    )
                yield row[name] or ""

    return name, values()


@contextlib.contextmanager
def _reading_csv(path: Path) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a .csv ({error}); write it anew, with a heading for each column") from None


def _parquet_column(path: Path, column: str | None) -> tuple[str, Iterator[str]]:
    """Return (column, its values in turn) of a parquet file; `column` is the name that was given, or None."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = f"the file of prompts is {path}"
    check_parquet([path], source)
    try:
        with pq.ParquetFile(path) as table:
            schema, rows = table.schema_arrow, table.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a parquet file ({str(error).splitlines()[0]}); take another copy") from None
    name = chosen_column(
        path, [field.name for field in schema if _is_text(field.type)], column, {field.name: field.type for field in schema}
    )
    if rows > ROWS:
        raise DataError(f"{source}, which claims {rows:,} rows, where {ROWS:,} are read; give fewer")

    def values() -> Iterator[str]:
        try:
            with pq.ParquetFile(path) as table:
                for batch in table.iter_batches(batch_size=10_000, columns=[name]):
                    for value in batch.column(0).to_pylist():
                        yield value or ""
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} cannot be read as a parquet file ({str(error).splitlines()[0]}); take another copy") from None

    return name, values()


def _is_text(kind: Any) -> bool:
    """Return whether an Arrow type holds text, by itself or as a dictionary of repeated values."""
    import pyarrow as pa

    return str(kind.value_type if pa.types.is_dictionary(kind) else kind) in ("string", "large_string", "string_view")


def chosen_column(path: Path | str, columns: Iterable[str], column: str | None, kinds: Mapping[str, Any] | None = None) -> str:
    """Return the column that holds the prompts: `column`, or the only one of `columns`, or the first of `COLUMNS` among them.

    `kinds` has the types of all columns, if they are known, for messages. Raises DataError if there are no `columns`, if `column` is not
    one of them, or if several exist and none has a name in `COLUMNS`.
    """
    there, known = list(columns), kinds or {}
    if column is not None and column in known and column not in there:
        raise DataError(f"--column is {column!r}, and that column of {path} holds {known[column]}, and no text; give one with a text a row")
    if column is not None and column not in there:
        raise DataError(f"--column is {column!r}; the columns of text in {path} are {', '.join(there) or 'none'}")
    if not there:
        others = ", ".join(f"{name} holds {kind}" for name, kind in known.items())
        raise DataError(f"{path} has no column of text{f' ({others})' if others else ''}; give one with a text a row")
    if column is not None:
        return column
    if len(there) == 1:
        return there[0]
    found = next((name for wanted in COLUMNS for name in there if name.lower() == wanted), None)
    if found is None:
        raise DataError(f"{path} has {', '.join(there)}, of which none is called a prompt; name one by --column")
    return found
