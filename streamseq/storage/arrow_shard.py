"""One field of one shard as an Arrow IPC file, one record batch a chunk, and the manifest that says where they lie.

The manifest of a shard gives the offset, length and crc32c of each record batch in its file, so that one batch is
read, checked and decoded without the footer, which has no checksum.
"""

from __future__ import annotations

import json
import math
import os
import struct
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numcodecs import zstd
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.arrow_message import record_batch_values
from streamseq.storage.checksum import as_bytes, crc32c, to_hex
from streamseq.storage.commit import sync_file, write_durably
from streamseq.storage.interface import InFile, Int64
from streamseq.storage.scratch import scratch
from streamseq.storage.version import StoredField

_MANIFEST = "shard.json"
# The magic at the start of an IPC file, filled up to eight bytes.
_MAGIC_BYTES = 8

Batch = tuple[int, int, int]
"""Where one record batch lies in its file: offset, bytes, crc32c."""


def arrow_schema(name: str, field: Field) -> pa.Schema:
    """Return the schema of a field's file: one column, a fixed shape tensor where a timestep is more than a number."""
    kind = pa.from_numpy_dtype(field.dtype)
    if field.shape:
        kind = pa.fixed_shape_tensor(kind, field.shape)
    return pa.schema([pa.field(name, kind, nullable=False)])


class _ChecksummedSink:
    """A file as pyarrow wants it, that keeps the crc32c of what passes after the first `head` bytes."""

    closed = False

    def __init__(self, file: IO[bytes], head: int) -> None:
        self._file = file
        self._head = head
        self.offset = 0
        self.crc = 0

    def write(self, data: Any) -> int:
        raw = np.frombuffer(data, np.uint8)
        self.crc = crc32c(raw[max(0, self._head - self.offset) :], self.crc)
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
        self._end = _MAGIC_BYTES + self._schema.serialize().size
        self._file: IO[bytes] = (shard / f"{name}.arrow").open("xb")
        self._sink = _ChecksummedSink(self._file, self._end)
        options = pa.ipc.IpcWriteOptions(compression=None if codec == "none" else codec)
        self._writer = pa.ipc.new_file(pa.PythonFile(self._sink, mode="w"), self._schema, options=options)
        self.batches: list[Batch] = []

    def write_chunk(self, chunk: NDArray[Any]) -> None:
        """Write one chunk `[m, *D]`, contiguous."""
        values = pa.array(chunk.reshape(-1))
        if self._field.shape:
            kind = self._schema.field(0).type
            storage = pa.FixedSizeListArray.from_arrays(values, type=kind.storage_type)
            values = pa.ExtensionArray.from_storage(kind, storage)
        self._sink.crc = 0
        self._writer.write_batch(pa.record_batch([values], schema=self._schema))
        self.batches.append((self._end, self._sink.offset - self._end, self._sink.crc))
        self._end = self._sink.offset

    def finish(self, crc: int) -> StoredField:
        """Write the footer and put the file on the disk; `crc` is that of all decoded values."""
        self._writer.close()
        sync_file(self._file)
        self._file.close()
        return StoredField(num_bytes=self._sink.offset, crc32c=crc)

    def close(self) -> None:
        """Close the file of a shard that is not going to be finished."""
        self._file.close()


def write_manifest(shard: Path, batches: Mapping[str, list[Batch]]) -> int:
    """Write where the record batches of each field lie, put it on the disk, and return its crc32c."""
    document = {
        name: [{"offset": offset, "bytes": size, "crc32c": to_hex(crc)} for offset, size, crc in entries]
        for name, entries in batches.items()
    }
    content = json.dumps({"batches": document}, indent=1).encode()
    write_durably(shard / _MANIFEST, content)
    return crc32c(content)


def _read_manifest(shard: Path, name: str, crc: int | None, where: str) -> list[Batch]:
    content = (shard / _MANIFEST).read_bytes()
    if crc32c(content) != crc:
        raise CorruptionError(f"{where} has a {_MANIFEST} that fails its checksum: restore the shard")
    try:
        return [
            (int(entry["offset"]), int(entry["bytes"]), int(entry["crc32c"], 16))
            for entry in json.loads(content)["batches"][name]
        ]
    except (ValueError, TypeError, KeyError):
        raise CorruptionError(f"{where} has a {_MANIFEST} that does not say where its chunks lie") from None


class ArrowChunks:
    """Reads the chunks of one field of one shard by position in the file."""

    def __init__(
        self,
        shard: Path,
        name: str,
        field: Field,
        codec: str,
        num_timesteps: int,
        chunk_timesteps: int,
        num_bytes: int,
        manifest_crc: int | None,
        where: str,
        checked: Int64,
    ) -> None:
        self._field = field
        self._codec = codec
        # Truth values are stored as bits.
        self._as_it_is = codec == "none" and field.dtype.kind != "b"
        self._num_timesteps = num_timesteps
        self._chunk_timesteps = chunk_timesteps
        self._where = where
        try:
            self._batches = _read_manifest(shard, name, manifest_crc, where)
            descriptor = os.open(shard / f"{name}.arrow", os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise CorruptionError(f"{where} lacks a file in {shard}: restore the shard") from None
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if size != num_bytes:
            raise CorruptionError(f"{where} has {size} bytes and was written with {num_bytes}: restore the shard")
        self._decompressor = pa.Codec("lz4" if codec == "none" else codec)
        num_chunks = -(-num_timesteps // chunk_timesteps)
        if len(self._batches) != num_chunks:
            raise CorruptionError(f"{where} has {len(self._batches)} chunks and was written with {num_chunks}")
        if any(offset < 0 or length < 0 or offset + length > num_bytes for offset, length, _ in self._batches):
            raise CorruptionError(f"{where} has a {_MANIFEST} that points out of its file: restore the shard")
        self._checked = checked

    def takes_long(self, chunk: int) -> bool:
        """Whether `decode` does more than to say where the chunk is."""
        return not self._as_it_is or bool(self._checked[chunk] < 0)

    def extent(self, chunk: int) -> InFile | None:
        """Where a chunk's bytes lie."""
        offset, size, _ = self._batches[chunk]
        return InFile(file=self, descriptor=self._descriptor, offset=offset, num_bytes=size)

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any] | InFile:
        """Return chunk `[m, *D]`, decoded into the array `spare`, whose old values are lost, where it fits.

        Raises:
            CorruptionError: The bytes of the chunk are not what was written.
        """
        offset, size, crc = self._batches[chunk]
        steps = min(self._chunk_timesteps, self._num_timesteps - chunk * self._chunk_timesteps)
        begins = int(self._checked[chunk])
        if self._as_it_is and begins >= 0:
            num_bytes = steps * self._field.step_bytes
            return InFile(file=self, descriptor=self._descriptor, offset=begins, num_bytes=num_bytes)
        raw = scratch(size)
        if os.preadv(self._descriptor, [raw], offset) != size:
            raise CorruptionError(f"{self._where}, chunk {chunk} ends early: restore the shard")
        if begins < 0 and crc32c(np.frombuffer(raw, np.uint8)) != crc:
            raise CorruptionError(f"{self._where}, chunk {chunk} fails its checksum: restore the shard")
        try:
            rows, begin, data = record_batch_values(raw)
            if rows != steps:
                raise ValueError(f"it has {rows} timesteps and was written with {steps}")
            if self._as_it_is and len(data) < steps * self._field.step_bytes:
                raise ValueError(f"it has {len(data)} bytes, too few")
            self._checked[chunk] = offset + begin
            return self.decode(chunk, None) if self._as_it_is else self._decode(data, steps, spare)
        except (pa.ArrowException, ValueError, RuntimeError, OSError, struct.error) as error:
            raise CorruptionError(f"{self._where}, chunk {chunk} does not decode: {error}") from error

    def _decode(self, data: memoryview, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """The values of a buffer of a record batch, in memory of their own."""
        count = steps * math.prod(self._field.shape)
        is_bool = self._field.dtype.kind == "b"
        num_bytes = -(-count // 8) if is_bool else count * self._field.dtype.itemsize
        if self._codec != "none":
            # A compressed buffer begins with its decoded size; -1: what follows is stored as it is.
            declared = int.from_bytes(data[:8], "little", signed=True)
            data = data[8:]
            if declared not in (num_bytes, -1):
                raise ValueError(f"it says {declared} bytes and was written with {num_bytes}")
            if declared != -1:
                if self._codec == "zstd" and not is_bool:
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
