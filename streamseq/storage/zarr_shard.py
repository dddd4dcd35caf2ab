"""One field of one shard as a Zarr v3 array: a single sharded object, written and read without zarr-python.

The object is chunk after chunk, then an index of offsets and lengths, then the crc32c of the index, as the
`sharding_indexed` codec of Zarr v3 says. A call into zarr-python costs more than decoding a chunk does, so it reads
only arrays with codecs other than those that are written here.
"""

from __future__ import annotations

import json
import os
import weakref
from pathlib import Path
from typing import IO, Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.commit import sync_file, write_durably
from streamseq.storage.interface import InFile, Int64
from streamseq.storage.scratch import scratch
from streamseq.storage.version import StoredField

GROUP_DOCUMENT = json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}, indent=2).encode()

_ENTRY_BYTES = 16
_CRC_BYTES = 4
_BLOSC_HEADER_BYTES = 16


def array_document(name: str, field: Field, codec: str, num_timesteps: int, chunk_timesteps: int) -> dict[str, Any]:
    """Return the `zarr.json` of one field of one shard, of `chunk_timesteps` timesteps a chunk."""
    little_endian = {"name": "bytes", "configuration": {"endian": "little"}}
    inner: list[dict[str, Any]] = [little_endian if field.dtype.itemsize > 1 else {"name": "bytes"}]
    if codec == "zstd":
        inner.append({"name": "zstd", "configuration": {"level": 3, "checksum": False}})
    elif codec != "none":
        configuration = {
            "typesize": field.dtype.itemsize,
            "cname": "lz4",
            "clevel": 5,
            "shuffle": "bitshuffle" if codec == "bitshuffle" else "noshuffle",
            "blocksize": 0,
        }
        inner.append({"name": "blosc", "configuration": configuration})
    shard_timesteps = -(-num_timesteps // chunk_timesteps) * chunk_timesteps
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_timesteps, *field.shape],
        "data_type": field.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_timesteps, *field.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": {"b": False, "f": 0.0}.get(field.dtype.kind, 0),
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": [chunk_timesteps, *field.shape],
                    "codecs": [*inner, {"name": "crc32c"}],
                    "index_codecs": [little_endian, {"name": "crc32c"}],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": ["timestep", *(f"{name}_{axis}" for axis in range(len(field.shape)))],
        "attributes": {},
        "storage_transformers": [],
    }


def _object_path(folder: Path, field: Field) -> Path:
    return folder.joinpath("c", *["0"] * (1 + len(field.shape)))


class ZarrFieldFile:
    """Writes one field of one shard: chunks in order, then `finish`."""

    def __init__(self, shard: Path, name: str, field: Field, codec: str, chunk_timesteps: int) -> None:
        self._folder = shard / name
        self._name = name
        self._field = field
        self._codec = codec
        self._chunk_timesteps = chunk_timesteps
        self._num_timesteps = 0
        self._index: list[tuple[int, int]] = []
        self._offset = 0
        path = _object_path(self._folder, field)
        path.parent.mkdir(parents=True)
        self._file: IO[bytes] = path.open("xb")

    def write_chunk(self, chunk: NDArray[Any]) -> None:
        """Write one chunk `[m, *D]`, contiguous; only the last one may have fewer timesteps than a chunk."""
        steps = len(chunk)
        if steps < self._chunk_timesteps and self._index:
            # Every chunk of a Zarr array has the same shape: the last one is filled up.
            full = np.zeros((self._chunk_timesteps, *self._field.shape), self._field.dtype)
            full[:steps] = chunk
            chunk = full
        encoded = self._encode(chunk)
        crc = crc32c(encoded)
        self._file.write(encoded.data)
        self._file.write(crc.to_bytes(_CRC_BYTES, "little"))
        size = len(encoded) + _CRC_BYTES
        self._index.append((self._offset, size))
        self._offset += size
        self._num_timesteps += steps

    def finish(self, crc: int) -> StoredField:
        """Write the index and the metadata, and put them on the disk; `crc` is that of all decoded values."""
        index = np.array(self._index, "<u8").tobytes()
        self._file.write(index)
        self._file.write(crc32c(index).to_bytes(_CRC_BYTES, "little"))
        sync_file(self._file)
        self._file.close()
        # A shard of less than a chunk is one chunk of just its length.
        steps = min(self._chunk_timesteps, self._num_timesteps)
        document = array_document(self._name, self._field, self._codec, self._num_timesteps, steps)
        write_durably(self._folder / "zarr.json", json.dumps(document, indent=2).encode())
        return StoredField(num_bytes=self._offset + len(index) + _CRC_BYTES, crc32c=crc)

    def close(self) -> None:
        """Close the file of a shard that is not going to be finished."""
        self._file.close()

    def _encode(self, chunk: NDArray[Any]) -> NDArray[np.uint8]:
        if self._codec == "none":
            return as_bytes(chunk)
        if self._codec == "zstd":
            return np.frombuffer(zstd.compress(as_bytes(chunk), 3), np.uint8)
        shuffle = blosc.BITSHUFFLE if self._codec == "bitshuffle" else blosc.NOSHUFFLE
        # blosc takes the size of a value from the buffer, so it must see the array and not its bytes.
        return np.frombuffer(blosc.compress(chunk.reshape(-1), b"lz4", 5, shuffle, 0), np.uint8)


class ZarrChunks:
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
        where: str,
        checked: Int64,
    ) -> None:
        self._checked = checked
        self._field = field
        self._codec = codec
        self._num_timesteps = num_timesteps
        self._chunk_timesteps = chunk_timesteps
        self._where = where
        self._chunk_bytes = chunk_timesteps * field.step_bytes
        path = _object_path(shard / name, field)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, descriptor)
        self._descriptor = descriptor
        size = os.fstat(descriptor).st_size
        if size != num_bytes:
            raise CorruptionError(f"{where} has {size} bytes and was written with {num_bytes}: restore the shard")
        self._index = self._read_index(size)

    def _read_index(self, size: int) -> list[list[int]]:
        num_chunks = -(-self._num_timesteps // self._chunk_timesteps)
        index_bytes = num_chunks * _ENTRY_BYTES
        end = size - index_bytes - _CRC_BYTES
        if end < 0:
            raise CorruptionError(f"{self._where} has {size} bytes, too few for {num_chunks} chunks: restore the shard")
        raw = os.pread(self._descriptor, index_bytes + _CRC_BYTES, end)
        if crc32c(raw[:index_bytes]) != int.from_bytes(raw[index_bytes:], "little"):
            raise CorruptionError(f"{self._where} has an index that is not what was written: restore the shard")
        index = np.frombuffer(raw[:index_bytes], "<u8").reshape(num_chunks, 2)
        # Compared as what is left, for a sum of two offsets could wrap.
        if np.any(index[:, 0] > end) or np.any(index[:, 1] > end - index[:, 0]) or np.any(index[:, 1] < _CRC_BYTES):
            raise CorruptionError(f"{self._where} has an index that points out of its file: restore the shard")
        entries: list[list[int]] = index.tolist()
        return entries

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any] | InFile:
        """Return chunk `[m, *D]`, decoded into the array `spare`, whose old values are lost, where it fits.

        Raises:
            CorruptionError: The bytes of the chunk are not what was written.
        """
        offset, size = self._index[chunk]
        if self._codec == "none" and self._checked[chunk] >= 0:
            return InFile(file=self, descriptor=self._descriptor, offset=offset, num_bytes=size - _CRC_BYTES)
        raw = scratch(size)
        if os.preadv(self._descriptor, [raw], offset) != size:
            raise CorruptionError(f"{self._where}, chunk {chunk} ends early: restore the shard")
        data = raw[:-_CRC_BYTES]
        if self._checked[chunk] < 0:
            if crc32c(np.frombuffer(data, np.uint8)) != int.from_bytes(raw[-_CRC_BYTES:], "little"):
                raise CorruptionError(f"{self._where}, chunk {chunk} fails its checksum: restore the shard")
            self._checked[chunk] = offset
        declared = _decoded_bytes(data, self._codec)
        if declared != self._chunk_bytes:
            raise CorruptionError(
                f"{self._where}, chunk {chunk} decodes to {declared} bytes and was written with "
                f"{self._chunk_bytes}: restore the shard"
            )
        if self._codec == "none":
            return self.decode(chunk, None)
        decoded = self._place(spare)
        try:
            (zstd if self._codec == "zstd" else blosc).decompress(data, as_bytes(decoded))
        except (RuntimeError, ValueError) as error:
            raise CorruptionError(f"{self._where}, chunk {chunk} does not decode: {error}") from error
        return self._cut(decoded, chunk)

    def _place(self, spare: NDArray[Any] | None) -> NDArray[Any]:
        shape = (self._chunk_timesteps, *self._field.shape)
        return spare if spare is not None and spare.shape == shape else np.empty(shape, self._field.dtype)

    def _cut(self, decoded: NDArray[Any], chunk: int) -> NDArray[Any]:
        steps = self._num_timesteps - chunk * self._chunk_timesteps
        return decoded if steps >= self._chunk_timesteps else decoded[:steps]

    def takes_long(self, chunk: int) -> bool:
        """Whether `decode` does more than to say where the chunk is."""
        return self._codec != "none" or bool(self._checked[chunk] < 0)

    def extent(self, chunk: int) -> InFile | None:
        """Where a chunk's bytes lie."""
        offset, size = self._index[chunk]
        return InFile(file=self, descriptor=self._descriptor, offset=offset, num_bytes=size)


class ZarrPythonChunks:
    """Reads the chunks of one field of one shard through zarr-python: an array with codecs that are not ours.

    Such codecs need not have checksums, and a missing key reads as zeros: all values are checked when it is opened.
    """

    def __init__(
        self, shard: Path, name: str, field: Field, num_timesteps: int, chunk_timesteps: int, crc: int, where: str
    ) -> None:
        import zarr

        try:
            array = zarr.open_array(shard / name, mode="r")
        except Exception as error:  # zarr-python raises whatever a malformed document leads to
            raise CorruptionError(f"{where} does not open as a Zarr array: {error}") from error
        wanted = (num_timesteps, *field.shape)
        if array.shape != wanted or array.dtype != field.dtype:
            raise CorruptionError(
                f"{where} is {array.dtype} {list(array.shape)} and was written as {field.dtype} {list(wanted)}: "
                "restore the shard"
            )
        self._array = array
        self._chunk_timesteps = chunk_timesteps
        self._where = where
        found = 0
        for chunk in range(-(-num_timesteps // chunk_timesteps)):
            found = crc32c(as_bytes(np.ascontiguousarray(self.decode(chunk, None))), found)
        if found != crc:
            raise CorruptionError(f"{where} has other values than were written: restore the shard")

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """Return chunk `[m, *D]`; `spare` is left alone.

        Raises:
            CorruptionError: The bytes of the chunk are not what was written.
        """
        start = chunk * self._chunk_timesteps
        try:
            return np.asarray(self._array[start : start + self._chunk_timesteps])
        except Exception as error:  # the errors of any codec
            raise CorruptionError(f"{self._where}, chunk {chunk} does not decode: {error}") from error

    def takes_long(self, chunk: int) -> bool:
        """Always."""
        return True

    def extent(self, chunk: int) -> InFile | None:
        """zarr-python does not say."""
        return None


def open_zarr_chunks(
    shard: Path,
    name: str,
    field: Field,
    codec: str,
    num_timesteps: int,
    chunk_timesteps: int,
    stored: StoredField,
    where: str,
    checked: Int64,
) -> ZarrChunks | ZarrPythonChunks:
    """Open one field of one shard, of `chunk_timesteps` timesteps a chunk (fewer where the shard has fewer).

    Args:
        checked: For each chunk where it begins once its checksum was compared, -1 before; it is noted there.

    Raises:
        CorruptionError: The metadata or the index is not what was written.
    """
    steps = min(chunk_timesteps, num_timesteps)
    try:
        document = json.loads((shard / name / "zarr.json").read_bytes())
        if document == array_document(name, field, codec, num_timesteps, steps):
            return ZarrChunks(shard, name, field, codec, num_timesteps, steps, stored.num_bytes, where, checked)
    except FileNotFoundError as error:
        raise CorruptionError(f"{where} lacks the file {error.filename}: restore the shard") from None
    except ValueError:
        raise CorruptionError(f"{where} has a zarr.json that is not JSON: restore the shard") from None
    return ZarrPythonChunks(shard, name, field, num_timesteps, steps, stored.crc32c, where)


def _decoded_bytes(data: memoryview, codec: str) -> int | None:
    """The size that a chunk says it decodes to; None where its header is none of ours."""
    if codec == "none":
        return len(data)
    if codec == "zstd":
        return _zstd_content_bytes(data)
    # blosc trusts the size in its header and would read past the end of a shorter chunk.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        return None
    return int.from_bytes(data[4:8], "little")


def _zstd_content_bytes(data: memoryview) -> int | None:
    """The content size in the header of a zstd frame (RFC 8878, section 3.1.1.1)."""
    if len(data) < 5 or bytes(data[:4]) != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = data[4]
    single_segment = descriptor >> 5 & 1
    start = 5 + (0 if single_segment else 1) + (0, 1, 2, 4)[descriptor & 3]
    size = (single_segment, 2, 4, 8)[descriptor >> 6]
    if size == 0 or len(data) < start + size:
        return None
    return int.from_bytes(data[start : start + size], "little") + (256 if size == 2 else 0)
