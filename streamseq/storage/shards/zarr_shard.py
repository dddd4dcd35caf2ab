"""One field of one shard as a Zarr v3 array: a single sharded object, written and read without zarr-python.

The object is chunk after chunk, then an index of offsets and lengths, then the crc32c of the index, as the
`sharding_indexed` codec of Zarr v3 says. A call into zarr-python costs more than decoding a chunk does, so it reads
only arrays with codecs other than those that are written here.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numcodecs import blosc, zstd
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.interface import InFile
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.commit import sync_file, write_durably
from streamseq.storage.places.plain_file import read_inside
from streamseq.storage.shards.chunk_file import ChunkFile, ShardField
from streamseq.storage.shards.manifest import (
    FieldManifest,
    manifest_bytes,
    manifest_document,
    max_manifest_bytes,
    parse_manifest,
)
from streamseq.storage.shards.zstd_frame import zstd_content_bytes
from streamseq.storage.strict_json import parse_json
from streamseq.storage.versions.version import FORMAT, Shard, StoredField

_GROUP: dict[str, Any] = {"zarr_format": 3, "node_type": "group", "attributes": {}}
GROUP_DOCUMENT = json.dumps(_GROUP, indent=2).encode()

_METADATA = "zarr.json"
_MAX_METADATA_BYTES = 1 << 20
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


def _object_name(name: str, field: Field) -> str:
    """The path of the only stored object of a field, in the folder of its shard."""
    return "/".join([name, "c", *["0"] * (1 + len(field.shape))])


class ZarrFieldFile:
    """Writes one field of one shard: chunks in order, then `finish`."""

    def __init__(self, shard: Path, name: str, field: Field, codec: str, chunk_timesteps: int) -> None:
        self._folder = shard / name
        self._name = name
        self._field = field
        self._codec = codec
        self._chunk_timesteps = chunk_timesteps
        self._num_timesteps = 0
        self._chunks: list[tuple[int, int, int]] = []
        self._offset = 0
        path = shard / _object_name(name, field)
        path.parent.mkdir(parents=True)
        self._file: IO[bytes] = path.open("xb")

    def write_chunk(self, chunk: NDArray[Any]) -> None:
        """Write one chunk `[m, *D]`, contiguous; only the last one may have fewer timesteps than a chunk."""
        steps = len(chunk)
        if steps < self._chunk_timesteps and self._chunks:
            # Every chunk of a Zarr array has the same shape: the last one is filled up.
            full = np.zeros((self._chunk_timesteps, *self._field.shape), self._field.dtype)
            full[:steps] = chunk
            chunk = full
        encoded = self._encode(chunk)
        crc = crc32c(encoded)
        self._file.write(encoded.data)
        self._file.write(crc.to_bytes(_CRC_BYTES, "little"))
        self._chunks.append((self._offset, len(encoded), crc))
        self._offset += len(encoded) + _CRC_BYTES
        self._num_timesteps += steps

    def finish(self, crc: int) -> tuple[StoredField, FieldManifest]:
        """Write the index and the metadata, and put them on the disk; `crc` is that of all decoded values."""
        index = np.array([(offset, size + _CRC_BYTES) for offset, size, _ in self._chunks], "<u8").tobytes()
        index_crc = crc32c(index)
        self._file.write(index)
        self._file.write(index_crc.to_bytes(_CRC_BYTES, "little"))
        sync_file(self._file)
        self._file.close()
        # A shard of less than a chunk is one chunk of just its length.
        steps = min(self._chunk_timesteps, self._num_timesteps)
        document = array_document(self._name, self._field, self._codec, self._num_timesteps, steps)
        write_durably(self._folder / _METADATA, json.dumps(document, indent=2).encode())
        stored = StoredField(num_bytes=self._offset + len(index) + _CRC_BYTES, crc32c=crc)
        return stored, FieldManifest(chunks=tuple(self._chunks), ends_crc32c=index_crc)

    def close(self) -> None:
        """Close the file of a shard that is not going to be finished."""
        # What a full disk has no room for is not wanted any more.
        with contextlib.suppress(OSError):
            self._file.close()

    def _encode(self, chunk: NDArray[Any]) -> NDArray[np.uint8]:
        if self._codec == "none":
            return as_bytes(chunk)
        if self._codec == "zstd":
            return np.frombuffer(zstd.compress(as_bytes(chunk), 3), np.uint8)
        shuffle = blosc.BITSHUFFLE if self._codec == "bitshuffle" else blosc.NOSHUFFLE
        # blosc takes the size of a value from the buffer, so it must see the array and not its bytes.
        return np.frombuffer(blosc.compress(chunk.reshape(-1), b"lz4", 5, shuffle, 0), np.uint8)


def write_zarr_manifest(shard: Path, fields: Mapping[str, FieldManifest]) -> int:
    """Write the `zarr.json` of a shard's group, with its manifest, put it on the disk, and return its crc32c."""
    content = manifest_bytes(_GROUP | {"attributes": {FORMAT: manifest_document(fields)}})
    write_durably(shard / _METADATA, content)
    return crc32c(content)


def read_zarr_manifest(folder: Path, layout: ShardLayout, shard: Shard, where: str) -> dict[str, FieldManifest]:
    """Read the manifest of a shard whose files lie in a folder.

    Raises:
        FileNotFoundError: There is none.
        CorruptionError: It is not what was written.
    """
    content = read_inside(folder, _METADATA, max_manifest_bytes(layout, shard))
    return parse_manifest(content, ("attributes", FORMAT), _CRC_BYTES, layout, shard, where)


class ZarrChunks:
    """Reads the chunks of one field of one shard by position in the file.

    Raises:
        CorruptionError: The file is not what was written.
    """

    def __init__(self, shard: ShardField, manifest: FieldManifest) -> None:
        self._shard = shard
        # Every chunk of a Zarr array has the same shape.
        self._shape = (shard.chunk_timesteps, *shard.field.shape)
        self._chunk_bytes = shard.chunk_timesteps * shard.field.step_bytes
        self._as_it_is = shard.codec == "none"
        self._file = ChunkFile(shard, _object_name(shard.name, shard.field), manifest, _CRC_BYTES)

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
        shard = self._shard
        if self._as_it_is and self._file.is_known(chunk):
            return self._file.values(chunk, self._chunk_bytes)
        data = self._file.read(chunk)
        declared = _decoded_bytes(data, shard.codec)
        if declared != self._chunk_bytes:
            raise CorruptionError(
                f"{shard.where}, chunk {chunk} decodes to {declared} bytes and was written with "
                f"{self._chunk_bytes}: restore the shard"
            )
        self._file.note(chunk, 0)
        if self._as_it_is and self._file.is_known(chunk):
            return self._file.values(chunk, self._chunk_bytes)
        fits = spare is not None and spare.shape == self._shape
        decoded = spare if spare is not None and fits else np.empty(self._shape, shard.field.dtype)
        try:
            if self._as_it_is:
                as_bytes(decoded)[:] = np.frombuffer(data, np.uint8)
            else:
                (zstd if shard.codec == "zstd" else blosc).decompress(data, as_bytes(decoded))
        except (RuntimeError, ValueError) as error:
            raise CorruptionError(f"{shard.where}, chunk {chunk} does not decode: {error}") from error
        steps = shard.steps(chunk)
        return decoded if steps == len(decoded) else decoded[:steps]


def array_metadata(shard: ShardField) -> Any:
    """The metadata of a field's array, unchecked.

    Raises:
        CorruptionError: There is none, or it is not JSON.
    """
    try:
        return parse_json(read_inside(shard.folder, f"{shard.name}/{_METADATA}", _MAX_METADATA_BYTES))
    except FileNotFoundError as error:
        raise CorruptionError(f"{shard.where} lacks the file {error.filename}: restore the shard") from None
    except ValueError as error:
        raise CorruptionError(f"{shard.where} has a {_METADATA} that is not JSON: {error}; restore the shard") from None


def is_ours(metadata: Any, shard: ShardField) -> bool:
    """Whether the metadata of an array is what is written here, so that the manifest holds for its file."""
    wanted = array_document(shard.name, shard.field, shard.codec, shard.num_timesteps, shard.chunk_timesteps)
    return bool(metadata == wanted)


def _decoded_bytes(data: memoryview, codec: str) -> int | None:
    """The size that a chunk says it decodes to; None where its header is none of ours."""
    if codec == "none":
        return len(data)
    if codec == "zstd":
        return zstd_content_bytes(data)
    # blosc trusts the size in its header and would read past the end of a shorter chunk.
    if len(data) < _BLOSC_HEADER_BYTES or int.from_bytes(data[12:16], "little") != len(data):
        return None
    return int.from_bytes(data[4:8], "little")
