"""`compact`: many small shards and scattered pieces become full shards and whole sequences, in a new version."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamseq.core.errors import VersionConflictError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.upkeep.rewrite import Copy, Step, Stretch, Whole, carry_out, moved_pieces, pieces_of, stretches
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.new_version import Added, commit_version, program
from streamseq.storage.versions.receipts import abandon_receipts
from streamseq.storage.versions.rows import Pieces
from streamseq.storage.versions.version import Shard

# With more tables than this, each looked into in turn, to look up an id is slow.
_FEW_TABLES = 8
# Full shards that are written anew at most to fill up one that is not.
_REWRITTEN = 4
# How often a compaction is put behind versions that were committed meanwhile.
_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did; `print(report)` says it.

    Args:
        store: Where the store lies.
        version: The version that was committed; None: there was nothing to gain.
        base: The version that was compacted.
        shards_before: Shards of it.
        shards: Shards that they became.
        kept: Those of them that are as they were.
        timesteps: Timesteps that were written anew.
        scattered: Sequences that lay in several pieces, and are whole now.
        seconds: What it took.
    """

    store: str
    version: int | None
    base: int
    shards_before: int
    shards: int
    kept: int
    timesteps: int
    scattered: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, as JSON holds them."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        if self.version is None:
            return (
                f"{self.store} version {self.base} has nothing to gain: {self.shards_before:,} shards, every sequence "
                "in one piece; no version was made"
            )
        return (
            f"wrote {self.store} version {self.version}, the same sequences as version {self.base}: "
            f"{self.shards_before:,} shards became {self.shards:,}, {self.kept:,} of them as they were; "
            f"{self.timesteps:,} timesteps were written anew, {self.scattered:,} sequences that lay in several pieces "
            f"are whole; in {self.seconds:.1f} s"
        )


def compact(
    uri: str | os.PathLike[str] | Place,
    *,
    job: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> CompactReport:
    """Write the newest version again, into full shards and with every sequence in one piece, as a new version.

    Contents, order of ids and fingerprint stay. Full shards whose rows stay together are kept, but for a few beside
    shards that are nearly empty. Older versions keep their shards and can be read as before. Others may append
    meanwhile: what they add stays as they wrote it, behind what was compacted. Memory is 128 MiB, a few chunks of each
    field, and the tables.

    Args:
        uri: Where the store lies.
        job: What the log of the store says did it; None: the name of the program.
        progress: Called with the timesteps that are written and all that are to be.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Raises:
        StoreError: There is no store.
        CorruptionError: Stored bytes are not what was written: `ss.repair` makes a version without them.
        VersionConflictError: The store was compacted or repaired meanwhile. Nothing was changed.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("uint8")}) as writer:
        ...         writer.write("plant-3", x=np.uint8([1, 2]))
        ...     for more in ([3], [4, 5]):
        ...         with ss.append(folder + "/plants.zarr") as writer:
        ...             writer.append("plant-3", x=np.uint8(more))
        ...     report = ss.compact(folder + "/plants.zarr")
        ...     report.version, report.shards_before, report.shards
        ...     ss.open(folder + "/plants.zarr").read("plant-3")["x"]
        (4, 3, 1)
        array([1, 2, 3, 4, 5], dtype=uint8)
    """
    began = time.monotonic()
    place = place_of(uri, storage_options)
    what = program() if job is None else job
    base = DiskStore(place)
    before = base.snapshot
    with Claim(place, what) as claim:
        pieces = pieces_of(base)
        scattered = int(np.count_nonzero(np.bincount(pieces[:, 0]) > 1)) if len(pieces) else 0
        pieces = _whole_sequences(pieces)
        steps = list(_steps(list(stretches(pieces, before.shards)), base.layout.shard_timesteps))
        copied = sum(step.num_timesteps for step in steps if isinstance(step, Copy))
        gains = copied or scattered or len(before.tables) > _FEW_TABLES
        if gains:
            shards, receipts = carry_out(base, steps, claim, progress)
            version = None
            try:
                version = _commit(base, shards, moved_pieces(pieces), what)
            finally:
                if version is None and not place.undecided(sys.exception()):
                    abandon_receipts(place, receipts)
        else:
            shards, version = list(before.shards), None
    return CompactReport(
        store=place.uri,
        version=version,
        base=base.version,
        shards_before=len(before.shards),
        shards=len(shards),
        kept=sum(isinstance(step, Whole) for step in steps),
        timesteps=copied,
        scattered=scattered,
        seconds=time.monotonic() - began,
    )


def _whole_sequences(pieces: Pieces) -> Pieces:
    """The pieces sequence after sequence, the one that begins first first: most rows then stay where they are."""
    sequence, row, _ = pieces.T
    begins = np.flatnonzero(np.concatenate(([True], sequence[1:] != sequence[:-1])))[: len(pieces)]
    several = np.diff(np.concatenate((begins, [len(pieces)])))
    return pieces[np.argsort(np.repeat(row[begins], several), kind="stable")]


def _steps(stretches: Sequence[Stretch], full: int) -> Iterator[Step]:
    """Which shards are kept, and what is copied.

    Full shards are kept, and what lies between them is put together. Where that leaves a shard that is less than half
    full, a few full ones behind it are written anew as well, if the rest then comes out better.

    Args:
        stretches: The rows in their new order.
        full: Timesteps of a full shard.

    Example:
        >>> def shard(number, size):
        ...     return Whole(number=number, start=100 * number, stop=100 * number + size)
        >>> steps = _steps([shard(0, 10), shard(1, 3), shard(2, 4), shard(3, 10), shard(4, 2)], 10)
        >>> [step.number if isinstance(step, Whole) else step.num_timesteps for step in steps]
        [0, 7, 3, 4]
    """
    waiting: list[Stretch] = []
    # Timesteps that wait, and full shards at their end.
    fill = behind = 0
    for stretch in stretches:
        length = Copy([stretch]).num_timesteps
        if not isinstance(stretch, Whole) or length < full:
            waiting.append(stretch)
            fill, behind = fill + length, 0
        elif 0 < 2 * (fill % full) < full and behind < _REWRITTEN:
            waiting.append(stretch)
            fill, behind = fill + length, behind + 1
        else:
            yield from _copied(waiting, full)
            yield stretch
            waiting, fill, behind = [], 0, 0
    yield from _copied(waiting, full)


def _copied(waiting: Sequence[Stretch], full: int) -> Iterator[Step]:
    """A copy of stretches, but for full shards that gain nothing by it, and shards that would not become fewer."""
    fill = Copy(waiting).num_timesteps % full
    end = len(waiting)
    if 0 < 2 * fill < full:
        while end and isinstance(last := waiting[end - 1], Whole) and last.stop - last.start == full:
            end -= 1
    copy = Copy(waiting[:end])
    if all(isinstance(stretch, Whole) for stretch in waiting[:end]) and end <= -(-copy.num_timesteps // full):
        end = 0
    if end:
        yield copy
    for stretch in waiting[end:]:
        assert isinstance(stretch, Whole)
        yield stretch


def _commit(base: DiskStore, shards: Sequence[Shard], pieces: Pieces, job: str) -> int:
    """Commit the version, behind the versions that others committed meanwhile."""
    newest = base
    for _ in range(_TRIES):
        old, now = base.snapshot, newest.snapshot
        later = now.shards[len(old.shards) :]
        if now.shards[: len(old.shards)] != old.shards or now.tables[: len(old.tables)] != old.tables:
            raise VersionConflictError(
                f"{base.uri} was compacted or repaired meanwhile, by version {newest.version}; nothing was changed: "
                "compact it again if that is still wanted"
            )
        # As many rows as before, so that those behind them are where they were.
        behind = _added_pieces(base, newest)
        added = Added(ids=newest.ids, attrs=newest.catalogue.attrs, pieces=np.concatenate([pieces, behind]))
        if commit_version(
            base.place,
            newest.version + 1,
            base.layout,
            [*shards, *later],
            (),
            added,
            fingerprint=newest.fingerprint,
            operation="compact",
            job=job,
            attachments=newest.snapshot.attachments,
        ):
            return newest.version + 1
        newest = DiskStore(base.place)
    raise VersionConflictError(
        f"{base.uri} got {_TRIES} versions while this one was to be committed; nothing was changed: compact it when "
        "fewer writers are at work"
    )


def _added_pieces(base: DiskStore, newest: DiskStore) -> Pieces:
    """The pieces that versions after `base` added, whose rows are behind all of its."""
    if newest.version == base.version:
        return np.empty((0, 3), np.int64)
    first = base.num_timesteps
    sequence, row, length = pieces_of(newest).T
    # A piece that goes on from one of the base's rows was merged with it.
    cut = np.maximum(first - row, 0)
    added: Pieces = np.stack([sequence, row + cut, length - cut], axis=1)[cut < length]
    return added
