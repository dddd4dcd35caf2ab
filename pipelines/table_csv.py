"""CSV: cut at line borders, read in blocks, and every line that is no row found with its number."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from streamseq.etl import Skipped

from .table_files import Block, FileProblem, Reading, Rows, TableFile, one_line, opened

# What is parsed at once, however large a block is.
_CHUNK_BYTES = 4 << 20
_READ_BYTES = 1 << 16
_LONGEST_LINE = 16 << 20
# Enough blocks of one file for any number of workers; more would only make the index larger.
_MOST_BLOCKS = 4096
_SAMPLE_BYTES = 1 << 18
_SHOWN = 40

_RAGGED = re.compile(r"Expected (\d+) columns, got (\d+)")
_CONVERSION = re.compile(r"In CSV column #(\d+): .*?CSV conversion error to ([^:]+): (.*)", re.DOTALL)
MISSING = ["", "NA", "N/A", "#N/A", "n/a", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None"]


def with_header(file: TableFile, reading: Reading, names: Sequence[str] | None) -> TableFile:
    """Return the file with the names of its columns: those in its first line unless given.

    Raises:
        FileProblem: It cannot be read, or has no header.
    """
    line = _first_line(file)
    mark = 3 if line.startswith(b"\xef\xbb\xbf") else 0
    if names is not None:
        return replace(file, names=tuple(names), start=mark)
    try:
        text = line[mark:].decode()
    except UnicodeDecodeError as error:
        raise FileProblem(f"its first line, the header, is not UTF-8: {one_line(error)}") from None
    if not text.strip():
        raise FileProblem("it is empty" if not line else "its first line is empty: a header says the columns")
    columns = tuple(cell.strip() for cell in _cells(text, file, reading))
    return replace(file, names=columns, start=len(line), header_lines=1)


def sample(file: TableFile, reading: Reading) -> list[list[str]]:
    """The first rows, as text; what is no row is left out.

    Raises:
        FileProblem: The file cannot be read.
    """
    data = next(_chunks(file, file.start, 0, _SAMPLE_BYTES), (b"", 0))[0]
    lines = data.decode(errors="replace").split("\n")
    # Line by line: a quote that is not closed would swallow what follows.
    rows = (_cells(line, file, reading) for line in lines)
    return [row for row in rows if len(row) == len(file.names)]


def _cells(line: str, file: TableFile, reading: Reading) -> list[str]:
    line = line.rstrip("\r\n")
    return next(csv.reader([line], delimiter=delimiter_of(file, reading), quotechar=reading.quote), [])


def delimiter_of(file: TableFile, reading: Reading) -> str:
    """What separates the cells of a file."""
    return reading.delimiter or ("\t" if file.format == "tsv" else ",")


def cut(file: TableFile, block_bytes: int) -> list[Block]:
    """Cut a file into blocks of whole lines; a compressed one is one block.

    Raises:
        FileProblem: It cannot be read, or a line is too long for a table.
    """
    size = file.input.size
    if file.compression is not None:
        return [Block(file=file, start=file.start, stop=0, num_bytes=size)]
    step = max(block_bytes, -(-size // _MOST_BLOCKS))
    borders = [file.start]
    with opened(file.input) as handle:
        for near in range(step, size, step):
            if near > borders[-1]:
                border = _after_newline(handle, near, size)
                if border < size:
                    borders.append(border)
    borders.append(size)
    return [
        Block(file=file, start=start, stop=stop, num_bytes=stop - (start if start > file.start else 0))
        for start, stop in pairwise(borders)
        if stop > start
    ]


def _after_newline(handle: Any, position: int, size: int) -> int:
    """Where the line after the one that holds `position - 1` begins."""
    handle.seek(position - 1)
    at = position - 1
    while at < size and at - position < _LONGEST_LINE:
        data = handle.read(_READ_BYTES)
        if not data:
            break
        found = data.find(b"\n")
        if found >= 0:
            return int(at + found + 1)
        at += len(data)
    if at < size:
        raise FileProblem(f"the line at byte {position} is longer than {_LONGEST_LINE >> 20} MiB: it is no table")
    return size


def read_csv(block: Block, reading: Reading, columns: Sequence[str], keep_content: bool) -> Iterator[Rows]:
    """Yield the rows of a block.

    Args:
        block: The block.
        reading: How to read it.
        columns: The columns to read, of `reading.columns`.
        keep_content: Whether the bytes of what is no row are kept.

    Raises:
        FileProblem: It cannot be read, or not to its end; after the rows before that.
    """
    parser = _Parser(block.file, reading, columns)
    before: int | None = None

    def lines_before() -> int:
        nonlocal before
        if before is None:
            before = _count_lines(block.file, block.start)
        return before

    packed = block.file.compression is not None
    passed = 0
    try:
        for data, newlines in _chunks(block.file, block.start, block.stop, _CHUNK_BYTES):
            yield _rows(parser, data, lambda passed=passed: lines_before() + passed, packed, keep_content)  # type: ignore[misc]
            passed += newlines
    except FileProblem as problem:
        if not packed:
            raise
        raise FileProblem(f"{problem} after line {lines_before() + passed}") from problem


def _rows(parser: _Parser, data: bytes, lines_before: Callable[[], int], packed: bool, keep_content: bool) -> Rows:
    spans = _spans_of_lines(data)
    table = parser.whole(data, len(spans))
    problems: dict[int, str] = {}
    broken: dict[int, str] = {}
    lines = np.arange(len(spans))
    if table is None:
        table, lines, problems, broken = parser.line_by_line(data, spans)

    def place(line: int) -> str:
        here = data.count(b"\n", 0, int(spans[line, 0]))
        return f"line {lines_before() + here + 1}"

    def num_bytes(line: int) -> int:
        return 0 if packed else int(spans[line, 1] - spans[line, 0])

    def content(line: int) -> bytes:
        return data[int(spans[line, 0]) : int(spans[line, 1])]

    return Rows(
        table=table,
        place=lambda row: place(int(lines[row])),
        num_bytes=lambda row: num_bytes(int(lines[row])),
        content=lambda row: content(int(lines[row])),
        problems=problems,
        broken=[
            Skipped(
                what=parser.file.address,
                place=place(line),
                reason=reason,
                num_bytes=num_bytes(line),
                content=content(line) if keep_content else None,
            )
            for line, reason in broken.items()
        ],
    )


class _Parser:
    """pyarrow's reader with the settings of one file."""

    def __init__(self, file: TableFile, reading: Reading, columns: Sequence[str]) -> None:
        self.file = file
        self._columns = list(columns)
        self._keys = [name for name in reading.key_columns if name in columns]
        self._quote = reading.quote.encode()
        self._parse_options = pa.csv.ParseOptions(
            delimiter=delimiter_of(file, reading), quote_char=reading.quote, newlines_in_values=False
        )
        self._types = csv_types(reading)
        self._formats = [reading.time_format or pa.csv.ISO8601]
        self._decimal = reading.decimal

    def whole(self, data: bytes, num_lines: int) -> pa.Table | None:
        """Parse lines at once; None where one of them is no row."""
        if not num_lines:
            return self._parse(self._columns, b"")
        try:
            table = self._parse(self._columns, data)
        except pa.ArrowInvalid:
            return None
        # A quote that is not closed swallows the lines after it.
        return table if table.num_rows == num_lines and not self._open(data) else None

    def line_by_line(
        self, data: bytes, spans: NDArray[np.int64]
    ) -> tuple[pa.Table, NDArray[np.int64], dict[int, str], dict[int, str]]:
        """Find the lines that are no rows.

        Returns:
            The rows, and of each the line; what is wrong with rows of which only the keys can be read; and with lines
            of which nothing can.
        """
        tables: list[pa.Table] = []
        lines: list[NDArray[np.int64]] = []
        problems: dict[int, str] = {}
        broken: dict[int, str] = {}
        found = 0
        # Halves of halves, in order, until they are well or single lines.
        waiting = [(0, len(spans), True)]
        while waiting:
            first, last, known_bad = waiting.pop()
            part = data[int(spans[first, 0]) : int(spans[last - 1, 1])]
            table = None if known_bad else self.whole(part, last - first)
            if table is None and last - first > 1:
                middle = (first + last) // 2
                waiting += [(middle, last, False), (first, middle, False)]
                continue
            if table is None:
                table, reason = self._single(part)
                if table is None:
                    broken[first] = reason
                    continue
                if reason:
                    problems[found] = reason
            tables.append(table)
            lines.append(np.arange(first, last))
            found += last - first
        whole = pa.concat_tables([self._parse(self._columns, b""), *tables], promote_options="default")
        return whole, np.concatenate([np.zeros(0, np.int64), *lines]), problems, broken

    def _single(self, line: bytes) -> tuple[pa.Table | None, str]:
        """One line: all of its cells; or its keys and what is wrong with the rest; or what is wrong with those."""
        try:
            return self._alone(self._columns, line), ""
        except pa.ArrowInvalid as error:
            reason = self._reason(error)
        if not self._keys or self._keys == self._columns:
            return None, reason
        try:
            return self._alone(self._keys, line), reason
        except pa.ArrowInvalid as error:
            return None, self._reason(error)

    def _alone(self, columns: Sequence[str], line: bytes) -> pa.Table:
        if not self._open(line):
            return self._parse(columns, line)
        # Twice, for a quote that is not closed goes on in the second one.
        try:
            table = self._parse(columns, line + b"\n" + line + b"\n")
        except pa.ArrowInvalid:
            table = None
        if table is None or table.num_rows != 2:
            raise pa.ArrowInvalid("a quote is not closed in this line")
        return table.slice(0, 1)

    def _open(self, data: bytes) -> bool:
        """Whether the last line may have a quote that is not closed."""
        line = data.rstrip(b"\r\n")
        return bool(line.count(self._quote, line.rfind(b"\n") + 1) % 2)

    def _parse(self, columns: Sequence[str], data: bytes) -> pa.Table:
        if not data:
            return pa.table({name: pa.array([], self._types[name]) for name in columns})
        return pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(use_threads=False, column_names=self.file.names, block_size=len(data) + 1),
            self._parse_options,
            pa.csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: self._types[name] for name in columns},
                null_values=MISSING,
                strings_can_be_null=False,
                timestamp_parsers=self._formats,
                decimal_point=self._decimal,
            ),
        )

    def _reason(self, error: pa.ArrowInvalid) -> str:
        text = str(error)
        if ragged := _RAGGED.search(text):
            return f"{ragged[2]} cells, the header has {ragged[1]}"
        if conversion := _CONVERSION.search(text):
            what = " ".join(conversion[3].split())
            what = what if len(what) <= _SHOWN else what[:_SHOWN] + "…"
            return f"column {self.file.names[int(conversion[1])]!r} is {conversion[2]}: {what}"
        return one_line(error)


def csv_types(reading: Reading) -> dict[str, pa.DataType]:
    """As what each column of a text file is parsed."""
    types: dict[str, pa.DataType] = {}
    for _, columns in reading.fields:
        kind = np.dtype(columns.dtype).kind
        number = {"f": pa.float64(), "i": pa.int64(), "u": pa.uint64(), "b": pa.bool_()}[kind]
        for name in columns.names:
            other = types.setdefault(name, pa.bool_() if name in reading.bools else number)
            if pa.float64() in (other, number) and other != number and name not in reading.bools:
                types[name] = pa.float64()
    if reading.timestamp is not None:
        timed = pa.timestamp(reading.unit, "UTC" if reading.zoned else None) if not reading.integer_times else None
        types[reading.timestamp] = timed or pa.int64()
    if reading.sequence is not None:
        types[reading.sequence] = pa.string()
    return types


def _spans_of_lines(data: bytes) -> NDArray[np.int64]:
    """int64 [n, 2]: where the lines that are not empty begin and end, without what ends them."""
    values = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(values == 10)
    if not data.endswith(b"\n"):
        stops = np.append(stops, len(values))
    starts = np.concatenate([[0], stops[:-1] + 1])
    if data:
        stops = stops - ((stops > starts) & (values[np.maximum(stops - 1, 0)] == 13))
    return np.stack([starts, stops], axis=1).astype(np.int64)[stops > starts]


def _chunks(file: TableFile, start: int, stop: int, chunk_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield whole lines of about `chunk_bytes`, and how many newlines they have; stop 0 is the end of the file.

    Raises:
        FileProblem: The file cannot be read; of a compressed one after what could be read of it.
    """
    rest = b""
    trouble: FileProblem | None = None
    parts = _bytes(file, start, stop, chunk_bytes)
    while trouble is None:
        try:
            part = next(parts)
        except StopIteration:
            break
        except FileProblem as problem:
            trouble = problem
            break
        end = part.rfind(b"\n") + 1
        if not end:
            rest += part
            if len(rest) > _LONGEST_LINE:
                raise FileProblem(f"a line is longer than {_LONGEST_LINE >> 20} MiB: it is no table")
            continue
        data = rest + part[:end]
        rest = part[end:]
        yield data, data.count(b"\n")
    if trouble is not None:
        raise trouble
    if rest:
        yield rest, 0


def _bytes(file: TableFile, start: int, stop: int, chunk_bytes: int) -> Iterator[bytes]:
    """Yield the (decompressed) bytes of a file."""
    with opened(file.input) as handle:
        if file.compression is None:
            handle.seek(start)
            stop = stop or file.input.size
            while start < stop:
                data = handle.read(min(chunk_bytes, stop - start))
                if not data:
                    raise FileProblem("it ends early")
                start += len(data)
                yield data
            return
        stream = pa.CompressedInputStream(handle, file.compression)
        # Small reads: where the stream is broken, what came with the same read is lost.
        parts: list[bytes] = []
        held = 0
        try:
            while data := stream.read(_READ_BYTES):
                drop = min(start, len(data))
                start -= drop
                parts.append(data[drop:])
                held += len(data) - drop
                if held >= chunk_bytes:
                    yield b"".join(parts)
                    parts, held = [], 0
        except (OSError, pa.ArrowException) as error:
            yield b"".join(parts)
            raise FileProblem(one_line(error)) from error
        yield b"".join(parts)


def _first_line(file: TableFile) -> bytes:
    line = b""
    for data in _bytes(file, 0, 0, _READ_BYTES):
        line += data
        end = line.find(b"\n") + 1
        if end:
            return line[:end]
        if len(line) > _LONGEST_LINE:
            raise FileProblem(f"its first line is longer than {_LONGEST_LINE >> 20} MiB: it is no table")
    return line


def _count_lines(file: TableFile, start: int) -> int:
    """The lines before a byte of a file, which begins a line."""
    if start <= file.start:
        return file.header_lines
    return file.header_lines + sum(data.count(b"\n") for data in _bytes(file, file.start, start, _CHUNK_BYTES))
