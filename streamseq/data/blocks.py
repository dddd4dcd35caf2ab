"""Blocks: many windows read at once, lane by lane, and handed out as views."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core.plan import Cells, Plan
from streamseq.core.shuffle import GROUP
from streamseq.core.tokens import StateToken
from streamseq.data.buffers import Buffers
from streamseq.data.window import Block, Window
from streamseq.storage.interface import Store

Array = NDArray[Any]
Int64 = NDArray[np.int64]

BLOCK_BYTES = 2 << 20
MAX_WINDOWS = 64
# Runs for each lane from which on a block is filled lane by lane.
RAGGED = 2


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


class BlockReader:
    """Reads windows of a plan from a store, a block at a time. For one thread.

    Args:
        store: Where the timesteps are.
        plan: What each window holds.
        view: What to show.
    """

    def __init__(self, store: Store, plan: Plan, view: View) -> None:
        self._plan = plan
        self._view = view
        self._lanes = view.lane_stop - view.lane_start
        self._fields = {name: store.fields[emitted.field] for name, emitted in view.emitted.items()}
        self._version = store.version
        self._buffers = {name: Buffers() for name in view.emitted}
        self._mask_buffers = Buffers()
        self._apart: Array = np.empty(0, np.uint8)
        names = dict.fromkeys(emitted.field for emitted in view.emitted.values())
        # A chunk for each lane, and those that the sequences of one shuffled group share.
        self._reader = store.reader(list(names), self._lanes + 2 * GROUP)

    def close(self) -> None:
        """Let go of the store's files."""
        self._reader.close()

    def blocks(self, steps: range) -> Iterator[list[Window]]:
        """The windows `steps`, in order, a block at a time."""
        size = self._windows_in_block()
        for first in range(0, len(steps), size):
            yield self.read(steps[first : first + size])

    def _windows_in_block(self) -> int:
        length = self._plan.settings.window
        if length is None:
            return 1
        size = self._lanes * length * sum(field.step_bytes for field in self._fields.values())
        return min(MAX_WINDOWS, max(1, BLOCK_BYTES // size))

    def read(self, steps: Sequence[int]) -> list[Window]:
        """The windows `steps`; with the as-is split, one step only."""
        view = self._view
        length = self._plan.settings.window or self._plan.window_length(steps[0])
        cells = self._plan.cells(np.array(steps, np.int64), view.lane_start, view.lane_stop)
        runs = _runs(cells)
        tensors = {name: self._fill(name, emitted, runs, len(steps), length) for name, emitted in view.emitted.items()}
        lane = np.arange(view.lane_start, view.lane_stop)
        return Block(
            {name: tensor.unbind(0) for name, tensor in tensors.items()},
            self._masks(cells, length).unbind(0),
            torch.from_numpy(cells.stop - cells.start),
            lambda index: self._token(cells, index, lane, steps[index]),
            view.batch_first,
        ).windows()

    def _fill(self, name: str, emitted: Emitted, runs: Runs, windows: int, length: int) -> Tensor:
        """[W, B, K, *D] or [W, K, B, *D] of one tensor of the windows."""
        field = self._fields[name]
        axes = (self._lanes, length) if self._view.batch_first else (length, self._lanes)
        block = self._buffers[name].take((windows, *axes, *field.shape), field.dtype)
        lane_first = block if self._view.batch_first else block.swapaxes(1, 2)
        start = np.maximum(runs.start + emitted.offset, runs.low)
        stop = np.minimum(runs.stop + emitted.offset, runs.high)
        skipped = start - runs.start - emitted.offset
        there = (start < stop) & (runs.sequence >= 0)
        if len(runs.lane) > RAGGED * self._lanes:
            at = (runs.lane * windows + runs.first) * length + skipped
            spans = (runs.sequence[there], start[there], stop[there])
            self._fill_ragged(lane_first, emitted.field, spans, at[there])
        else:
            columns = (runs.lane, runs.first, runs.last, runs.sequence, start, stop, skipped, there)
            for lane, first, last, *span in zip(*(column.tolist() for column in columns), strict=True):
                self._fill_run(lane_first[first:last, lane], length, emitted.field, *span)
        return torch.from_numpy(block)

    def _fill_run(
        self, place: Array, length: int, field: str, sequence: int, start: int, stop: int, at: int, there: bool
    ) -> None:
        """Fill windows `place` [w, K, *D] of one lane with one span, from timestep `at` of them on."""
        if not there:
            place[...] = 0
            return
        _zero(place, length, 0, at)
        for part in self._reader.slices(field, sequence, start, stop):
            _put(place, length, at, part)
            at += len(part)
        _zero(place, length, at, len(place) * length)

    def _fill_ragged(self, lane_first: Array, field: str, spans: tuple[Int64, Int64, Int64], at: Int64) -> None:
        """Fill windows `lane_first` [W, B, K, *D] with many spans.

        A span is one copy where a lane's windows lie side by side, and up to three where lanes lie between them. So the
        lanes are filled apart and then put in place together.
        """
        windows, lanes, length, *step = lane_first.shape
        if self._apart.size != lane_first.size or self._apart.dtype != lane_first.dtype:
            self._apart = np.empty(lane_first.size, lane_first.dtype)
        flat = self._apart.reshape(lanes * windows * length, *step)
        if int((spans[2] - spans[1]).sum()) < len(flat):
            flat.fill(0)
        self._reader.copy(field, spans, flat, at)
        lane_first[...] = flat.reshape(lanes, windows, length, *step).swapaxes(0, 1)

    def _masks(self, cells: Cells, length: int) -> Tensor:
        """bool [W, B, K] or [W, K, B]: timesteps that are there, with everything that looks ahead or back."""
        ahead = max((emitted.offset for emitted in self._view.emitted.values()), default=0)
        back = min((emitted.offset for emitted in self._view.emitted.values()), default=0)
        first = np.maximum(cells.low - back - cells.start, 0)
        last = np.minimum(cells.stop, cells.high - max(ahead, 0)) - cells.start
        axes = (self._lanes, length) if self._view.batch_first else (length, self._lanes)
        masks = self._mask_buffers.take((len(first), *axes), np.dtype(np.bool_))
        masks.fill(True)
        # Most cells are whole, and comparing every timestep takes longer than reading it.
        partial_cells = np.nonzero((first > 0) | (last < length))
        if len(partial_cells[0]):
            step = np.arange(length, dtype=np.int64)
            lane_first = masks if self._view.batch_first else masks.swapaxes(1, 2)
            first, last = first[partial_cells][:, None], last[partial_cells][:, None]
            lane_first[partial_cells] = (step >= first) & (step < last)
        return torch.from_numpy(masks)

    def _token(self, cells: Cells, index: int, lane: NDArray[np.int64], step: int) -> StateToken:
        return StateToken(
            sequence=cells.sequence[index],
            start=cells.start[index],
            stop=cells.stop[index],
            reset=cells.reset[index],
            final=cells.final[index],
            lane=lane,
            epoch=self._plan.epoch,
            step=step,
            fingerprint=self._plan.fingerprint,
            version=self._version,
            window=self._plan.settings.window,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """R runs of windows of a lane that hold consecutive timesteps of one span; int64 [R] each.

    Args:
        lane: The lane, from 0 in the view.
        first, last: The windows `[first, last)` of the block.
        sequence, start, stop, low, high: See `Cells`.
    """

    lane: Int64
    first: Int64
    last: Int64
    sequence: Int64
    start: Int64
    stop: Int64
    low: Int64
    high: Int64


def _runs(cells: Cells) -> Runs:
    """The cells, consecutive windows of one piece on one lane taken together, so that each is read at once."""
    windows, lanes = cells.piece.shape
    joined = np.zeros((lanes, windows), np.bool_)
    joined[:, 1:] = ((cells.piece[1:] == cells.piece[:-1]) & (cells.start[1:] == cells.stop[:-1])).T
    begins = np.flatnonzero(~joined)
    ends = np.append(begins[1:], joined.size) - 1
    lane, first = np.divmod(begins, windows)
    last = ends - lane * windows
    return Runs(
        lane=lane,
        first=first,
        last=last + 1,
        sequence=cells.sequence[first, lane],
        start=cells.start[first, lane],
        stop=cells.stop[last, lane],
        low=cells.low[first, lane],
        high=cells.high[first, lane],
    )


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


def _zero(place: Array, length: int, start: int, stop: int) -> None:
    """Clear timesteps `[start, stop)` of the run of windows `place` [w, K, *D]."""
    while start < stop:
        window, step = divmod(start, length)
        end = min(length, step + stop - start)
        place[window, step:end] = 0
        start += end - step
