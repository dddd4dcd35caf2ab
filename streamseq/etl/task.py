"""What one task of a job does: read one partition, write whole shards of its own, return the receipt.

A job has a folder in the staging area of the store, and every attempt at a task leaves a file in it that is named after
its shard writer. So the job knows of all that was ever written for it, by workers that died too; and a task whose file
is gone stops, because its job has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from streamseq.core.errors import StreamseqError
from streamseq.etl.source import Partition, Skipped, Source, SourceError
from streamseq.storage.layout import ShardLayout
from streamseq.storage.shard_writer import Receipt, ShardWriter


class JobEndedError(StreamseqError):
    """The job of this task has failed or was interrupted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a task hands back; picklable."""

    receipt: Receipt
    skipped: tuple[Skipped, ...]
    bytes_in: int


def run_task(source: Source, partition: Partition, root: Path, layout: ShardLayout, job: Path) -> TaskResult:
    """Write one partition.

    Args:
        source: Where the data comes from.
        partition: The part of it to write.
        root: The root folder of the store.
        layout: How shards are cut and encoded.
        job: The folder of the job.

    Raises:
        SourceError: What the source yields does not fit its fields, or an id comes back.
        JobEndedError: The job has ended meanwhile.
    """
    skipped: list[Skipped] = []
    with ShardWriter(root, layout) as writer:
        attempt = job / writer.writer_id
        try:
            attempt.touch(exist_ok=False)
        except FileNotFoundError:
            raise JobEndedError("the job has ended") from None
        last: str | None = None
        for item in source.read(partition):
            if not os.path.exists(attempt):
                raise JobEndedError("the job has ended")
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
