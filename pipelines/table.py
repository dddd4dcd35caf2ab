"""Tables: CSV, Parquet and Arrow files, whose rows are timesteps and whose columns are fields."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from streamseq.core.fields import Field
from streamseq.etl import Partition, Piece, Skipped, SourceError
from streamseq.etl.command import ingest_command
from streamseq.etl.source import ON_ERROR

from .files import InputFile, find_files
from .table_columns import ALL, UNITS, Columns, check_columns, parse_field
from .table_files import FORMATS, Block, FileProblem, Reading, TableFile, known_patterns, recognise, stem_of

if TYPE_CHECKING:
    from .table_schema import Looked

# pyarrow, and what needs it, is imported when a table is looked at: it takes longer than a command's help.
_BLOCK_BYTES = 4 << 20
ORDERS = ("increasing", "nondecreasing")
MISSING = ("nan", "error")


class TableSource:
    """Rows of CSV, TSV, Parquet and Arrow files as timesteps.

    The rows of a sequence may lie anywhere in any of the files, between those of others. They come out in the order of
    files and rows; with a timestamp column, in the order of the first time that each file has of the sequence, and a
    row whose time does not follow the ones before it is broken input. So are lines with too few or too many cells,
    cells that are no numbers or do not fit the dtype, bytes that are not UTF-8 and rows without a sequence or time. The
    unit that is left out is the row, also where only one of its cells is broken; or a file, where its header or
    its columns are not as they have to be; or what comes after the place where a file cannot be read any more.

    A line of CSV is a row: a quoted cell has no line breaks in it. Empty lines are passed over. `.gz` and `.zst` files
    are read through from the start by each partition that needs them.

    Args:
        paths: Files, folders and globs, as paths or fsspec URLs. Of folders, files are taken whose names end in
            `.csv`, `.tsv`, `.parquet`, `.arrow`, `.feather` or the like, also with `.gz` or `.zst`.
        sequence_column: The column, of text or integers, that says to which sequence a row belongs. None: each
            file is a sequence, whose id is its path relative to what was named, without suffix.
        timestamp_column: The column with the time of a row: dates and times, or integers. It becomes an int64 field.
        fields: The columns of each field: field -> `Columns`, the name of a column, or a list of names, which are
            stacked to step shape `[D]`. None: one float32 field `x` of all columns of numbers that are neither the
            sequence nor the time, in the order of the first file, whose first rows say what is a number.
        unit: Counts of what the time field has, from 1970-01-01 on: "s", "ms", "us" or "ns". Integers are taken to be
            counts of it already. None: the unit of the Parquet or Arrow column, or "us" of text. The attribute
            `time_unit` of each sequence says it. Times without a zone are taken for UTC.
        time_format: How the times in CSV are written, as for `strptime`; None: ISO 8601.
        time_field: The name of the time field.
        order: The times of a sequence are "increasing", or "nondecreasing".
        missing: What an empty cell, NA, null or NaN is in a field of floats: "nan", or an "error". In integers and bool
            it is broken input in any case.
        one_sequence: All files are one sequence.
        id: The id of the one sequence; None: "table".
        patterns: Of folders, take only files whose name, or path in the folder, matches one of these globs.
        format: One of "csv", "tsv", "parquet" and "arrow"; None: by the suffix.
        names: The names of the columns of CSV files that have no header.
        delimiter: What separates the cells of CSV; None: a comma, or a tab in TSV.
        decimal: The decimal point of CSV.
        on_error: What happens at broken input: "fail"; "skip" and report it; "quarantine": report it with its bytes.
        block_bytes: About so much of a file is the least that a partition reads.

    Raises:
        TypeError: `paths` is a string, or columns are neither text nor lists of text.
        ValueError: An argument has a value that it cannot have.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> text = "station,date,wind,rain\\nA,2024-01-01,1.5,0\\nB,2024-01-01,3,1\\nA,2024-01-02,2.5,0\\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "weather.csv").write_text(text)
        ...     source = TableSource([folder], sequence_column="station", timestamp_column="date", unit="s")
        ...     a, b = source.read(source.partitions(1000)[0])
        >>> a.id, a.arrays["time"].tolist(), a.arrays["x"].tolist()
        ('A', [1704067200, 1704153600], [[1.5, 0.0], [2.5, 0.0]])
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        *,
        sequence_column: str | None = None,
        timestamp_column: str | None = None,
        fields: Mapping[str, Columns | str | Sequence[str]] | None = None,
        unit: str | None = None,
        time_format: str | None = None,
        time_field: str = "time",
        order: str = "increasing",
        missing: str = "nan",
        one_sequence: bool = False,
        id: str | None = None,
        patterns: Sequence[str] = (),
        format: str | None = None,
        names: Sequence[str] | None = None,
        delimiter: str | None = None,
        decimal: str = ".",
        on_error: str = "fail",
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        if isinstance(paths, (str, os.PathLike)):
            raise TypeError(f"paths is a list, got {paths!r}: put it in a list")
        if not paths:
            raise ValueError("at least one file, folder or glob is named, got none")
        for what, value, allowed in (
            ("on_error", on_error, ON_ERROR),
            ("order", order, ORDERS),
            ("missing", missing, MISSING),
            ("unit", unit, (None, *UNITS)),
            ("format", format, (None, *FORMATS)),
        ):
            if value not in allowed:
                raise ValueError(f"{what} is one of {', '.join(map(repr, allowed))}, got {value!r}")
        for what, mark in (("delimiter", delimiter), ("decimal", decimal)):
            if mark is not None and (len(mark) != 1 or not mark.isascii()):
                raise ValueError(f"{what} is one ASCII character, got {mark!r}")
        if one_sequence and sequence_column is not None:
            raise ValueError(f"rows are of one sequence or of those in column {sequence_column!r}, got both")
        if id is not None and not one_sequence:
            raise ValueError(f"an id names the one sequence of all files, got {id!r} for many: ask for one sequence")
        if id == "":
            raise ValueError("an id has at least one character, got an empty one")
        if block_bytes < 1:
            raise ValueError(f"block_bytes is at least 1, got {block_bytes}")
        if timestamp_column is None and (unit is not None or time_format is not None):
            raise ValueError("a unit and a format are those of a timestamp column: name one")
        columns = check_columns({"x": Columns(ALL)} if fields is None else fields)
        if timestamp_column is not None:
            check_columns({time_field: "time"})
            if time_field in columns:
                raise ValueError(f"the time goes to field {time_field!r}, which has columns as well: name time_field")
        self._paths = tuple(os.fspath(path) for path in paths)
        self._id = (id or "table") if one_sequence else None
        self._patterns = tuple(patterns) or known_patterns()
        self._format = format
        self._names = None if names is None else tuple(names)
        self._on_error = on_error
        self._block_bytes = block_bytes
        self._given = Reading(
            sequence=sequence_column,
            timestamp=timestamp_column,
            time_field=time_field,
            unit=unit,
            zoned=False,
            time_format=time_format,
            integer_times=False,
            increasing=order == "increasing",
            allow_missing=missing == "nan",
            fields=tuple(columns.items()),
            bools=(),
            delimiter=delimiter,
            quote='"',
            decimal=decimal,
        )
        self._settled: Reading | None = None

    @property
    def on_error(self) -> str:
        """What happens at bad input: "fail", "skip" or "quarantine"."""
        return self._on_error

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides how rows become timesteps, beside the rows: plain values."""
        return {
            "reading": self._given,
            "id": self._id,
            "format": self._format,
            "names": self._names,
            "on_error": self._on_error,
            "block_bytes": self._block_bytes,
        }

    @property
    def threads(self) -> bool:
        """True: its work is that of pyarrow and numpy."""
        return True

    @property
    def fields(self) -> Mapping[str, Field]:
        """The time, if there is one, and the fields of the columns.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: The first file does not say what the fields are.
        """
        if self._settled is None:
            self._settled = self._settle(self._files()[0])
        found = {} if self._settled.timestamp is None else {self._settled.time_field: Field("int64")}
        return found | {name: columns.field for name, columns in self._settled.fields}

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Read the columns of sequences and times, and put parts of sequences together up to a partition's size.

        Without such columns nothing but headers and the borders of lines is read.

        Raises:
            FileNotFoundError: A path stands for no file.
            SourceError: Something is not as it has to be and is not to be skipped.
        """
        from . import table_arrow, table_csv
        from .table_plan import NO_ROWS, plan
        from .table_schema import check_columns_of, look

        files, skipped = self._files()
        self._settled = reading = self._settle(files)
        step_bytes = sum(field.step_bytes for field in self.fields.values())
        blocks: list[Block] = []
        row_bytes: list[float] = []
        for file in files:
            try:
                looked = look(file, reading, self._names)
                check_columns_of(looked, reading)
                cut = table_csv.cut if looked.row_bytes else table_arrow.cut
                cuts = cut(looked.file, self._block_bytes)
                if not cuts:
                    skipped.append(Skipped(what=file.address, reason=NO_ROWS, num_bytes=file.input.size))
                blocks += cuts
                row_bytes.append(looked.row_bytes)
            except FileProblem as problem:
                skipped.append(self._left_out(file, problem))
        ids = [self._id or stem_of(block.file.input.id) for block in blocks]
        if reading.sequence is None and self._id is None:
            _check_ids(blocks, ids)
        return plan(
            blocks,
            ids,
            reading,
            target_bytes=target_bytes,
            step_bytes=step_bytes,
            row_bytes=max([1.0, *row_bytes]),
            skipped=skipped,
            fail=self._on_error == "fail",
        )

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield the rows of a partition, sequence by sequence, in pieces of a few MiB."""
        from .table_read import read_content

        return read_content(partition.content, self._on_error)

    def _files(self) -> tuple[list[TableFile], list[Skipped]]:
        found = find_files(self._paths, self._patterns, skip=self._on_error != "fail")
        files = [recognise(item, self._format) for item in found if isinstance(item, InputFile)]
        return files, [item for item in found if isinstance(item, Skipped)]

    def _settle(self, files: Sequence[TableFile]) -> Reading:
        """Look at the first file, and at the first one of text, that can be read."""
        from .table_schema import look, resolve

        first: Looked | None = None
        empty: Looked | None = None
        problem = "there are none"
        for file in files:
            is_text = file.format in ("csv", "tsv")
            if first is not None and not is_text:
                continue
            try:
                looked = look(file, self._given, self._names)
            except FileProblem as error:
                problem = f"{file.address!r}: {error}"
                self._left_out(file, error)
                continue
            if looked.empty:
                empty = empty or looked
                continue
            first = first or looked
            if is_text:
                return resolve(first, looked, self._given)
        first = first or empty
        if first is None:
            raise SourceError(f"no file can be read ({problem}): there is nothing to ingest")
        return resolve(first, None, self._given)

    def _left_out(self, file: TableFile, problem: FileProblem) -> Skipped:
        if self._on_error == "fail":
            raise SourceError(f"{file.address!r} cannot be read: {problem}")
        return Skipped(what=file.address, reason=str(problem), num_bytes=file.input.size)


def _check_ids(blocks: Sequence[Block], ids: Sequence[str]) -> None:
    owners: dict[str, str] = {}
    for block, id in zip(blocks, ids, strict=True):
        if owners.setdefault(id, block.file.address) != block.file.address:
            raise SourceError(
                f"every file has an id of its own, {owners[id]!r} and {block.file.address!r} are both {id!r}: rename "
                "one, or ingest them as one sequence"
            )


def _fields(given: Sequence[str]) -> dict[str, Any] | None:
    fields: dict[str, Any] = {}
    for text in given:
        try:
            name, columns = parse_field(text)
        except (TypeError, ValueError) as error:
            raise click.BadParameter(str(error), param_hint="--field") from None
        if name in fields:
            raise click.BadParameter(f"a field is named once, got {name!r} twice", param_hint="--field")
        fields[name] = columns
    return fields or None


@click.command("table")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option(
    "--sequence", "sequence_column", metavar="COLUMN", help="The column that says of which sequence a row is."
)
@click.option("--timestamp", "timestamp_column", metavar="COLUMN", help="The column with the time of a row.")
@click.option(
    "--field",
    "fields",
    metavar="NAME[=COLUMN,...][:DTYPE]",
    multiple=True,
    help="A field and its columns; '*' is all numbers that are left. Can be repeated.  [default: x=*:float32]",
)
@click.option("--unit", type=click.Choice(UNITS), help="The unit of the time field.  [default: the column's, or us]")
@click.option(
    "--time-format", metavar="FORMAT", help="How times in CSV are written, for strptime.  [default: ISO 8601]"
)
@click.option("--time-field", metavar="NAME", default="time", show_default=True, help="The name of the time field.")
@click.option(
    "--order",
    type=click.Choice(ORDERS),
    default="increasing",
    show_default=True,
    help="What the times of a sequence are; a row that is not in order is broken input.",
)
@click.option(
    "--missing",
    type=click.Choice(MISSING),
    default="nan",
    show_default=True,
    help="What an empty cell is in a field of floats.",
)
@click.option("--one-sequence", is_flag=True, help="All rows are one sequence.")
@click.option("--id", metavar="NAME", help="The id of the one sequence.  [default: table]")
@click.option("--pattern", "patterns", metavar="GLOB", multiple=True, help="Of folders, take only such files.")
@click.option("--format", type=click.Choice(FORMATS), help="The format of all files.  [default: by suffix]")
@click.option("--names", metavar="NAME,...", help="The columns of CSV files without a header.")
@click.option("--delimiter", metavar="CHARACTER", help="What separates cells of CSV.  [default: comma, of TSV tab]")
@click.option("--decimal", metavar="CHARACTER", default=".", show_default=True, help="The decimal point of CSV.")
@click.option(
    "--on-error",
    type=click.Choice(ON_ERROR),
    default="fail",
    show_default=True,
    help="What happens at a row or file that is broken: fail, skip and report it, or quarantine, which "
    "keeps the bytes of rows in STORE.quarantine.jsonl.",
)
@ingest_command
def command(
    sources: tuple[str, ...], fields: tuple[str, ...], names: str | None, patterns: tuple[str, ...], **options: Any
) -> TableSource:
    """Ingest tables: rows are timesteps, columns are fields.

    SOURCE is a CSV, TSV, Parquet or Arrow file, a folder or a glob, as a path or an fsspec URL; CSV also as .gz or
    .zst. Without --sequence each file is a sequence.
    """
    return TableSource(
        sources,
        fields=_fields(fields),
        names=None if names is None else names.split(","),
        patterns=patterns,
        **options,
    )
