"""Writing what a version holds into shards anew, in another order or without some of it; whole shards may be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.disk_store import DiskStore
from streamseq.storage.reader import DiskReader
from streamseq.storage.shards.shard_writer import Receipt, ShardWriter
from streamseq.storage.versions.claim import Claim
from streamseq.storage.versions.rows import Pieces, merge_pieces
from streamseq.storage.versions.version import Shard

Int64 = NDArray[np.int64]

# Decoded bytes that are collected before they are written. Within them rows are read in the order in which they lie, so
# that a chunk is decoded once for each time that so much is collected.
BATCH_BYTES = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """All rows of one shard of the version, as they lie there.

    Args:
        number: The number of the shard.
        start: Its first row.
        stop: The row after its last one.
    """

    number: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """Runs of rows of the version that have no whole shard in them: int64 `[R]` each, none empty."""

    start: Int64
    stop: Int64


Stretch = Whole | Part


class Copy:
    """Stretches that are written one after the other into new shards.

    Args:
        stretches: What is written.
    """

    def __init__(self, stretches: Sequence[Stretch]) -> None:
        none = np.empty(0, np.int64)
        self.start: Int64 = np.concatenate([none, *(np.atleast_1d(stretch.start) for stretch in stretches)])
        self.stop: Int64 = np.concatenate([none, *(np.atleast_1d(stretch.stop) for stretch in stretches)])
        self.num_timesteps = int((self.stop - self.start).sum())


Step = Whole | Copy
"""A whole shard that is kept as it is, or a copy."""


def pieces_of(store: DiskStore) -> Pieces:
    """The pieces of a version, int64 `[P, 3]`, by sequence and in the order of its timesteps, merged.

    Raises:
        CorruptionError: The tables are not what was written.
    """
    rows = store.catalogue.rows
    held = np.flatnonzero(rows.lengths)
    found = rows.pieces(held, np.zeros_like(held), rows.lengths[held])
    return merge_pieces(np.stack([held[found.span], found.row, found.count], axis=1))


def stretches(pieces: Pieces, shards: Sequence[Shard]) -> Iterator[Stretch]:
    """The rows of pieces, in their order, as whole shards where all of one comes in a run, and parts of shards.

    Args:
        pieces: int64 `[P, 3]`, no row twice.
        shards: The shards of the version.

    Example:
        >>> shards = [Shard(id="", num_timesteps=10, fields={}, manifest_crc32c=0) for _ in range(3)]
        >>> for stretch in stretches(np.array([[0, 5, 20], [1, 25, 5], [2, 0, 3]]), shards):
        ...     print(stretch)
        Part(start=array([5]), stop=array([10]))
        Whole(number=1, start=10, stop=20)
        Whole(number=2, start=20, stop=30)
        Part(start=array([0]), stop=array([3]))
    """
    first = np.concatenate(([0], np.cumsum([shard.num_timesteps for shard in shards], dtype=np.int64)))
    _, row, length = pieces.T
    # Runs of rows, whosever they are.
    begins = np.flatnonzero(np.concatenate(([True], row[1:] != row[:-1] + length[:-1])))[: len(row)]
    ends = np.concatenate((begins[1:], [len(row)]))[: len(begins)] - 1
    start, stop = row[begins], row[ends] + length[ends]
    # The shards that lie in each run.
    low, high = np.searchsorted(first, start, "left"), np.searchsorted(first, stop, "right") - 1
    done = 0
    for run in np.flatnonzero(low < high).tolist():
        inside = first[low[run]], first[high[run]]
        yield from _part(np.append(start[done:run], start[run]), np.append(stop[done:run], inside[0]))
        for number in range(int(low[run]), int(high[run])):
            yield Whole(number=number, start=int(first[number]), stop=int(first[number + 1]))
        # What is left of it begins the next part.
        start[run] = inside[1]
        done = run
    yield from _part(start[done:], stop[done:])


def _part(start: Int64, stop: Int64) -> Iterator[Part]:
    held = start < stop
    if held.any():
        yield Part(start=start[held], stop=stop[held])


def moved_pieces(pieces: Pieces) -> Pieces:
    """The same pieces when their rows follow each other in this order; those of one sequence that touch are merged."""
    moved = pieces.copy()
    moved[:, 1] = np.cumsum(pieces[:, 2]) - pieces[:, 2]
    return merge_pieces(moved)


def carry_out(
    store: DiskStore,
    steps: Sequence[Step],
    claim: Claim,
    progress: Callable[[int, int], None] | None,
    salvage: bool = False,
) -> tuple[list[Shard], list[Receipt]]:
    """Write the copies.

    Memory is `BATCH_BYTES`, a few chunks of each field, and the tables. When it fails, what was written is removed.

    Args:
        store: The version.
        steps: What becomes of it.
        claim: The claim of whoever does it, which the shard writers are noted in.
        progress: Called with the timesteps that are written and all that are to be.
        salvage: Whether intact chunks are read from files that are broken around them.

    Returns:
        All shards in order, and the receipts of those that are new, which are removed with `abandon_receipts`.

    Raises:
        CorruptionError: Stored bytes are not what was written.
    """
    from streamseq.storage.versions.receipts import abandon_receipts

    total = sum(step.num_timesteps for step in steps if isinstance(step, Copy))
    done = 0
    shards: list[Shard] = []
    receipts: list[Receipt] = []
    if progress is not None:
        progress(0, total)
    try:
        for step in steps:
            if isinstance(step, Whole):
                shards.append(store.snapshot.shards[step.number])
                continue
            with ShardWriter(store.place, store.layout, statistics=False) as writer:
                claim.note(writer.writer_id)
                for arrays in _batches(store, step, salvage):
                    # Rows have no sequences: which ones they are of is in the tables.
                    writer.append("rows", arrays)
                    claim.refresh()
                    done += len(next(iter(arrays.values())))
                    if progress is not None:
                        progress(done, total)
                receipts.append(writer.finish())
            shards += receipts[-1].shards
    except BaseException:
        abandon_receipts(store.place, receipts)
        raise
    return shards, receipts


def _batches(store: DiskStore, copy: Copy, salvage: bool) -> Iterator[dict[str, NDArray[Any]]]:
    """The timesteps of a copy, arrays `[m, *D]` of each field."""
    step_bytes = sum(field.step_bytes for field in store.layout.fields.values())
    limit = max(1, BATCH_BYTES // step_bytes)
    count = copy.stop - copy.start
    ends = np.cumsum(count)
    fields = list(store.layout.fields)
    with DiskReader(store.place, store.snapshot, store.catalogue, fields, 1, 0, {}, "first", salvage) as reader:
        for low in range(0, copy.num_timesteps, limit):
            high = min(low + limit, copy.num_timesteps)
            first, last = np.searchsorted(ends, [low, high - 1], "right")
            these = slice(int(first), int(last) + 1)
            begins = ends[these] - count[these]
            place = np.maximum(begins, low)
            rows = copy.start[these] + place - begins
            counts = np.minimum(ends[these], high) - place
            order = np.argsort(rows, kind="stable")
            batch = {}
            for name, field in store.layout.fields.items():
                values = np.empty((high - low, *field.shape), field.dtype)
                parts = reader.rows(name, rows[order], counts[order])
                for position, length in zip((place - low)[order].tolist(), counts[order].tolist(), strict=True):
                    stop = position + length
                    while position < stop:
                        part = next(parts)
                        values[position : position + len(part)] = part
                        position += len(part)
                batch[name] = values
            yield batch
