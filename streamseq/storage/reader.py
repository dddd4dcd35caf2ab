"""The reader of a store on disk: rows to chunks, with the decoded chunks kept, and some decoded ahead by a thread."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.storage.interface import InFile, Int64, Parts
from streamseq.storage.places.place import Place
from streamseq.storage.shards.chunk_cache import ChunkCache
from streamseq.storage.shards.chunk_file import Checksums
from streamseq.storage.shards.chunk_reader import TOLD, ChunkReader, ColumnChunks
from streamseq.storage.shards.decoding import Chunks, Decoder, Decoding
from streamseq.storage.shards.opening import RecentManifests, open_chunks
from streamseq.storage.versions.catalogue import Catalogue
from streamseq.storage.versions.rows import RowIndex
from streamseq.storage.versions.version import Version

Checked = dict[tuple[int, str], Int64]
"""By number of the shard and name of the field, for each chunk where its values begin in its file, once it was compared
with its checksum; -1 before."""


class DiskReader(ChunkReader["_Column"]):
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
        decoder, manifests = Decoder() if ahead else None, RecentManifests()
        columns = {
            name: _Column(
                place,
                version,
                name,
                ChunkCache(cache_chunks + ahead, uses, not ahead),
                decoder,
                ahead,
                len(fields),
                checked,
                checksums,
                manifests,
                salvage,
            )
            for name, uses in Counter(fields).items()
        }
        super().__init__(version.layout.fields, columns, decoder)

    @property
    def _row_index(self) -> RowIndex:
        return self._catalogue.rows

    def rows(self, field: str, rows: Int64, counts: Int64) -> Iterator[NDArray[Any]]:
        """Yield runs of rows, `counts[i]` from `rows[i]` on, in parts: arrays `[m, *D]`.

        Raises:
            CorruptionError: Stored bytes are not what was written.
        """
        return self.arrays(self._column(field).locate(rows, counts))


class _Column(ColumnChunks[Chunks]):
    """One field over all shards: open files and decoded chunks, which are numbered through all shards."""

    def __init__(
        self,
        place: Place,
        version: Version,
        name: str,
        cache: ChunkCache,
        decoder: Decoder | None,
        ahead: int,
        num_fields: int,
        checked: Checked,
        checksums: Checksums,
        manifests: RecentManifests,
        salvage: bool,
    ) -> None:
        super().__init__(name, version.layout.fields[name].step_bytes, cache, decoder, ahead, num_fields)
        self._salvage = salvage
        self._checked = checked
        self._checksums = checksums
        self._manifests = manifests
        self._place = place
        self._version = version
        self._steps = version.layout.chunk_timesteps[name]
        lengths = np.array([shard.num_timesteps for shard in version.shards], np.int64)
        #: Of each shard: its first row, and the number of its first chunk.
        self._first_row = np.concatenate([[0], np.cumsum(lengths)])
        self._first_chunk = np.concatenate([[0], np.cumsum(-(-lengths // self._steps))])
        self._lengths: list[int] = lengths.tolist()
        self._chunk_borders: list[int] = self._first_chunk.tolist()
        #: Chunks that are going to be asked for, and take no time.
        self._ready: set[int] = set()

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
        return Parts(field=self.name, chunk=chunk, low=low, count=count, span=span, offset=offset)

    def _chunk_of(self, rows: Int64) -> tuple[Int64, Int64]:
        """The chunk of each row, and its position in the chunk."""
        if len(self._first_row) == 2:
            return np.divmod(rows, self._steps)
        shard = np.searchsorted(self._first_row, rows, "right") - 1
        chunk, offset = np.divmod(rows - self._first_row[shard], self._steps)
        return self._first_chunk[shard] + chunk, offset

    def extents(self, chunks: Sequence[int]) -> list[InFile]:
        """Where chunks lie that are not there and were not asked for lately."""
        told, found = self._told, []
        with self._lock:
            for key in chunks:
                if key in told or key in self._cache or key in self._coming:
                    continue
                shard = self._file_of(key)
                if shard not in self._files and (len(self._files) >= self._open_files or not self._is_near(shard)):
                    # It would be closed again before it is read, or waited for.
                    continue
                told[key] = None
                extent = self._file(key).extent(self._in_file(key))
                if extent is not None:
                    found.append(extent)
            while len(told) > TOLD:
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
                shard = self._file_of(key)
                if shard not in self._files and not self._is_near(shard):
                    continue
                if not self._file(key).takes_long(self._in_file(key)):
                    ready.add(key)
                    continue
                self._decoder.submit(self._begin(key))
        return True

    def _looked_at(self, key: int, decoding: Decoding) -> Decoding:
        """Where a copy has broken bytes it is fetched anew."""
        if not self._place.copies:
            return decoding
        try:
            decoding.result()
        except CorruptionError:
            pass
        else:
            return decoding
        shard = self._file_of(key)
        with self._lock:
            self._files.pop(shard, None)
            self._place.forget(f"shards/{self._version.shards[shard].id}")
            again = Decoding(self._file(key), self._in_file(key), None)
            if self._coming.get(key) is decoding:
                self._coming[key] = again
        again.run()
        return again

    def _keep(self, decoded: Mapping[int, Decoding], uses: Mapping[int, int]) -> None:
        with self._lock:
            self._ready.difference_update(decoded)
        super()._keep(decoded, uses)

    def _is_near(self, number: int) -> bool:
        """Whether opening a shard waits for nothing; what it would wait for is under way then."""
        return self._place.near(self._version.shards[number].id, self.name)

    def _file_of(self, key: int) -> int:
        return bisect_right(self._chunk_borders, key) - 1

    def _in_file(self, key: int) -> int:
        return key - self._chunk_borders[self._file_of(key)]

    def _steps_of(self, key: int) -> int:
        return min(self._steps, self._lengths[self._file_of(key)] - self._in_file(key) * self._steps)

    def _open(self, number: int) -> Chunks:
        num_chunks = -(-self._lengths[number] // self._steps)
        checked = np.full(num_chunks, -1, np.int64)
        if not self._place.copies:
            # A copy that is opened anew may be another one.
            checked = self._checked.setdefault((number, self.name), checked)
        return open_chunks(
            self._place, self._version, number, self.name, checked, self._checksums, self._manifests, self._salvage
        )
