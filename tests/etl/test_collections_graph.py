"""A graph in slices: every task once, with what it needs at hand, and nothing held longer than it is needed."""

import dask
import numpy as np
import pytest
from dask._task_spec import Task, TaskRef
from hypothesis import given
from hypothesis import strategies as st

from streamseq.etl.collections_blocks import continued_ids, group
from streamseq.etl.collections_graph import SlicedGraph, graph_of


def together(*values):
    return sum(values, 1)


@st.composite
def graphs(draw):
    """Tasks that need earlier ones, and some of them as outputs."""
    size = draw(st.integers(1, 25))
    graph = {}
    for number in range(size):
        needed = draw(st.sets(st.integers(0, number - 1), max_size=3)) if number else set()
        graph[number] = Task(number, together, *map(TaskRef, sorted(needed)))
    # What no task needs, as the tasks of a job are.
    needed = {key for task in graph.values() for key in task.dependencies}
    return graph, draw(st.permutations(sorted(set(graph) - needed)))


@given(graphs())
def test_every_task_runs_once_and_finds_what_it_needs_and_no_more_is_held(made):
    graph, outputs = made
    sliced = SlicedGraph(graph, outputs)
    held, ran = {}, []
    for number, output in enumerate(outputs):
        here = dict(held)
        tasks = sliced.tasks(number)
        for key in sorted(tasks):
            here[key] = tasks[key]({needed: here[needed] for needed in tasks[key].dependencies})
            ran.append(key)
        assert output in here
        held |= {key: here[key] for key in sliced.held_from(number)}
        for key in sliced.held_until(number):
            del held[key]
        later = {key for follower in range(number + 1, len(outputs)) for key in sliced.tasks(follower)}
        needed = {key for task in later for key in graph[task].dependencies}
        assert set(held) == needed & set(ran)
    assert sorted(ran) == sorted(graph)
    assert not held


def test_names_that_the_graph_does_not_have_are_on_the_cluster():
    sliced = SlicedGraph({"a": Task("a", together, TaskRef("persisted"))}, ["a"])
    assert list(sliced.tasks(0)) == ["a"]
    assert sliced.held_from(0) == []


def test_the_graph_is_what_dask_makes_of_it():
    array = dask.array.ones(12, chunks=4) + 1
    graph = graph_of([array, array])
    assert set(dask.core.flatten(array.__dask_keys__())) <= set(graph)
    assert np.array_equal(dask.get(graph, (array.name, 2)), np.full(4, 2.0))


@given(st.lists(st.none() | st.integers(0, 30)), st.integers(1, 40))
def test_groups_are_all_blocks_in_order_and_as_large_as_may_be(sizes, target):
    groups = group(sizes, target)
    assert [number for start, stop in groups for number in range(start, stop)] == list(range(len(sizes)))
    for start, stop in groups:
        own = sizes[start:stop]
        assert len(own) == 1 or (None not in own and sum(own) <= target)
        if stop < len(sizes) and None not in [*own, sizes[stop]]:
            assert sum(own) + sizes[stop] > target


@pytest.mark.parametrize(
    ("blocks", "continues"),
    [
        ([[], ["a"], ["a", "b"], ["b"], ["b", "c"]], [None, None, "a", "b", "b"]),
        ([["a"], [], [], ["a"]], [None, "a", "a", "a"]),
        ([["a"], [], ["b"], []], [None, None, None, None]),
    ],
)
def test_what_goes_on_in_a_block_is_known_from_the_ones_around(blocks, continues):
    assert continued_ids([[(id, 1) for id in ids] for ids in blocks]) == continues
