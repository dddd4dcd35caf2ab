"""A version of a store on disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field
from streamseq.storage.interface import Store, check_limits
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place, place_of, version_name
from streamseq.storage.reader import Checked, DiskReader
from streamseq.storage.shards.chunk_file import Checksums, check_checksums
from streamseq.storage.upkeep.findings import VerifyReport
from streamseq.storage.versions.attachments import read_attachment
from streamseq.storage.versions.catalogue import Catalogue
from streamseq.storage.versions.version import Version, parse_version

# Chunks of each field that `read` keeps between calls: enough to read one sequence in small steps.
_READ_CACHE_CHUNKS = 2


class DiskStore(Store):
    """One version of a store on disk; nothing but its version file is read until it is needed.

    Only the address, the version and the setting are pickled: another process opens the store again, when it first
    uses it.

    Args:
        uri: A local path or `file://` URL; or the place itself.
        version: The version to read; None: the newest one, now.
        checksums: When chunks are compared with their checksums: "first", "always" or "never".

    Raises:
        StoreError: There is no store at the address, or no such version.
        ValueError: There is no such setting.
    """

    def __init__(
        self, uri: str | os.PathLike[str] | Place, version: int | None = None, checksums: Checksums = "first"
    ) -> None:
        self._checksums = check_checksums(checksums)
        self.place = place_of(uri)
        if version is None:
            numbers = self.place.version_numbers()
            if not numbers:
                raise StoreError(_no_store(self.place))
            version = numbers[-1]
        elif isinstance(version, bool) or not isinstance(version, int):
            raise TypeError(f"a version is an int or None (the newest), got {type(version).__name__}")
        self._number = version
        self._own_reader: tuple[int, threading.Lock, DiskReader] | None = None
        self._checked: Checked = {}

    def __reduce__(self) -> tuple[type[DiskStore], tuple[Place, int, Checksums]]:
        return DiskStore, (self.place, self._number, self._checksums)

    @cached_property
    def snapshot(self) -> Version:
        """What the version file says.

        Raises:
            StoreError: There is no such version.
            CorruptionError: The file is not what was written.
        """
        name = version_name(self._number)
        try:
            content = self.place.read(name)
        except FileNotFoundError:
            numbers = self.place.version_numbers()
            if not numbers:
                raise StoreError(_no_store(self.place)) from None
            raise StoreError(
                f"{self.uri} has versions {numbers[0]} to {numbers[-1]}, got {self._number}: open one of those"
            ) from None
        return parse_version(content, self._number, f"version file {self.uri}/{name}")

    @property
    def layout(self) -> ShardLayout:
        """How the shards of this store are cut and encoded: what a `ShardWriter` that adds to it is given."""
        return self.snapshot.layout

    @property
    def uri(self) -> str:
        """The address of the store: an absolute path where it lies on this machine."""
        return self.place.uri

    @property
    def backend(self) -> str:
        """See `Store.backend`."""
        return self.layout.backend

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Store.fields`."""
        return dict(self.layout.fields)

    @property
    def version(self) -> int:
        """See `Store.version`."""
        return self._number

    @property
    def versions(self) -> list[int]:
        """See `Store.versions`."""
        return self.place.version_numbers()

    def at_version(self, version: int | None = None) -> Store:
        """See `Store.at_version`."""
        make, (place, _, *settings) = self.__reduce__()
        other = make(place, version, *settings)
        if other.version == self.version:
            return self
        _ = other.snapshot  # so that what is wrong with it shows here and not at the first use
        return other

    @property
    def fingerprint(self) -> str:
        """See `Store.fingerprint`."""
        return self.snapshot.fingerprint

    @property
    def ids(self) -> pa.Array:
        """See `Store.ids`."""
        return self.catalogue.ids

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Store.lengths`."""
        return self.catalogue.rows.lengths

    def length(self, sequence: int) -> int:
        """See `Store.length`."""
        return int(self.catalogue.pieces_of(sequence)[:, 2].sum())

    @property
    def num_timesteps(self) -> int:
        """See `Store.num_timesteps`."""
        return self.snapshot.num_timesteps

    @property
    def chunk_timesteps(self) -> Mapping[str, int]:
        """See `Store.chunk_timesteps`."""
        return dict(self.layout.chunk_timesteps)

    @property
    def decoded_chunk_bytes(self) -> Mapping[str, int]:
        """See `Store.decoded_chunk_bytes`."""
        layout = self.layout
        # What is stored as it is is read to where it is needed, once it was checked; Arrow stores truth values as bits.
        decoded = {
            name: layout.codecs[name] != "none"
            or (field.dtype.kind == "b" and layout.backend == "arrow")
            or self._checksums == "always"
            for name, field in layout.fields.items()
        }
        return {
            name: layout.chunk_timesteps[name] * field.step_bytes * decoded[name]
            for name, field in layout.fields.items()
        }

    def __len__(self) -> int:
        return self.snapshot.num_sequences

    def reader(self, fields: Sequence[str], cache_chunks: int, ahead: int = 0) -> DiskReader:
        """See `Store.reader`."""
        check_limits(cache_chunks, ahead)
        return DiskReader(
            self.place,
            self.snapshot,
            self.catalogue,
            self._names(fields),
            cache_chunks,
            ahead,
            self._checked,
            self._checksums,
        )

    @cached_property
    def catalogue(self) -> Catalogue:
        """Which sequences there are, and where they lie."""
        return Catalogue(self.place, self.snapshot)

    def find(self, id: str) -> int | None:
        """See `Store.find`."""
        return self.catalogue.find(id)

    def attrs_json(self, sequence: int) -> str:
        """See `Store.attrs_json`."""
        return self.catalogue.attrs_of(sequence)

    def id_of(self, sequence: int) -> str:
        """See `Store.id_of`."""
        return self.catalogue.id_of(sequence)

    def indices(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """See `Store.indices`."""
        ids = list(ids)
        for id in ids:
            if not isinstance(id, str):
                raise TypeError(f"a sequence's id is a str, got {type(id).__name__}")
        found = self.catalogue.find_all(ids)
        if np.any(found < 0):
            raise self._no_sequence(ids[int(np.argmax(found < 0))])
        return found

    def verify(self, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """See `Store.verify`: version file, tables, the checksum of every chunk, and that it decodes."""
        # It reads versions, as stores do.
        from streamseq.storage.upkeep.verify import verify

        return verify(self.place, self._number, workers=workers, progress=progress)

    def attachment(self, name: str) -> bytes | None:
        """See `Store.attachment`."""
        file = self.snapshot.attachments.get(name)
        return None if file is None else read_attachment(self.place, name, file)

    @property
    def attachment_names(self) -> list[str]:
        """See `Store.attachment_names`."""
        return list(self.snapshot.attachments)

    def _read(self, sequence: int, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        lock, reader = self._shared_reader()
        rows, counts = self.catalogue.rows_of(sequence, start, stop)
        read = {}
        with lock:
            for name in fields:
                field = self.layout.fields[name]
                slices = reader.rows(name, rows, counts)
                # Finding the first chunk checks the sizes that the metadata claims, before memory is asked for.
                part = next(slices, None)
                values = np.empty((stop - start, *field.shape), field.dtype)
                position = 0
                while part is not None:
                    values[position : position + len(part)] = part
                    position += len(part)
                    part = next(slices, None)
                read[name] = values
        return read

    def _shared_reader(self) -> tuple[threading.Lock, DiskReader]:
        # A lock that a thread held when the process was forked stays locked in the child: a child makes its own.
        own = self._own_reader
        if own is None or own[0] != os.getpid():
            reader = self.reader(list(self.fields), _READ_CACHE_CHUNKS)
            own = self._own_reader = (os.getpid(), threading.Lock(), reader)
        return own[1], own[2]


def _no_store(place: Place) -> str:
    what = "no version was ever committed" if place.exists("") else "there is nothing"
    return f"{place.uri} is not a store, {what} there: check the address, or write one with ss.create"
