"""What a Dask collection is to a job: blocks along time, some of which a task is given as its input.

A collection stays with the client. What goes to the workers is a `BlockReader`, which makes pieces of blocks, and with
each task the names of the blocks it needs: Dask brings their data, from worker to worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from streamseq.core.fields import Field
from streamseq.etl.source import Partition, Piece, Skipped
from streamseq.etl.task_result import Times

#: The name of a block in a Dask graph.
Key = Any
#: A block's name, or those of its parts in nested lists; on a worker, their data.
Block = Any
#: What one sequence has in a block: its id, and its timesteps.
Run = tuple[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockInput:
    """A block that a task needs, or a part of it.

    Args:
        block: Its name, or those of its parts.
        rows: Half-open, of the sequences beside each other in it, those that are needed; None: all.
        steps: Only so many first timesteps are needed; None: all.
    """

    block: Block
    rows: tuple[int, int] | None = None
    steps: int | None = None

    @property
    def whole(self) -> bool:
        """Whether all of the block is needed."""
        return self.rows is None and self.steps is None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpan:
    """What a partition of a collection is, as `Partition.content`.

    Args:
        start: Its first block along time.
        stop: The block that it ends before.
        rows: Half-open, its sequences, where a collection has them beside each other; None: it has not.
        steps: Only so many first timesteps of it, which are of one sequence; None: all.
    """

    start: int
    stop: int
    rows: tuple[int, int] | None = None
    steps: int | None = None


class BlockReader(Protocol):
    """Makes pieces of blocks, on a worker. Small and picklable."""

    def read(self, span: BlockSpan, blocks: Sequence[Block]) -> Iterator[Piece]:
        """Yield what a span holds, of the blocks that `Collection.inputs` names for it."""
        ...

    def cut(self, block: Block, rows: tuple[int, int] | None, steps: int | None) -> Block:
        """Return a part of a block that does not hold on to the rest of it."""
        ...

    def num_bytes(self, block: Block) -> int:
        """The bytes of the fields in a block."""
        ...

    def times(self, blocks: Sequence[Block]) -> Times | None:
        """The first and the last time of blocks whose timesteps have to be in the order of one; None: they do not."""
        ...

    def runs(self, block: Block) -> list[Run]:
        """Which sequences a block holds one after the other, and how many timesteps of each."""
        ...


class Collection(ABC):
    """A Dask collection as a source for `ss.ingest`, which gives its tasks their blocks.

    Use `ArrayCollection`, `FrameCollection` or `BagCollection`.
    """

    #: Dask's own threads do the work where there is no client: numpy, pandas and compression let go of the lock.
    threads = True

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The fields of the sequences."""

    @property
    @abstractmethod
    def settings(self) -> object:
        """What decides the result: Dask's names for the data, which are the same for the same data, and the options."""

    @property
    @abstractmethod
    def dask_collections(self) -> tuple[Any, ...]:
        """The Dask collections that the blocks are of."""

    @property
    @abstractmethod
    def reader(self) -> BlockReader:
        """What makes pieces of its blocks."""

    @property
    @abstractmethod
    def lengths_known(self) -> bool:
        """Whether the sequences and timesteps of each block are known."""

    @abstractmethod
    def survey_inputs(self) -> list[BlockInput]:
        """The blocks of which `BlockReader.runs` has to be known, so that lengths are."""

    @abstractmethod
    def surveyed(self, runs: Sequence[Sequence[Run]]) -> Self:
        """The same collection, of which these runs of the survey's blocks are known."""

    @abstractmethod
    def partitions(self, target_bytes: int) -> list[Partition]:
        """Cut it into partitions along its blocks: a pure function of chunks and settings."""

    @abstractmethod
    def inputs(self, span: BlockSpan) -> list[BlockInput]:
        """The blocks that a span needs, in the order in which the reader takes them."""

    @abstractmethod
    def first_steps(self, span: BlockSpan) -> int:
        """How many timesteps the sequence has in a span that is first in it; lengths are known."""

    def head(self, span: BlockSpan, steps: int) -> BlockSpan:
        """So many first timesteps of a span, or all that its first sequence has there."""
        return replace(span, steps=min(steps, self.first_steps(span)))

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield what one partition holds, computed by Dask here and now; a job gives its tasks their blocks instead."""
        from streamseq.etl.collections_graph import compute_blocks

        span: BlockSpan = partition.content
        yield from self.reader.read(span, compute_blocks(self, self.inputs(span)))


class BlockSource:
    """What a task has of a collection: the blocks it was given, read as a source.

    Args:
        fields: The fields of the collection.
        reader: What makes pieces of blocks.
        blocks: The blocks of each span that is read.
    """

    threads = True

    def __init__(
        self,
        fields: Mapping[str, Field],
        reader: BlockReader,
        blocks: Mapping[BlockSpan, Sequence[Block]] | None = None,
    ) -> None:
        self.fields = fields
        self.reader = reader
        self._blocks = {} if blocks is None else blocks

    def with_blocks(self, blocks: Mapping[BlockSpan, Sequence[Block]]) -> BlockSource:
        """The same with blocks to read."""
        return BlockSource(self.fields, self.reader, blocks)

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Those that it has the blocks of."""
        return [Partition(num_bytes=0, content=span) for span in self._blocks]

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield what the blocks of one partition hold."""
        yield from self.reader.read(partition.content, self._blocks[partition.content])


def group(sizes: Sequence[int | None], target_bytes: int) -> list[tuple[int, int]]:
    """Half-open groups of consecutive blocks of at most `target_bytes`; larger ones and unknown ones are alone.

    Example:
        >>> group([3, 4, 5, 20, None, 1, 1], 10)
        [(0, 2), (2, 3), (3, 4), (4, 5), (5, 7)]
    """
    found: list[tuple[int, int]] = []
    start, held = 0, 0
    for number, size in enumerate(sizes):
        if number > start and (size is None or sizes[number - 1] is None or held + size > target_bytes):
            found.append((start, number))
            start, held = number, 0
        held += size or 0
    if sizes:
        found.append((start, len(sizes)))
    return found


def continued_ids(runs: Sequence[Sequence[Run]]) -> list[str | None]:
    """For each block, the id of the sequence that goes on in it from the ones before; see `Partition.continues`.

    Example:
        >>> continued_ids([[("a", 2)], [], [("a", 1), ("b", 4)], [("b", 1)], [("c", 1)]])
        [None, 'a', 'a', 'b', None]
    """
    following: list[str | None] = []
    coming: str | None = None
    for block in reversed(runs):
        coming = block[0][0] if block else coming
        following.append(coming)
    found: list[str | None] = []
    last: str | None = None
    for block, first in zip(runs, reversed(following), strict=True):
        found.append(first if first is not None and first == last else None)
        last = block[-1][0] if block else last
    return found
