"""What one task of a job on a collection does: as any task, with the blocks that Dask gave it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from streamseq.etl.collections_blocks import Block, BlockSource, BlockSpan
from streamseq.etl.collections_transformed import TransformedCollection
from streamseq.etl.source import Partition, Piece, Skipped, Source
from streamseq.etl.task import Writing, run_task
from streamseq.etl.task_result import TaskResult, Times
from streamseq.etl.transformed_sequence import TransformedSequence
from streamseq.etl.transformed_source import TaskContent

#: What a task hands over to the one of the next partition: the sequence that goes on there.
Carried = TransformedSequence | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockJob:
    """What all tasks of a job on a collection have in common. Picklable, without the collection.

    Args:
        source: What reads blocks.
        writing: Where and how they write.
    """

    source: BlockSource | TransformedCollection
    writing: Writing


def spans_of(partition: Partition) -> tuple[list[BlockSpan], list[BlockSpan]]:
    """The spans that a partition is made of: its own, and those that it looks ahead to."""
    content = partition.content
    if isinstance(content, TaskContent):
        return [own.content for own in content.own], [following.content for following in content.following]
    return [content], []


def write_blocks(job: BlockJob, partition: Partition, key: str, blocks: Sequence[Sequence[Block]]) -> TaskResult:
    """Write one partition of a collection.

    Args:
        job: The job.
        partition: What to write.
        key: Its key in the ledger.
        blocks: Those of each of its spans.

    Raises:
        SourceError: What the collection holds does not fit its fields, or an id comes back.
        JobEndedError: The job has ended meanwhile.
    """
    source, partition, times = _given(job, partition, blocks)
    return _written(job, source, partition, key, times)


def write_in_order(
    job: BlockJob,
    partition: Partition,
    key: str,
    blocks: Sequence[Sequence[Block]],
    before: tuple[TaskResult, Carried] | None,
) -> tuple[TaskResult, Carried]:
    """Write one partition of a collection whose transforms go through sequences in order.

    Args:
        job: The job.
        partition: What to write.
        key: Its key in the ledger. What has a receipt is gone through for the sequence that goes on, and not written.
        blocks: Those of each of its spans.
        before: What this returned for the partition before, if a sequence goes on from there.
    """
    source, partition, times = _given(job, partition, blocks)
    assert isinstance(source, TransformedCollection)
    # Dask may try the task again, or has another use for it: what it was given stays as it is.
    shared = {id(transform): transform for transform in source.transforms}
    through = _Through(source, None if before is None else copy.deepcopy(before[1], shared))
    ledger = job.writing.ledger
    done = None if ledger is None else next((result for _, result in ledger.find([key])), None)
    if done is None:
        return _written(job, through, partition, key, times), through.carried
    for _ in through.read(partition):
        job.writing.attempts.check()
    return done, through.carried


class _Through:
    """A source that goes on with a sequence, and keeps the one that goes on after it."""

    threads = True

    def __init__(self, source: TransformedCollection, carried: Carried) -> None:
        self.fields = source.fields
        self.carried = carried
        self._source = source

    def partitions(self, target_bytes: int) -> list[Partition]:
        return self._source.partitions(target_bytes)

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        self.carried = yield from self._source.read_on(partition, self.carried)


def _written(job: BlockJob, source: Source, partition: Partition, key: str, times: Times | None) -> TaskResult:
    """Write as any task does, with a receipt that says the times of the rows too."""
    result = replace(run_task(source, partition, replace(job.writing, ledger=None), key), times=times)
    return result if job.writing.ledger is None else job.writing.ledger.put(key, result)


def _given(
    job: BlockJob, partition: Partition, blocks: Sequence[Sequence[Block]]
) -> tuple[BlockSource | TransformedCollection, Partition, Times | None]:
    """The source with its blocks, the partition with the bytes that it turned out to have, and its times."""
    own, following = spans_of(partition)
    source = job.source.with_blocks(dict(zip([*own, *following], blocks, strict=True)))
    reader = job.source.reader
    flat = [block for several in blocks[: len(own)] for block in several]
    return source, replace(partition, num_bytes=sum(map(reader.num_bytes, flat))), reader.times(flat)
