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

from streamseq.core.plan import Plan, Runs
from streamseq.data.buffers import Buffers
from streamseq.data.limits import Limits
from streamseq.data.window import Block, BlockTokens, Window
from streamseq.storage.interface import Parts, ReaderCounts, Store

Array = NDArray[Any]
Int64 = NDArray[np.int64]

# Parts for each lane from which on a block is filled lane by lane.
RAGGED = 2
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
    """One tensor of a block that is going to be read: its parts, and where they go.

    Args:
        parts: Where its timesteps lie in the store.
        at: int64 [P], the place of the first timestep of each part, with the windows of each lane end to end.
        whole: Whether the parts fill the block.
    """

    parts: Parts
    at: Int64
    whole: bool


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
        self._version = store.version
        self._limits = limits
        self._buffers = buffers
        self._apart: Array = np.empty(0, np.uint8)
        names = dict.fromkeys(emitted.field for emitted in view.emitted.values())
        self._ahead = limits.ahead if ahead else 0
        self._reader = store.reader(list(names), limits.chunks, self._ahead)

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
        sequence, start, stop = runs.sequence, runs.start, runs.stop
        at = (runs.lane * runs.windows + runs.first) * length
        if emitted.offset:
            start = np.clip(start + emitted.offset, runs.low, runs.high)
            stop = np.clip(stop + emitted.offset, runs.low, runs.high)
            at = at + start - runs.start - emitted.offset
        there = start < stop
        if not there.all():
            sequence, start, stop, at = sequence[there], start[there], stop[there], at[there]
        parts = self._reader.locate(emitted.field, (sequence, start, stop))
        return _Column(
            parts=parts,
            at=at[parts.span] + parts.offset,
            whole=int((stop - start).sum()) == runs.lanes * runs.windows * length,
        )

    def _read(self, request: _Request) -> list[Window]:
        view, runs = self._view, request.runs
        tensors = {name: self._fill(name, column, runs, request.length) for name, column in request.columns.items()}
        lane = np.arange(view.lane_start, view.lane_stop)
        return Block(
            {name: tensor.unbind(0) for name, tensor in tensors.items()},
            self._masks(runs, request.length, all(column.whole for column in request.columns.values())).unbind(0),
            BlockTokens(
                runs=runs,
                lane=lane,
                epoch=self._plan.epoch,
                step=request.first,
                fingerprint=self._plan.fingerprint,
                version=self._version,
            ).tokens,
            view.batch_first,
        ).windows()

    def _fill(self, name: str, column: _Column, runs: Runs, length: int) -> Tensor:
        """[W, B, K, *D] or [W, K, B, *D] of one tensor of the windows."""
        field, parts = self._fields[name], column.parts
        axes = (self._lanes, length) if self._view.batch_first else (length, self._lanes)
        block = self._buffers.take((runs.windows, *axes, *field.shape), field.dtype)
        lane_first = block if self._view.batch_first else block.swapaxes(1, 2)
        if len(parts) > RAGGED * self._lanes:
            self._fill_apart(lane_first, column)
        else:
            if not column.whole:
                block.fill(0)
            self._fill_in_place(lane_first, column)
        return torch.from_numpy(block)

    def _fill_in_place(self, lane_first: Array, column: _Column) -> None:
        """Fill windows `lane_first` [W, B, K, *D] with long parts, a copy of whole windows for each."""
        windows, _, length, *shape = lane_first.shape
        lane, place = np.divmod(column.at, windows * length)
        window, step = np.divmod(place, length)
        arrays = self._reader.arrays(column.parts)
        for values, b, w, t in zip(arrays, lane.tolist(), window.tolist(), step.tolist(), strict=True):
            count, rest = divmod(len(values), length)
            if t or rest:
                _put(lane_first[:, b], length, w * length + t, values)
            else:
                lane_first[w : w + count, b] = values.reshape(count, length, *shape)

    def _fill_apart(self, lane_first: Array, column: _Column) -> None:
        """Fill windows `lane_first` [W, B, K, *D] with many parts.

        A part is one copy where a lane's windows lie side by side, and up to three where lanes lie between them. So the
        lanes are filled apart and then put in place together.
        """
        windows, lanes, length, *shape = lane_first.shape
        if self._apart.size != lane_first.size or self._apart.dtype != lane_first.dtype:
            self._apart = np.empty(lane_first.size, lane_first.dtype)
        flat = self._apart.reshape(lanes * windows * length, *shape)
        if not column.whole:
            flat.fill(0)
        for values, at in zip(self._reader.arrays(column.parts), column.at.tolist(), strict=True):
            flat[at : at + len(values)] = values
        lane_first[...] = flat.reshape(lanes, windows, length, *shape).swapaxes(0, 1)

    def _masks(self, runs: Runs, length: int, whole: bool) -> Tensor:
        """bool [W, B, K] or [W, K, B]: timesteps that are there, with everything that looks ahead or back."""
        ahead = max(0, *(emitted.offset for emitted in self._view.emitted.values()))
        back = min(0, *(emitted.offset for emitted in self._view.emitted.values()))
        axes = (self._lanes, length) if self._view.batch_first else (length, self._lanes)
        masks = self._buffers.take((runs.windows, *axes), np.dtype(np.bool_))
        masks.fill(True)
        if whole:
            return torch.from_numpy(masks)
        lane_first = masks if self._view.batch_first else masks.swapaxes(1, 2)
        size = (runs.last - runs.first) * length
        low = np.clip(runs.low - back - runs.start, 0, size)
        high = np.minimum(runs.stop, runs.high - ahead) - runs.start
        high = np.clip(high, low, size)
        # Windows before and after, of which nothing counts: few, but at the end of the epoch.
        for run in np.flatnonzero((low >= length) | (size - high >= length)).tolist():
            first, last, b = runs.first[run], runs.last[run], runs.lane[run]
            lane_first[first : first + low[run] // length, b] = False
            lane_first[first - (-high[run] // length) : last, b] = False
        # Windows of which a part counts.
        step = np.arange(length, dtype=np.int16 if length < 2**15 else np.int64)
        for border, counts in ((low, np.greater_equal), (high, np.less)):
            cut = np.flatnonzero(border % length)
            if len(cut):
                cells = (runs.first[cut] + border[cut] // length, runs.lane[cut])
                lane_first[cells] &= counts(step, (border[cut] % length).astype(step.dtype)[:, None])
        return torch.from_numpy(masks)


def _put(place: Array, length: int, at: int, values: Array) -> None:
    """Write `values` [m, *D] into windows `place` [w, K, *D], from timestep `at` of their run on."""
    window, step = divmod(at, length)
    done = 0
    if step:
        done = min(length - step, len(values))
        place[window, step : step + done] = values[:done]
        window += 1
    whole = (len(values) - done) // length
    if whole:
        part = values[done : done + whole * length]
        place[window : window + whole] = part.reshape(whole, length, *values.shape[1:])
        done += whole * length
        window += whole
    if done < len(values):
        place[window, : len(values) - done] = values[done:]
