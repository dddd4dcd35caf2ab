"""One field of one shard as an Arrow IPC file, one record batch a chunk.

The manifest of the shard says where the message of each record batch lies, so that one is read, checked and decoded
without the footer.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numcodecs import zstd
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.interface import InFile
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.commit import sync_file, write_durably
from streamseq.storage.places.plain_file import read_inside
from streamseq.storage.shards.arrow_message import record_batch_values
from streamseq.storage.shards.chunk_file import ChunkFile, ShardField
from streamseq.storage.shards.manifest import (
    FieldManifest,
    manifest_bytes,
    manifest_document,
    max_manifest_bytes,
    parse_manifest,
)
from streamseq.storage.shards.zstd_frame import zstd_content_bytes
from streamseq.storage.versions.version import Shard, StoredField

_MANIFEST = "shard.json"
# The magic at the start of an IPC file, filled up to eight bytes.
_MAGIC_BYTES = 8


def arrow_schema(name: str, field: Field) -> pa.Schema:
    """Return the schema of a field's file: one column, a fixed shape tensor where a timestep is more than a number."""
    kind = pa.from_numpy_dtype(field.dtype)
    if field.shape:
        kind = pa.fixed_shape_tensor(kind, field.shape)
    return pa.schema([pa.field(name, kind, nullable=False)])


class _ChecksummedSink:
    """A file as pyarrow wants it, that keeps the crc32c of the first `head` bytes and of what passes after them."""

    closed = False

    def __init__(self, file: IO[bytes], head: int) -> None:
        self._file = file
        self._head = head
        self.offset = 0
        self.head_crc = 0
        self.crc = 0

    def write(self, data: Any) -> int:
        raw = np.frombuffer(data, np.uint8)
        of_head = max(0, self._head - self.offset)
        self.head_crc = crc32c(raw[:of_head], self.head_crc)
        self.crc = crc32c(raw[of_head:], self.crc)
        self.offset += len(raw)
        return self._file.write(raw.data)

    def tell(self) -> int:
        return self.offset

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """The file is closed by its owner, after it is on the disk."""


class ArrowFieldFile:
    """Writes one field of one shard: chunks in order, then `finish`."""

    def __init__(self, shard: Path, name: str, field: Field, codec: str) -> None:
        self._field = field
        self._schema = arrow_schema(name, field)
        # pyarrow writes magic and schema together with the first batch, which begins after them.
        self._end = self._head = _MAGIC_BYTES + self._schema.serialize().size
        self._file: IO[bytes] = (shard / f"{name}.arrow").open("xb")
        self._sink = _ChecksummedSink(self._file, self._head)
        options = pa.ipc.IpcWriteOptions(compression=None if codec == "none" else codec)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self._schema, options=options)
        self._chunks: list[tuple[int, int, int]] = []

    def write_chunk(self, chunk: NDArray[Any]) -> None:
        """Write one chunk `[m, *D]`, contiguous."""
        values = pa.array(chunk.reshape(-1))
        if self._field.shape:
            kind = self._schema.field(0).type
            storage = pa.FixedSizeListArray.from_arrays(values, type=kind.storage_type)
            values = pa.ExtensionArray.from_storage(kind, storage)
        self._sink.crc = 0
        self._writer.write_batch(pa.record_batch([values], schema=self._schema))
        self._chunks.append((self._end, self._sink.offset - self._end, self._sink.crc))
        self._end = self._sink.offset

    def finish(self, crc: int) -> tuple[StoredField, FieldManifest]:
        """Write the footer and put the file on the disk; `crc` is that of all decoded values."""
        self._sink.crc = self._sink.head_crc
        self._writer.close()
        sync_file(self._file)
        self._file.close()
        stored = StoredField(num_bytes=self._sink.offset, crc32c=crc)
        return stored, FieldManifest(chunks=tuple(self._chunks), ends_crc32c=self._sink.crc)

    def close(self) -> None:
        """Close the file of a shard that is not going to be finished."""
        # What a full disk has no room for is not wanted any more.
        with contextlib.suppress(OSError):
            self._file.close()


def write_arrow_manifest(shard: Path, fields: Mapping[str, FieldManifest]) -> int:
    """Write the manifest of a shard, put it on the disk, and return its crc32c."""
    content = manifest_bytes(manifest_document(fields))
    write_durably(shard / _MANIFEST, content)
    return crc32c(content)


def read_arrow_manifest(folder: Path, layout: ShardLayout, shard: Shard, where: str) -> dict[str, FieldManifest]:
    """Read the manifest of a shard whose files lie in a folder.

    Raises:
        FileNotFoundError: There is none.
        CorruptionError: It is not what was written.
    """
    content = read_inside(folder, _MANIFEST, max_manifest_bytes(layout, shard))
    return parse_manifest(content, (), 0, layout, shard, where)


class ArrowChunks:
    """Reads the chunks of one field of one shard by position in the file.

    Raises:
        CorruptionError: The file is not what was written.
    """

    def __init__(self, shard: ShardField, manifest: FieldManifest) -> None:
        self._shard = shard
        self._field = shard.field
        # Truth values are stored as bits.
        self._as_it_is = shard.codec == "none" and shard.field.dtype.kind != "b"
        self._file = ChunkFile(shard, f"{shard.name}.arrow", manifest, 0)
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(self._file.head()[_MAGIC_BYTES:]))
        except (pa.ArrowException, ValueError, OSError) as error:
            raise CorruptionError(f"{shard.where} has a header that is none: {error}; restore the shard") from error
        wanted = arrow_schema(shard.name, shard.field)
        if not schema.equals(wanted):
            raise CorruptionError(
                f"{shard.where} holds {schema.names} {schema.types} and was written as {wanted.types}: restore it"
            )
        self._decompressor = pa.Codec("lz4" if shard.codec == "none" else shard.codec)

    def takes_long(self, chunk: int) -> bool:
        """Whether `decode` does more than to say where the chunk is."""
        return not (self._as_it_is and self._file.is_known(chunk))

    def extent(self, chunk: int) -> InFile:
        """Where a chunk's bytes lie."""
        return self._file.extent(chunk)

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any] | InFile:
        """Return chunk `[m, *D]`, decoded into the array `spare`, whose old values are lost, where it fits.

        Raises:
            CorruptionError: The bytes of the chunk are not what was written.
        """
        steps = self._shard.steps(chunk)
        num_bytes = steps * self._field.step_bytes
        if self._as_it_is and self._file.is_known(chunk):
            return self._file.values(chunk, num_bytes)
        raw = self._file.read(chunk)
        try:
            rows, begin, data = record_batch_values(raw)
            if rows != steps:
                raise ValueError(f"it has {rows} timesteps and was written with {steps}")
            if self._as_it_is and len(data) < num_bytes:
                raise ValueError(f"it has {len(data)} bytes, too few")
            self._file.note(chunk, begin)
            if self._as_it_is and self._file.is_known(chunk):
                return self._file.values(chunk, num_bytes)
            return self._decode(data, steps, spare)
        except (pa.ArrowException, ValueError, RuntimeError, OSError, struct.error) as error:
            raise CorruptionError(f"{self._shard.where}, chunk {chunk} does not decode: {error}") from error

    def _decode(self, data: memoryview, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """The values of a buffer of a record batch, in memory of their own."""
        count = steps * math.prod(self._field.shape)
        is_bool = self._field.dtype.kind == "b"
        num_bytes = -(-count // 8) if is_bool else count * self._field.dtype.itemsize
        if self._shard.codec != "none":
            # A compressed buffer begins with its decoded size; -1: what follows is stored as it is.
            declared = int.from_bytes(data[:8], "little", signed=True)
            data = data[8:]
            if declared not in (num_bytes, -1):
                raise ValueError(f"it says {declared} bytes and was written with {num_bytes}")
            if declared != -1:
                if self._shard.codec == "zstd" and not is_bool:
                    if zstd_content_bytes(data) != num_bytes:
                        raise ValueError(f"it holds other than the {num_bytes} bytes that it says")
                    decoded = self._place(steps, spare)
                    zstd.decompress(data, as_bytes(decoded))
                    return decoded
                data = memoryview(self._decompressor.decompress(data, num_bytes))
        if len(data) < num_bytes:
            raise ValueError(f"it has fewer than {num_bytes} bytes")
        if is_bool:
            bits = np.frombuffer(data, np.uint8, num_bytes)
            flat = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
            return flat.reshape(steps, *self._field.shape)
        # Not a view: what was not compressed lies in memory that is used again, and Arrow's memory, which it gives to
        # every chunk anew, grows where many of them live for different times.
        decoded = self._place(steps, spare)
        as_bytes(decoded)[:] = np.frombuffer(data, np.uint8, num_bytes)
        return decoded

    def _place(self, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        shape = (steps, *self._field.shape)
        return spare if spare is not None and spare.shape == shape else np.empty(shape, self._field.dtype)
