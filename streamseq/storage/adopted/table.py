"""Adoption of tables: columns are fields, rows are timesteps, and a column may say to which sequence a row belongs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field
from streamseq.storage.adopted.names import check_ids, choose, common_uri, ids_of_paths, merged_attrs
from streamseq.storage.adopted.source import Adopted, ChunkList, Source, same_fields
from streamseq.storage.adopted.store import AdoptedStore
from streamseq.storage.interface import Int64
from streamseq.storage.shards.shard_writer import check_id

Columns = Sequence[str] | Mapping[str, str] | None


class ForeignTable(ABC):
    """A table that is looked at while it is adopted."""

    #: What to call it in an error.
    where: str
    #: The file; "memory" where there is none.
    path: str
    schema: pa.Schema

    @abstractmethod
    def source(self, columns: Mapping[str, str], fields: Mapping[str, Field]) -> Source:
        """What reads its columns, by field."""

    @abstractmethod
    def add_chunks(self, chunks: ChunkList, number: int, column: str) -> None:
        """Add the chunks of a column; `number` is that of its source.

        Raises:
            StoreError: The column is known to have nulls.
        """

    @abstractmethod
    def column(self, name: str) -> Iterable[pa.Array | pa.ChunkedArray]:
        """A column in parts, in order."""


OpenTable = Callable[[Any], AbstractContextManager[ForeignTable]]


def adopt_tables(
    backend: str,
    tables: Sequence[Any] | Mapping[str, Sequence[Any]],
    open_table: OpenTable,
    *,
    columns: Columns,
    sequence_column: str | None,
    attrs: Mapping[str, Mapping[str, Any]] | None,
    contents: bool,
) -> AdoptedStore:
    """Return the store of some tables; see `adopt_parquet` and `adopt_arrow`.

    Args:
        backend: What the store says it is.
        tables: What to open: each a sequence, or by id; with a sequence column one table after the other.
        open_table: Opens one.
        columns, sequence_column, attrs, contents: See `adopt_parquet`.
    """
    if sequence_column is not None and not isinstance(sequence_column, str):
        raise TypeError(f"sequence_column is the name of a column, got {type(sequence_column).__name__}")
    if sequence_column is not None and isinstance(tables, Mapping):
        raise ValueError("sequences are named by a dict or by sequence_column, got both: pass the files as a list")
    runs = _Runs()
    names: dict[str, str] = {}
    first = ""
    lists: dict[str, ChunkList] = {}
    sources: list[Source] = []
    paths: list[str] = []
    for owner, opened in _owners(tables, sequence_column is not None):
        with open_table(opened) as table:
            if not lists:
                there = [name for name in table.schema.names if name != sequence_column]
                names = choose("column", columns, there if columns is None else table.schema.names, table.where)
                first = table.where
            fields = {name: column_field(table.schema, column, table.where) for name, column in names.items()}
            if not lists:
                lists = {name: ChunkList(name, field) for name, field in fields.items()}
            same_fields({name: each.field for name, each in lists.items()}, fields, table.where, first)
            start = next(iter(lists.values())).num_rows
            for name, column in names.items():
                table.add_chunks(lists[name], len(sources), column)
            if sequence_column is None:
                runs.add_table(owner, start, next(iter(lists.values())).num_rows)
            else:
                _check_sequence_column(table.schema, sequence_column, table.where)
                for part in table.column(sequence_column):
                    start = runs.add_column(part, start, f"{table.where}, column {sequence_column!r}")
            sources.append(table.source(names, fields))
            paths.append(table.path)
    ids = list(runs.numbers)
    adopted = Adopted(
        backend=backend,
        uri=common_uri(paths),
        fields={name: each.field for name, each in lists.items()},
        ids=pa.array(ids, pa.large_string()),
        attrs=merged_attrs(ids, {}, attrs),
        pieces=runs.pieces(),
        sources=tuple(sources),
        chunks={name: each.finish() for name, each in lists.items()},
    )
    return AdoptedStore(adopted, contents)


def _owners(tables: Sequence[Any] | Mapping[str, Sequence[Any]], shared: bool) -> list[tuple[str, Any]]:
    """Each table with the id of the sequence that it belongs to, where it belongs to one."""
    if isinstance(tables, Mapping):
        ids = check_ids(tables)
        owners = [(id, table) for id, several in zip(ids, tables.values(), strict=True) for table in several]
        if not owners or not all(tables.values()):
            raise ValueError("each sequence is at least one table, got an empty dict or list")
        return owners
    if shared:
        return [("", table) for table in tables]
    on_disk = all(isinstance(table, str) for table in tables)
    ids = check_ids(ids_of_paths(tables)) if on_disk else [str(number) for number in range(len(tables))]
    return list(zip(ids, tables, strict=True))


class _Runs:
    """Consecutive rows of one sequence, and the numbers of the sequences, in the order of their first rows."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self._runs: list[Int64] = []

    def add_table(self, id: str, start: int, stop: int) -> None:
        """Add rows that all are of one sequence, also where there are none."""
        number = self.numbers.setdefault(id, len(self.numbers))
        if stop > start:
            self._runs.append(np.array([[number, start, stop - start]], np.int64))

    def add_column(self, column: pa.Array | pa.ChunkedArray, start: int, where: str) -> int:
        """Add rows by the column that says of which sequence they are; return the row after them."""
        for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            if not len(part):
                continue
            if part.null_count:
                raise StoreError(f"{where} has {part.null_count} nulls, and every row belongs to a sequence: fill them")
            encoded = part if isinstance(part, pa.DictionaryArray) else part.dictionary_encode()
            code = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            first = np.concatenate([[0], np.flatnonzero(code[1:] != code[:-1]) + 1])
            used, place = np.unique(code[first], return_index=True)
            number = np.zeros(len(encoded.dictionary), np.int64)
            # In the order of their rows.
            for each in used[np.argsort(place)].tolist():
                number[each] = self._number(encoded.dictionary[each], where)
            length = np.diff(np.concatenate([first, [len(code)]]))
            self._runs.append(np.stack([number[code[first]], start + first, length], axis=1))
            start += len(code)
        return start

    def _number(self, value: pa.Scalar, where: str) -> int:
        try:
            id = str(value.as_py())
            check_id(id)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{where}: {error}") from None
        return self.numbers.setdefault(id, len(self.numbers))

    def pieces(self) -> Int64:
        """int64 [P, 3]: sequence, first row, length."""
        return np.concatenate([np.zeros((0, 3), np.int64), *self._runs])


def _check_sequence_column(schema: pa.Schema, name: str, where: str) -> None:
    kind = _column_type(schema, name, where)
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    if not pa.types.is_integer(value) and not any(is_it(value) for is_it in texts):
        raise StoreError(f"{where}: the sequence column {name!r} is {kind}, ids are text or integers: convert it")


def _column_type(schema: pa.Schema, name: str, where: str) -> pa.DataType:
    found = schema.get_all_field_indices(name)
    if len(found) != 1:
        what = (
            f"no column {name!r}, it has {', '.join(schema.names)}" if not found else f"{len(found)} columns {name!r}"
        )
        raise StoreError(f"{where} has {what}: every file has each column once")
    return schema.field(found[0]).type


def column_field(schema: pa.Schema, name: str, where: str) -> Field:
    """The field that a column is.

    Raises:
        StoreError: There is no such column, or it cannot be one.
    """
    kind = _column_type(schema, name, where)
    try:
        return Field(*_numpy_type(kind))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise StoreError(f"{where}, column {name!r} is {kind}: {error}") from None


def _numpy_type(kind: pa.DataType) -> tuple[Any, tuple[int, ...]]:
    """The dtype and step shape of a column.

    Raises:
        TypeError: It has none.
    """
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation not in (None, list(range(len(kind.shape)))):
        raise TypeError("its axes are permuted; write it in the order of its axes")
    if isinstance(kind, pa.FixedShapeTensorType):
        dtype, inner = _numpy_type(kind.value_type)
        return dtype, (*kind.shape, *inner)
    if isinstance(kind, pa.BaseExtensionType):
        return _numpy_type(kind.storage_type)
    if pa.types.is_fixed_size_list(kind):
        dtype, inner = _numpy_type(kind.value_type)
        return dtype, (kind.list_size, *inner)
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_list_view(kind) or types.is_large_list_view(kind):
        raise TypeError("its rows can have different lengths, timesteps cannot; write it as a fixed size list")
    if types.is_temporal(kind) and not types.is_interval(kind):
        return f"int{kind.bit_width}", ()
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
        return kind.to_pandas_dtype(), ()
    raise TypeError("a field holds numbers or truth values; encode it, or choose other columns")


def innermost(column: pa.Array, where: str) -> pa.Array:
    """The numbers of a column, one after the other.

    Raises:
        StoreError: Some are null.
    """
    while True:
        if column.null_count:
            raise nulls(where, column.null_count)
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif pa.types.is_fixed_size_list(column.type):
            # Not `values`, which knows nothing of the rows before and after a slice.
            column = column.flatten()
        else:
            return column


def nulls(where: str, count: int) -> StoreError:
    """The error of a column that has nulls."""
    return StoreError(
        f"{where} has {count} nulls, and a field has a value at each timestep: fill them, or drop the rows"
    )


def column_values(
    column: pa.Array | pa.ChunkedArray, field: Field, spare: NDArray[Any] | None, where: str
) -> NDArray[Any]:
    """The values of a column `[m, *D]`, in memory of their own, that of `spare` where it fits.

    Raises:
        StoreError: Some are null.
        ValueError: They are not what the column was adopted as.
    """
    shape = (len(column), *field.shape)
    values = spare if spare is not None and spare.shape == shape else np.empty(shape, field.dtype)
    flat, at = values.reshape(-1), 0
    for part in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
        numbers = innermost(part, where)
        if pa.types.is_temporal(numbers.type):
            numbers = numbers.view(pa.int32() if numbers.type.bit_width == 32 else pa.int64())
        array = numbers.to_numpy(zero_copy_only=False)
        if array.dtype != field.dtype or len(array) != len(part) * math.prod(field.shape):
            raise ValueError(f"it has {len(array)} values of {array.dtype} for {len(part)} timesteps")
        flat[at : at + len(array)] = array
        at += len(array)
    return values
