"""`info`: what a version of a store holds, and how it is stored, in figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamseq.storage.disk_store import DiskStore
from streamseq.storage.figures import Figures, figure_lines, figures
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.versions.version import FORMAT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldInfo:
    """One field: what it is, and what it takes.

    Args:
        name: Its name.
        dtype: Its dtype.
        shape: The shape of one timestep.
        codec: How it is compressed.
        chunk_timesteps: Timesteps that are decoded at once.
        bytes: Its size as it is stored.
        decoded_bytes: Its size in memory.
        statistics: count, missing, infinite, min, 25%, median, 75%, max, mean and std of the values, each a list with
            one number a channel, None where there is none; without quartiles where there are too many channels. None:
            none are kept.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    chunk_timesteps: int
    bytes: int
    decoded_bytes: int
    statistics: Figures | None

    @property
    def ratio(self) -> float:
        """How many times smaller it is stored."""
        return self.decoded_bytes / self.bytes if self.bytes else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A version of a store in figures; `print(info)` says them.

    Args:
        store: Where it lies.
        backend: "zarr" or "arrow".
        format_version: The version of the format.
        version: The version.
        versions: All versions there are.
        created: When it was committed, UTC.
        operation: How it came to be.
        job: What wrote it.
        fingerprint: The digest of its contents.
        fields: Its fields.
        sequences: Sequences.
        timesteps: Timesteps of all.
        lengths: Of the sequences: least, quartiles, mean and greatest, by name; empty without sequences.
        scattered: Sequences that lie in several pieces.
        shards: Shards.
        shard_timesteps: Timesteps of a full one.
        table_bytes: What says which sequences there are, in bytes.
        boundaries: The names of boundaries that are stored; see `ss.mark`.
    """

    store: str
    backend: str
    format_version: int
    version: int
    versions: tuple[int, ...]
    created: str
    operation: str
    job: str
    fingerprint: str
    fields: tuple[FieldInfo, ...]
    sequences: int
    timesteps: int
    lengths: dict[str, float]
    scattered: int
    shards: int
    shard_timesteps: int
    table_bytes: int
    boundaries: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """The size of the shards as they are stored."""
        return sum(field.bytes for field in self.fields)

    @property
    def decoded_bytes(self) -> int:
        """Their size in memory."""
        return sum(field.decoded_bytes for field in self.fields)

    @property
    def ratio(self) -> float:
        """How many times smaller they are stored."""
        return self.decoded_bytes / self.bytes if self.bytes else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The figures as plain values, as JSON holds them."""
        return {
            **asdict(self),
            "versions": list(self.versions),
            "boundaries": list(self.boundaries),
            "fields": [
                {**asdict(field), "shape": list(field.shape), "ratio": round(field.ratio, 3)} for field in self.fields
            ],
            "bytes": self.bytes,
            "decoded_bytes": self.decoded_bytes,
            "ratio": round(self.ratio, 3),
        }

    def __str__(self) -> str:
        lengths = ", ".join(f"{name} {value:,.0f}" for name, value in self.lengths.items())
        full = self.timesteps / (self.shards * self.shard_timesteps) if self.shards else 0.0
        lines = [
            f"{self.store} version {self.version} of {', '.join(map(str, self.versions))} ({self.backend}, format "
            f"{self.format_version})",
            f"{self.operation} by {self.job}, {self.created}; fingerprint {self.fingerprint[:16]}",
            f"{self.sequences:,} sequences, {self.timesteps:,} timesteps"
            + (f"; lengths: {lengths}" if lengths else "")
            + (f"; {self.scattered:,} in several pieces" if self.scattered else ""),
            f"{self.shards:,} shards of up to {self.shard_timesteps:,} timesteps, {100 * full:.0f} % full; "
            f"{self.bytes:,} bytes for {self.decoded_bytes:,} ({self.ratio:.2f} times smaller), tables "
            f"{self.table_bytes:,} bytes",
        ]
        for field in self.fields:
            shape = f"[{', '.join(map(str, field.shape))}]" if field.shape else ""
            lines.append(
                f"{field.name}: {field.dtype}{shape}, {field.codec}, chunks of {field.chunk_timesteps:,} timesteps, "
                f"{field.bytes:,} bytes for {field.decoded_bytes:,} ({field.ratio:.2f} times smaller)"
            )
            if field.statistics is not None:
                lines += [f"  {line}" for line in figure_lines(field.statistics, field.shape)]
        if self.boundaries:
            lines.append(f"stored boundaries: {', '.join(self.boundaries)}")
        return "\n".join(lines)


def info(
    uri: str | os.PathLike[str] | Place,
    version: int | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Info:
    """Say what a version of a store holds and how it is stored. Of the shards nothing is read.

    Statistics of the values are those that the version keeps: `ss.describe` computes them where there are none.

    Args:
        uri: Where the store lies.
        version: The version; None: the newest one.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store, or no such version.
        CorruptionError: The version file, the tables or the statistics are not what was written.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...         writer.write("plant-4", x=np.uint8([3]))
        ...     found = ss.info(folder + "/plants.zarr")
        >>> found.sequences, found.lengths["max"], found.fields[0].codec, found.decoded_bytes
        (2, 2.0, 'zstd', 3)
        >>> found.fields[0].statistics["mean"], found.fields[0].statistics["median"]
        ([2.0], [2.0])
    """
    store = DiskStore(place_of(uri, storage_options), version)
    snapshot, layout = store.snapshot, store.layout
    lengths: dict[str, float] = {}
    scattered = 0
    if len(store):
        least, low, middle, high, most = np.quantile(store.lengths, [0, 0.25, 0.5, 0.75, 1]).tolist()
        mean = float(store.lengths.mean())
        lengths = {"min": least, "25%": low, "median": middle, "mean": mean, "75%": high, "max": most}
        held = np.flatnonzero(store.lengths)
        scattered = int(np.count_nonzero(store.catalogue.rows.single_rows(held) < 0))
    statistics = store.statistics or {}
    fields = [
        FieldInfo(
            name=name,
            dtype=field.dtype.name,
            shape=field.shape,
            codec=layout.codecs[name],
            chunk_timesteps=layout.chunk_timesteps[name],
            bytes=sum(shard.fields[name].num_bytes for shard in snapshot.shards),
            decoded_bytes=snapshot.num_timesteps * field.step_bytes,
            statistics=figures(statistics[name]) if name in statistics else None,
        )
        for name, field in layout.fields.items()
    ]
    return Info(
        store=store.uri,
        backend=store.backend,
        format_version=FORMAT_VERSION,
        version=store.version,
        versions=tuple(store.versions),
        boundaries=tuple(store.boundary_names),
        created=snapshot.created,
        operation=snapshot.operation,
        job=snapshot.job,
        fingerprint=snapshot.fingerprint,
        fields=tuple(fields),
        sequences=len(store),
        timesteps=snapshot.num_timesteps,
        lengths=lengths,
        scattered=scattered,
        shards=len(snapshot.shards),
        shard_timesteps=layout.shard_timesteps,
        table_bytes=sum(file.num_bytes for tables in snapshot.tables for file in tables.files.values()),
    )
