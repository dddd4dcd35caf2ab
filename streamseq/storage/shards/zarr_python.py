"""One field of one shard read through zarr-python: an array that was rewritten with metadata other than ours.

Such arrays need not have checksums, and a missing key reads as zeros: all values are compared with the checksum in the
version file when one is opened. What the metadata claims is compared with the files before zarr-python believes it.
"""

from __future__ import annotations

import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.layout import MAX_CHUNK_BYTES
from streamseq.storage.shards.chunk_file import ShardField

# An entry of the index of a sharded object.
_ENTRY_BYTES = 16
_CODECS = {"blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"}


class ZarrPythonChunks:
    """Reads the chunks of one field of one shard through zarr-python.

    Args:
        shard: The field and its shard.
        document: The metadata of the array.

    Raises:
        CorruptionError: It does not open as an array of this field, or holds other values than were written.
    """

    def __init__(self, shard: ShardField, document: Any) -> None:
        self._shard = shard
        folder = shard.folder / shard.name
        sizes = _sizes(folder, shard.where)
        try:
            _check_claims(document, shard, sizes)
        except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise CorruptionError(
                f"{shard.where} has a zarr.json that claims what it is not: {error!r}; restore the shard"
            ) from None
        import zarr

        try:
            array = zarr.open_array(folder, mode="r")
        except Exception as error:  # zarr-python raises whatever a malformed document leads to
            raise CorruptionError(f"{shard.where} does not open as a Zarr array: {error}; restore the shard") from error
        self._array = array
        #: By chunk, where chunks are compared whenever they are read.
        self._crcs: list[int] = []
        if shard.checksums == "always" or (shard.checksums == "first" and shard.begins.min() < 0):
            self._check()

    def _check(self) -> None:
        found, crcs = 0, []
        for chunk in range(self._shard.num_chunks):
            values = as_bytes(self.decode(chunk, None))
            found = crc32c(values, found)
            crcs.append(crc32c(values))
        if found != self._shard.stored.crc32c:
            raise CorruptionError(f"{self._shard.where} has other values than were written: restore the shard")
        if self._shard.checksums == "always":
            self._crcs = crcs
        self._shard.begins[:] = 0

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """Return chunk `[m, *D]`; `spare` is left alone.

        Raises:
            CorruptionError: The bytes of the chunk are not what was written.
        """
        start = chunk * self._shard.chunk_timesteps
        try:
            values = np.ascontiguousarray(self._array[start : start + self._shard.chunk_timesteps])
        except Exception as error:  # the errors of any codec
            raise CorruptionError(f"{self._shard.where}, chunk {chunk} does not decode: {error}") from error
        if self._crcs and crc32c(as_bytes(values)) != self._crcs[chunk]:
            raise CorruptionError(f"{self._shard.where}, chunk {chunk} fails its checksum: restore the shard")
        return values

    def takes_long(self, chunk: int) -> bool:
        """Always."""
        return True

    def extent(self, chunk: int) -> None:
        """zarr-python does not say."""
        return


def _sizes(folder: Path, where: str) -> list[int]:
    """The sizes of all files in a folder and below, which hold nothing else."""
    sizes, waiting = [], [folder]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(Path(entry.path))
                elif stat.S_ISREG(found.st_mode):
                    sizes.append(found.st_size)
                else:
                    raise CorruptionError(f"{where}: a store holds plain files, {entry.path} is none: restore it")
    return sizes


def _check_claims(document: Any, shard: ShardField, sizes: list[int]) -> None:
    """Compare what the metadata of an array claims with what was written, and with the sizes of its files.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, ArithmeticError: It claims more than they can hold.
    """
    field, shape = shard.field, [shard.num_timesteps, *shard.field.shape]
    if document["data_type"] != field.dtype.name or document["shape"] != shape:
        raise ValueError(
            f"{document['data_type']} {document['shape']}, and it was written as {field.dtype.name} {shape}"
        )
    shapes = [document["chunk_grid"]["configuration"]["chunk_shape"]]
    codecs = list(document["codecs"])
    while codecs:
        codec = codecs.pop()
        if codec["name"] not in _CODECS:
            raise ValueError(f"codec {codec['name']!r}")
        if codec["name"] == "sharding_indexed":
            configuration = codec["configuration"]
            shapes.append(configuration["chunk_shape"])
            codecs += [*configuration["codecs"], *configuration["index_codecs"]]
    if len(shapes) > 2:
        raise ValueError("shards in shards")
    if not all(type(size) is int and size >= 1 for each in shapes for size in each):
        raise ValueError("sizes that are no counts")
    # Without shards each object is decoded whole.
    if math.prod(shapes[-1]) * field.dtype.itemsize > MAX_CHUNK_BYTES:
        raise ValueError(f"chunks of {shapes[-1]}")
    objects = math.prod(-(-size // chunk) for size, chunk in zip(shape, shapes[0], strict=True))
    if objects > len(sizes):
        raise ValueError(f"{objects} objects in {len(sizes)} files")
    if len(shapes) == 2:
        inner = math.prod(-(-size // chunk) for size, chunk in zip(*shapes, strict=True))
        if inner * _ENTRY_BYTES > max(sizes):
            raise ValueError(f"{inner} chunks in a file")
