"""What readers of stored chunks have in common: decoded chunks are kept, and some are decoded ahead by a thread."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.storage.interface import InFile, Int64, Parts, Reader, ReaderCounts
from streamseq.storage.shards.chunk_cache import ChunkCache
from streamseq.storage.shards.decoding import Chunks, Decoder, Decoding
from streamseq.storage.versions.rows import RowIndex

# Files held open by one reader. Well below the 1,024 that many systems allow a process.
_OPEN_FILES = 128
# Chunks of which it is remembered that it was said where they lie.
TOLD = 4096

F = TypeVar("F", bound=Chunks)


class ColumnChunks(ABC, Generic[F]):
    """The chunks of one field, numbered through all files: those that are kept, come, or lie in files that are open.

    Args:
        name: The field.
        step_bytes: Bytes of a timestep.
        cache: Keeps decoded chunks.
        decoder: Decodes ahead; None where nothing does.
        ahead: Chunks that may be on their way at a time.
        num_fields: Fields that the reader reads, which share what files may be open.
    """

    def __init__(
        self, name: str, step_bytes: int, cache: ChunkCache, decoder: Decoder | None, ahead: int, num_fields: int
    ) -> None:
        self.name = name
        self._step_bytes = step_bytes
        self._cache = cache
        self._decoder = decoder
        self._ahead = ahead
        self._lock = threading.Lock()
        self._coming: dict[int, Decoding] = {}
        #: Chunks of which it was said where they lie, the latest last.
        self._told: OrderedDict[int, None] = OrderedDict()
        self._files: OrderedDict[int, F] = OrderedDict()
        self._open_files = max(4, _OPEN_FILES // max(1, num_fields))
        self.counts = ReaderCounts()

    @abstractmethod
    def locate(self, rows: Int64, counts: Int64) -> Parts:
        """Where runs of rows lie, `counts[i]` from `rows[i]` on."""

    @abstractmethod
    def extents(self, chunks: Sequence[int]) -> list[InFile]:
        """Where chunks lie that are not there and were not asked for lately."""

    @abstractmethod
    def prefetch(self, chunks: Sequence[int]) -> bool:
        """Begin to decode chunks that are not there; False where there is not room for all."""

    @abstractmethod
    def _file_of(self, key: int) -> int:
        """The number of the file that a chunk lies in."""

    @abstractmethod
    def _open(self, number: int) -> F:
        """Open a file."""

    @abstractmethod
    def _in_file(self, key: int) -> int:
        """The number that a chunk has in its file."""

    @abstractmethod
    def _steps_of(self, key: int) -> int:
        """Timesteps of a chunk."""

    def load(self, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """The chunks, from which `uses` timesteps are going to be read."""
        there: dict[int, NDArray[Any] | InFile] = {}
        coming: dict[int, Decoding] = {}
        with self._lock:
            self.counts.loaded += len(chunks)
            for key, count in zip(chunks, uses, strict=True):
                values = self._cache.get(key, count)
                if values is not None:
                    there[key] = values
                    continue
                if key not in self._coming:
                    self._begin(key)
                coming[key] = self._coming[key]
        if coming:
            try:
                # What nobody has begun is done here, before the rest is waited for.
                for decoding in coming.values():
                    decoding.run()
                for key, decoding in coming.items():
                    self._wait(decoding)
                    decoding = coming[key] = self._looked_at(key, decoding)
                    there[key] = decoding.result()
            except BaseException:
                # Not for ever: the next one tries anew.
                self._forget(coming)
                raise
            self._keep(coming, dict(zip(chunks, uses, strict=True)))
        return [there[key] for key in chunks]

    def _looked_at(self, key: int, decoding: Decoding) -> Decoding:
        """A decoding that is done, or another one of the chunk where there is hope that it goes better."""
        return decoding

    def _begin(self, key: int) -> Decoding:
        """What decodes a chunk, from now on for all who ask for it."""
        file = self._file(key)
        spare = self._cache.make_room(len(self._coming))
        decoding = self._coming[key] = Decoding(file, self._in_file(key), spare)
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
                    steps = self._steps_of(key)
                    self.counts.decoding += decoding.seconds
                    self.counts.decoded += 1
                    self.counts.decoded_bytes += steps * self._step_bytes
                    self._cache.put(key, decoding.result(), steps)
                self._cache.get(key, uses[key])

    def _file(self, key: int) -> F:
        """The file that a chunk lies in; opening another one may close one that was not used lately."""
        number = self._file_of(key)
        file = self._files.get(number)
        if file is None:
            if len(self._files) >= self._open_files:
                self._files.popitem(last=False)
            file = self._files[number] = self._open(number)
        else:
            self._files.move_to_end(number)
        return file

    def close(self) -> None:
        """Close files and drop decoded chunks."""
        self._files.clear()
        self._coming.clear()
        self._cache.clear()


C = TypeVar("C", bound=ColumnChunks[Any])


class ChunkReader(Reader, Generic[C]):
    """A reader of some fields whose chunks are kept.

    Args:
        fields: All fields of the store.
        columns: The chunks of each field that is read.
        decoder: Decodes ahead; None where nothing does.
    """

    def __init__(self, fields: Mapping[str, Field], columns: dict[str, C], decoder: Decoder | None) -> None:
        self._fields = fields
        self._columns = columns
        self._decoder = decoder
        self._counted = ReaderCounts()

    @property
    @abstractmethod
    def _row_index(self) -> RowIndex:
        """Where all sequences lie."""

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Reader.fields`."""
        return {name: self._fields[name] for name in self._columns}

    @property
    def lengths(self) -> Int64:
        """See `Reader.lengths`."""
        return self._row_index.lengths

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
        first = self._row_index.single_rows(sequence)
        if not len(first) or first.min() >= 0:
            return column.locate(first + start, stop - start)
        # Sequences of several pieces, whose rows lie apart.
        pieces = self._row_index.pieces(sequence, start, stop)
        parts = column.locate(pieces.row, pieces.count)
        return replace(parts, span=pieces.span[parts.span], offset=pieces.offset[parts.span] + parts.offset)

    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `Reader.load`."""
        return self._column(field).load(chunks, uses)

    def extents(self, field: str, chunks: Sequence[int]) -> list[InFile]:
        """See `Reader.extents`."""
        return self._column(field).extents(chunks)

    def prefetch(self, field: str, chunks: Sequence[int]) -> bool:
        """See `Reader.prefetch`."""
        return self._column(field).prefetch(chunks)

    def _column(self, field: str) -> C:
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
