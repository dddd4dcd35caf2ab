"""Runs a job on a Dask collection: its tasks depend on the collection's own ones, and Dask brings them their data.

Partitions are handed to the scheduler one after the other, so many at a time as other sources have tasks in flight,
each with what it needs of the collection and earlier ones did not. The client holds names, and results that say what
was written.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeGuard

from streamseq.etl.collections_blocks import BlockInput, BlockReader, BlockSource, Collection, Key
from streamseq.etl.collections_graph import Layer, SlicedGraph
from streamseq.etl.collections_task import BlockJob, spans_of, write_blocks, write_in_order
from streamseq.etl.collections_transformed import TransformedCollection
from streamseq.etl.source import Partition
from streamseq.etl.task import Writing

if TYPE_CHECKING:
    from distributed import Future

    from streamseq.etl.cluster import Pool


class BlockTasks:
    """The tasks of a job on a collection.

    Args:
        pool: The workers.
        source: The collection, transformed or not.
        job: What its tasks have in common.
        partitions: All partitions.
        keys: Their keys.
        wanted: The numbers of those to write.
    """

    def __init__(
        self,
        pool: Pool,
        source: Collection | TransformedCollection,
        job: BlockJob,
        partitions: Sequence[Partition],
        keys: Sequence[str],
        wanted: Sequence[int],
    ) -> None:
        collection = source.collection if isinstance(source, TransformedCollection) else source
        pool.check_collections(collection.dask_collections)
        layer = Layer(collection.dask_collections, collection.reader)
        outputs: dict[int, Key] = {}
        before: Key | None = None
        for number in wanted:
            partition = partitions[number]
            own, following = spans_of(partition)
            blocks = layer.lists([collection.inputs(span) for span in [*own, *following]])
            args = (job, partition, keys[number], blocks)
            if isinstance(source, TransformedCollection) and source.in_order:
                goes_on = partition.continues is not None and before is not None
                before = layer.add(
                    "in-order", number, write_in_order, *args, layer.reference(before) if goes_on else None
                )
                outputs[number] = layer.add("write", number, itemgetter(0), layer.reference(before))
            else:
                outputs[number] = layer.add("write", number, write_blocks, *args)
        #: The numbers of partitions in the order in which they are to be handed over.
        self.order = _taken_in_turn(partitions, wanted, pool) if before is not None else list(wanted)
        self._slices = Slices(pool, SlicedGraph(layer.graph, [outputs[number] for number in self.order]))
        self._outputs = outputs
        self._place = {number: place for place, number in enumerate(self.order)}

    def submit(self, number: int) -> Future[Any]:
        """Hand a partition to the scheduler; in the order of `order`."""
        return self._slices.submit(self._place[number], self._outputs[number])

    def done(self, number: int) -> None:
        """A partition has been written."""
        self._slices.done(self._place[number])


class Slices:
    """Hands slices of a graph to the scheduler, and holds what later ones need."""

    def __init__(self, pool: Pool, graph: SlicedGraph) -> None:
        self._pool, self._graph = pool, graph
        self._held: dict[Key, Future[Any]] = {}

    def submit(self, number: int, output: Key) -> Future[Any]:
        """Hand over the next slice; return what comes of it."""
        held = self._graph.held_from(number)
        future, *futures = self._pool.submit_graph(self._graph.tasks(number), [output, *held])
        self._held.update(zip(held, futures, strict=True))
        return future

    def done(self, number: int) -> None:
        """A slice has been computed; what it was the last to need is let go."""
        for key in self._graph.held_until(number):
            self._held.pop(key, None)


def is_collection(source: object) -> TypeGuard[Collection | TransformedCollection]:
    """Whether a source is a Dask collection, transformed or not."""
    return isinstance(source, Collection | TransformedCollection)


def block_tasks(
    pool: Pool,
    source: object,
    partitions: Sequence[Partition],
    keys: Sequence[str],
    wanted: Sequence[int],
    writing: Writing,
) -> BlockTasks | None:
    """The tasks of a job, if its source is a collection; None for other sources."""
    if not is_collection(source):
        return None
    job = BlockJob(source=_for_workers(source), writing=writing)
    return BlockTasks(pool, source, job, partitions, keys, wanted)


def gone_through_again(source: object, partitions: Sequence[Partition], done: Iterable[int]) -> list[int]:
    """The finished partitions of a collection that are needed for one that is not finished and goes on from them."""
    if not isinstance(source, TransformedCollection) or not source.in_order:
        return []
    there = set(done)
    chains = [chain for chain in _chains(partitions, range(len(partitions))) if not there.issuperset(chain)]
    return [number for chain in chains for number in chain if number in there]


def ask(
    pool: Pool, collections: Sequence[Any], reader: BlockReader, inputs: Sequence[BlockInput], function: Any
) -> list[Any]:
    """What a function says of blocks, computed where they are; the blocks stay there."""
    pool.check_collections(collections)
    layer = Layer(collections, reader)
    outputs = [layer.add("ask", number, function, layer.block(each)) for number, each in enumerate(inputs)]
    slices = Slices(pool, SlicedGraph(layer.graph, outputs))
    flying: dict[Future[Any], int] = {}
    found: dict[int, Any] = {}
    waiting = deque(range(len(inputs)))
    while len(found) < len(inputs):
        while waiting and len(flying) < pool.capacity():
            number = waiting.popleft()
            flying[slices.submit(number, outputs[number])] = number
        for future in pool.wait(list(flying)):
            number = flying.pop(future)
            found[number] = pool.result(future)
            slices.done(number)
    return [found[number] for number in range(len(inputs))]


def _chains(partitions: Sequence[Partition], numbers: Iterable[int]) -> list[list[int]]:
    """Runs of partitions in which a sequence goes on from one to the next."""
    chains: list[list[int]] = []
    for number in numbers:
        if chains and partitions[number].continues is not None:
            chains[-1].append(number)
        else:
            chains.append([number])
    return chains


def _taken_in_turn(partitions: Sequence[Partition], wanted: Sequence[int], pool: Pool) -> list[int]:
    """The partitions in an order in which as many chains as there are threads go on at the same time."""
    waiting = deque(deque(chain) for chain in _chains(partitions, wanted))
    going: deque[deque[int]] = deque()
    order: list[int] = []
    while waiting or going:
        while waiting and len(going) < pool.num_threads():
            going.append(waiting.popleft())
        chain = going.popleft()
        order.append(chain.popleft())
        if chain:
            going.append(chain)
    return order


def _for_workers(source: Collection | TransformedCollection) -> BlockSource | TransformedCollection:
    """What the tasks have of a source: all but the graph."""
    if isinstance(source, TransformedCollection):
        return source.for_workers()
    return BlockSource(source.fields, source.reader)
