"""Requests: what the blocks of a stream are going to hold, found out for many of them at once.

A stretch is several blocks. What its lanes hold is a few runs of consecutive timesteps; where those lie in the store's
chunks, and where they go, is arithmetic on arrays, then cut at the borders of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamseq.core.plan import Plan
from streamseq.core.runs import Runs
from streamseq.core.tokens import StateToken, TokenRows
from streamseq.data.normalization import Scale
from streamseq.data.pieces import ZEROS, Rows
from streamseq.storage.interface import Reader

Int64 = NDArray[np.int64]

# Blocks of a stretch at most.
STRETCH = 16
# Windows of which masks, tokens and tensors are made at a time: few enough that a mask is still in the processor's
# cache when it is looked at, and that Python's garbage collector does not look through them.
TOGETHER = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Emitted:
    """One tensor of a window: a field, or a field seen `offset` timesteps ahead.

    Args:
        field: The name of the field in the store.
        offset: Timesteps ahead; 0 for the field itself.
    """

    field: str
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What a stream shows of a store: which tensors, on which lanes, in which order of axes.

    Args:
        emitted: Name in the window -> what it holds.
        lane_start, lane_stop: The run of lanes.
        batch_first: Whether lanes come before timesteps.
        scales: How fields of the store are normalised, by their names.
    """

    emitted: Mapping[str, Emitted]
    lane_start: int
    lane_stop: int
    batch_first: bool
    scales: Mapping[str, Scale] = dataclass_field(default_factory=dict)

    @property
    def lanes(self) -> int:
        """Number of lanes."""
        return self.lane_stop - self.lane_start


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Column:
    """One tensor of a block that is going to be read.

    Args:
        field: The field in the store.
        rows: How its timesteps lie in the block.
        chunks: The chunks that are needed.
        uses: How many timesteps of each are read.
        table: int64 [P, 5], pieces of them; see `Rows.table`.
        padding: int64 [Q, 5], pieces of zeros.
    """

    field: str
    rows: Rows
    chunks: list[int]
    uses: list[int]
    table: Int64
    padding: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Masks:
    """The masks of a block, `together` windows at a time.

    Args:
        windows: W, of the block.
        together: Of which a mask is made at a time; fewer at the end.
        rows: How they lie in it.
        zeros: For each time int64 [M, 5], the pieces of zeros; everything else is one.
    """

    windows: int
    together: int
    rows: Rows
    zeros: list[Int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Request:
    """A block that is going to be read.

    Args:
        windows: W.
        columns: By name in the window.
        masks: What their masks are.
        tokens: Makes the tokens of the stretch.
        begin: The place of the first window in the stretch.
    """

    windows: int
    columns: dict[str, Column]
    masks: Masks
    tokens: TokenRows
    begin: int

    def make_tokens(self, first: int, stop: int) -> list[StateToken]:
        """The tokens of the windows `[first, stop)` of the block."""
        return self.tokens.tokens(self.begin + first, self.begin + stop)


class Requests:
    """Finds out what the windows of a plan need.

    Args:
        plan: What each window holds.
        view: What to show.
        reader: Where it lies.
        version: Of the store.
    """

    def __init__(self, plan: Plan, view: View, reader: Reader, version: int) -> None:
        self._plan = plan
        self._view = view
        self._reader = reader
        self._version = version

    def of(self, steps: range, size: int) -> Iterator[Request]:
        """The requests for the windows `steps`, in blocks of `size` where they are consecutive, else one by one."""
        if steps.step != 1 or self._plan.settings.window is None:
            for step in steps:
                yield from self._stretch(step, step + 1, 1)
            return
        # The first window does not wait for what is found out about many blocks.
        first, blocks = steps.start, 1
        while first < steps.stop:
            stop = min(first + size * blocks, steps.stop)
            yield from self._stretch(first, stop, size)
            first, blocks = stop, min(2 * blocks, STRETCH)

    def _stretch(self, first: int, stop: int, size: int) -> Iterator[Request]:
        view, plan = self._view, self._plan
        length = plan.window_length(first)
        runs = plan.runs(first, stop, view.lane_start, view.lane_stop)
        blocks = -(-(stop - first) // size)
        tokens = TokenRows(
            cells=runs.cells,
            window=runs.window,
            num_steps=length,
            lane=np.arange(view.lane_start, view.lane_stop),
            epoch=plan.epoch,
            step=first,
            fingerprint=plan.fingerprint,
            version=self._version,
            switches=plan.settings.switches,
        )
        columns = {name: self._columns(emitted, runs, length, size, blocks) for name, emitted in view.emitted.items()}
        together = TOGETHER if size % TOGETHER == 0 else size
        parts = size // together
        rows = self._rows(length, 1)
        zeros = _cut(self._masked(runs, length), together * length, blocks * parts)
        for block in range(blocks):
            windows = min(size, stop - first - block * size)
            part = block * parts
            yield Request(
                windows=windows,
                columns={name: each[block] for name, each in columns.items()},
                masks=Masks(windows=windows, together=together, rows=rows, zeros=zeros[part : part + parts]),
                tokens=tokens,
                begin=block * size,
            )

    def _rows(self, length: int, step_bytes: int) -> Rows:
        return Rows(lanes=self._view.lanes, length=length, step_bytes=step_bytes, batch_first=self._view.batch_first)

    def _columns(self, emitted: Emitted, runs: Runs, length: int, size: int, blocks: int) -> list[Column]:
        """One tensor of each block."""
        lane, sequence, start, stop = runs.lane, runs.sequence, runs.start, runs.stop
        # Where each run begins and ends on its lane, and what of it is data.
        begin, end = runs.ends(length)
        low = begin
        if emitted.offset:
            start = np.clip(start + emitted.offset, runs.low, runs.high)
            stop = np.clip(stop + emitted.offset, runs.low, runs.high)
            low = np.clip(begin + start - runs.start - emitted.offset, begin, end)
        count = stop - start
        step_bytes = self._reader.fields[emitted.field].step_bytes
        rows, lane_bytes = self._rows(length, step_bytes), size * length * step_bytes
        paddings = _cut(_gaps(rows, lane, begin, low, low + count, end), lane_bytes, blocks)
        if not count.all():
            there = count > 0
            lane, sequence, start, stop, low = (each[there] for each in (lane, sequence, start, stop, low))
        parts = self._reader.locate(emitted.field, (sequence, start, stop))
        at = low[parts.span] + parts.offset
        table, borders = _cut_at(
            rows.table(parts.chunk, parts.low, lane[parts.span], at, parts.count), lane_bytes, blocks
        )
        # The chunks of each block, found for all of them together.
        block = np.repeat(np.arange(blocks), np.diff(borders))
        every, chunk = _distinct(table[:, 0])
        needed, source = _distinct(block * len(every) + chunk)
        uses = (np.bincount(source, table[:, -1], len(needed)) / step_bytes).astype(np.int64).tolist()
        starts = np.searchsorted(needed, np.arange(blocks + 1) * len(every))
        table[:, 0] = source - starts[block]
        chunks = every[needed % max(1, len(every))].tolist()
        return [
            Column(
                field=emitted.field,
                rows=rows,
                chunks=chunks[starts[number] : starts[number + 1]],
                uses=uses[starts[number] : starts[number + 1]],
                table=table[borders[number] : borders[number + 1]],
                padding=paddings[number],
            )
            for number in range(blocks)
        ]

    def _masked(self, runs: Runs, length: int) -> Int64:
        """Pieces of zeros of the mask: timesteps that are not there, or lack something that looks ahead or back."""
        offsets = [emitted.offset for emitted in self._view.emitted.values()]
        ahead, back = max(0, *offsets), min(0, *offsets)
        begin, end = runs.ends(length)
        low = np.clip(begin + runs.low - back - runs.start, begin, end)
        high = np.clip(begin + np.minimum(runs.stop, runs.high - ahead) - runs.start, low, end)
        return _gaps(self._rows(length, 1), runs.lane, begin, low, high, end)


def _distinct(values: Int64) -> tuple[Int64, Int64]:
    """What `np.unique` returns with the inverse; without a sort where the values lie close together."""
    if not len(values):
        return values, values
    least = int(values.min())
    spread = int(values.max()) - least + 1
    if spread > 4 * len(values) + 1024:
        return np.unique(values, return_inverse=True)
    there = np.zeros(spread, np.bool_)
    there[values - least] = True
    distinct = np.flatnonzero(there)
    return distinct + least, (np.cumsum(there) - 1)[values - least]


def _gaps(rows: Rows, lane: Int64, begin: Int64, low: Int64, high: Int64, end: Int64) -> Int64:
    """Pieces of zeros before `low` and from `high` on, of what lies in `[begin, end)` of lanes."""
    tables = []
    for start, stop in ((begin, low), (high, end)):
        there = np.flatnonzero(stop > start)
        tables.append(rows.table(ZEROS, 0, lane[there], start[there], (stop - start)[there]))
    return np.concatenate(tables)


def _cut(table: Int64, lane_bytes: int, blocks: int) -> list[Int64]:
    """The pieces of each of `blocks` blocks, of which a lane has `lane_bytes`, from those of all of them together."""
    pieces, borders = _cut_at(table, lane_bytes, blocks)
    return [pieces[begin:end] for begin, end in pairwise(borders)]


def _cut_at(table: Int64, lane_bytes: int, blocks: int) -> tuple[Int64, list[int]]:
    """`_cut`, before the pieces, which are sorted by block, are split at the borders [blocks + 1]."""
    at, end = table[:, 3], table[:, 3] + table[:, 4]
    first = at // lane_bytes
    several = (end - 1) // lane_bytes - first + 1
    index = np.repeat(np.arange(len(table)), several)
    block = np.arange(len(index)) + np.repeat(first - (np.cumsum(several) - several), several)
    # Numbers of two bytes are sorted in linear time.
    order = np.argsort(block.astype(np.uint16) if blocks <= 1 << 16 else block, kind="stable")
    index, block = index[order], block[order]
    low = np.maximum(at[index], block * lane_bytes)
    high = np.minimum(end[index], (block + 1) * lane_bytes)
    pieces = table[index]
    pieces[:, 1] += low - at[index]
    pieces[:, 3] = low - block * lane_bytes
    pieces[:, 4] = high - low
    return pieces, np.searchsorted(block, np.arange(blocks + 1)).tolist()
