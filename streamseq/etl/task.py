"""What one task of a job does: read one partition, write whole shards of its own, return the receipt."""

from __future__ import annotations

import time
from dataclasses import dataclass

from streamseq.etl.attempts import Attempts
from streamseq.etl.ledger import Ledger
from streamseq.etl.source import Partition, Pieces, Skipped, Source, SourceError, read_at_once
from streamseq.etl.task_result import TaskResult
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place
from streamseq.storage.shards.shard_writer import ShardWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """Where and how all tasks of a job write. Picklable.

    Args:
        place: Where the store lies.
        layout: How shards are cut and encoded.
        attempts: The attempts at the tasks of the job.
        ledger: Where to put receipts; None where the job has no key.
        statistics: Whether statistics of the values are gathered on the way.
    """

    place: Place
    layout: ShardLayout
    attempts: Attempts
    ledger: Ledger | None
    statistics: bool = True


def run_task(source: Source, partition: Partition, writing: Writing, key: str) -> TaskResult:
    """Write one partition.

    Args:
        source: Where the data comes from.
        partition: The part of it to write.
        writing: Where and how to write.
        key: The key of the partition.

    Raises:
        SourceError: What the source yields does not fit its fields, or an id comes back.
        JobEndedError: The job has ended meanwhile.
    """
    began = time.monotonic()
    skipped: list[Skipped] = []
    with ShardWriter(writing.place, writing.layout, writing.statistics) as writer:
        writing.attempts.begin(writer.writer_id)
        last: str | None = None
        for item in read_at_once(source, partition):
            writing.attempts.check()
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            if isinstance(item, Pieces):
                _write_pieces(writer, item)
                continue
            if item.id != last and item.id in writer:
                raise duplicate_id(item.id)
            last = item.id
            try:
                writer.append(item.id, item.arrays, item.attrs)
            except (TypeError, ValueError) as error:
                raise SourceError(f"sequence {item.id!r} does not fit: {error}") from error
        result = TaskResult(
            receipt=writer.finish(),
            skipped=tuple(skipped),
            bytes_in=partition.num_bytes - sum(item.num_bytes for item in skipped),
            seconds=time.monotonic() - began,
        )
    return result if writing.ledger is None else writing.ledger.put(key, result)


def _write_pieces(writer: ShardWriter, pieces: Pieces) -> None:
    new = set(pieces.ids)
    if len(new) < len(pieces.ids) or any(id in writer for id in pieces.ids):
        seen: set[str] = set()
        for id in pieces.ids:
            if id in writer or id in seen:
                raise duplicate_id(id)
            seen.add(id)
    try:
        writer.append_new(pieces.ids, pieces.lengths, pieces.arrays)
    except (TypeError, ValueError) as error:
        raise SourceError(f"sequences from {pieces.ids[0]!r} on do not fit: {error}") from error


def duplicate_id(id: str) -> SourceError:
    """The error about an id that comes back after another sequence."""
    return SourceError(f"every sequence has an id of its own, {id!r} comes twice: rename one of the two")
