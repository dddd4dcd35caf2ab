"""`adopt_parquet`: the columns of Parquet files as a store, read in place, a row group at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from streamseq.core.errors import StoreError, StreamseqError
from streamseq.core.fields import Field
from streamseq.storage.adopted.names import Address, expand_all
from streamseq.storage.adopted.parquet_footer import null_counts
from streamseq.storage.adopted.source import ChunkList, Descriptor, File, Source, one_line
from streamseq.storage.adopted.store import AdoptedStore
from streamseq.storage.adopted.table import Columns, ForeignTable, adopt_tables, column_values, nulls

_SUFFIXES = (".parquet", ".pq")


def adopt_parquet(
    paths: Address | Iterable[Address] | Mapping[str, Address | Iterable[Address]],
    columns: Columns = None,
    sequence_column: str | None = None,
    *,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    contents: bool = False,
) -> AdoptedStore:
    """Return a store over Parquet files as they are: rows are timesteps, columns are fields; nothing is copied.

    What is decoded at once is a row group of a column. Times are the integers that Parquet has for them: int64 counts
    of the column's unit, int32 days of a date. Fixed size lists and tensors have a step shape. Nulls are errors, found
    at adoption where the file's statistics tell, otherwise when the row group is read.

    Args:
        paths: Files, patterns such as `"data/*.parquet"`, or folders, in which files are taken by name. Without a
            sequence column each file is a sequence, with its name without suffix as id; a dict names them: id -> file,
            or files whose rows follow each other.
        columns: The columns that become fields, or a dict field -> column; None: all but the sequence column.
        sequence_column: A column of text or integers that says to which sequence a row belongs. The rows of a sequence
            are taken in the order of files and rows, also where other rows lie between; sequences come in the order of
            their first rows.
        attrs: Attributes by id.
        contents: Read every value now, for a fingerprint of the values and checksums; see `AdoptedStore`.

    Raises:
        StoreError: A file cannot be read, lacks a column, has one that is no field, has nulls, or is not as the others.
        TypeError, ValueError: An argument is of a wrong type or out of range.

    Example:
        >>> import tempfile, pyarrow as pa, pyarrow.parquet as pq, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pq.write_table(pa.table({"plant": ["a", "a", "b"], "x": [1, 2, 3]}), folder + "/0.parquet")
        ...     pq.write_table(pa.table({"plant": ["b", "a"], "x": [4, 5]}), folder + "/1.parquet")
        ...     store = ss.adopt_parquet(folder, columns=["x"], sequence_column="plant")
        ...     store.ids.to_pylist(), store.read("a")["x"], store.read("b")["x"]
        (['a', 'b'], array([1, 2, 5]), array([3, 4]))
    """
    files: list[str] | dict[str, list[str]]
    if isinstance(paths, Mapping):
        files = {id: expand_all(several, _SUFFIXES) for id, several in paths.items()}
    else:
        files = expand_all(paths, _SUFFIXES)
    return adopt_tables(
        "parquet",
        files,
        _open,
        columns=columns,
        sequence_column=sequence_column,
        attrs=attrs,
        contents=contents,
    )


@contextmanager
def _open(path: str) -> Iterator[ForeignTable]:
    file = File.at(path)
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as opened:
            yield _ParquetTable(file, opened)
    except StreamseqError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} does not read as Parquet: {one_line(error)}") from None


class _ParquetTable(ForeignTable):
    """A Parquet file that is looked at."""

    def __init__(self, file: File, opened: pq.ParquetFile) -> None:
        self.where = self.path = file.path
        self.schema = opened.schema_arrow
        self._file = file
        self._opened = opened
        self._nulls = null_counts(file.path) or []
        self._num_leaves = sum(_leaves(field.type) for field in self.schema)
        metadata = opened.metadata
        self._rows = np.array(
            [metadata.row_group(number).num_rows for number in range(opened.num_row_groups)], np.int64
        )
        if np.any(self._rows < 0) or self._rows.astype(np.float64).sum() != metadata.num_rows:
            raise StoreError(f"{file.path} has row groups that are not its {metadata.num_rows} rows: it is damaged")

    def source(self, columns: Mapping[str, str], fields: Mapping[str, Field]) -> Source:
        """See `ForeignTable.source`."""
        return ParquetSource(where=self.where, file=self._file, columns=columns, fields=fields)

    def add_chunks(self, chunks: ChunkList, number: int, column: str) -> None:
        """See `ForeignTable.add_chunks`: one a row group."""
        where = f"{self.where}, column {column!r}"
        leaf = _leaf(self.schema, column)
        for group, counts in enumerate(self._nulls):
            if len(counts) == self._num_leaves and counts[leaf] > 0:
                raise nulls(f"{where}, row group {group}", counts[leaf])
        chunks.add(number, np.arange(len(self._rows)), self._rows, where)

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """See `ForeignTable.column`."""
        for group in range(len(self._rows)):
            yield _column(self._opened, group, name)


def _column(opened: pq.ParquetFile, group: int, name: str) -> pa.ChunkedArray:
    table = opened.read_row_group(group, columns=[name], use_threads=False)
    if table.column_names != [name]:
        raise StoreError(f"a column is read by its name, {name!r} means {table.column_names}: rename them")
    return table.column(0)


def _leaf(schema: pa.Schema, name: str) -> int:
    """The number of a column among those that Parquet stores, which has one for each part of a nested column."""
    before = schema.names.index(name)
    return sum(_leaves(schema.field(number).type) for number in range(before))


def _leaves(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type)
    if pa.types.is_dictionary(kind) or not kind.num_fields:
        return 1
    return sum(_leaves(kind.field(number).type) for number in range(kind.num_fields))


@dataclass(frozen=True, slots=True, kw_only=True)
class ParquetSource(Source):
    """A Parquet file.

    Args:
        where: What to call it in an error.
        file: The file.
        columns: The columns by field.
        fields: What they are.
    """

    where: str
    file: File
    columns: Mapping[str, str]
    fields: Mapping[str, Field]

    def open(self, field: str) -> _RowGroups:
        """See `Source.open`."""
        return _RowGroups(self.file.path, self.columns[field], self.fields[field])

    def descriptor(self) -> Descriptor:
        """No chunk is read straight from the file."""
        raise NotImplementedError

    def check(self, place: int, steps: int) -> None:
        """See `Source.check`."""
        self.file.check()

    def stamp(self) -> object:
        """See `Source.stamp`."""
        return [self.file.stamp(), sorted(self.columns.items())]


class _RowGroups:
    """The row groups of one column."""

    def __init__(self, path: str, column: str, field: Field) -> None:
        # One thread at a time: pyarrow promises nothing else.
        self._lock = threading.Lock()
        self._opened = pq.ParquetFile(path, page_checksum_verification=True)
        self._path = path
        self._column = column
        self._field = field

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """See `OpenChunks.decode`."""
        with self._lock:
            column = _column(self._opened, place, self._column)
        return column_values(column, self._field, spare, f"{self._path}, column {self._column!r}, row group {place}")
