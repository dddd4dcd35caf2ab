"""The reader of an adopted store: rows to chunks of somebody else's files, decoded ones kept, changed ones refused."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError, StreamseqError
from streamseq.core.fields import Field
from streamseq.storage.adopted_source import Adopted, Descriptor, OpenChunks, Source, one_line
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.chunk_cache import ChunkCache
from streamseq.storage.decoding import Decoder, Decoding
from streamseq.storage.interface import InFile, Int64, Parts, Reader, ReaderCounts
from streamseq.storage.rows import RowIndex

# Files held open by one reader. Well below the 1,024 that many systems allow a process.
_OPEN_FILES = 128
# Chunks of which it is remembered that it was said where they lie.
_TOLD = 4096

T = TypeVar("T")

Sums = Mapping[str, NDArray[np.uint32]]
"""By field, uint32 [C]: the crc32c of each chunk's values."""


class AdoptedReader(Reader):
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
        self._fields = adopted.fields
        self._counted = ReaderCounts()
        self._decoder = Decoder() if ahead else None
        open_files = max(4, _OPEN_FILES // max(1, len(fields)))
        self._columns = {
            name: _Column(
                adopted,
                name,
                ChunkCache(cache_chunks + ahead, uses, not ahead),
                open_files,
                self._decoder,
                ahead,
                sums.get(name),
            )
            for name, uses in Counter(fields).items()
        }

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Reader.fields`."""
        return {name: self._fields[name] for name in self._columns}

    @property
    def lengths(self) -> Int64:
        """See `Reader.lengths`."""
        return self._rows.lengths

    @property
    def counts(self) -> ReaderCounts:
        """See `Reader.counts`."""
        total = self._counted
        for column in self._columns.values():
            total += column.counts
        return total

    def locate(self, field: str, spans: tuple[Int64, Int64, Int64]) -> Parts:
        """See `Reader.locate`."""
        column = self._column(field)
        sequence, start, stop = spans
        first = self._rows.single_rows(sequence)
        if not len(first) or first.min() >= 0:
            return column.locate(first + start, stop - start)
        # Sequences whose rows lie apart.
        pieces = self._rows.pieces(sequence, start, stop)
        parts = column.locate(pieces.row, pieces.count)
        return replace(parts, span=pieces.span[parts.span], offset=pieces.offset[parts.span] + parts.offset)

    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `Reader.load`."""
        return self._column(field).load(chunks, uses)

    def arrays(self, parts: Parts) -> Iterator[NDArray[Any]]:
        """See `Reader.arrays`: read-only ones, and files that are read straight are looked at again afterwards."""
        column = self._column(parts.field)
        for chunk, values in zip(parts.chunk.tolist(), super().arrays(parts), strict=True):
            column.check(chunk)
            values.flags.writeable = False
            yield values

    def extents(self, field: str, chunks: Sequence[int]) -> list[InFile]:
        """See `Reader.extents`: of chunks that are stored as they are."""
        return self._column(field).extents(chunks)

    def prefetch(self, field: str, chunks: Sequence[int]) -> bool:
        """See `Reader.prefetch`."""
        return self._column(field).prefetch(chunks)

    def _column(self, field: str) -> _Column:
        column = self._columns.get(field)
        if column is None:
            raise ValueError(f"a reader reads {', '.join(self._columns) or 'nothing once it is closed'}, got {field!r}")
        return column

    def close(self) -> None:
        """See `Reader.close`."""
        if self._decoder is not None:
            self._decoder.close()
        self._counted = self.counts
        for column in self._columns.values():
            column.close()
        self._columns = {}


class _Column:
    """One field: open files and decoded chunks."""

    def __init__(
        self,
        adopted: Adopted,
        name: str,
        cache: ChunkCache,
        open_files: int,
        decoder: Decoder | None,
        ahead: int,
        sums: NDArray[np.uint32] | None,
    ) -> None:
        self._adopted = adopted
        self._name = name
        self._step_bytes = adopted.fields[name].step_bytes
        self._chunks = adopted.chunks[name]
        self._cache = cache
        self._decoder = decoder
        self._ahead = ahead
        self._sums = sums
        self._lock = threading.Lock()
        self._coming: dict[int, Decoding] = {}
        #: Chunks of which it was said where they lie, the latest last.
        self._told: OrderedDict[int, None] = OrderedDict()
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._open_files = open_files
        #: Chunks stored as they are whose values were compared.
        self._compared: set[int] = set()
        self.counts = ReaderCounts()

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
            field=self._name,
            chunk=chunk,
            low=start - borders[chunk],
            count=stop - start,
            span=span,
            offset=start - rows[span],
        )

    def load(self, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """The chunks, from which `uses` timesteps are going to be read."""
        there: dict[int, NDArray[Any] | InFile] = {}
        coming: dict[int, Decoding] = {}
        direct: dict[int, _OpenFile] = {}
        with self._lock:
            self.counts.loaded += len(chunks)
            for key, count in zip(chunks, uses, strict=True):
                if self._chunks.direct[key]:
                    direct[key] = self._file(key)
                    continue
                values = self._cache.get(key, count)
                if values is not None:
                    there[key] = values
                    continue
                if key not in self._coming:
                    self._begin(key)
                coming[key] = self._coming[key]
        there |= {key: self._extent(file, key) for key, file in direct.items()}
        if coming:
            try:
                # What nobody has begun is done here, before the rest is waited for.
                for decoding in coming.values():
                    decoding.run()
                for key, decoding in coming.items():
                    self._wait(decoding)
                    there[key] = decoding.result()
            except BaseException:
                # Not for ever: the next one tries anew.
                self._forget(coming)
                raise
            self._keep(coming, dict(zip(chunks, uses, strict=True)))
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
            while len(told) > _TOLD:
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

    def _begin(self, key: int) -> Decoding:
        """What decodes a chunk, from now on for all who ask for it."""
        file = self._file(key)
        spare = self._cache.make_room(len(self._coming))
        decoding = self._coming[key] = Decoding(file, key, spare)
        return decoding

    def _wait(self, decoding: Decoding) -> None:
        if self._decoder is None:
            decoding.wait()
        else:
            self._decoder.wait(decoding)

    def _forget(self, failed: Mapping[int, Decoding]) -> None:
        with self._lock:
            for key, decoding in failed.items():
                if self._coming.get(key) is decoding:
                    del self._coming[key]

    def _keep(self, decoded: Mapping[int, Decoding], uses: Mapping[int, int]) -> None:
        """Keep chunks, of which `uses` timesteps are going to be read."""
        with self._lock:
            for key, decoding in decoded.items():
                # Another thread may have waited for it as well, and been faster.
                if self._coming.get(key) is decoding:
                    del self._coming[key]
                    steps = self._chunks.steps(key)
                    self.counts.decoding += decoding.seconds
                    self.counts.decoded += 1
                    self.counts.decoded_bytes += steps * self._step_bytes
                    self._cache.put(key, decoding.result(), steps)
                self._cache.get(key, uses[key])

    def _file(self, key: int) -> _OpenFile:
        """The file that a chunk lies in."""
        number = int(self._chunks.source[key])
        file = self._files.get(number)
        if file is None:
            if len(self._files) >= self._open_files:
                self._files.popitem(last=False)
            file = self._files[number] = _OpenFile(self._adopted, self._name, number, self._sums)
        else:
            self._files.move_to_end(number)
        return file

    def close(self) -> None:
        """Close files and drop decoded chunks."""
        self._files.clear()
        self._coming.clear()
        self._cache.clear()


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
