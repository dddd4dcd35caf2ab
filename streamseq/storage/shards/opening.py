"""Opening one field of one shard, whatever the backend: its manifest, then its file."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from streamseq.core.errors import CorruptionError
from streamseq.storage.interface import Int64
from streamseq.storage.places.place import Place
from streamseq.storage.shards.arrow_shard import ArrowChunks, read_arrow_manifest
from streamseq.storage.shards.chunk_file import Checksums, ShardField
from streamseq.storage.shards.decoding import Chunks
from streamseq.storage.shards.manifest import FieldManifest
from streamseq.storage.shards.zarr_python import ZarrPythonChunks
from streamseq.storage.shards.zarr_shard import ZarrChunks, array_metadata, is_ours, read_zarr_manifest
from streamseq.storage.versions.version import Version

# The fields of a shard are mostly opened one after the other.
_MANIFESTS = 4


class RecentManifests:
    """The manifests of the shards that were opened last, so that each field need not read that of its shard again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[str, dict[str, FieldManifest]] = OrderedDict()

    def get(self, shard: str, read: Callable[[], dict[str, FieldManifest]]) -> dict[str, FieldManifest]:
        """Return the manifest of a shard, read now where it is not held."""
        with self._lock:
            found = self._held.get(shard)
        if found is None:
            found = read()
            with self._lock:
                self._held[shard] = found
                while len(self._held) > _MANIFESTS:
                    self._held.popitem(last=False)
        return found


def open_chunks(
    place: Place,
    version: Version,
    number: int,
    name: str,
    checked: Int64,
    checksums: Checksums = "first",
    recent: RecentManifests | None = None,
    salvage: bool = False,
) -> Chunks:
    """Open one field of one shard.

    Args:
        place: Where the store lies.
        version: A version that names the shard.
        number: The position of the shard in its list.
        name: The field.
        checked: int64, for each chunk where its values begin once it was compared with its checksum, -1 before; noted
            there.
        checksums: When chunks are compared with their checksums.
        recent: Where manifests are looked up and noted; of the store that `place` and `version` are of.
        salvage: Whether chunks are read also where the files around them are broken.

    Raises:
        CorruptionError: A file is missing, or what says where the chunks lie is not what was written.
        StoreError: A file cannot be opened.
    """
    try:
        return _open_once(place, version, number, name, checked, checksums, recent, salvage)
    except CorruptionError:
        if not place.copies:
            raise
        # It may be the copy that is broken.
        place.forget(f"shards/{version.shards[number].id}")
        return _open_once(place, version, number, name, checked, checksums, recent, salvage)


def _open_once(
    place: Place,
    version: Version,
    number: int,
    name: str,
    checked: Int64,
    checksums: Checksums,
    recent: RecentManifests | None,
    salvage: bool,
) -> Chunks:
    layout, shard = version.layout, version.shards[number]
    where = f"store {place.uri}, shard {shard.id}, field {name!r}"
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(place.shard(shard.id, name))
        opened = ShardField(
            folder=folder,
            name=name,
            field=layout.fields[name],
            codec=layout.codecs[name],
            num_timesteps=shard.num_timesteps,
            chunk_timesteps=min(layout.chunk_timesteps[name], shard.num_timesteps),
            stored=shard.fields[name],
            where=where,
            checksums=checksums,
            begins=checked,
            salvage=salvage,
        )
        if layout.backend == "zarr" and not salvage:
            metadata = array_metadata(opened)
            if not is_ours(metadata, opened):
                chunks = ZarrPythonChunks(opened, metadata)
                # zarr-python opens files when it reads them.
                weakref.finalize(chunks, stack.pop_all().close)
                return chunks
        manifest = (recent or RecentManifests()).get(shard.id, lambda: _read_manifest(folder, version, number, where))
        return (ZarrChunks if layout.backend == "zarr" else ArrowChunks)(opened, manifest[name])


def _read_manifest(folder: Path, version: Version, number: int, where: str) -> dict[str, FieldManifest]:
    read = read_zarr_manifest if version.layout.backend == "zarr" else read_arrow_manifest
    try:
        return read(folder, version.layout, version.shards[number], where)
    except FileNotFoundError as error:
        raise CorruptionError(f"{where} lacks the file {error.filename}: restore the shard") from None
