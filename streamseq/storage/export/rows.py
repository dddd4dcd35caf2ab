"""Chosen sequences end to end, as arrays that are read when they are indexed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.storage.interface import Int64, Reader, Store

Values = NDArray[Any]

# Decoded chunks that are kept while rows are read in order.
_CACHE_CHUNKS = 2
# Rows that are looked up at once, where they are not a plain range.
_BLOCK = 1 << 16
# Rows that are read for each one that is wanted, at most, where one read of all of them is simpler than many.
_DENSE = 8
# Sequences that are looked up one by one: in a store of very many that is faster than to read about all of them.
_FEW = 256


def choose(store: Store, ids: str | int | Iterable[str | int] | None) -> Int64 | None:
    """The indices of chosen sequences, int64 `[S]`; None for all of a store.

    Args:
        store: Their store.
        ids: An id or index, several of them in any order, or None for all.

    Raises:
        KeyError: There is no sequence with this id.
        IndexError: There is no sequence with this index.
        TypeError: Something is neither an id nor an index.
    """
    if ids is None:
        return None
    if isinstance(ids, str) or not isinstance(ids, Iterable):
        ids = [ids]
    listed = ids.to_pylist() if hasattr(ids, "to_pylist") else list(ids)
    texts = [each for each in listed if isinstance(each, str)]
    if len(texts) == len(listed):
        return store.indices(texts)
    return np.array([store._index(each) for each in listed], np.int64)


class Rows:
    """The timesteps of chosen sequences, one after the other: R rows. Picklable where the store is.

    Args:
        store: Where they lie.
        sequences: int64 `[S]`, their indices; None: all of the store.
    """

    def __init__(self, store: Store, sequences: Int64 | None) -> None:
        self.store = store
        self.sequences = sequences

    def __reduce__(self) -> tuple[type[Rows], tuple[Store, Int64 | None]]:
        # Where rows lie is found out again: it can be more than what they hold.
        return Rows, (self.store, self.sequences)

    @cached_property
    def lengths(self) -> Int64:
        """int64 `[S]`, timesteps of each sequence."""
        if self.sequences is None:
            return self.store.lengths
        if len(self.sequences) <= _FEW:
            return np.array([self.store.length(number) for number in self.sequences.tolist()], np.int64)
        return self.store.lengths[self.sequences]

    @cached_property
    def bounds(self) -> Int64:
        """int64 `[S + 1]`, the first row of each sequence, and R."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def ids_of(self, place: Int64) -> pa.Array:
        """The ids of the chosen sequences at `place`."""
        index = self.index_of(place)
        if len(index) <= _FEW:
            return pa.array([self.store.id_of(number) for number in index.tolist()], pa.large_string())
        return self.store.ids.take(pa.array(index))

    def index_of(self, place: Int64) -> Int64:
        """The indices in the store of the chosen sequences at `place`."""
        return place if self.sequences is None else self.sequences[place]

    def place_of(self, rows: Int64) -> Int64:
        """Of which of the chosen sequences rows are, int64 as `rows`."""
        return np.searchsorted(self.bounds, rows, "right") - 1

    def spans(self, start: int, stop: int) -> tuple[Int64, Int64, Int64]:
        """Rows `[start, stop)` as spans: place of the sequence, start and stop in it, int64 `[P]` each, none empty."""
        first = np.searchsorted(self.bounds, start, "right") - 1
        place = np.arange(first, max(first, np.searchsorted(self.bounds, stop, "left")))
        begin = self.bounds[place]
        low = np.maximum(start, begin)
        high = np.minimum(stop, self.bounds[place + 1])
        held = high > low
        return place[held], (low - begin)[held], (high - begin)[held]

    def read(self, reader: Reader, field: str, spans: tuple[Int64, Int64, Int64]) -> Values:
        """The values of a field in spans (places, not indices) end to end: `[n, *D]`."""
        place, start, stop = spans
        kind = reader.fields[field]
        slices = reader.arrays(reader.locate(field, (self.index_of(place), start, stop))) if len(place) else iter(())
        # Finding the first chunk checks the sizes that the metadata claims, before memory is asked for.
        part = next(slices, None)
        values = np.empty((int((stop - start).sum()), *kind.shape), kind.dtype)
        position = 0
        while part is not None:
            values[position : position + len(part)] = part
            position += len(part)
            part = next(slices, None)
        return values

    def reader(self, *fields: str) -> Reader:
        """A reader of some fields, for rows in order."""
        return self.store.reader(fields, _CACHE_CHUNKS)

    def cuts(self, field: str, most: int) -> list[int]:
        """Borders that cut the rows into blocks of at most `most`, `[0, ..., R]`, so that few chunks are cut.

        A block ends where a stored chunk or a sequence does. One chunk that has to be decoded as a whole is one block,
        however long it is.
        """
        total, ends = len(self), self._chunk_ends(field)
        whole = self.store.decoded_chunk_bytes[field] > 0
        cuts = [0]
        while cuts[-1] < total:
            low = cuts[-1]
            after = int(np.searchsorted(ends, low + most, "right"))
            # The last end that is near enough, or else the next one.
            end = int(ends[after - 1]) if after else 0
            if end <= low:
                end = int(ends[after]) if whole else low + most
            cuts.append(end)
        return cuts

    def _chunk_ends(self, field: str) -> Int64:
        """int64, ascending: the rows at which another chunk begins than that of the row before, and R."""
        found, last = [], -1
        with self.reader(field) as reader:
            for first in range(0, len(self.lengths), _BLOCK):
                place = np.arange(first, min(first + _BLOCK, len(self.lengths)))
                place = place[self.lengths[place] > 0]
                if not len(place):
                    continue
                lengths = self.lengths[place]
                parts = reader.locate(field, (self.index_of(place), np.zeros_like(lengths), lengths))
                row = self.bounds[place][parts.span] + parts.offset
                found.append(row[np.diff(parts.chunk, prepend=last) != 0])
                last = int(parts.chunk[-1])
        return np.append(np.concatenate(found)[1:] if found else np.empty(0, np.int64), len(self))


class Column(ABC):
    """An array whose first axis is read when it is indexed, by slices, integers or arrays of integers, axis by axis."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.shape = shape
        self.dtype = dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @abstractmethod
    def _read(self, start: int, stop: int) -> Values:
        """Rows `[start, stop)`."""

    @abstractmethod
    def _take(self, rows: Int64) -> Values:
        """Rows in any order; at least one."""

    def __getitem__(self, key: Any) -> Values:
        first, *rest = key if isinstance(key, tuple) else (key,)
        values = self._rows(first)
        # The last axis first, so that the axes before it keep their numbers.
        for axis in range(len(rest), 0, -1):
            values = values[(slice(None),) * axis + (rest[axis - 1],)]
        return values[0] if isinstance(first, int | np.integer) else values

    def _rows(self, key: Any) -> Values:
        count = self.shape[0]
        if isinstance(key, slice):
            start, stop, step = key.indices(count)
            if step == 1:
                return self._read(start, max(start, stop))
            places = range(start, stop, step)
            return self._blocks(len(places), lambda low, high: np.array(places[low:high], np.int64))
        rows = np.atleast_1d(np.asarray(key))
        if not np.issubdtype(rows.dtype, np.integer) and rows.size:
            raise IndexError(f"rows are indexed by integers and slices, got {rows.dtype}: use np.flatnonzero")
        rows = rows.astype(np.int64)
        if rows.size and not (-count <= rows.min() and rows.max() < count):
            raise IndexError(f"rows are numbered from 0 to {count - 1}, got {rows.min()} to {rows.max()}")
        rows = np.where(rows < 0, rows + count, rows)
        return self._blocks(len(rows), lambda low, high: rows[low:high])

    def _blocks(self, count: int, rows_of: Callable[[int, int], Int64]) -> Values:
        values = np.empty((count, *self.shape[1:]), self.dtype)
        for low in range(0, count, _BLOCK):
            rows = rows_of(low, min(low + _BLOCK, count))
            first, last = int(rows.min()), int(rows.max())
            if last - first < _DENSE * len(rows):
                values[low : low + len(rows)] = self._read(first, last + 1)[rows - first]
            else:
                values[low : low + len(rows)] = self._take(rows)
        return values


class FieldColumn(Column):
    """A field of rows: `[R, *D]`."""

    def __init__(self, rows: Rows, field: str) -> None:
        kind = rows.store.fields[field]
        super().__init__((len(rows), *kind.shape), kind.dtype)
        self.rows = rows
        self.field = field

    def _read(self, start: int, stop: int) -> Values:
        with self.rows.reader(self.field) as reader:
            return self.rows.read(reader, self.field, self.rows.spans(start, stop))

    def _take(self, rows: Int64) -> Values:
        place = self.rows.place_of(rows)
        joined = (np.diff(rows) == 1) & (np.diff(place) == 0)
        first = np.flatnonzero(np.concatenate([[True], ~joined]))
        count = np.diff(np.append(first, len(rows)))
        start = (rows - self.rows.bounds[place])[first]
        with self.rows.reader(self.field) as reader:
            return self.rows.read(reader, self.field, (place[first], start, start + count))


class PositionColumn(Column):
    """Where in its sequence each row is: int64 `[R]`."""

    def __init__(self, rows: Rows) -> None:
        super().__init__((len(rows),), np.dtype(np.int64))
        self.rows = rows

    def _read(self, start: int, stop: int) -> Values:
        return self._take(np.arange(start, stop))

    def _take(self, rows: Int64) -> Values:
        return rows - self.rows.bounds[self.rows.place_of(rows)]


class IdColumn(PositionColumn):
    """The id of each row's sequence: str objects `[R]`."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.dtype = np.dtype(object)

    def _take(self, rows: Int64) -> Values:
        place, back = np.unique(self.rows.place_of(rows), return_inverse=True)
        return np.array(self._texts(place), object)[back]

    def _texts(self, place: Int64) -> list[str]:
        texts: list[str] = self.rows.ids_of(place).to_pylist()
        return texts


class AttrsColumn(IdColumn):
    """The attributes of each row's sequence, as JSON: str objects `[R]`."""

    def _texts(self, place: Int64) -> list[str]:
        return [self.rows.store.attrs_json(number) for number in self.rows.index_of(place).tolist()]
