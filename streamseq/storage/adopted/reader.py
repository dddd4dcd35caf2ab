"""The reader of an adopted store: rows to chunks of somebody else's files, decoded ones kept, changed ones refused."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError, StreamseqError
from streamseq.storage.adopted.source import Adopted, Descriptor, OpenChunks, Source, one_line
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.interface import InFile, Int64, Parts
from streamseq.storage.shards.chunk_cache import ChunkCache
from streamseq.storage.shards.chunk_reader import TOLD, ChunkReader, ColumnChunks
from streamseq.storage.shards.decoding import Decoder
from streamseq.storage.versions.rows import RowIndex

T = TypeVar("T")

Sums = Mapping[str, NDArray[np.uint32]]
"""By field, uint32 [C]: the crc32c of each chunk's values."""


class AdoptedReader(ChunkReader["_Column"]):
    """Reads some fields of an adopted store.

    Args:
        adopted: The files.
        rows: Where the sequences lie.
        fields: The fields to read, each as often as it is read.
        cache_chunks: Decoded chunks kept of each.
        ahead: Chunks of each that are decoded ahead.
        sums: What the values of chunks must be, where that is known.
    """

    def __init__(
        self, adopted: Adopted, rows: RowIndex, fields: Sequence[str], cache_chunks: int, ahead: int, sums: Sums
    ) -> None:
        self._rows = rows
        decoder = Decoder() if ahead else None
        columns = {
            name: _Column(
                adopted,
                name,
                ChunkCache(cache_chunks + ahead, uses, not ahead),
                decoder,
                ahead,
                len(fields),
                sums.get(name),
            )
            for name, uses in Counter(fields).items()
        }
        super().__init__(adopted.fields, columns, decoder)

    @property
    def _row_index(self) -> RowIndex:
        return self._rows

    def arrays(self, parts: Parts) -> Iterator[NDArray[Any]]:
        """See `Reader.arrays`: read-only ones, and files that are read straight are looked at again afterwards."""
        column = self._column(parts.field)
        for chunk, values in zip(parts.chunk.tolist(), super().arrays(parts), strict=True):
            column.check(chunk)
            values.flags.writeable = False
            yield values


class _Column(ColumnChunks["_OpenFile"]):
    """One field: open files and decoded chunks."""

    def __init__(
        self,
        adopted: Adopted,
        name: str,
        cache: ChunkCache,
        decoder: Decoder | None,
        ahead: int,
        num_fields: int,
        sums: NDArray[np.uint32] | None,
    ) -> None:
        super().__init__(name, adopted.fields[name].step_bytes, cache, decoder, ahead, num_fields)
        self._adopted = adopted
        self._chunks = adopted.chunks[name]
        self._sums = sums
        #: Chunks stored as they are whose values were compared.
        self._compared: set[int] = set()

    def locate(self, rows: Int64, counts: Int64) -> Parts:
        """Where runs of rows lie, `counts[i]` from `rows[i]` on."""
        borders = self._chunks.borders
        both = np.searchsorted(borders, np.concatenate([rows, rows + counts - 1]), "right") - 1
        first, last = both[: len(rows)], both[len(rows) :]
        several = last - first + 1
        span = np.repeat(np.arange(len(rows)), several)
        chunk = np.arange(len(span)) + np.repeat(first - (np.cumsum(several) - several), several)
        start = np.maximum(borders[chunk], rows[span])
        stop = np.minimum(borders[chunk + 1], (rows + counts)[span])
        return Parts(
            field=self.name,
            chunk=chunk,
            low=start - borders[chunk],
            count=stop - start,
            span=span,
            offset=start - rows[span],
        )

    def load(self, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `ColumnChunks.load`; chunks that are stored as they are, are not decoded."""
        direct: dict[int, _OpenFile] = {}
        decoded: dict[int, int] = {}
        with self._lock:
            for key, count in zip(chunks, uses, strict=True):
                if self._chunks.direct[key]:
                    direct[key] = self._file(key)
                else:
                    decoded[key] = count
            self.counts.loaded += len(direct)
        there: dict[int, NDArray[Any] | InFile] = {key: self._extent(file, key) for key, file in direct.items()}
        there |= zip(decoded, super().load(list(decoded), list(decoded.values())), strict=True)
        return [there[key] for key in chunks]

    def _extent(self, file: _OpenFile, key: int) -> InFile:
        """Where a chunk lies that is stored as it is, once its file was looked at."""
        extent = file.extent(key)
        if self._sums is not None and key not in self._compared:
            file.compare(key, extent)
            self._compared.add(key)
        file.check(key)
        return extent

    def check(self, key: int) -> None:
        """Check the file of a chunk that is read straight from it; one that is decoded was looked at then."""
        if self._chunks.direct[key]:
            with self._lock:
                file = self._file(key)
            file.check(key)

    def extents(self, chunks: Sequence[int]) -> list[InFile]:
        """Where chunks lie that are stored as they are and were not asked for lately."""
        told, found = self._told, []
        with self._lock:
            for key in chunks:
                if key in told or not self._chunks.direct[key]:
                    continue
                if int(self._chunks.source[key]) not in self._files and len(self._files) >= self._open_files:
                    # It would be closed again before it is read.
                    continue
                told[key] = None
                found.append(self._file(key).extent(key))
            while len(told) > TOLD:
                told.popitem(last=False)
        return found

    def prefetch(self, chunks: Sequence[int]) -> bool:
        """Begin to decode chunks that are not there; False where there is not room for all."""
        if self._decoder is None:
            return False
        with self._lock:
            for key in chunks:
                if self._chunks.direct[key] or key in self._cache or key in self._coming:
                    continue
                if len(self._coming) >= self._ahead:
                    return False
                self._decoder.submit(self._begin(key))
        return True

    def _file_of(self, key: int) -> int:
        return int(self._chunks.source[key])

    def _in_file(self, key: int) -> int:
        return key

    def _steps_of(self, key: int) -> int:
        return self._chunks.steps(key)

    def _open(self, number: int) -> _OpenFile:
        return _OpenFile(self._adopted, self.name, number, self._sums)


class _OpenFile:
    """The chunks of one field of one source, by their numbers in the store, opened when the first is read."""

    def __init__(self, adopted: Adopted, name: str, number: int, sums: NDArray[np.uint32] | None) -> None:
        self._source: Source = adopted.sources[number]
        self._name = name
        self._field = adopted.fields[name]
        self._chunks = adopted.chunks[name]
        self._sums = sums
        self._lock = threading.Lock()
        self._open: OpenChunks | None = None
        self._descriptor: Descriptor | None = None

    def takes_long(self, chunk: int) -> bool:
        """Always: only chunks that are decoded are asked for."""
        return True

    def extent(self, chunk: int) -> InFile:
        """Where a chunk that is stored as it is lies."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = self._attempt(chunk, self._source.descriptor)
            descriptor = self._descriptor
        return InFile(
            file=descriptor,
            descriptor=descriptor.number,
            offset=int(self._chunks.place[chunk]),
            num_bytes=self._chunks.steps(chunk) * self._field.step_bytes,
        )

    def check(self, chunk: int) -> None:
        """Check that the source of a chunk has not changed."""
        self._source.check(int(self._chunks.place[chunk]), self._chunks.steps(chunk))

    def compare(self, chunk: int, extent: InFile) -> None:
        """Check the values of a chunk that is stored as it is."""
        field = self._field
        values = self._attempt(chunk, lambda: extent.read(field.dtype, field.shape, 0, self._chunks.steps(chunk)))
        self._compare(chunk, values)

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """Return a chunk `[m, *D]`.

        Raises:
            CorruptionError: The file is not what was adopted, or does not decode.
        """
        with self._lock:
            if self._open is None:
                self._open = self._attempt(chunk, lambda: self._source.open(self._name))
            source = self._open
        place, steps = int(self._chunks.place[chunk]), self._chunks.steps(chunk)
        values = self._attempt(chunk, lambda: source.decode(place, steps, spare))
        # Afterwards: what was read then is what was adopted.
        self.check(chunk)
        wanted = (steps, *self._field.shape)
        if values.shape != wanted or values.dtype != self._field.dtype:
            raise CorruptionError(
                f"{self._where(chunk)} is {values.dtype} {list(values.shape)} and was adopted as {self._field.dtype} "
                f"{list(wanted)}: adopt it again"
            )
        self._compare(chunk, values)
        return values

    def _compare(self, chunk: int, values: NDArray[Any]) -> None:
        if self._sums is not None and crc32c(as_bytes(np.ascontiguousarray(values))) != self._sums[chunk]:
            raise CorruptionError(f"{self._where(chunk)} has other values than were adopted: adopt it again")

    def _where(self, chunk: int) -> str:
        return f"{self._source.where}, field {self._name!r}, chunk {chunk}"

    def _attempt(self, chunk: int, call: Callable[[], T]) -> T:
        """What a call returns; what it raises becomes our error."""
        try:
            return call()
        except StreamseqError:
            raise
        except Exception as error:  # those of any format and codec
            # A file that has changed explains whatever went wrong.
            self.check(chunk)
            raise CorruptionError(f"{self._where(chunk)} cannot be read: {one_line(error)}") from error
