"""Partitions of files: none too large, and a change of one file changes few."""

import pickle
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines.file_parts import FilePart, Item, even_cuts, group, steady_target
from streamseq_pipelines.files import InputFile

from streamseq.etl import Skipped

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnPart(FilePart):
    """A part that says more, as those of some formats."""

    inside: int = 3


def item(name, size, modified=1, kind=FilePart):
    file = InputFile(address=f"/{name}", id=name, size=size, modified=modified)
    return Item(content=kind(file=file, start=0, stop=size), num_bytes=size, weight=size, id=name)


def sample(count, seed):
    sizes = np.random.default_rng(seed).geometric(1 / 3000, count)
    return [item(f"{number:05}.txt", int(size)) for number, size in enumerate(sizes)]


@settings(max_examples=100, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), max_size=60), target=st.integers(1, 500))
def test_groups_hold_every_item_once_in_order_and_are_neither_large_nor_small(sizes, target):
    items = [
        item(f"{number}", size, kind=OwnPart if size % 3 else FilePart)
        if size
        else Item(content=Skipped(what=f"{number}", reason="empty"))
        for number, size in enumerate(sizes)
    ]
    groups = group(items, target)
    assert [content for each in groups for content in each.content] == [each.content for each in items]
    again = pickle.loads(pickle.dumps(groups))
    assert again == groups
    assert [type(content) for each in again for content in each.content] == [type(each.content) for each in items]
    for each in groups:
        parts = [content for content in each.content if isinstance(content, FilePart)]
        assert each.num_bytes == sum(part.stop for part in parts)
        assert each.num_bytes <= target or len(parts) == 1
    for each, after in pairwise(groups):
        first = next(content for content in after.content if isinstance(content, FilePart))
        assert 2 * each.num_bytes >= target or each.num_bytes + first.stop > target


def test_a_file_that_grows_is_new_or_gone_changes_few_partitions():
    target = 64_000
    items = sample(3000, seed=1)
    before = {partition.content for partition in group(items, target)}
    assert len(before) > 100
    changed = []
    for number in range(50, 2900, 71):
        old = items[number]
        grown = item(old.content.file.id, old.num_bytes + 500, modified=2)
        new = item(old.content.file.id + "-new", 4000)
        for changes in ([old, new], [grown], []):
            after = {
                partition.content for partition in group([*items[:number], *changes, *items[number + 1 :]], target)
            }
            changed.append(len(after - before))
    assert np.mean(changed) < 3
    assert max(changed) < 20


def test_a_little_more_data_seldom_changes_the_size_of_partitions():
    sizes = {steady_target(total, 64 * MIB) for total in range(MIB, 5000 * MIB, MIB)}
    assert sizes == {4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB, 64 * MIB}
    assert steady_target(10**13, 50 * MIB) == 50 * MIB
    assert steady_target(10, 1000) == 1000


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 10_000), target=st.integers(1, 5000), unit=st.integers(1, 600))
def test_even_cuts_are_about_equal_and_at_multiples_of_the_unit(size, target, unit):
    cuts = even_cuts(size, target, unit)
    assert cuts[0][0] == 0
    assert cuts[-1][1] == size
    assert all(stop == start for (_, stop), (start, _) in pairwise(cuts))
    assert all(start % unit == 0 and start < stop <= start + target + unit for start, stop in cuts)


def test_a_sequence_that_goes_on_is_named():
    part = item("a", 10)
    groups = group([part, part, item("b", 10)], 10)
    assert [each.continues for each in groups] == [None, "a", None]
