"""`log`: how the versions of a store came to be, and what each of them added."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from streamseq.core.errors import StoreError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import Place, place_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One version, and how it differs from the one before it.

    Args:
        version: Its number.
        created: When, UTC.
        operation: How it came to be: "write", "compact" or "repair".
        job: What wrote it.
        software: The software that did.
        sequences: Sequences that it has.
        timesteps: Their timesteps.
        shards: Its shards.
        sequences_added: Sequences more than before; less than 0 where a repair left some out.
        timesteps_added: Timesteps more than before.
        shards_added: Shards that the version before does not have.
        shards_dropped: Shards that only the version before has.
        bytes_added: The size of the shards that were added, as they are stored.
        fingerprint: The digest of its contents.
        problem: What is wrong with its file, which then says nothing else; "" where nothing is.
    """

    version: int
    created: str = ""
    operation: str = ""
    job: str = ""
    software: str = ""
    sequences: int = 0
    timesteps: int = 0
    shards: int = 0
    sequences_added: int = 0
    timesteps_added: int = 0
    shards_added: int = 0
    shards_dropped: int = 0
    bytes_added: int = 0
    fingerprint: str = ""
    problem: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain values, as JSON holds them."""
        return asdict(self)

    def __str__(self) -> str:
        if self.problem:
            return f"version {self.version}: {self.problem}"
        shards = f"{self.shards_added:+,}" + (f", -{self.shards_dropped:,}" if self.shards_dropped else "")
        return (
            f"version {self.version}  {self.created}  {self.operation} by {self.job} ({self.software}): "
            f"{self.sequences_added:+,} sequences, {self.timesteps_added:+,} timesteps, {shards} shards, "
            f"{self.bytes_added:,} bytes; {self.sequences:,} sequences, {self.timesteps:,} timesteps in all"
        )


def log(uri: str | os.PathLike[str] | Place, *, storage_options: Mapping[str, Any] | None = None) -> list[Entry]:
    """How the versions of a store came to be, the first one first.

    A version whose file is broken is an entry that says so; what the next one added is then counted from the last one
    that can be read.

    Args:
        uri: Where the store lies.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}, job="the first plants") as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     (entry,) = ss.log(folder + "/plants.zarr")
        >>> entry.version, entry.operation, entry.job, entry.sequences_added, entry.timesteps_added
        (1, 'write', 'the first plants', 1, 2)
    """
    place = place_of(uri, storage_options)
    _ = DiskStore(place)  # says that there is no store
    entries = []
    before: dict[str, int] = {}
    sequences = timesteps = 0
    for number in place.version_numbers():
        try:
            version = DiskStore(place, number).snapshot
        except StoreError as error:
            entries.append(Entry(version=number, problem=" ".join(str(error).split())))
            continue
        now = {shard.id: sum(stored.num_bytes for stored in shard.fields.values()) for shard in version.shards}
        added = now.keys() - before.keys()
        entries.append(
            Entry(
                version=number,
                created=version.created,
                operation=version.operation,
                job=version.job,
                software=version.software,
                sequences=version.num_sequences,
                timesteps=version.num_timesteps,
                shards=len(version.shards),
                sequences_added=version.num_sequences - sequences,
                timesteps_added=version.num_timesteps - timesteps,
                shards_added=len(added),
                shards_dropped=len(before.keys() - now.keys()),
                bytes_added=sum(now[shard] for shard in added),
                fingerprint=version.fingerprint,
            )
        )
        before, sequences, timesteps = now, version.num_sequences, version.num_timesteps
    return entries
