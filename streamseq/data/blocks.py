"""Blocks: many windows read at once, lane by lane, and handed out as views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core.errors import CorruptionError
from streamseq.core.plan import Plan, Runs
from streamseq.data.buffers import Buffers
from streamseq.data.limits import Limits
from streamseq.data.pieces import ONES, ZEROS, Rows, copy_pieces
from streamseq.data.window import Block, BlockTokens, Window
from streamseq.storage.interface import Parts, ReaderCounts, Store

Array = NDArray[Any]
Int64 = NDArray[np.int64]

_NO_PIECES: Int64 = np.empty((0, 5), np.int64)
# Blocks of which it is known what they are going to hold.
_MOST_AHEAD = 64


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
    """

    emitted: Mapping[str, Emitted]
    lane_start: int
    lane_stop: int
    batch_first: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Column:
    """One tensor of a block that is going to be read.

    Args:
        parts: Where its timesteps lie in the store.
        rows: How they lie in the block.
        table: int64 [P, 5], a piece for each part.
        padding: int64 [Q, 5], pieces of zeros.
    """

    parts: Parts
    rows: Rows
    table: Int64
    padding: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Request:
    """A block that is going to be read."""

    first: int
    length: int
    runs: Runs
    columns: dict[str, _Column]


class BlockReader:
    """Reads windows of a plan from a store, a block at a time. For one thread.

    Args:
        store: Where the timesteps are.
        plan: What each window holds.
        view: What to show.
        limits: How much memory to use.
        buffers: Where the memory of blocks comes from.
        ahead: Whether a thread of its own decodes chunks before they are needed.
    """

    def __init__(self, store: Store, plan: Plan, view: View, limits: Limits, buffers: Buffers, ahead: bool) -> None:
        self._plan = plan
        self._view = view
        self._lanes = view.lane_stop - view.lane_start
        self._fields = {name: store.fields[emitted.field] for name, emitted in view.emitted.items()}
        self._step_bytes = {name: field.step_bytes for name, field in store.fields.items()}
        self._version = store.version
        self._limits = limits
        self._buffers = buffers
        names = [emitted.field for emitted in view.emitted.values()]
        self._ahead = limits.ahead if ahead else 0
        self._reader = store.reader(names, limits.chunks, self._ahead)

    def close(self) -> None:
        """Let go of the store's files."""
        self._reader.close()

    @property
    def counts(self) -> ReaderCounts:
        """What was read and decoded so far."""
        return self._reader.counts

    def blocks(self, steps: range) -> Iterator[list[Window]]:
        """The windows `steps`, in order, a block at a time; where they are not consecutive, one at a time."""
        size = self._limits.windows if steps.step == 1 else 1
        requests = self._requests(steps, size)
        coming: deque[_Request] = deque()
        hinted = 0
        while True:
            # What is going to be read is found out as far ahead as there is room for decoded chunks.
            while hinted == len(coming) < _MOST_AHEAD and (request := next(requests, None)) is not None:
                coming.append(request)
                hinted += self._prefetch(request)
            if not coming:
                return
            if hinted < len(coming):
                hinted += self._prefetch(coming[hinted])
            yield self._read(coming.popleft())
            hinted = max(0, hinted - 1)

    def _prefetch(self, request: _Request) -> bool:
        there = [self._reader.prefetch(column.parts) for column in request.columns.values()]
        return all(there)

    def read(self, step: int) -> Window:
        """One window."""
        (request,) = self._requests(range(step, step + 1), 1)
        return self._read(request)[0]

    def _requests(self, steps: range, size: int) -> Iterator[_Request]:
        view, runs = self._view, None
        for first in steps[::size]:
            stop = min(first + size, steps.stop)
            # Most blocks go on where the one before stopped, on every lane.
            runs = runs.next() if runs is not None and stop - first == runs.windows and steps.step == 1 else None
            if runs is None:
                runs = self._plan.runs(first, stop, view.lane_start, view.lane_stop)
            yield self._request(first, runs)

    def _request(self, first: int, runs: Runs) -> _Request:
        view = self._view
        length = self._plan.settings.window or self._plan.window_length(first)
        columns = {name: self._locate(emitted, runs, int(length)) for name, emitted in view.emitted.items()}
        return _Request(first=first, length=int(length), runs=runs, columns=columns)

    def _locate(self, emitted: Emitted, runs: Runs, length: int) -> _Column:
        lane, sequence, start, stop = runs.lane, runs.sequence, runs.start, runs.stop
        # Where each run begins and ends on its lane, and what of it is data.
        begin, end = runs.first * length, runs.last * length
        low = begin
        if emitted.offset:
            start = np.clip(start + emitted.offset, runs.low, runs.high)
            stop = np.clip(stop + emitted.offset, runs.low, runs.high)
            low = np.clip(begin + start - runs.start - emitted.offset, begin, end)
        count = stop - start
        rows = self._rows(length, self._step_bytes[emitted.field])
        padding = _NO_PIECES
        if int(count.sum()) < runs.lanes * runs.windows * length:
            high = low + count
            padding = np.concatenate(
                [rows.table(ZEROS, 0, lane, begin, low - begin), rows.table(ZEROS, 0, lane, high, end - high)]
            )
            padding = padding[padding[:, -1] > 0]
        if not count.all():
            there = count > 0
            lane, sequence, start, stop, low = (each[there] for each in (lane, sequence, start, stop, low))
        parts = self._reader.locate(emitted.field, (sequence, start, stop))
        at = low[parts.span] + parts.offset
        table = rows.table(parts.source, parts.low, lane[parts.span], at, parts.count)
        return _Column(parts=parts, rows=rows, table=table, padding=padding)

    def _rows(self, length: int, step_bytes: int) -> Rows:
        return Rows(lanes=self._lanes, length=length, step_bytes=step_bytes, batch_first=self._view.batch_first)

    def _read(self, request: _Request) -> list[Window]:
        view, runs = self._view, request.runs
        tensors = {name: self._fill(name, column, runs.windows) for name, column in request.columns.items()}
        return Block(
            {name: tensor.unbind(0) for name, tensor in tensors.items()},
            self._masks(request).unbind(0),
            BlockTokens(
                runs=runs,
                lane=np.arange(view.lane_start, view.lane_stop),
                epoch=self._plan.epoch,
                step=request.first,
                fingerprint=self._plan.fingerprint,
                version=self._version,
            ).tokens,
            view.batch_first,
        ).windows()

    def _take(self, windows: int, rows: Rows, shape: tuple[int, ...], dtype: np.dtype) -> Array:
        axes = (rows.lanes, rows.length) if rows.batch_first else (rows.length, rows.lanes)
        return self._buffers.take((windows, *axes, *shape), dtype)

    def _fill(self, name: str, column: _Column, windows: int) -> Tensor:
        """[W, B, K, *D] or [W, K, B, *D] of one tensor of the windows."""
        field, parts, most = self._fields[name], column.parts, self._limits.chunks
        block = self._take(windows, column.rows, field.shape, field.dtype)
        if len(column.padding):
            copy_pieces(block, column.rows, [], column.padding)
        # All chunks of a block are held at once, but where there is no room for them.
        for first in range(0, len(parts.chunks), most):
            last = first + most
            sources = self._reader.load(parts.field, parts.chunks[first:last], parts.uses[first:last])
            table = column.table
            if len(parts.chunks) > most:
                table = table[(table[:, 0] >= first) & (table[:, 0] < last)]
                table[:, 0] -= first
            try:
                copy_pieces(block, column.rows, sources, table)
            except EOFError:
                raise CorruptionError(f"a chunk of field {parts.field!r} ends early: restore the shard") from None
            # The next chunks are decoded into the memory of these.
            del sources
        return torch.from_numpy(block)

    def _masks(self, request: _Request) -> Tensor:
        """bool [W, B, K] or [W, K, B]: timesteps that are there, with everything that looks ahead or back."""
        runs, length = request.runs, request.length
        rows = self._rows(length, 1)
        masks = self._take(runs.windows, rows, (), np.dtype(np.bool_))
        if not any(len(column.padding) for column in request.columns.values()):
            masks.fill(True)
            return torch.from_numpy(masks)
        ahead = max(0, *(emitted.offset for emitted in self._view.emitted.values()))
        back = min(0, *(emitted.offset for emitted in self._view.emitted.values()))
        begin, end = runs.first * length, runs.last * length
        low = np.clip(begin + runs.low - back - runs.start, begin, end)
        high = np.clip(begin + np.minimum(runs.stop, runs.high - ahead) - runs.start, low, end)
        spans = ((ZEROS, begin, low), (ONES, low, high), (ZEROS, high, end))
        table = np.concatenate([rows.table(what, 0, runs.lane, start, stop - start) for what, start, stop in spans])
        copy_pieces(masks, rows, [], table)
        return torch.from_numpy(masks)
