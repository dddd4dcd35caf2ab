"""The tables of a version, Arrow IPC files: what is in them, writing them, and reading parts of one that are checked.

A table has a checksum for each block of its file. A block is checked when it is first touched, so that one row of a
table of any size is found without reading the rest.
"""

from __future__ import annotations

import mmap
import os
import weakref
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.storage.checksum import crc32c
from streamseq.storage.places import commit
from streamseq.storage.places.place import Place
from streamseq.storage.places.plain_file import open_inside
from streamseq.storage.versions.rows import Pieces
from streamseq.storage.versions.version import BLOCK_BYTES, TableFile, Tables

# Offsets of 64 bits: the ids of very many sequences are more than 2 GiB of text.
SEQUENCES = pa.schema(
    [pa.field("id", pa.large_string(), nullable=False), pa.field("attrs", pa.large_string(), nullable=False)]
)
PIECES = pa.schema([pa.field(name, pa.int64(), nullable=False) for name in ("sequence", "row", "length")])
INDEX = pa.schema([pa.field("hash", pa.uint32(), nullable=False), pa.field("sequence", pa.int64(), nullable=False)])

# Texts that are turned into Python objects at once.
_TEXTS = 1 << 16


def hash_of(id: str) -> int:
    """The number by which an id is looked up: the crc32c of its UTF-8, any number for text that has none."""
    return crc32c(id.encode("utf-8", "surrogatepass"))


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
        pieces: int64 `[P, 3]`, sorted by sequence, those of one in the order of its timesteps.
        first: The number of the first new sequence.
    """
    hashes = _hashes(ids)
    order = np.argsort(hashes, kind="stable")
    return Tables(
        sequences=_write(pa.record_batch([ids, attrs], schema=SEQUENCES), "sequences", place, staging, commit_id),
        pieces=_write(_numbers(PIECES, *pieces.T), "pieces", place, staging, commit_id),
        index=_write(_numbers(INDEX, hashes[order], order + first), "index", place, staging, commit_id),
    )


def _hashes(ids: pa.Array) -> NDArray[np.uint32]:
    hashes = np.empty(len(ids), np.uint32)
    raw = ids.cast(pa.large_binary())
    for start in range(0, len(ids), _TEXTS):
        texts = raw.slice(start, _TEXTS).to_pylist()
        hashes[start : start + len(texts)] = [crc32c(text) for text in texts]
    return hashes


def _numbers(schema: pa.Schema, *columns: NDArray[Any]) -> pa.RecordBatch:
    return pa.record_batch([pa.array(np.ascontiguousarray(column)) for column in columns], schema=schema)


def _write(batch: pa.RecordBatch, kind: str, place: Place, staging: Path, commit_id: str) -> TableFile:
    """Write one table as a file of one uncompressed batch, and publish it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    name = f"{commit_id}.{kind}.arrow"
    path = staging / name
    commit.write_durably(path, memoryview(content))
    place.publish_table(path)
    raw = np.frombuffer(content, np.uint8)
    checksums = tuple(crc32c(raw[start : start + BLOCK_BYTES]) for start in range(0, len(raw), BLOCK_BYTES))
    return TableFile(name=name, num_rows=batch.num_rows, num_bytes=content.size, crc32c=checksums)


class Table:
    """One table of a store, whose blocks are checked when they are first touched. Several threads may read it.

    Args:
        place: Where the store lies.
        file: What the version says of it.
        schema: Its columns.

    Raises:
        CorruptionError: It is not there, has another size, or is no such table.
    """

    def __init__(self, place: Place, file: TableFile, schema: pa.Schema) -> None:
        self._where = f"table {file.name} of {place.uri}"
        self._file = file
        if not place.copies:
            self._open(place, schema)
            return
        # A copy is checked whole, for it may be the copy that is broken.
        try:
            self._open(place, schema)
            self._check(0, file.num_bytes)
        except CorruptionError:
            place.forget(f"tables/{file.name}")
            self._open(place, schema)
            self._check(0, file.num_bytes)

    def _open(self, place: Place, schema: pa.Schema) -> None:
        file = self._file
        try:
            with place.file(f"tables/{file.name}") as path:
                self._descriptor = open_inside(path.parent, path.name)
        except FileNotFoundError:
            raise CorruptionError(f"{self._where} is missing: restore it from a copy") from None
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        if size != file.num_bytes:
            raise self._bad(f"has {size} bytes and was written with {file.num_bytes}")
        self._unchecked = np.ones(len(file.crc32c), bool)
        self._batch = self._map(schema)
        # Where the buffers of the columns lie in the file; not through the map, where a disk that fails is a signal.
        self._buffers = [
            [None if buffer is None else (buffer.address - self._base, buffer.size) for buffer in column.buffers()]
            for column in self._batch.columns
        ]

    def __len__(self) -> int:
        return self._file.num_rows

    def _map(self, schema: pa.Schema) -> pa.RecordBatch:
        """The batch, of which only the metadata, at both ends of the file, was read and checked."""
        size = self._file.num_bytes
        if not size:
            raise self._bad("is empty")
        self._check(0, min(size, BLOCK_BYTES))
        self._check(max(0, size - BLOCK_BYTES), size)
        try:
            content = pa.py_buffer(mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ))
            self._base = content.address
            with pa.ipc.open_file(content) as reader:
                if reader.num_record_batches != 1 or not reader.schema.equals(schema):
                    raise self._bad(f"has other columns than {schema.names}")
                batch = reader.get_batch(0)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._bad(f"is not a table: {error}") from error
        inside = all(
            buffer is None or not buffer.size or self._base <= buffer.address <= self._base + size - buffer.size
            for column in batch.columns
            for buffer in column.buffers()
        )
        if batch.num_rows != self._file.num_rows or not inside or any(column.offset for column in batch.columns):
            raise self._bad(f"has not the {self._file.num_rows} rows it was written with")
        return batch

    def _bad(self, what: str) -> CorruptionError:
        return CorruptionError(f"{self._where} {what}: restore it from a copy")

    def _check(self, start: int, stop: int) -> None:
        """Check the blocks that bytes `[start, stop)` lie in, those that were not checked before."""
        first, last = start // BLOCK_BYTES, -(-stop // BLOCK_BYTES)
        if not self._unchecked[first:last].any():
            return
        block = np.empty(min(BLOCK_BYTES, self._file.num_bytes), np.uint8)
        for number in np.flatnonzero(self._unchecked[first:last]) + first:
            begin = int(number) * BLOCK_BYTES
            part = block[: min(BLOCK_BYTES, self._file.num_bytes - begin)]
            if os.preadv(self._descriptor, [part.data], begin) != len(part):
                raise self._bad("ends early")
            if crc32c(part) != self._file.crc32c[number]:
                raise self._bad(f"fails its checksum in block {number}")
            self._unchecked[number] = False

    def _read(self, start: int, stop: int) -> bytes:
        self._check(start, stop)
        return os.pread(self._descriptor, stop - start, start)

    def batch(self) -> pa.RecordBatch:
        """All rows, mapped and checked.

        Raises:
            CorruptionError: They are not what was written.
        """
        self._check(0, self._file.num_bytes)
        try:
            self._batch.validate(full=True)
        except pa.ArrowException as error:
            raise self._bad(f"is not a table: {error}") from error
        if any(column.null_count for column in self._batch.columns):
            raise self._bad("has rows without a value")
        return self._batch

    def numbers(self, column: int, start: int, stop: int) -> NDArray[Any]:
        """Rows `[start, stop)` of a column of numbers, in memory of their own.

        Raises:
            CorruptionError: They are not what was written.
        """
        dtype = np.dtype(self._batch.schema.field(column).type.to_pandas_dtype())
        if start >= stop:
            return np.empty(0, dtype)
        size = dtype.itemsize
        begin = self._place(column, 1, stop * size)
        return np.frombuffer(self._read(begin + start * size, begin + stop * size), dtype)

    def text(self, column: int, row: int) -> str:
        """One row of a column of text.

        Raises:
            CorruptionError: It is not what was written.
        """
        begin = self._place(column, 1, (row + 2) * 8)
        start, stop = np.frombuffer(self._read(begin + row * 8, begin + (row + 2) * 8), np.int64).tolist()
        if not 0 <= start <= stop:
            raise self._bad("has a text that ends before it begins")
        if start == stop:
            return ""
        begin = self._place(column, 2, stop)
        try:
            return self._read(begin + start, begin + stop).decode()
        except UnicodeDecodeError:
            raise self._bad("has a text that is not UTF-8") from None

    def _place(self, column: int, buffer: int, num_bytes: int) -> int:
        """Where a buffer begins in the file, which has at least so many bytes."""
        found = self._buffers[column][buffer]
        if found is None or found[1] < num_bytes:
            raise self._bad("has fewer values than rows")
        return cast(int, found[0])
