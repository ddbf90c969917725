"""Prompts in files: one on each line of a text file, or a column of a table."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewstep.data.errors import DataError
from fewstep.data.parquet import check_parquet
from fewstep.limits import LINES_BYTES, ROWS, in_units

COLUMNS = ("prompt", "prompts", "caption", "captions", "text")  # taken where none is named; of several the first
LONGEST = 4_000  # characters of a prompt: of what is longer a text encoder sees a small part, and it is hardly meant to be one
SHOWN = 40  # characters of a prompt in a message


@dataclass(frozen=True)
class Prompts:
    """The prompts of a file.

    Attributes:
        texts: the different ones, in the order in which they come first, without white space around them.
        rows: which of them stands in each line or row that has one.
        lines: the number of each of those lines or rows in the file, from 1.
        blank: how many lines or rows have none.

    """

    texts: tuple[str, ...]
    rows: tuple[int, ...]
    lines: tuple[int, ...]
    blank: int

    @property
    def repeated(self) -> int:
        """How many lines or rows say what one before them said."""
        return len(self.rows) - len(self.texts)

    def line_of(self, text: int) -> int:
        """Where in the file the different prompt number `text` stands first."""
        return self.lines[self.rows.index(text)]


def read_prompts(path: Path, column: str | None = None) -> Prompts:
    """The prompts in a .txt of UTF-8, one a line, or in a column of a .csv or .parquet file.

    `column` is one of a table's; None takes the first of `COLUMNS` that is there, or the only one. Raises DataError for a file that is
    not there, is of another kind, is no UTF-8, holds no prompt, or has one that is too long; and for a column that is not there.
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
    """The prompts in `texts`, of which number k, from 1, stands in ``place(k)``. Raises DataError for one that is too long."""
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
    """The lines of a text file, or the values of a column. Raises DataError."""
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
    """Which of `columns` holds the prompts. Raises DataError."""
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
