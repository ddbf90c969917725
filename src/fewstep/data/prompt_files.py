"""Prompts in files: one on each line of a text file, or a column of a table."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewstep.data.errors import DataError
from fewstep.data.parquet import check_parquet
from fewstep.limits import LINES_BYTES, ROWS, in_units

COLUMNS = ("prompt", "prompts", "caption", "captions", "text")  # usual names of the column of prompts, the preferred ones first
LONGEST = 4_000  # characters of a prompt at most; text encoders use only a small part of a longer text
SHOWN = 40  # characters of a prompt in a message


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file.

    Attributes:
        texts: the different prompts, in the order of their first lines or rows, with single spaces between words.
        rows: for each line or row that has a prompt, the index of that prompt in `texts`.
        lines: the numbers of these lines or rows in the file, from 1.
        blank: number of lines or rows without a prompt.

    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    lines: tuple[int, ...]
    blank: int

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
    is missing, of another kind, not UTF-8 or without any prompt, for a prompt that is too long, and for a column that does not exist.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}; give a .txt with a prompt on each line, or a .csv or .parquet with a column of them")
    if path.suffix not in (".txt", ".csv", ".parquet"):
        raise DataError(f"{path} is a {path.suffix or 'file without an ending'}; prompts are read from .txt, .csv and .parquet")
    if column is not None and path.suffix == ".txt":
        raise DataError(f"--column is {column!r}, but {path} has no columns: each line is a prompt; leave --column out")
    if (size := path.stat().st_size) > LINES_BYTES and path.suffix != ".parquet":
        raise DataError(f"{path} has {in_units(size)}, where {in_units(LINES_BYTES)} of prompts are read; give fewer, or a .parquet")
    kind = "line" if path.suffix == ".txt" else "row"
    found = gathered(_texts(path, column), lambda line: f"{kind} {line} of {path}")
    if not found.rows:
        raise DataError(f"{path} holds no prompt; write one on each line")
    return found


def gathered(texts: Iterable[str], place: Callable[[int], str]) -> Prompts:
    """Return the prompts in `texts`; ``place(k)`` names text number k, from 1, in messages. Raises DataError for one that is too long."""
    numbers: dict[str, int] = {}
    rows, lines, blank = [], [], 0
    for line, raw in enumerate(texts, 1):
        text = " ".join(raw.split())
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


def _texts(path: Path, column: str | None) -> Iterator[str]:
    """Yield the lines of a text file, or the values of a column. Raises DataError if the file or the column cannot be read."""
    if path.suffix == ".parquet":
        yield from _parquet_column(path, column)
        return
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"line {line} of {path} is no UTF-8 (byte {error.start:,}); save the file as UTF-8") from None
    if path.suffix == ".txt":
        yield from io.StringIO(text)
    else:
        yield from _csv_column(path, text, column)


def _csv_column(path: Path, text: str, column: str | None) -> Iterator[str]:
    try:
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        name = chosen_column(path, [heading for heading in table.fieldnames or () if heading], column)
        for row in table:
            yield row[name] or ""
    except csv.Error as error:
        raise DataError(f"{path} cannot be read as a .csv ({error}); write it anew, with a heading for each column") from None


def _parquet_column(path: Path, column: str | None) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = f"the file of prompts is {path}"
    check_parquet([path], source)
    try:
        with pq.ParquetFile(path) as table:
            texts = [field.name for field in table.schema_arrow if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
            name = chosen_column(path, texts, column)
            if (rows := table.metadata.num_rows) > ROWS:
                raise DataError(f"{source}, which claims {rows:,} rows, where {ROWS:,} are read; give fewer")
            for batch in table.iter_batches(batch_size=10_000, columns=[name]):
                for value in batch.column(0).to_pylist():
                    yield value or ""
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as a parquet file ({str(error).splitlines()[0]}); take another copy") from None


def chosen_column(path: Path | str, columns: Iterable[str], column: str | None) -> str:
    """Return the column that holds the prompts: `column`, or the only one of `columns`, or the first of `COLUMNS` among them.

    Raises DataError if `column` does not exist, or if several columns exist and none has a name in `COLUMNS`.
    """
    there = list(columns)
    if column is not None:
        if column not in there:
            raise DataError(f"--column is {column!r}; the columns of text in {path} are {', '.join(there) or 'none'}")
        return column
    if len(there) == 1:
        return there[0]
    found = next((name for wanted in COLUMNS for name in there if name.lower() == wanted), None)
    if found is None:
        raise DataError(f"{path} has {', '.join(there) or 'no column of text'}, of which none is called a prompt; name one by --column")
    return found
