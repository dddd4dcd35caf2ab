"""What one task of a job does: read one partition, write whole shards of its own, return the receipt."""

from __future__ import annotations

from dataclasses import dataclass

from streamseq.etl.attempts import Attempts
from streamseq.etl.source import Partition, Skipped, Source, SourceError
from streamseq.storage.layout import ShardLayout
from streamseq.storage.place import Place
from streamseq.storage.shard_writer import Receipt, ShardWriter


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a task hands back; picklable."""

    receipt: Receipt
    skipped: tuple[Skipped, ...]
    bytes_in: int


def run_task(source: Source, partition: Partition, place: Place, layout: ShardLayout, job: Attempts) -> TaskResult:
    """Write one partition.

    Args:
        source: Where the data comes from.
        partition: The part of it to write.
        place: Where the store lies.
        layout: How shards are cut and encoded.
        job: The attempts at the tasks of the job.

    Raises:
        SourceError: What the source yields does not fit its fields, or an id comes back.
        JobEndedError: The job has ended meanwhile.
    """
    skipped: list[Skipped] = []
    with ShardWriter(place, layout) as writer:
        job.begin(writer.writer_id)
        last: str | None = None
        for item in source.read(partition):
            job.check()
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            if item.id != last and item.id in writer:
                raise duplicate_id(item.id)
            last = item.id
            try:
                writer.append(item.id, item.arrays, item.attrs)
            except (TypeError, ValueError) as error:
                raise SourceError(f"sequence {item.id!r} does not fit: {error}") from error
        return TaskResult(
            receipt=writer.finish(),
            skipped=tuple(skipped),
            bytes_in=partition.num_bytes - sum(item.num_bytes for item in skipped),
        )


def duplicate_id(id: str) -> SourceError:
    """The error about an id that comes back after another sequence."""
    return SourceError(f"every sequence has an id of its own, {id!r} comes twice: rename one of the two")
