"""The reader of a store on disk: rows to chunks, with the decoded chunks kept, and some decoded ahead by a thread."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.catalogue import Catalogue
from streamseq.storage.chunk_cache import ChunkCache
from streamseq.storage.chunk_file import Checksums
from streamseq.storage.decoding import Chunks, Decoder, Decoding
from streamseq.storage.interface import InFile, Int64, Parts, Reader, ReaderCounts
from streamseq.storage.opening import RecentManifests, open_chunks
from streamseq.storage.place import Place
from streamseq.storage.version import Version

# Files held open by one reader. Well below the 1,024 that many systems allow a process.
_OPEN_FILES = 128
# Chunks of which it is remembered that it was said where they lie.
_TOLD = 4096


Checked = dict[tuple[int, str], Int64]
"""By number of the shard and name of the field, for each chunk where its values begin in its file, once it was compared
with its checksum; -1 before."""


class DiskReader(Reader):
    """Reads some fields of one version of a store on disk.

    Args:
        place: Where the store lies.
        version: The version.
        catalogue: Where its sequences lie.
        fields: The fields to read, each as often as it is read.
        cache_chunks: Decoded chunks kept of each.
        ahead: Chunks of each that are decoded ahead.
        checked: Which chunks were compared with their checksums, by shard and field; more is noted there.
        checksums: When they are: "first", "always" or "never".
        salvage: Whether chunks are read also where the files around them are broken.
    """

    def __init__(
        self,
        place: Place,
        version: Version,
        catalogue: Catalogue,
        fields: Sequence[str],
        cache_chunks: int,
        ahead: int,
        checked: Checked,
        checksums: Checksums,
        salvage: bool = False,
    ) -> None:
        self._catalogue = catalogue
        self._fields = version.layout.fields
        self._counted = ReaderCounts()
        self._decoder = Decoder() if ahead else None
        open_files = max(4, _OPEN_FILES // max(1, len(fields)))
        decoder, manifests = self._decoder, RecentManifests()
        self._columns = {
            name: _Column(
                place,
                version,
                name,
                ChunkCache(cache_chunks + ahead, uses, not ahead),
                open_files,
                decoder,
                ahead,
                checked,
                checksums,
                manifests,
                salvage,
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
        return self._catalogue.rows.lengths

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
        first = self._catalogue.rows.single_rows(sequence)
        if not len(first) or first.min() >= 0:
            return column.locate(first + start, stop - start)
        # Sequences of several pieces, written in parts of several shards or versions.
        pieces = self._catalogue.rows.pieces(sequence, start, stop)
        parts = column.locate(pieces.row, pieces.count)
        return replace(parts, span=pieces.span[parts.span], offset=pieces.offset[parts.span] + parts.offset)

    def rows(self, field: str, rows: Int64, counts: Int64) -> Iterator[NDArray[Any]]:
        """Yield runs of rows, `counts[i]` from `rows[i]` on, in parts: arrays `[m, *D]`.

        Raises:
            CorruptionError: Stored bytes are not what was written.
        """
        return self.arrays(self._column(field).locate(rows, counts))

    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `Reader.load`."""
        return self._column(field).load(chunks, uses)

    def extents(self, field: str, chunks: Sequence[int]) -> list[InFile]:
        """See `Reader.extents`."""
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
    """One field over all shards: open files and decoded chunks, which are numbered through all shards."""

    def __init__(
        self,
        place: Place,
        version: Version,
        name: str,
        cache: ChunkCache,
        open_files: int,
        decoder: Decoder | None,
        ahead: int,
        checked: Checked,
        checksums: Checksums,
        manifests: RecentManifests,
        salvage: bool,
    ) -> None:
        self._salvage = salvage
        self._checked = checked
        self._checksums = checksums
        self._manifests = manifests
        self._place = place
        self._version = version
        self._name = name
        self._steps = version.layout.chunk_timesteps[name]
        self._step_bytes = version.layout.fields[name].step_bytes
        lengths = np.array([shard.num_timesteps for shard in version.shards], np.int64)
        #: Of each shard: its first row, and the number of its first chunk.
        self._first_row = np.concatenate([[0], np.cumsum(lengths)])
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-lengths // self._steps))])
        self._lengths: list[int] = lengths.tolist()
        self._chunk_borders: list[int] = self._first_chunk.tolist()
        self._cache = cache
        self._decoder = decoder
        self._ahead = ahead
        self._lock = threading.Lock()
        self._coming: dict[int, Decoding] = {}
        #: Chunks that are going to be asked for, and take no time.
        self._ready: set[int] = set()
        #: Chunks of which it was said where they lie, the latest last.
        self._told: OrderedDict[int, None] = OrderedDict()
        self._files: OrderedDict[int, Chunks] = OrderedDict()
        self._open_files = open_files
        self.counts = ReaderCounts()

    def locate(self, rows: Int64, counts: Int64) -> Parts:
        """Where runs of rows lie, `counts[i]` from `rows[i]` on."""
        both, offset = self._chunk_of(np.concatenate([rows, rows + counts - 1]))
        chunk, last, low = both[: len(rows)], both[len(rows) :], offset[: len(rows)]
        number = np.arange(len(rows))
        if np.array_equal(chunk, last):
            return self._parts(chunk, low, counts, number, np.zeros_like(number))
        several = last - chunk + 1
        span = np.repeat(number, several)
        chunk = np.arange(len(span)) + np.repeat(chunk - (np.cumsum(several) - several), several)
        shard = np.searchsorted(self._first_chunk, chunk, "right") - 1
        begin = self._first_row[shard] + (chunk - self._first_chunk[shard]) * self._steps
        end = np.minimum(begin + self._steps, self._first_row[shard + 1])
        start = np.maximum(begin, rows[span])
        stop = np.minimum(end, (rows + counts)[span])
        return self._parts(chunk, start - begin, stop - start, span, start - rows[span])

    def _parts(self, chunk: Int64, low: Int64, count: Int64, span: Int64, offset: Int64) -> Parts:
        return Parts(field=self._name, chunk=chunk, low=low, count=count, span=span, offset=offset)

    def _chunk_of(self, rows: Int64) -> tuple[Int64, Int64]:
        """The chunk of each row, and its position in the chunk."""
        if len(self._first_row) == 2:
            return np.divmod(rows, self._steps)
        shard = np.searchsorted(self._first_row, rows, "right") - 1
        chunk, offset = np.divmod(rows - self._first_row[shard], self._steps)
        return self._first_chunk[shard] + chunk, offset

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
                    if self._place.copies:
                        decoding = coming[key] = self._fetched_again(key, decoding)
                    there[key] = decoding.result()
            except BaseException:
                # Not for ever: the next one tries anew.
                self._forget(coming)
                raise
            self._keep(coming, dict(zip(chunks, uses, strict=True)))
        return [there[key] for key in chunks]

    def extents(self, chunks: Sequence[int]) -> list[InFile]:
        """Where chunks lie that are not there and were not asked for lately."""
        told, found = self._told, []
        with self._lock:
            for key in chunks:
                if key in told or key in self._cache or key in self._coming:
                    continue
                shard = self._shard_of(key)
                if shard not in self._files and (len(self._files) >= self._open_files or not self._is_near(shard)):
                    # It would be closed again before it is read, or waited for.
                    continue
                told[key] = None
                file, chunk = self._chunk_at(key)
                extent = file.extent(chunk)
                if extent is not None:
                    found.append(extent)
            while len(told) > _TOLD:
                told.popitem(last=False)
        return found

    def prefetch(self, chunks: Sequence[int]) -> bool:
        """Begin to decode chunks that are not there; False where there is not room for all."""
        if self._decoder is None:
            return False
        coming, cache, ready = self._coming, self._cache, self._ready
        with self._lock:
            for key in chunks:
                if key in ready or key in cache or key in coming:
                    continue
                if len(coming) >= self._ahead:
                    return False
                shard = self._shard_of(key)
                if shard not in self._files and not self._is_near(shard):
                    continue
                file, chunk = self._chunk_at(key)
                if not file.takes_long(chunk):
                    ready.add(key)
                    continue
                self._decoder.submit(self._begin(key))
        return True

    def _begin(self, key: int) -> Decoding:
        """What decodes a chunk, from now on for all who ask for it."""
        file, chunk = self._chunk_at(key)
        spare = self._cache.make_room(len(self._coming))
        decoding = self._coming[key] = Decoding(file, chunk, spare)
        return decoding

    def _fetched_again(self, key: int, decoding: Decoding) -> Decoding:
        """The decoding of a chunk; where it found broken bytes, another one from a copy that is fetched anew."""
        try:
            decoding.result()
        except CorruptionError:
            pass
        else:
            return decoding
        shard = self._shard_of(key)
        with self._lock:
            self._files.pop(shard, None)
            self._place.forget(f"shards/{self._version.shards[shard].id}")
            file, chunk = self._chunk_at(key)
            again = Decoding(file, chunk, None)
            if self._coming.get(key) is decoding:
                self._coming[key] = again
        again.run()
        return again

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
                    self._ready.discard(key)
                    shard = self._shard_of(key)
                    steps = min(self._steps, self._lengths[shard] - (key - self._chunk_borders[shard]) * self._steps)
                    self.counts.decoding += decoding.seconds
                    self.counts.decoded += 1
                    self.counts.decoded_bytes += steps * self._step_bytes
                    self._cache.put(key, decoding.result(), steps)
                self._cache.get(key, uses[key])

    def _is_near(self, number: int) -> bool:
        """Whether opening a shard waits for nothing; what it would wait for is under way then."""
        return self._place.near(self._version.shards[number].id, self._name)

    def _shard_of(self, key: int) -> int:
        return bisect_right(self._chunk_borders, key) - 1

    def _chunk_at(self, key: int) -> tuple[Chunks, int]:
        """The file that a chunk lies in, and its number there."""
        shard = self._shard_of(key)
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= self._open_files:
                self._files.popitem(last=False)
            file = self._files[shard] = self._open(shard)
        else:
            self._files.move_to_end(shard)
        return file, key - self._chunk_borders[shard]

    def _open(self, number: int) -> Chunks:
        num_chunks = -(-self._lengths[number] // self._steps)
        checked = np.full(num_chunks, -1, np.int64)
        if not self._place.copies:
            # A copy that is opened anew may be another one.
            checked = self._checked.setdefault((number, self._name), checked)
        return open_chunks(
            self._place, self._version, number, self._name, checked, self._checksums, self._manifests, self._salvage
        )

    def close(self) -> None:
        """Close files and drop decoded chunks."""
        self._files.clear()
        self._coming.clear()
        self._cache.clear()
