"""Parquet and Arrow files: their columns, their blocks, and the rows of a block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from .table_files import Block, FileProblem, Rows, TableFile, opened

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

    A stream of record batches is one block, for nothing says where its batches lie.

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
    whole = sum(size for _, size in sizes)
    blocks: list[Block] = []
    start = first_row = rows = held = 0
    for number, (num_rows, num_bytes) in enumerate(sizes):
        rows += num_rows
        held += num_bytes
        if held >= block_bytes or number == len(sizes) - 1:
            # In bytes of the file, which may be compressed.
            share = file.input.size * held // max(1, whole)
            blocks.append(
                Block(file=file, start=start, stop=number + 1, num_bytes=share, first_row=first_row, num_rows=rows)
            )
            start, first_row, rows, held = number + 1, first_row + rows, 0, 0
    return blocks


def read_arrow(block: Block, columns: Sequence[str]) -> Iterator[Rows]:
    """Yield the rows of a block.

    Raises:
        FileProblem: It cannot be read, or not to its end; after the rows before that.
    """
    row = block.first_row
    try:
        for table in _tables(block, columns):
            yield _rows(table, row)
            row += table.num_rows
    except FileProblem as problem:
        raise FileProblem(f"{problem}, from row {row} on") from problem


def _tables(block: Block, columns: Sequence[str]) -> Iterator[pa.Table]:
    rows = max(1, _BATCH_BYTES // (_CELL_BYTES * max(1, len(columns))))
    with opened(block.file.input) as handle:
        if block.file.format == "parquet":
            file = pq.ParquetFile(handle, page_checksum_verification=True)
            groups = list(range(block.start, block.stop))
            for batch in file.iter_batches(rows, row_groups=groups, columns=list(columns), use_threads=False):
                yield pa.table(batch)
            return
        with _reader(handle) as reader:
            wanted = [reader.schema.get_field_index(name) for name in columns]
        handle.seek(0)
        with _reader(handle, pa.ipc.IpcReadOptions(included_fields=sorted(wanted), use_threads=False)) as reader:
            if isinstance(reader, pa.ipc.RecordBatchFileReader):
                batches = (reader.get_batch(number) for number in range(block.start, block.stop))
            else:
                batches = iter(reader)
            for batch in batches:
                # Offsets and lengths in the file are whatever it says.
                batch.validate(full=True)
                for start in range(0, batch.num_rows, rows):
                    yield pa.table(batch.slice(start, rows))


@contextmanager
def _reader(handle: Any, options: pa.ipc.IpcReadOptions | None = None) -> Iterator[Any]:
    magic = handle.read(len(_MAGIC))
    handle.seek(0)
    open_it = pa.ipc.open_file if magic == _MAGIC else pa.ipc.open_stream
    with open_it(handle, options=options) as reader:
        yield reader


def _rows(table: pa.Table, first: int) -> Rows:
    def content(row: int) -> bytes:
        return json.dumps(table.slice(row, 1).to_pylist()[0], default=str).encode()

    return Rows(table=table, place=lambda row: f"row {first + row}", num_bytes=lambda _: 0, content=content)
