"""The reader of a store on disk: rows to shards to chunks, with the decoded chunks kept."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.arrow_shard import ArrowChunks
from streamseq.storage.chunk_cache import ChunkCache
from streamseq.storage.interface import Reader
from streamseq.storage.location import StoreFolder
from streamseq.storage.rows import RowIndex
from streamseq.storage.version import Version
from streamseq.storage.zarr_shard import open_zarr_chunks

# Files held open by one reader. Well below the 1,024 that many systems allow a process.
_OPEN_FILES = 128


class Chunks(Protocol):
    """The chunks of one field of one shard."""

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """Return a chunk `[m, *D]`, in the memory of `spare` where that helps."""

    def release(self, chunk: int) -> None:
        """Let go of memory that is held for a chunk which is not kept any more."""

    def close(self) -> object:
        """Close the file."""


class DiskReader(Reader):
    """Reads some fields of one version of a store on disk.

    Args:
        folder: Where the store lies.
        version: The version.
        rows: Where its sequences lie.
        fields: The fields to read.
        cache_chunks: Decoded chunks kept of each.
    """

    def __init__(
        self, folder: StoreFolder, version: Version, rows: RowIndex, fields: Sequence[str], cache_chunks: int
    ) -> None:
        self._rows = rows
        self._version = version
        self._folder = folder
        bounds = [0, *accumulate(shard.num_timesteps for shard in version.shards)]
        open_files = max(4, _OPEN_FILES // max(1, len(fields)))
        self._columns = {name: _Column(folder, version, name, bounds[:-1], cache_chunks, open_files) for name in fields}

    @property
    def decoded(self) -> int:
        """See `Reader.decoded`."""
        return sum(column.decoded for column in self._columns.values())

    def slices(self, field: str, sequence: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """See `Reader.slices`."""
        column = self._column(field)
        rows = self._rows
        if not 0 <= sequence < rows.num_sequences:
            raise IndexError(f"sequences are numbered from 0 to {rows.num_sequences - 1}, got {sequence}")
        if not 0 <= start <= stop <= rows.lengths.item(sequence):
            raise ValueError(
                f"a span has 0 <= start <= stop <= length, got start {start}, stop {stop} and length "
                f"{rows.lengths[sequence]} of sequence {sequence}"
            )
        if start == stop:
            return iter(())
        row = rows.single_row(sequence)
        if row >= 0:
            return column.slices(row + start, stop - start)
        return self._pieces(column, sequence, start, stop)

    def copy(
        self,
        field: str,
        spans: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
        out: NDArray[Any],
        at: NDArray[np.int64],
    ) -> None:
        """See `Reader.copy`."""
        column = self._column(field)
        sequence, start, stop = spans
        rows = self._rows
        if not len(sequence):
            return
        if sequence.min() < 0 or sequence.max() >= rows.num_sequences:
            raise IndexError(f"sequences are numbered from 0 to {rows.num_sequences - 1}, got {sequence}")
        first = rows.single_rows(sequence)
        simple = (first >= 0) & (start >= 0) & (start < stop) & (stop <= rows.lengths[sequence])
        if not simple.all():
            # Sequences of several pieces go one by one, and what is wrong is told there.
            others = ~simple
            super().copy(field, (sequence[others], start[others], stop[others]), out, at[others])
            first, start, stop, at = first[simple], start[simple], stop[simple], at[simple]
        column.copy(first + start, stop - start, out, at)

    def _column(self, field: str) -> _Column:
        column = self._columns.get(field)
        if column is None:
            raise ValueError(f"a reader reads {', '.join(self._columns) or 'nothing once it is closed'}, got {field!r}")
        return column

    def close(self) -> None:
        """See `Reader.close`."""
        for column in self._columns.values():
            column.close()
        self._columns = {}

    def _pieces(self, column: _Column, sequence: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
        for row, count in self._rows.spans(sequence, start, stop):
            yield from column.slices(row, count)


class _Column:
    """One field over all shards: open files and decoded chunks."""

    def __init__(
        self,
        folder: StoreFolder,
        version: Version,
        name: str,
        starts: list[int],
        cache_chunks: int,
        open_files: int,
    ) -> None:
        self._folder = folder
        self._version = version
        self._name = name
        self._starts = starts
        self._chunk_timesteps = version.layout.chunk_timesteps[name]
        self._cache = ChunkCache(cache_chunks)
        self._files: OrderedDict[int, Chunks] = OrderedDict()
        self._open_files = open_files
        self.decoded = 0

    def slices(self, row: int, count: int) -> Iterator[NDArray[Any]]:
        """Return arrays that together are `count` rows, at least one, from `row` on."""
        key, offset = self._locate(row)
        values = self._cache.get(key)
        if values is None:
            values = self._load(key)
        stop, end = offset + count, len(values)
        if stop > end:
            return self._walk(row, count)
        if stop == end:
            self._cache.first_to_go(key)
        return iter((values[offset:stop],))

    def copy(
        self, rows: NDArray[np.int64], counts: NDArray[np.int64], out: NDArray[Any], at: NDArray[np.int64]
    ) -> None:
        """Copy runs of rows, `counts[i]` from `rows[i]` on to `out[at[i]:]`."""
        starts = np.array(self._starts, np.int64)
        shard = np.searchsorted(starts, rows, "right") - 1
        chunk, offset = np.divmod(rows - starts[shard], self._chunk_timesteps)
        cache = self._cache
        columns = (each.tolist() for each in (shard, chunk, offset, rows, counts, at))
        for number, place, low, row, count, target in zip(*columns, strict=True):
            key = (number, place)
            values = cache.get(key)
            if values is None:
                values = self._load(key)
            high, end = low + count, len(values)
            if high < end:
                out[target : target + count] = values[low:high]
            elif high == end:
                out[target : target + count] = values[low:high]
                cache.first_to_go(key)
            else:
                for part in self._walk(row, count):
                    out[target : target + len(part)] = part
                    target += len(part)
            # Otherwise the next chunk could not be decoded into the memory of this one.
            del values

    def _walk(self, row: int, count: int) -> Iterator[NDArray[Any]]:
        """The general case, one chunk at a time."""
        while count:
            key, offset = self._locate(row)
            values = self._cache.get(key)
            if values is None:
                values = self._load(key)
            part = values[offset : offset + count]
            if offset + len(part) == len(values):
                self._cache.first_to_go(key)
            row, count = row + len(part), count - len(part)
            # The memory of a chunk is used again only when nobody holds it.
            del values
            yield part
            del part

    def _locate(self, row: int) -> tuple[tuple[int, int], int]:
        """The shard and chunk of a row, and its position in the chunk."""
        shard = bisect_right(self._starts, row) - 1
        chunk, offset = divmod(row - self._starts[shard], self._chunk_timesteps)
        return (shard, chunk), offset

    def _load(self, key: tuple[int, int]) -> NDArray[Any]:
        gone, spare = self._cache.make_room()
        if gone is not None and gone[0] in self._files:
            self._files[gone[0]].release(gone[1])
        values = self._file(key[0]).decode(key[1], spare)
        self.decoded += 1
        self._cache.put(key, values)
        return values

    def _file(self, shard: int) -> Chunks:
        file = self._files.get(shard)
        if file is not None:
            self._files.move_to_end(shard)
            return file
        if len(self._files) >= self._open_files:
            self._files.popitem(last=False)[1].close()
        file = self._files[shard] = self._open(shard)
        return file

    def _open(self, number: int) -> Chunks:
        name, layout, shard = self._name, self._version.layout, self._version.shards[number]
        path = self._folder.shards / shard.id
        where = f"store {self._folder.root}, shard {shard.id}, field {name!r}"
        field, codec, stored = layout.fields[name], layout.codecs[name], shard.fields[name]
        steps = self._chunk_timesteps
        if layout.backend == "zarr":
            return open_zarr_chunks(path, name, field, codec, shard.num_timesteps, steps, stored, where)
        return ArrowChunks(
            path, name, field, codec, shard.num_timesteps, steps, stored.num_bytes, shard.manifest_crc32c, where
        )

    def close(self) -> None:
        """Close files and drop decoded chunks."""
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._cache.clear()
