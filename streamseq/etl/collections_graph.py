"""The graph of a collection with the tasks of a job at its ends, handed to the scheduler slice by slice.

A slice is what one more partition needs and no earlier one did. What later slices need too is held by its name on the
workers until they have been done, so that nothing is computed twice, and what nobody needs any more is released.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from streamseq.etl.collections_blocks import Block, BlockInput, BlockReader, Collection, Key

if TYPE_CHECKING:
    from dask._task_spec import GraphNode

Graph = dict[Key, Any]


class SlicedGraph:
    """A graph, in slices.

    Args:
        graph: The tasks by their names. Names that are not in it are on the cluster already.
        outputs: For each slice in the order in which they are asked for, the name of what is wanted.

    Example:
        >>> from dask._task_spec import Task, TaskRef
        >>> graph = {
        ...     "all": Task("all", sum, TaskRef("data")),
        ...     "a": Task("a", divmod, TaskRef("all"), 2),
        ...     "b": Task("b", divmod, TaskRef("all"), 3),
        ... }
        >>> sliced = SlicedGraph(graph, ["a", "b"])
        >>> [sorted(sliced.tasks(number)) for number in range(2)]
        [['a', 'all'], ['b']]
        >>> sliced.held_from(0), sliced.held_until(1)
        (['all'], ['all'])
    """

    def __init__(self, graph: Mapping[Key, GraphNode], outputs: Sequence[Key]) -> None:
        self._graph = graph
        first: dict[Key, int] = {}
        self._new: list[list[Key]] = []
        for number, wanted in enumerate(outputs):
            new: list[Key] = []
            stack = [wanted]
            while stack:
                key = stack.pop()
                if key in first or key not in graph:
                    continue
                first[key] = number
                new.append(key)
                stack.extend(graph[key].dependencies)
            self._new.append(new)
        last: dict[Key, int] = {}
        for key, number in first.items():
            for needed in graph[key].dependencies:
                if needed in first and number > first[needed]:
                    last[needed] = max(number, last.get(needed, 0))
        self._held: list[list[Key]] = [[] for _ in outputs]
        self._released: list[list[Key]] = [[] for _ in outputs]
        for key, number in last.items():
            self._held[first[key]].append(key)
            self._released[number].append(key)

    def tasks(self, number: int) -> Graph:
        """The tasks that a slice adds."""
        return {key: self._graph[key] for key in self._new[number]}

    def held_from(self, number: int) -> list[Key]:
        """The tasks of a slice whose results later slices need."""
        return self._held[number]

    def held_until(self, number: int) -> list[Key]:
        """The results of earlier slices that this one is the last to need."""
        return self._released[number]


def graph_of(collections: Sequence[Any]) -> Graph:
    """The tasks of Dask collections, as Dask optimizes them."""
    from dask._task_spec import convert_legacy_graph
    from dask.base import optimize

    graph: Graph = {}
    for optimized in optimize(*collections):  # type: ignore[no-untyped-call]
        graph.update(dict(optimized.__dask_graph__()))
    return dict(convert_legacy_graph(graph))


class Layer:
    """Adds tasks to the graph of Dask collections, each with some of their blocks.

    Args:
        collections: The Dask collections.
        reader: What cuts their blocks.
    """

    def __init__(self, collections: Sequence[Any], reader: BlockReader) -> None:
        self.graph = graph_of(collections)
        self._reader = reader
        self._name = f"streamseq-{uuid.uuid4().hex[:16]}"

    def add(self, what: str, number: int, function: Any, *args: Any) -> Key:
        """Add a task; return its name."""
        from dask._task_spec import Task

        key = (f"{what}-{self._name}", number)
        self.graph[key] = Task(key, function, *args)
        return key

    def reference(self, key: Key) -> Any:
        """What a task has among its arguments for the result of another."""
        from dask._task_spec import TaskRef

        return TaskRef(key)

    def lists(self, inputs: Sequence[Sequence[BlockInput]]) -> Any:
        """What a task has among its arguments for lists of blocks."""
        from dask._task_spec import List

        return List(*(List(*map(self.block, each)) for each in inputs))

    def block(self, needed: BlockInput) -> Any:
        """What a task has among its arguments for a block; where a part of it will do, a task is added that cuts it."""
        block = self._names(needed.block)
        if needed.whole:
            return block
        key = self.add("cut", len(self.graph), self._reader.cut, block, needed.rows, needed.steps)
        return self.reference(key)

    def _names(self, block: Block) -> Any:
        from dask._task_spec import List

        return List(*map(self._names, block)) if isinstance(block, list) else self.reference(block)


def compute_blocks(collection: Collection, inputs: Sequence[BlockInput]) -> list[Block]:
    """Compute blocks with the threads of this process."""
    import dask.threaded
    from dask._task_spec import cull

    layer = Layer(collection.dask_collections, collection.reader)
    key = layer.add("blocks", 0, list, layer.lists([inputs]))
    [blocks] = dask.threaded.get(cull(layer.graph, [key]), key)
    return list(blocks)
