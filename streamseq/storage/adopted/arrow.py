"""`adopt_arrow`: Arrow IPC files, streams, Feather files and tables in memory as a store, read in place."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import StoreError, StreamseqError
from streamseq.core.fields import Field
from streamseq.storage.adopted.names import expand_all, is_address
from streamseq.storage.adopted.source import ChunkList, Descriptor, File, Source, one_line
from streamseq.storage.adopted.store import AdoptedStore
from streamseq.storage.adopted.table import Columns, ForeignTable, adopt_tables, column_values, innermost
from streamseq.storage.shards.arrow_message import batch_header

_SUFFIXES = (".arrow", ".feather", ".ipc", ".arrows")
_MAGIC, _OLD_MAGIC = b"ARROW1", b"FEA1"
# The magic at the start of a file, filled up to eight bytes.
_MAGIC_BYTES = 8
_MEMORY = "memory"


def adopt_arrow(
    paths: Any,
    columns: Columns = None,
    sequence_column: str | None = None,
    *,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    contents: bool = False,
) -> AdoptedStore:
    """Return a store over Arrow IPC files, streams or tables as they are: rows are timesteps, columns are fields.

    Columns of numbers that are not compressed are read straight from the file to where they are needed; of others what
    is decoded at once is a record batch of a column. Columns are what they are to `adopt_parquet`.

    Args:
        paths: Files of the IPC format, of its stream format, or of Feather version 2, patterns such as
            `"data/*.arrow"`, or folders; or a `pyarrow.Table` or `RecordBatch`. Without a sequence column each is a
            sequence, with its name without suffix as id, or its number in a list of tables; a dict names them: id ->
            one of these, or several whose rows follow each other.
        columns, sequence_column: See `adopt_parquet`.
        attrs: Attributes by id.
        contents: Read every value now, for a fingerprint of the values and checksums; see `AdoptedStore`. Tables in
            memory have no other fingerprint.

    Raises:
        StoreError: A file cannot be read, lacks a column, has one that is no field, has nulls, or is not as the others.
        TypeError, ValueError: An argument is of a wrong type or out of range.

    Example:
        >>> import pyarrow as pa, streamseq as ss
        >>> table = pa.table({"plant": ["a", "a", "b"], "x": [1.0, 2.0, 3.0]})
        >>> store = ss.adopt_arrow(table, columns={"height": "x"}, sequence_column="plant")
        >>> store.ids.to_pylist(), store.read("a")["height"]
        (['a', 'b'], array([1., 2.]))
    """
    tables: list[Any] | dict[str, list[Any]]
    if isinstance(paths, Mapping):
        tables = {id: _expand(several) for id, several in paths.items()}
        every = [table for several in tables.values() for table in several]
    else:
        tables = every = _expand(paths)
    if len({isinstance(table, str) for table in every}) > 1:
        raise TypeError("files or tables in memory are adopted, got both: write the tables to files")
    in_memory = bool(every) and not isinstance(every[0], str)
    return adopt_tables(
        "arrow",
        tables,
        _open_memory if in_memory else _open_file,
        columns=columns,
        sequence_column=sequence_column,
        attrs=attrs,
        contents=contents or in_memory,
    )


def _expand(given: Any) -> list[Any]:
    if isinstance(given, pa.Table | pa.RecordBatch):
        return [given]
    if not is_address(given) and isinstance(given, Iterable):
        several = list(given)
        if several and all(isinstance(each, pa.Table | pa.RecordBatch) for each in several):
            return several
        given = several
    return list(expand_all(given, _SUFFIXES))


@contextmanager
def _open_memory(table: pa.Table | pa.RecordBatch) -> Iterator[ForeignTable]:
    yield _MemoryTable(pa.Table.from_batches([table]) if isinstance(table, pa.RecordBatch) else table)


class _MemoryTable(ForeignTable):
    """A table in memory that is looked at."""

    where = path = _MEMORY

    def __init__(self, table: pa.Table) -> None:
        self.schema = table.schema
        self._table = table

    def source(self, columns: Mapping[str, str], fields: Mapping[str, Field]) -> Source:
        """See `ForeignTable.source`."""
        return MemorySource(where=_MEMORY, table=self._table, columns=columns, fields=fields)

    def add_chunks(self, chunks: ChunkList, number: int, column: str) -> None:
        """See `ForeignTable.add_chunks`: slices, which cost nothing."""
        for part in self._table.column(column).chunks:
            innermost(part, f"{_MEMORY}, column {column!r}")
        chunks.add_regular(number, self._table.num_rows, chunks.usual_steps(), _MEMORY)

    def column(self, name: str) -> list[pa.ChunkedArray]:
        """See `ForeignTable.column`."""
        return [self._table.column(name)]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MemorySource(Source):
    """A table in memory, which nobody can change.

    Args:
        where: What to call it in an error.
        table: The table.
        columns: The columns by field.
        fields: What they are.
    """

    where: str
    table: pa.Table
    columns: Mapping[str, str]
    fields: Mapping[str, Field]

    def open(self, field: str) -> _Slices:
        """See `Source.open`."""
        return _Slices(self.table.column(self.columns[field]), self.fields[field])

    def descriptor(self) -> Descriptor:
        """There is no file."""
        raise NotImplementedError

    def check(self, place: int, steps: int) -> None:
        """See `Source.check`."""

    def stamp(self) -> object:
        """There is nothing beside the contents."""
        return None


class _Slices:
    """Slices of a column in memory."""

    def __init__(self, column: pa.ChunkedArray, field: Field) -> None:
        self._column = column
        self._field = field

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """See `OpenChunks.decode`."""
        return column_values(self._column.slice(place, steps), self._field, spare, _MEMORY)


@contextmanager
def _open_file(path: str) -> Iterator[ForeignTable]:
    file = File.at(path)
    try:
        with pa.memory_map(path) as mapped:
            yield _IpcTable(file, mapped.read_buffer())
    except StreamseqError:
        raise
    except (pa.ArrowException, OSError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} does not read as Arrow IPC: {one_line(error)}") from None


class _IpcTable(ForeignTable):
    """An IPC file or stream that is looked at, mapped: only what says where values lie is read."""

    def __init__(self, file: File, content: pa.Buffer) -> None:
        self.where = self.path = file.path
        self._file = file
        self._content = content
        head = content[:_MAGIC_BYTES].to_pybytes()
        if head.startswith(_OLD_MAGIC):
            raise StoreError(f"{file.path} is Feather of version 1, which cannot be read in place: write version 2")
        self._is_file = head.startswith(_MAGIC)
        self.schema, self._begin, self._batches = _messages(content, _MAGIC_BYTES if self._is_file else 0)
        if self._is_file:
            with pa.ipc.open_file(content) as reader:
                if reader.num_record_batches != len(self._batches):
                    raise StoreError(
                        f"{file.path} has {len(self._batches)} record batches and a footer for "
                        f"{reader.num_record_batches}: write it again"
                    )
        self._rows = np.array([rows for _, rows, _ in self._batches], np.int64)

    def source(self, columns: Mapping[str, str], fields: Mapping[str, Field]) -> Source:
        """See `ForeignTable.source`."""
        return IpcSource(
            where=self.where,
            file=self._file,
            columns=columns,
            fields=fields,
            begin=None if self._is_file else self._begin,
        )

    def add_chunks(self, chunks: ChunkList, number: int, column: str) -> None:
        """See `ForeignTable.add_chunks`."""
        where = f"{self.where}, column {column!r}"
        plain = not any(compressed for _, _, compressed in self._batches)
        found = self._positions(column, chunks.field, where) if plain else None
        if found is not None:
            for position, rows in zip(found, self._rows.tolist(), strict=True):
                chunks.add_regular(number, rows, chunks.usual_steps(), where, position)
            return
        # A file is read by the number of the batch, a stream by the position of its message.
        starts = np.arange(len(self._rows)) if self._is_file else np.array([at for at, _, _ in self._batches], np.int64)
        chunks.add(number, starts, self._rows, where)

    def _positions(self, column: str, field: Field, where: str) -> list[int] | None:
        """Where the values of each batch begin; None where they are not stored as they are in memory."""
        if field.dtype.kind == "b":
            return None
        positions = []
        for number, values in enumerate(self._mapped(column)):
            numbers = innermost(values, f"{where}, record batch {number}")
            data = numbers.buffers()[1]
            if data is None:
                if len(values):
                    return None
                positions.append(0)
                continue
            position = data.address - self._content.address + numbers.offset * field.dtype.itemsize
            wanted = len(values) * field.step_bytes
            if len(numbers) * field.dtype.itemsize != wanted or not 0 <= position <= self._content.size - wanted:
                return None
            positions.append(position)
        return positions

    def _mapped(self, name: str) -> Iterator[pa.Array]:
        """A column as it lies in the file. Of a file that is read for one column pyarrow makes copies."""
        if not self._is_file:
            yield from self.column(name)
            return
        with pa.ipc.open_file(self._content) as reader:
            for number in range(reader.num_record_batches):
                yield _column(reader.get_batch(number).select([name]), name)

    def column(self, name: str) -> Iterator[pa.Array]:
        """See `ForeignTable.column`."""
        options = _only(self.schema, name)
        if self._is_file:
            with pa.ipc.open_file(self._content, options=options) as reader:
                for number in range(reader.num_record_batches):
                    yield _column(reader.get_batch(number), name)
        else:
            with pa.ipc.open_stream(self._content, options=options) as reader:
                for batch in reader:
                    yield _column(batch, name)


def _messages(content: pa.Buffer, begin: int) -> tuple[pa.Schema, int, list[tuple[int, int, bool]]]:
    """The schema, where the first record batch begins, and of each its position, its rows, whether it is compressed."""
    batches: list[tuple[int, int, bool]] = []
    stream = pa.BufferReader(content)
    stream.seek(begin)
    message = pa.ipc.read_message(stream)
    schema = pa.ipc.read_schema(message)
    while True:
        at = stream.tell()
        try:
            message = pa.ipc.read_message(stream)
        except EOFError:
            return schema, batches[0][0] if batches else at, batches
        if message.type == "record batch":
            try:
                rows, compressed = batch_header(memoryview(message.metadata))
            except ValueError as error:
                raise pa.ArrowInvalid(str(error)) from None
            batches.append((at, rows, compressed))


def _only(schema: pa.Schema, name: str) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)], use_threads=False)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if batch.schema.names != [name]:
        raise pa.ArrowInvalid(f"column {name!r} is one of several, or has another name in the footer")
    column = batch.column(0)
    # Sizes and positions are those of the file, and nobody looked at them yet.
    column.validate(full=True)
    return column


@dataclass(frozen=True, slots=True, kw_only=True)
class IpcSource(Source):
    """An IPC file or stream.

    Args:
        where: What to call it in an error.
        file: The file.
        columns: The columns by field.
        fields: What they are.
        begin: Of a stream, where its first record batch begins; None for a file.
    """

    where: str
    file: File
    columns: Mapping[str, str]
    fields: Mapping[str, Field]
    begin: int | None

    def open(self, field: str) -> _Batches:
        """See `Source.open`."""
        return _Batches(self.file.path, self.columns[field], self.fields[field], self.begin)

    def descriptor(self) -> Descriptor:
        """See `Source.descriptor`."""
        return Descriptor(self.file)

    def check(self, place: int, steps: int) -> None:
        """See `Source.check`."""
        self.file.check()

    def stamp(self) -> object:
        """See `Source.stamp`."""
        return [self.file.stamp(), sorted(self.columns.items())]


class _Batches:
    """The record batches of one column. Read, not mapped: a mapped file that gets shorter would end the process."""

    def __init__(self, path: str, column: str, field: Field, begin: int | None) -> None:
        # One thread at a time: pyarrow promises nothing else.
        self._lock = threading.Lock()
        self._file = pa.OSFile(path)
        self._where = f"{path}, column {column!r}"
        self._name = column
        self._field = field
        self._head: bytes | None = None
        self._options: pa.ipc.IpcReadOptions | None = None
        if begin is None:
            with pa.ipc.open_file(self._file) as reader:
                self._options = _only(reader.schema, column)
            self._reader = pa.ipc.open_file(self._file, options=self._options)
        else:
            self._head = self._file.read(begin)
            with pa.ipc.open_stream(self._head) as reader:
                self._options = _only(reader.schema, column)

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """See `OpenChunks.decode`."""
        with self._lock:
            if self._head is None:
                batch = self._reader.get_batch(place)
            else:
                self._file.seek(place)
                message = pa.ipc.read_message(self._file).serialize().to_pybytes()
                with pa.ipc.open_stream(self._head + message, options=self._options) as reader:
                    batch = reader.read_next_batch()
        return column_values(_column(batch, self._name), self._field, spare, self._where)
