"""A collection whose sequences go through transforms: each of its partitions is one task.

A task whose transforms look ahead is given the first timesteps of the next partitions, and not all of them. Where
transforms need sequences from their start, a task hands what it knows of a sequence that goes on over to the next one:
sequences of any length go through without being in memory, and different ones at the same time.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

from streamseq.etl.collections_blocks import Block, BlockReader, BlockSource, BlockSpan, Collection
from streamseq.etl.source import Partition, Piece, Skipped, Source, SourceError
from streamseq.etl.transformed_sequence import TransformedSequence
from streamseq.etl.transformed_source import TaskContent, TransformedSource


class TransformedCollection(TransformedSource):
    """A collection, and its transforms one after the other.

    Args:
        collection: Where the data comes from; what is in its blocks is known where transforms need to know.
        transforms: As for `TransformedSource`.
    """

    def __init__(self, collection: Collection, transforms: Iterable[object]) -> None:
        super().__init__(collection, transforms)
        self._collection: Collection | None = collection
        self._reader = collection.reader

    @property
    def collection(self) -> Collection:
        """Where the data comes from."""
        assert self._collection is not None, "it stays with the client"
        return self._collection

    @property
    def reader(self) -> BlockReader:
        """What makes pieces of its blocks."""
        return self._reader

    @property
    def in_order(self) -> bool:
        """Whether transforms need sequences from their start."""
        return self._in_order

    @property
    def looks_around(self) -> bool:
        """Whether a timestep depends on those around it, or on all before it."""
        return bool(self._in_order or self._before or self._after)

    def for_workers(self) -> TransformedCollection:
        """The same without the graph."""
        return self._with_source(BlockSource(self.collection.fields, self._reader))

    def with_blocks(self, blocks: Mapping[BlockSpan, Sequence[Block]]) -> TransformedCollection:
        """The same with blocks to read, on a worker."""
        assert isinstance(self.source, BlockSource)
        return self._with_source(self.source.with_blocks(blocks))

    def _with_source(self, source: Source) -> TransformedCollection:
        same = copy.copy(self)
        same.source, same._collection = source, None
        return same

    def _whole_sequences(self, partitions: Sequence[Partition]) -> list[Partition]:
        """One task a partition, which knows whether its last sequence goes on."""
        return [
            Partition(
                num_bytes=partition.num_bytes,
                content=TaskContent(own=(partition,), to_the_end=following is None or following.continues is None),
                continues=partition.continues,
            )
            for partition, following in zip(partitions, [*partitions[1:], None], strict=True)
        ]

    def _halos(self, partitions: Sequence[Partition]) -> list[Partition]:
        """One task a partition, with as many of the timesteps after it as it needs."""
        tasks = []
        for number, partition in enumerate(partitions):
            needed = self._before + self._after
            following: list[Partition] = []
            stop = number + 1
            id = partitions[stop].continues if stop < len(partitions) else None
            while needed and id is not None and stop < len(partitions) and partitions[stop].continues == id:
                span = self.collection.head(partitions[stop].content, needed)
                # One without any timesteps of it says none the less that the sequence goes on.
                following.append(Partition(num_bytes=0, content=span, continues=id))
                needed -= span.steps or 0
                stop += 1
            more = id is not None and stop < len(partitions) and partitions[stop].continues == id
            content = TaskContent(own=(partition,), following=tuple(following), to_the_end=not more)
            tasks.append(Partition(num_bytes=partition.num_bytes, content=content, continues=partition.continues))
        return tasks

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield what a partition holds, transformed; as if sequences began in it, where transforms need their start."""
        yield from self.read_on(partition, None) if self._in_order else super().read(partition)

    def read_on(
        self, partition: Partition, before: TransformedSequence | None
    ) -> Generator[Piece | Skipped, None, TransformedSequence | None]:
        """Yield what a partition holds, transformed, and return the sequence that goes on in the next one.

        Args:
            partition: One of those of this source.
            before: The sequence that goes on in this one. It is changed.
        """
        content: TaskContent = partition.content
        current = before
        for item in self.source.read(content.own[0]):
            if isinstance(item, Skipped):
                yield item
                continue
            if current is None or item.id != current.id:
                if current is not None:
                    yield from current.end()
                current = self._begin(item.id)
            yield from current.push(*self._checked(item))
        if current is not None and content.to_the_end:
            yield from current.end()
            current = None
        return current

    def check_ids(self, partitions: Sequence[Partition], ids: Sequence[Sequence[str]]) -> None:
        """Check that sequences went on where they were said to.

        Raises:
            SourceError: The collection was another one when it was read than when it was looked at.
        """
        last: str | None = None
        for partition, own in zip(partitions, ids, strict=True):
            if own and own[0] == last and self.looks_around and partition.continues != last:
                raise SourceError(
                    f"a collection is the same whenever it is computed, {last!r} went on in a partition that did "
                    "not have it before: persist() the collection first"
                )
            last = own[-1] if own else last
