"""Parquet and Arrow files: their columns, their blocks, and the rows of a block."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from streamseq.etl import Skipped

from .table_cells import cell
from .table_files import Block, Rows, TableFile, no_rows, one_line, opened

_BATCH_BYTES = 8 << 20
_CELL_BYTES = 8
_MAGIC = b"ARROW1"


def schema_of(file: TableFile) -> pa.Schema:
    """The columns of a file.

    Raises:
        FileProblem: It cannot be read.
    """
    with opened(file.input) as handle:
        if file.format == "parquet":
            return pq.ParquetFile(handle).schema_arrow
        with _reader(handle) as reader:
            return reader.schema


def cut(file: TableFile, block_bytes: int) -> list[Block]:
    """Put consecutive row groups or record batches together to blocks of about `block_bytes`.

    A stream of record batches is one block, for nothing says where its batches lie. Without rows there is no block.

    Raises:
        FileProblem: The file cannot be read.
    """
    with opened(file.input) as handle:
        if file.format == "parquet":
            metadata = pq.ParquetFile(handle).metadata
            groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
        else:
            with _reader(handle) as reader:
                if not isinstance(reader, pa.ipc.RecordBatchFileReader):
                    return [Block(file=file, start=0, stop=0, num_bytes=file.input.size)]
                batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
                sizes = [(batch.num_rows, max(1, batch.nbytes)) for batch in batches]
    if not any(rows for rows, _ in sizes):
        return []
    whole = sum(size for _, size in sizes)
    blocks: list[Block] = []
    start = first_row = held = 0
    for number, (_, num_bytes) in enumerate(sizes):
        held += num_bytes
        if held >= block_bytes or number == len(sizes) - 1:
            # In bytes of the file, which may be compressed.
            share = file.input.size * held // max(1, whole)
            unit_rows = tuple(rows for rows, _ in sizes[start : number + 1])
            blocks.append(
                Block(
                    file=file, start=start, stop=number + 1, num_bytes=share, first_row=first_row, unit_rows=unit_rows
                )
            )
            start, first_row, held = number + 1, first_row + sum(unit_rows), 0
    return blocks


def read_arrow(block: Block, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield the rows of a block. What cannot be read of a row group or record batch is no rows.

    Raises:
        FileProblem: Nothing more can be read.
    """
    at_once = max(1, _BATCH_BYTES // (_CELL_BYTES * max(1, len(columns))))
    with opened(block.file.input) as handle:
        if block.file.format == "parquet":
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            row = block.first_row
            for number in range(block.start, block.stop):
                batches = file.iter_batches(at_once, row_groups=[number], columns=list(columns), use_threads=False)
                num_rows = block.unit_rows[number - block.start]
                yield from _unit(block, columns, map(pa.table, batches), row, num_rows)
                row += num_rows
            return
        with _reader(handle) as reader:
            wanted = sorted(reader.schema.get_field_index(name) for name in columns)
        handle.seek(0)
        with _reader(handle, pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False)) as reader:
            row = block.first_row
            if not isinstance(reader, pa.ipc.RecordBatchFileReader):
                for batch in reader:
                    yield from _unit(block, columns, _slices([batch], at_once), row, batch.num_rows)
                    row += batch.num_rows
                return
            for number, num_rows in zip(range(block.start, block.stop), block.unit_rows, strict=True):
                batches = (reader.get_batch(each) for each in [number])
                yield from _unit(block, columns, _slices(batches, at_once), row, num_rows)
                row += num_rows


def _unit(
    block: Block, columns: Sequence[str], tables: Iterator[pa.Table], first: int, num_rows: int
) -> Iterator[Rows]:
    """The rows of one row group or record batch, and what of it cannot be read."""
    row = first
    try:
        for table in tables:
            yield _rows(table, row)
            row += table.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        lost = Skipped(
            what=block.file.address,
            place=f"rows {row} to {first + num_rows - 1}",
            reason=one_line(error),
            num_bytes=block.num_bytes * (first + num_rows - row) // max(1, block.num_rows),
        )
        yield no_rows(pa.table({name: pa.array([], pa.int64()) for name in columns}), [lost])


def _slices(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.Table]:
    for batch in batches:
        # Offsets and lengths in the file are whatever it says.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, num_rows):
            yield pa.table(batch.slice(start, num_rows))


@contextmanager
def _reader(handle: Any, options: pa.ipc.IpcReadOptions | None = None) -> Iterator[Any]:
    magic = handle.read(len(_MAGIC))
    handle.seek(0)
    open_it = pa.ipc.open_file if magic == _MAGIC else pa.ipc.open_stream
    with open_it(handle, options=options) as reader:
        yield reader


def _rows(table: pa.Table, first: int) -> Rows:
    def content(row: int) -> bytes:
        return json.dumps({name: cell(table.column(name), row) for name in table.column_names}, default=str).encode()

    return Rows(table=table, place=lambda row: f"row {first + row}", num_bytes=lambda _: 0, content=content)
