"""`create`, `append` and `open`: the three ways to a store on disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.interface import Store
from streamseq.storage.layout import plan_layout
from streamseq.storage.places.place import LocalPlace, Place, place_of
from streamseq.storage.shards.chunk_file import Checksums
from streamseq.storage.writer import Writer


def create(
    uri: str | os.PathLike[str] | Place,
    fields: Mapping[str, Field],
    backend: str | None = None,
    chunk_bytes: int | None = None,
    shard_bytes: int | None = None,
    job: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    statistics: bool = True,
) -> Writer:
    """Return the writer of a new store; leaving its `with` block commits version 1.

    Args:
        uri: Where to put it: a local path, or a URL that fsspec knows such as `s3://bucket/plants.zarr`.
        fields: The fields by name.
        backend: "zarr" or "arrow"; None: by the suffix of the path, `.zarr` or `.arrow`.
        chunk_bytes: Decoded bytes a chunk of one field, the unit of decoding; None: 1 MiB. At least one timestep.
        shard_bytes: Decoded bytes a shard, the unit of files; None: 64 MiB.
        job: What writes it, for the log; None: the name of the program.
        storage_options: What fsspec connects to an object store with, such as `{"endpoint_url": ...}`, beside what the
            environment and fsspec's configuration say.
        statistics: Gather statistics of the values on the way: `store.statistics`, also of versions that are appended.

    Raises:
        StoreError: There is a store already, or something else that is not an empty folder; or versions cannot be
            committed there.
        TypeError: A field is not a `Field`, or a number of bytes not an int.
        ValueError: The backend is not known, a field cannot be stored in it, or a number of bytes is out of range.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants", {"x": ss.Field("uint8", (2,))}, backend="arrow") as writer:
        ...         writer.write("plant-3", x=np.uint8([[1, 2]]))
    """
    place = place_of(uri, storage_options)
    layout = plan_layout(fields, _backend(place) if backend is None else backend, chunk_bytes, shard_bytes)
    if place.version_numbers():
        raise StoreError(f"{place.uri} is a store already: add to it with ss.append, or choose another address")
    if isinstance(place, LocalPlace) and place.root.exists() and not place.root.is_dir():
        raise StoreError(f"a store is a folder, and {place.uri} is a file: choose another address")
    if not place.holds_only_leftovers():
        raise StoreError(
            f"a store is created in a new or empty folder, and {place.uri} holds files: choose another address"
        )
    return Writer(place, layout, None, job, statistics)


def append(
    uri: str | os.PathLike[str], job: str | None = None, storage_options: Mapping[str, Any] | None = None
) -> Writer:
    """Return a writer that adds to a store: new sequences, or more of the old ones.

    Leaving its `with` block commits the next version, unless nothing was written. Older versions stay as they are.
    Where the newest version has statistics, the next one has them too.

    Args:
        uri: Where the store lies: a local path, or a URL that fsspec knows such as `s3://bucket/plants.zarr`.
        job: What writes it, for the log; None: the name of the program.
        storage_options: What fsspec connects to an object store with, such as `{"endpoint_url": ...}`, beside what the
            environment and fsspec's configuration say.

    Raises:
        StoreError: There is no store.
        CorruptionError: What it has is not what was written.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     with ss.append(folder + "/plants.zarr") as writer:
        ...         writer.append("plant-3", x=np.uint8([3]))
        ...     ss.open(folder + "/plants.zarr").read("plant-3")["x"], ss.open(folder + "/plants.zarr", 1).lengths
        (array([1, 2, 3], dtype=uint8), array([2]))
    """
    base = DiskStore(place_of(uri, storage_options))
    return Writer(base.place, base.layout, base, job)


def open(
    uri: str | os.PathLike[str],
    version: int | None = None,
    checksums: Checksums = "first",
    storage_options: Mapping[str, Any] | None = None,
) -> Store:
    """Open a version of a store; its shards are opened when they are read.

    Args:
        uri: Where the store lies: a local path, or a URL that fsspec knows such as `s3://bucket/plants.zarr`.
        version: The version; None: the newest one.
        checksums: When the stored bytes of a chunk are compared with their checksum. "first": when the chunk is first
            used by this store object; "always": whenever it is read from its file; "never": not at all, so that bad
            bytes are decoded to wrong values, or end the process where a decoder does not stand them: for stores that
            were just verified. What says where chunks lie is always checked.
        storage_options: What fsspec connects to an object store with, such as `{"endpoint_url": ...}`, beside what the
            environment and fsspec's configuration say.

    Raises:
        StoreError: There is no store, or no such version.
        CorruptionError: The version file is not what was written.
        ValueError: `checksums` is another word.
    """
    store = DiskStore(place_of(uri, storage_options), version, checksums)
    _ = store.snapshot  # so that what is wrong with it shows here and not at the first use
    return store


def _backend(place: Place) -> str:
    path = PurePosixPath(place.uri)
    backend = {".zarr": "zarr", ".arrow": "arrow"}.get(path.suffix)
    if backend is None:
        raise ValueError(
            f"a store is written as zarr or arrow, and {path.name!r} ends in neither .zarr nor .arrow: "
            "say backend='zarr' or backend='arrow'"
        )
    return backend
