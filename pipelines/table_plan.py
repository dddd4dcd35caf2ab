"""Partitions of a table: parts of sequences, each with the blocks that have its rows, in the order of time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Partition, Skipped, SourceError, partition_bytes

from .runs import steady_runs
from .table_files import Block, Reading
from .table_index import BlockIndex, index_blocks

# What is said of an empty file, which is left out but no error.
NO_ROWS = "it has no rows"
_NEVER = np.iinfo(np.int64).max
_LEAST = np.iinfo(np.int64).min
# A block that many partitions need is read by each of them. All together read the table at most so many times: where
# all sequences are in all blocks, more partitions than that would gain nothing, however many workers there are.
_MOST_READS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """The rows that a block has of one sequence.

    Args:
        id: The sequence.
        block: The number of the block in its content.
        after: The largest time of the sequence in the parts before it; None where there is none.
    """

    id: str
    block: int
    after: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableContent:
    """What one partition of a table holds.

    Args:
        reading: How rows become timesteps.
        blocks: The blocks that it reads.
        parts: Its parts, sequence by sequence, in order.
        owned: The numbers of the blocks whose lines that are no rows are reported by this partition.
        damaged: The numbers of the blocks that the first pass could not read to their end.
        skipped: Files that were left out.
    """

    reading: Reading
    blocks: tuple[Block, ...]
    parts: tuple[Part, ...]
    owned: tuple[int, ...] = ()
    damaged: tuple[int, ...] = ()
    skipped: tuple[Skipped, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entries:
    """What the blocks have of the sequences, in the order of sequences and times; one row an entry.

    Args:
        sequence, block, num_rows, after: int64 `[E]`.
        file: int64 `[E]`: a number of the block's file.
    """

    sequence: NDArray[np.int64]
    file: NDArray[np.int64]
    block: NDArray[np.int64]
    num_rows: NDArray[np.int64]
    after: NDArray[np.int64]


def plan(
    blocks: Sequence[Block],
    ids: Sequence[str],
    reading: Reading,
    *,
    target_bytes: int,
    step_bytes: int,
    row_bytes: float,
    skipped: Sequence[Skipped],
    fail: bool,
) -> list[Partition]:
    """Cut a table into partitions.

    Sequences come in the order of their first rows. The rows of one come in the order of files and rows; where there
    are times, in the order of the first time that each file has of it.

    Args:
        blocks: All blocks, in the order of files.
        ids: Of each block the id of its rows, where there is no sequence column.
        reading: How rows become timesteps.
        target_bytes: Decoded bytes of a shard.
        step_bytes: Decoded bytes of one timestep.
        row_bytes: Bytes of input of a row, of blocks whose rows were not counted.
        skipped: Files that were left out.
        fail: Raise at what is not as it has to be.

    Raises:
        SourceError: Something is not as it has to be, and `fail`.
    """
    names: dict[str, int] = {}
    damaged: list[int] = []
    entries = _sorted(_found(blocks, ids, reading, row_bytes, names, damaged, fail), blocks)
    runs = _runs(entries, list(names), blocks, target_bytes, step_bytes)
    partitions = list(_partitions(entries, runs, list(names), blocks, reading, set(damaged)))
    lonely = sorted(set(range(len(blocks))) - set(entries.block.tolist()))
    if lonely or skipped:
        content = TableContent(
            reading=reading,
            blocks=tuple(blocks[number] for number in lonely),
            parts=(),
            owned=tuple(range(len(lonely))),
            damaged=tuple(place for place, number in enumerate(lonely) if number in damaged),
            skipped=tuple(skipped),
        )
        num_bytes = sum(blocks[number].num_bytes for number in lonely) + sum(item.num_bytes for item in skipped)
        partitions.append(Partition(num_bytes=num_bytes, content=content))
    return partitions


def _found(
    blocks: Sequence[Block],
    ids: Sequence[str],
    reading: Reading,
    row_bytes: float,
    names: dict[str, int],
    damaged: list[int],
    fail: bool,
) -> Iterator[tuple[int, NDArray[np.int64], BlockIndex]]:
    """Yield of each block its number, its sequences as numbers, and what it has of them."""
    indices: Iterable[BlockIndex]
    indices = index_blocks(blocks, reading, ids) if reading.key_columns else _unread(blocks, ids, row_bytes)
    for number, (block, index) in enumerate(zip(blocks, indices, strict=True)):
        if index.problem is not None:
            damaged.append(number)
            if fail:
                raise SourceError(f"{block.file.address!r} cannot be read: {index.problem}")
        if fail and index.wrong is not None:
            raise broken(index.wrong)
        yield number, np.array([names.setdefault(id, len(names)) for id in index.ids], np.int64), index


def broken(skipped: Skipped) -> SourceError:
    """The error about something that is not to be skipped."""
    return SourceError(f"{skipped}: repair it, or leave such rows out with on_error 'skip' or 'quarantine'")


def _unread(blocks: Sequence[Block], ids: Sequence[str], row_bytes: float) -> Iterator[BlockIndex]:
    """What blocks have of which all rows belong to one sequence and have no time: nobody has to look."""
    for block, id in zip(blocks, ids, strict=True):
        rows = block.num_rows or max(1, int(block.num_bytes / row_bytes))
        one = np.array([rows], np.int64)
        yield BlockIndex(ids=[id], rows=one, first=one, latest=np.array([_LEAST]), wrong=None, problem=None)


def _sorted(found: Iterator[tuple[int, NDArray[np.int64], BlockIndex]], blocks: Sequence[Block]) -> _Entries:
    columns: list[list[NDArray[np.int64]]] = [[np.zeros(0, np.int64)] for _ in range(5)]
    for number, sequence, index in found:
        block = np.full(len(sequence), number)
        for column, values in zip(columns, (sequence, block, index.rows, index.first, index.latest), strict=True):
            column.append(values)
    sequence, block, num_rows, first, latest = (np.concatenate(column) for column in columns)
    numbers: dict[str, int] = {}
    file = np.array([numbers.setdefault(each.file.address, len(numbers)) for each in blocks], np.int64)[block]
    order = np.lexsort((block, sequence))
    # Of each sequence the files in the order of their first times; without times in the order that they have.
    group = np.flatnonzero(_changes(sequence[order]) | _changes(file[order]))
    timed = np.where(first[order] == _NEVER, len(order), np.arange(len(order)))
    begin = np.append(first[order], _NEVER)[np.minimum.reduceat(timed, group)] if len(group) else first
    begin = np.repeat(begin, np.diff(np.append(group, len(order))))
    order = order[np.lexsort((block[order], file[order], begin, sequence[order]))]
    sequence, latest = sequence[order], latest[order]
    after = np.full(len(order), _LEAST)
    starts = np.flatnonzero(_changes(sequence))
    for start, stop in zip(starts, np.append(starts, len(order))[1:], strict=True):
        after[start + 1 : stop] = np.maximum.accumulate(latest[start : stop - 1])
    return _Entries(sequence=sequence, file=file[order], block=block[order], num_rows=num_rows[order], after=after)


def _changes(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Where a value is not the one before."""
    return np.asarray(np.diff(values, prepend=-1) != 0)


def _runs(
    entries: _Entries, ids: Sequence[str], blocks: Sequence[Block], target_bytes: int, step_bytes: int
) -> list[tuple[int, int]]:
    """Cut the entries into runs `[start, stop)`, each a partition."""
    sizes = entries.num_rows * step_bytes
    target = partition_bytes(int(sizes.sum()), target_bytes)
    costs = np.array([block.num_bytes for block in blocks], np.int64)
    budget = _MOST_READS * int(costs[np.unique(entries.block)].sum())
    fresh = _changes(entries.sequence) | _changes(entries.file)
    weights = sizes.tolist()

    def name(entry: int) -> str | None:
        if not fresh[entry]:
            return None
        return f"{ids[entries.sequence[entry]]}\0{blocks[entries.block[entry]].file.input.id}"

    while True:
        runs = steady_runs(weights, name, target)
        if sum(int(costs[np.unique(entries.block[start:stop])].sum()) for start, stop in runs) <= budget:
            return runs
        target *= 2


def _partitions(
    entries: _Entries,
    runs: Sequence[tuple[int, int]],
    ids: Sequence[str],
    blocks: Sequence[Block],
    reading: Reading,
    damaged: set[int],
) -> Iterator[Partition]:
    """Yield the partitions; the first one that has rows of a block is the one that reports what is no row in it."""
    rows = np.zeros(len(blocks), np.int64)
    np.add.at(rows, entries.block, entries.num_rows)
    # Each byte of a block is counted once, with whoever has the last rows of it.
    rows_left = rows.tolist()
    bytes_left = [block.num_bytes for block in blocks]
    seen: set[int] = set()
    last: str | None = None
    for start, stop in runs:
        numbers: dict[int, int] = {}
        parts = []
        num_bytes = 0
        for entry in range(start, stop):
            block, count, after = int(entries.block[entry]), int(entries.num_rows[entry]), int(entries.after[entry])
            share = bytes_left[block] * count // rows_left[block]
            bytes_left[block] -= share
            rows_left[block] -= count
            num_bytes += share
            place = numbers.setdefault(block, len(numbers))
            parts.append(Part(id=ids[entries.sequence[entry]], block=place, after=None if after == _LEAST else after))
        content = TableContent(
            reading=reading,
            blocks=tuple(blocks[number] for number in numbers),
            parts=tuple(parts),
            owned=tuple(place for number, place in numbers.items() if number not in seen),
            damaged=tuple(place for number, place in numbers.items() if number in damaged),
        )
        seen.update(numbers)
        yield Partition(num_bytes=num_bytes, content=content, continues=last if parts[0].id == last else None)
        last = parts[-1].id
