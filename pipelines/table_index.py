"""The first pass over a table: which sequences each block has, how many rows of each, and their times."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamseq.etl import Skipped

from .table_arrow import read_arrow
from .table_cells import kind_of, shown, to_times
from .table_csv import read_csv
from .table_files import Block, FileProblem, Reading, Rows

_NEVER = np.iinfo(np.int64).max
_LEAST = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """To which sequence each row belongs, and when it was.

    Args:
        codes: int64 `[n]`: an index into `ids`; -1 where a row belongs to none.
        ids: The ids, in the order of their first rows.
        times: int64 `[n]`, or None without a timestamp column.
        untimed: bool `[n]`: rows whose time is none.
    """

    codes: NDArray[np.int64]
    ids: list[str]
    times: NDArray[np.int64] | None
    untimed: NDArray[np.bool_]


def keys_of(table: pa.Table, reading: Reading, id: str) -> Keys:
    """Look at the key columns of some rows; `id` is that of all of them without a sequence column."""
    codes, ids = np.zeros(table.num_rows, np.int64), [id]
    if reading.sequence is not None:
        codes, ids = _codes(table.column(reading.sequence))
    if reading.timestamp is None:
        return Keys(codes=codes, ids=ids, times=None, untimed=np.zeros(len(codes), np.bool_))
    times = to_times(table.column(reading.timestamp), reading.unit)
    return Keys(codes=codes, ids=ids, times=times.values, untimed=times.bad)


def _codes(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], list[str]]:
    if pa.types.is_dictionary(column.type):
        # Its own dictionary may repeat values, or have none of these.
        column = column.cast(column.type.value_type)
    encoded = column.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_string()).to_pylist()
    fit = np.array([bool(text) for text in texts], np.bool_)
    numbers = np.where(fit, np.cumsum(fit) - 1, -1).astype(np.int64)
    indices = pc.fill_null(encoded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    codes = np.where(indices >= 0, np.append(numbers, -1)[indices], -1)
    return codes, [text for text, fits in zip(texts, fit, strict=True) if fits]


def strays(rows: Rows, keys: Keys, reading: Reading) -> dict[int, str]:
    """What is wrong with rows that belong to no sequence or have no time, by row."""
    found: dict[int, str] = {}
    for row in np.flatnonzero((keys.codes < 0) | keys.untimed).tolist():
        what, name = ("time", reading.timestamp) if keys.codes[row] >= 0 else ("sequence", reading.sequence)
        column = rows.table.column(name)
        among = f", no count of {reading.unit}" if what == "time" and kind_of(column.type) == "time" else ""
        found[row] = f"its {what}, column {name!r}, is {shown(column, row)}{among}"
    return found


def left_out(rows: Rows, block: Block, row: int, reason: str, keep_content: bool) -> Skipped:
    """The account of one row."""
    return Skipped(
        what=block.file.address,
        place=rows.place(row),
        reason=reason,
        num_bytes=rows.num_bytes(row),
        content=rows.content(row) if keep_content else None,
    )


def read_block(block: Block, reading: Reading, columns: Sequence[str], keep_content: bool) -> Iterator[Rows]:
    """Yield the rows of a block, whatever its format.

    Raises:
        FileProblem: It cannot be read, or not to its end; after the rows before that.
    """
    if block.file.format in ("csv", "tsv"):
        return read_csv(block, reading, columns, keep_content)
    return read_arrow(block, columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockIndex:
    """What one block has, by sequence, in the order of the first rows.

    Args:
        ids: The ids.
        rows: int64 `[S]`: how many rows.
        first: int64 `[S]`: the first time; the largest int64 where there is none.
        latest: int64 `[S]`: the largest time; the least int64 where there is none.
        wrong: The first of what is no row, or is a row without a sequence or a time.
        problem: Why it could not be read to its end.
    """

    ids: list[str]
    rows: NDArray[np.int64]
    first: NDArray[np.int64]
    latest: NDArray[np.int64]
    wrong: Skipped | None
    problem: str | None


def index_blocks(blocks: Sequence[Block], reading: Reading, ids: Sequence[str]) -> Iterator[BlockIndex]:
    """Read the key columns of blocks, several at a time, and yield what they have, in order.

    Args:
        blocks: The blocks.
        reading: How to read them.
        ids: Of each block the id of its rows, where there is no sequence column.
    """
    threads = os.cpu_count() or 1
    flying: deque[Future[BlockIndex]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for block, id in zip(blocks, ids, strict=True):
                flying.append(pool.submit(_index, block, reading, id))
                if len(flying) > 2 * threads:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            for future in flying:
                future.cancel()


def _index(block: Block, reading: Reading, id: str) -> BlockIndex:
    numbers: dict[str, int] = {}
    rows, first, latest = (np.zeros(0, np.int64) for _ in range(3))
    wrong: Skipped | None = None
    problem: str | None = None
    try:
        for part in read_block(block, reading, reading.key_columns, keep_content=False):
            keys = keys_of(part.table, reading, id)
            if wrong is None:
                bad = [
                    left_out(part, block, *each, False)
                    for each in (part.problems | strays(part, keys, reading)).items()
                ]
                wrong = next(iter(part.broken + bad), None)
            owned = keys.codes >= 0
            mine = np.array([numbers.setdefault(each, len(numbers)) for each in keys.ids], np.int64)[keys.codes[owned]]
            more = len(numbers) - len(rows)
            rows = np.append(rows, np.zeros(more, np.int64)) + np.bincount(mine, minlength=len(numbers))
            first, latest = np.append(first, np.full(more, _NEVER)), np.append(latest, np.full(more, _LEAST))
            if keys.times is not None:
                timed = ~keys.untimed[owned]
                mine, times = mine[timed], keys.times[owned][timed]
                np.maximum.at(latest, mine, times)
                who, where = np.unique(mine, return_index=True)
                new = first[who] == _NEVER
                first[who[new]] = times[where[new]]
    except FileProblem as error:
        problem = str(error)
    if rows.any():
        had = np.flatnonzero(rows)
        names = list(numbers)
        return BlockIndex(
            ids=[names[each] for each in had],
            rows=rows[had],
            first=first[had],
            latest=latest[had],
            wrong=wrong,
            problem=problem,
        )
    return BlockIndex(ids=[], rows=rows[:0], first=first[:0], latest=latest[:0], wrong=wrong, problem=problem)
