"""Adopted stores: sequences in files that somebody else wrote, read in place behind the interface of a store."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.storage.adopted.reader import AdoptedReader, Sums
from streamseq.storage.adopted.source import Adopted
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.interface import Int64, Parts, Reader, Store, check_limits
from streamseq.storage.versions.rows import RowIndex, row_index

# Chunks of each field that `read` keeps between calls: enough to read one sequence in small steps.
_READ_CACHE_CHUNKS = 2


class AdoptedStore(Store):
    """Somebody else's files as a store of one version; see `adopt_zarr`, `adopt_parquet`, `adopt_arrow`, `adopt_npy`.

    It pickles with all that is known of the files, and without what is open: another process opens them when it first
    reads. A file whose size or time of modification is not what it was at adoption raises a `CorruptionError`.

    Args:
        adopted: The files.
        contents: Whether to read every value once, now: the fingerprint is then that of the values, the same wherever
            and whenever files with these values are adopted, and each chunk is compared with its checksum when it is
            read. Otherwise the fingerprint is made of the sizes and times of modification of all files, and of their
            metadata.
    """

    def __init__(self, adopted: Adopted, contents: bool) -> None:
        self._adopted = adopted
        self._rows = _rows(adopted)
        self._sums: Sums = {}
        self._own_reader: tuple[int, threading.Lock, Reader] | None = None
        self._fingerprint = self._of_contents() if contents else self._of_files()

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in ("_adopted", "_sums", "_fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._rows = _rows(self._adopted)
        self._own_reader = None

    @property
    def uri(self) -> str:
        """The file, or the folder that holds all files."""
        return self._adopted.uri

    @property
    def backend(self) -> str:
        """ "zarr", "parquet", "arrow" or "npy"."""
        return self._adopted.backend

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Store.fields`."""
        return dict(self._adopted.fields)

    @property
    def version(self) -> int:
        """Always 1."""
        return 1

    @property
    def versions(self) -> list[int]:
        """The one version."""
        return [1]

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the files, or of their contents; see `AdoptedStore`."""
        return self._fingerprint

    @property
    def ids(self) -> pa.Array:
        """See `Store.ids`."""
        return self._adopted.ids

    @property
    def lengths(self) -> Int64:
        """See `Store.lengths`."""
        return self._rows.lengths

    @property
    def num_timesteps(self) -> int:
        """See `Store.num_timesteps`."""
        return self._adopted.num_rows

    @cached_property
    def chunk_timesteps(self) -> Mapping[str, int]:
        """Timesteps of the longest chunk, by field."""
        return {name: chunks.longest() for name, chunks in self._adopted.chunks.items()}

    @cached_property
    def decoded_chunk_bytes(self) -> Mapping[str, int]:
        """Bytes of the longest chunk that is decoded, by field."""
        return {
            name: chunks.longest_decoded() * self._adopted.fields[name].step_bytes
            for name, chunks in self._adopted.chunks.items()
        }

    def reader(self, fields: Sequence[str], cache_chunks: int, ahead: int = 0) -> AdoptedReader:
        """See `Store.reader`."""
        check_limits(cache_chunks, ahead)
        return AdoptedReader(self._adopted, self._rows, self._names(fields), cache_chunks, ahead, self._sums)

    @cached_property
    def _index_of_id(self) -> dict[str, int]:
        return {id: number for number, id in enumerate(self.ids.to_pylist())}

    def find(self, id: str) -> int | None:
        """See `Store.find`."""
        return self._index_of_id.get(id)

    def attrs_json(self, sequence: int) -> str:
        """See `Store.attrs_json`."""
        return self._adopted.attrs.get(sequence, "{}")

    def _read(self, sequence: int, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        lock, reader = self._shared_reader()
        read = {}
        with lock:
            for name in fields:
                field = self._adopted.fields[name]
                values = np.empty((stop - start, *field.shape), field.dtype)
                position = 0
                for part in reader.slices(name, sequence, start, stop):
                    values[position : position + len(part)] = part
                    position += len(part)
                read[name] = values
        return read

    def _shared_reader(self) -> tuple[threading.Lock, Reader]:
        # A lock that a thread held when the process was forked stays locked in the child: a child makes its own.
        own = self._own_reader
        if own is None or own[0] != os.getpid():
            reader = self.reader(list(self.fields), _READ_CACHE_CHUNKS)
            own = self._own_reader = (os.getpid(), threading.Lock(), reader)
        return own[1], own[2]

    def _of_files(self) -> str:
        """The fingerprint by what the files say of themselves."""
        return self._digest([source.stamp() for source in self._adopted.sources], self._adopted.pieces)

    def _of_contents(self) -> str:
        """The fingerprint by all values, which are read for it; the checksums of chunks are kept."""
        chunks = {name: np.zeros(len(each), np.uint32) for name, each in self._adopted.chunks.items()}
        sequences = {name: np.zeros(len(self), np.uint32) for name in chunks}
        order = np.argsort(self._adopted.pieces[:, 1], kind="stable")
        owner, first, length = self._adopted.pieces[order].T
        for name, sums in chunks.items():
            borders = self._adopted.chunks[name].borders
            number, steps = np.arange(len(sums)), np.diff(borders)
            parts = Parts(
                field=name, chunk=number, low=np.zeros_like(number), count=steps, span=number, offset=borders[:-1]
            )
            piece = 0
            with self.reader([name], 1) as reader:
                for chunk, values in enumerate(reader.arrays(parts)):
                    data, begin = np.ascontiguousarray(values), int(borders[chunk])
                    end = begin + len(data)
                    sums[chunk] = crc32c(as_bytes(data))
                    while piece < len(first) and first[piece] < end:
                        low, high = max(begin, first[piece]), min(end, first[piece] + length[piece])
                        before = int(sequences[name][owner[piece]])
                        sequences[name][owner[piece]] = crc32c(as_bytes(data[low - begin : high - begin]), before)
                        if high == end and high < first[piece] + length[piece]:
                            break
                        piece += 1
        self._sums = chunks
        return self._digest({name: hashlib.sha256(sums.data).hexdigest() for name, sums in sequences.items()}, None)

    def _digest(self, contents: object, pieces: Int64 | None) -> str:
        fields = [[name, field.dtype.name, field.shape] for name, field in self._adopted.fields.items()]
        attrs = sorted((number, text) for number, text in self._adopted.attrs.items() if text != "{}")
        document = {"fields": fields, "attrs": attrs, "contents": contents}
        digest = hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())
        for id in self.ids.to_pylist():
            text = id.encode()
            digest.update(len(text).to_bytes(8, "little") + text)
        for array in (self.lengths, pieces):
            if array is not None:
                digest.update(np.ascontiguousarray(array, "<i8").data)
        return digest.hexdigest()


def _rows(adopted: Adopted) -> RowIndex:
    return row_index(adopted.pieces, len(adopted.ids), adopted.num_rows)
