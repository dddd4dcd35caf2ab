"""The tables of sequences and of pieces: Arrow IPC files that are mapped, checked and then believed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from streamseq.core.errors import CorruptionError
from streamseq.storage import commit
from streamseq.storage.checksum import crc32c
from streamseq.storage.place import Place
from streamseq.storage.rows import Pieces
from streamseq.storage.version import TableFile, Tables

# Offsets of 64 bits: the ids of very many sequences are more than 2 GiB of text.
SEQUENCES = pa.schema(
    [pa.field("id", pa.large_string(), nullable=False), pa.field("attrs", pa.large_string(), nullable=False)]
)
PIECES = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("sequence", "row", "length")])


def _write_table(batch: pa.RecordBatch, name: str, place: Place, staging: Path) -> TableFile:
    """Write one table as an IPC file of one uncompressed batch, and publish it.

    Args:
        batch: The rows.
        name: The name of the file.
        place: Where the store lies.
        staging: The folder to write it in.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    path = staging / name
    commit.write_durably(path, memoryview(content))
    place.publish_table(path)
    return TableFile(name=name, num_rows=batch.num_rows, num_bytes=content.size, crc32c=_crc(content))


def write_tables(
    place: Place, staging: Path, commit_id: str, ids: pa.Array, attrs: pa.Array, pieces: Pieces, first: int
) -> Tables:
    """Write and publish the tables that a version adds.

    Args:
        place: Where the store lies.
        staging: The folder to write them in.
        commit_id: The id of the commit.
        ids: Large strings `[M]`.
        attrs: Large strings `[M]`, JSON text.
        pieces: int64 `[P, 3]`.
        first: The number of the first new sequence.
    """
    sequences = pa.record_batch([ids, attrs], schema=SEQUENCES)
    lying = pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in pieces.T], schema=PIECES)
    return Tables(
        sequences=_write_table(sequences, f"{commit_id}.sequences.arrow", place, staging),
        pieces=_write_table(lying, f"{commit_id}.pieces.arrow", place, staging),
    )


def map_table(place: Place, file: TableFile, schema: pa.Schema) -> pa.RecordBatch:
    """Map one table and check all of it.

    Raises:
        CorruptionError: It is not there, or not what was written.
    """
    where = f"table {file.name} of {place.uri}"
    try:
        with place.file(f"tables/{file.name}") as path, pa.memory_map(str(path)) as source:
            content = source.read_buffer()
    except FileNotFoundError:
        raise CorruptionError(f"{where} is missing: restore it from a copy") from None
    if content.size != file.num_bytes or _crc(content) != file.crc32c:
        raise CorruptionError(f"{where} fails its checksum: restore it from a copy")
    try:
        with pa.ipc.open_file(content) as reader:
            if reader.num_record_batches != 1 or not reader.schema.equals(schema):
                raise CorruptionError(f"{where} has other columns than {schema.names}: it was not written by streamseq")
            batch = reader.get_batch(0)
        batch.validate(full=True)
    except pa.ArrowException as error:
        raise CorruptionError(f"{where} is not a table: {error}; it was not written by streamseq") from error
    if batch.num_rows != file.num_rows or any(column.null_count for column in batch.columns):
        raise CorruptionError(f"{where} has not the {file.num_rows} rows it was written with")
    return batch


def _crc(content: pa.Buffer) -> int:
    return crc32c(np.frombuffer(content, np.uint8))
