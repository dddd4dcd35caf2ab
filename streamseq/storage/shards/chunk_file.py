"""The file of one field of one shard, open for reading: the bytes of its chunks, checked as the store was told to.

What the backends have in common: a file is a plain one, as long as it was written, what lies around its chunks is what
was written, and a chunk's bytes have the checksum that the manifest says.
"""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.checksum import crc32c
from streamseq.storage.interface import InFile, Int64
from streamseq.storage.places.plain_file import open_inside
from streamseq.storage.shards.manifest import FieldManifest
from streamseq.storage.shards.scratch import scratch
from streamseq.storage.versions.version import StoredField

Checksums = Literal["first", "always", "never"]
"""When the bytes of a chunk are compared with their checksum: when they are first used, whenever, or not at all."""

_BLOCK_BYTES = 1 << 20


def check_checksums(checksums: str) -> Checksums:
    """Return the setting.

    Raises:
        ValueError: There is no such one.
    """
    for known in get_args(Checksums):
        if checksums == known:
            found: Checksums = known
            return found
    raise ValueError(f"checksums of chunks are compared 'first', 'always' or 'never', got {checksums!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardField:
    """One field of one shard, before its file is opened.

    Args:
        folder: The folder of this machine that the files of the shard lie in.
        name: The name of the field.
        field: The field.
        codec: How its chunks are stored.
        num_timesteps: Timesteps of the shard.
        chunk_timesteps: Timesteps of its chunks; the last one can have fewer.
        stored: What the version file says of the field.
        where: What to call it in an error.
        checksums: When chunks are compared with their checksums.
        begins: int64, for each chunk where its values begin in the file, once that is known and its bytes were compared
            if they are to be; -1 before. It is noted there.
        salvage: Whether chunks are read also where the file around them is broken: its length, header or index.
    """

    folder: Path
    name: str
    field: Field
    codec: str
    num_timesteps: int
    chunk_timesteps: int
    stored: StoredField
    where: str
    checksums: Checksums
    begins: Int64
    salvage: bool = False

    @property
    def num_chunks(self) -> int:
        """Chunks of the shard."""
        return -(-self.num_timesteps // self.chunk_timesteps)

    def steps(self, chunk: int) -> int:
        """Timesteps of a chunk."""
        return min(self.chunk_timesteps, self.num_timesteps - chunk * self.chunk_timesteps)


class ChunkFile:
    """The file of one field of one shard. It is closed when nobody holds it any more; for several threads.

    Args:
        shard: The field and its shard.
        path: The path of the file in the folder of the shard.
        manifest: Where the chunks lie in it.
        gap: Bytes after each chunk, and at the end of the file after its index, that are the crc32c of what lies before
            them; 0 or 4.

    Raises:
        CorruptionError: It is not there, not a plain file, or not what was written.
    """

    def __init__(self, shard: ShardField, path: str, manifest: FieldManifest, gap: int) -> None:
        self._where = shard.where
        self._begins = shard.begins
        self._checksums = shard.checksums
        self._chunks = manifest.chunks
        self._gap = gap
        try:
            descriptor = open_inside(shard.folder, path)
        except FileNotFoundError as error:
            raise CorruptionError(f"{shard.where} lacks the file {error.filename}: restore the shard") from None
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        if shard.salvage:
            return
        size, wanted = os.fstat(descriptor).st_size, shard.stored.num_bytes
        if size != wanted:
            raise CorruptionError(f"{self._where} has {size} bytes and was written with {wanted}: restore the shard")
        offset, length, _ = manifest.chunks[-1]
        ends = self._crc(offset + length + gap, size - gap, self._crc(0, manifest.chunks[0][0]))
        # A checksum of bytes and their own crc32c would be the same for all bytes.
        trailer = int.from_bytes(self._read(size - gap, gap, "its index"), "little") if gap else ends
        if ends != manifest.ends_crc32c or trailer != ends:
            raise CorruptionError(f"{self._where} has a header or an index that fails its checksum: restore the shard")

    def _crc(self, start: int, stop: int, before: int = 0) -> int:
        crc = before
        while start < stop:
            block = self._read(start, min(stop - start, _BLOCK_BYTES), "its header or index")
            crc = crc32c(np.frombuffer(block, np.uint8), crc)
            start += len(block)
        return crc

    def _read(self, offset: int, size: int, what: str) -> memoryview:
        raw = scratch(size)
        rest, position = raw, offset
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], position)
            except OSError as error:
                raise CorruptionError(
                    f"{self._where}, {what} cannot be read: {error.strerror}; restore the shard"
                ) from error
            if not count:
                raise CorruptionError(f"{self._where}, {what} ends early: restore the shard")
            rest, position = rest[count:], position + count
        return raw

    def head(self) -> bytes:
        """What lies before the first chunk."""
        return bytes(self._read(0, self._chunks[0][0], "its header"))

    def is_known(self, chunk: int) -> bool:
        """Whether it is known where the values of a chunk begin, and nothing is left to be compared."""
        return self._checksums != "always" and bool(self._begins[chunk] >= 0)

    def values(self, chunk: int, num_bytes: int) -> InFile:
        """Where the values of a chunk that is stored as it is lie, once that is known."""
        return InFile(file=self, descriptor=self._descriptor, offset=int(self._begins[chunk]), num_bytes=num_bytes)

    def extent(self, chunk: int) -> InFile:
        """Where a chunk's bytes lie."""
        offset, size, _ = self._chunks[chunk]
        return InFile(file=self, descriptor=self._descriptor, offset=offset, num_bytes=size + self._gap)

    def read(self, chunk: int) -> memoryview:
        """The bytes of a chunk, compared with their checksum where they are to be; valid until this thread reads again.

        Raises:
            CorruptionError: They are not what was written.
        """
        offset, size, crc = self._chunks[chunk]
        raw = self._read(offset, size + self._gap, f"chunk {chunk}")
        data = raw[:size]
        if self._checksums == "always" or (self._checksums == "first" and self._begins[chunk] < 0):
            trailer = int.from_bytes(raw[size:], "little") if self._gap else crc
            if crc32c(np.frombuffer(data, np.uint8)) != crc or trailer != crc:
                raise CorruptionError(f"{self._where}, chunk {chunk} fails its checksum: restore the shard")
        return data

    def note(self, chunk: int, begin: int) -> None:
        """Note that a chunk was read and found well, and at which of its bytes its values begin."""
        self._begins[chunk] = self._chunks[chunk][0] + begin
