"""The files of a table: their formats, their blocks, and rows that know where they come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from streamseq.etl import Skipped, SourceError

from .file_bytes import FileError, check_unchanged, open_file
from .files import InputFile
from .table_columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("csv", "tsv", "parquet", "arrow")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".arrows": "arrow",
}
_COMPRESSED = {".gz": "gzip", ".bgz": "gzip", ".zst": "zstd"}
_REASON = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFile:
    """A file of a table.

    Args:
        input: The file as it was found.
        format: One of `FORMATS`.
        compression: "gzip" or "zstd" where a CSV file is compressed as a whole.
        names: The columns of a CSV file, in order.
        start: Bytes before its first row: the header.
        header_lines: Lines before it.
    """

    input: InputFile
    format: str
    compression: str | None = None
    names: tuple[str, ...] = ()
    start: int = 0
    header_lines: int = 0

    @property
    def address(self) -> str:
        """The absolute path, or the URL."""
        return self.input.address


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of a file that is read on its own.

    Args:
        file: The file.
        start, stop: `[start, stop)` in bytes of CSV, row groups of Parquet, record batches of Arrow; stop 0: all of it.
        num_bytes: Its bytes of input.
        first_row: Rows of the file before it; of CSV unknown, and 0.
        unit_rows: The rows of each of its row groups or record batches, as far as they are known without reading.
    """

    file: TableFile
    start: int
    stop: int
    num_bytes: int
    first_row: int = 0
    unit_rows: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Its rows, as far as they are known; otherwise 0."""
        return sum(self.unit_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How rows become timesteps.

    Args:
        sequence: The column that says to which sequence a row belongs; None: all of a file are of one.
        timestamp: The column with the time.
        time_field: The field that the time goes to.
        unit: Its unit; None where it is a plain number.
        zoned: Whether times in text have an offset from UTC.
        time_format: How times in text are written; None: ISO 8601, or integers where there is no unit.
        integer_times: Whether times in text are integers.
        increasing: Whether times must increase; otherwise they must not decrease.
        allow_missing: Whether a missing value is NaN in a field of floats.
        fields: The columns of each field.
        bools: The columns of text files that hold true and false.
        delimiter: What separates cells; None: by format.
        quote: What quotes cells.
        decimal: The decimal point.
    """

    sequence: str | None
    timestamp: str | None
    time_field: str
    unit: str | None
    zoned: bool
    time_format: str | None
    integer_times: bool
    increasing: bool
    allow_missing: bool
    fields: tuple[tuple[str, Columns], ...]
    bools: tuple[str, ...]
    delimiter: str | None
    quote: str
    decimal: str

    @property
    def key_columns(self) -> list[str]:
        """The columns that say where a row belongs."""
        return list(dict.fromkeys(name for name in (self.sequence, self.timestamp) if name is not None))

    @property
    def columns(self) -> list[str]:
        """All columns that are read."""
        return list(dict.fromkeys([*self.key_columns, *(name for _, columns in self.fields for name in columns.names)]))


@dataclass(slots=True, kw_only=True)
class Rows:
    """Some rows of a block, in order.

    Args:
        table: The columns that were asked for.
        place: Says where row i of the table is, such as "line 17".
        num_bytes: The bytes of input of row i, as far as they are known.
        content: The bytes of row i.
        problems: What is wrong with a row, of which nevertheless is known to which sequence it belongs.
        broken: What is no row.
    """

    table: pa.Table
    place: Callable[[int], str]
    num_bytes: Callable[[int], int]
    content: Callable[[int], bytes]
    problems: dict[int, str] = field(default_factory=dict)
    broken: list[Skipped] = field(default_factory=list)


class FileProblem(Exception):
    """A file, or what is left of it, cannot be read; the text says why."""


def recognise(input: InputFile, format: str | None) -> TableFile:
    """Return what kind of file this is, by its suffix unless said.

    Raises:
        SourceError: The suffix is none that is known.
    """
    stem, suffix = os.path.splitext(input.address.lower())
    compression = _COMPRESSED.get(suffix)
    if compression is not None:
        suffix = os.path.splitext(stem)[1]
    found = format or _SUFFIXES.get(suffix)
    if found is None:
        raise SourceError(
            f"the format of {input.address!r} does not show in its name: say which of {', '.join(FORMATS)}"
        )
    if found in ("parquet", "arrow"):
        compression = None
    return TableFile(input=input, format=found, compression=compression)


def known_patterns() -> tuple[str, ...]:
    """Globs of the file names whose format is known."""
    plain = list(_SUFFIXES)
    packed = [suffix + end for suffix, kind in _SUFFIXES.items() if kind in ("csv", "tsv") for end in _COMPRESSED]
    return tuple("*" + "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name) for name in plain + packed)


def stem_of(id: str) -> str:
    """The id of a file without the suffixes that say its format.

    Example:
        >>> stem_of("north/2024.csv.gz"), stem_of("v1.2")
        ('north/2024', 'v1.2')
    """
    stem, suffix = os.path.splitext(id)
    if suffix.lower() in _COMPRESSED:
        inner, second = os.path.splitext(stem)
        return inner if second.lower() in _SUFFIXES else id
    return stem if suffix.lower() in _SUFFIXES else id


@contextmanager
def opened(file: InputFile) -> Iterator[Any]:
    """Open a file for random access, sure that it is the one that was found, before and after.

    Raises:
        FileProblem: It cannot be read, or has changed; whatever pyarrow says inside of the block, too.
    """
    import pyarrow as pa  # here, for it takes longer than a command's help

    try:
        check_unchanged(file)
        with (
            pa.OSFile(file.address) if file.modified is not None else pa.PythonFile(open_file(file), mode="r") as handle
        ):
            yield handle
        check_unchanged(file)
    except FileError as error:
        raise FileProblem(error.reason) from error
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FileProblem(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= _REASON else text[:_REASON] + "…"


def no_rows(table: pa.Table, broken: list[Skipped]) -> Rows:
    """Nothing but what is no row."""
    return Rows(table=table, place=str, num_bytes=lambda _: 0, content=lambda _: b"", broken=broken)
