"""What the columns of a table hold: by their types in Parquet and Arrow files, by their first cells in text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from streamseq.etl import SourceError

from .table_arrow import schema_of
from .table_cells import kind_of
from .table_columns import ALL
from .table_csv import MISSING, sample, with_header
from .table_files import FileProblem, Reading, TableFile

_INTEGER = re.compile(r"[+-]?\d+")
_ZONE = re.compile(r"\d\s*(Z|[+-]\d\d:?(\d\d)?)")
_BOOLS = {"true", "false"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """A file that was looked at.

    Args:
        file: The file, with its header.
        kinds: By column "number", "bool", "time", "text", "other", or "empty" where the first rows do not say.
        time: Of the timestamp column: a unit, "integer", "zoned" or "naive".
        row_bytes: Bytes of input a row in text, about; 0 otherwise.
        empty: Whether it is text without rows, which says nothing about its columns.
    """

    file: TableFile
    kinds: Mapping[str, str]
    time: str | None
    row_bytes: float
    empty: bool = False


def look(file: TableFile, reading: Reading, names: Sequence[str] | None) -> Looked:
    """Look at the columns of a file and, of text, at its first rows.

    Raises:
        FileProblem: It cannot be read.
    """
    if file.format in ("parquet", "arrow"):
        schema = schema_of(file)
        kinds = {field.name: kind_of(field.type) for field in schema}
        time = None
        if reading.timestamp in kinds:
            type = schema.field(reading.timestamp).type
            time = type.unit if pa.types.is_timestamp(type) else "s" if pa.types.is_date32(type) else "ms"
            time = "integer" if _is_integer(type) else time
        return Looked(file=file, kinds=kinds, time=time, row_bytes=0)
    file = with_header(file, reading, names)
    rows = sample(file, reading)
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(file.names)
    cells = {name: [cell.strip() for cell in column] for name, column in zip(file.names, columns, strict=True)}
    kinds = {name: _kind(column, reading.decimal) for name, column in cells.items()}
    mean = sum(len(cell) + 1 for row in rows for cell in row) / max(1, len(rows))
    return Looked(
        file=file,
        kinds=kinds,
        time=_time(cells.get(reading.timestamp or "", []), reading),
        row_bytes=max(1.0, mean),
        empty=not rows,
    )


def _kind(cells: Sequence[str], decimal: str) -> str:
    """What most of the cells are: a few may be broken."""
    there = [cell for cell in cells if cell not in MISSING]
    if not there:
        return "empty"
    if 2 * sum(_is_number(cell.replace(decimal, ".")) for cell in there) > len(there):
        return "number"
    return "bool" if 2 * sum(cell.lower() in _BOOLS for cell in there) > len(there) else "text"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def _time(cells: Sequence[str], reading: Reading) -> str:
    if reading.time_format is not None:
        return "zoned" if "%z" in reading.time_format else "naive"
    there = [cell for cell in cells if cell not in MISSING]
    if there and 2 * sum(_INTEGER.fullmatch(cell) is not None for cell in there) > len(there):
        return "integer"
    # After the date, whose parts are joined by "-" as well.
    zoned = sum(_ZONE.search(cell, 10) is not None for cell in there)
    return "zoned" if 2 * zoned > len(there) else "naive"


def resolve(first: Looked, text: Looked | None, reading: Reading) -> Reading:
    """Settle what the first file decides: the columns of `"*"`, the unit of time; and the first text file: types.

    Raises:
        SourceError: There are no columns of numbers, or a column does not show whether it is one.
    """
    taken = {name for _, columns in reading.fields for name in columns.names} | set(reading.key_columns)
    fields = tuple(
        (name, columns.resolved(_numbers(first, taken)) if columns.names == (ALL,) else columns)
        for name, columns in reading.fields
    )
    unit = reading.unit
    if unit is None and reading.timestamp is not None and first.time != "integer":
        unit = "us" if first.time in ("zoned", "naive") else first.time
    bools: tuple[str, ...] = ()
    integer_times, zoned = True, False
    if text is not None:
        bools = tuple(name for name, kind in text.kinds.items() if kind == "bool")
        integer_times, zoned = text.time == "integer", text.time == "zoned"
        if reading.timestamp is not None and not integer_times and unit is None:
            raise SourceError(
                f"the times of {first.file.address!r} are plain numbers, and those of {text.file.address!r} are dates: "
                "ingest them apart"
            )
    return replace(reading, fields=fields, unit=unit, bools=bools, integer_times=integer_times, zoned=zoned)


def _numbers(looked: Looked, taken: set[str]) -> list[str]:
    free = {name: kind for name, kind in looked.kinds.items() if name not in taken}
    empty = [name for name, kind in free.items() if kind == "empty"]
    if empty:
        raise SourceError(
            f"{looked.file.address!r}, column {empty[0]!r} is empty in the first rows, which do not show whether it "
            "has numbers: name the columns of each field"
        )
    found = [name for name, kind in free.items() if kind in ("number", "bool")]
    if not found:
        kinds = ", ".join(f"{name} ({kind})" for name, kind in looked.kinds.items())
        raise SourceError(f"{looked.file.address!r} has no column of numbers that is free, it has {kinds}: name some")
    return found


def check_columns_of(looked: Looked, reading: Reading) -> None:
    """Check that a file has the columns that are read, each once, of kinds that fit.

    Raises:
        FileProblem: It has not.
    """
    file = looked.file
    schema = schema_of(file) if file.format in ("parquet", "arrow") else None
    names = list(file.names if schema is None else schema.names)
    for name in reading.columns:
        if names.count(name) != 1:
            has = f"no column {name!r}, it has {', '.join(names)}" if name not in names else f"two columns {name!r}"
            raise FileProblem(f"it has {has}: every file has each column once")
        if schema is None:
            continue
        type, kind = schema.field(name).type, looked.kinds[name]
        if name == reading.sequence and kind != "text" and not _is_integer(type):
            raise FileProblem(f"its column {name!r} is {type}, and ids are text or integers: convert it")
        if name == reading.timestamp and not _is_integer(type) and not (kind == "time" and reading.unit):
            raise FileProblem(f"its column {name!r} is {type}, times are timestamps or, in all files, integers")
        if name not in reading.key_columns and kind not in ("number", "bool"):
            raise FileProblem(f"its column {name!r} is {type}, and a field is made of numbers: leave it out")


def _is_integer(type: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type.value_type if pa.types.is_dictionary(type) else type))
