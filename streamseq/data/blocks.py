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

BLOCK_BYTES = 2 << 20
MAX_WINDOWS = 64


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

    def _fill(self, name: str, emitted: Emitted, runs: list[Run], windows: int, length: int) -> Tensor:
        field = self._fields[name]
        axes = (self._lanes, length) if self._view.batch_first else (length, self._lanes)
        block = self._buffers[name].take((windows, *axes, *field.shape), field.dtype)
        lane_first = block if self._view.batch_first else block.swapaxes(1, 2)
        for run in runs:
            place = lane_first[run.first : run.last, run.lane]
            low = max(run.start + emitted.offset, run.low)
            high = min(run.stop + emitted.offset, run.high)
            at = low - run.start - emitted.offset
            if low >= high or run.sequence < 0:
                place[...] = 0
                continue
            _zero(place, length, 0, at)
            for part in self._reader.slices(emitted.field, run.sequence, low, high):
                _put(place, length, at, part)
                at += len(part)
            _zero(place, length, at, len(place) * length)
        return torch.from_numpy(block)

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


@dataclass(frozen=True, slots=True)
class Run:
    """Windows `[first, last)` of a lane: `[start, stop)` of a sequence, of which `[low, high)` was chosen."""

    lane: int
    first: int
    last: int
    sequence: int
    start: int
    stop: int
    low: int
    high: int


def _runs(cells: Cells) -> list[Run]:
    """The cells, consecutive windows of one piece on one lane taken together, so that each is read at once."""
    windows, lanes = cells.piece.shape
    joined = np.zeros((lanes, windows), np.bool_)
    joined[:, 1:] = ((cells.piece[1:] == cells.piece[:-1]) & (cells.start[1:] == cells.stop[:-1])).T
    begins = np.flatnonzero(~joined)
    ends = np.append(begins[1:], joined.size) - 1
    columns = [
        begins // windows,
        begins % windows,
        ends % windows + 1,
        cells.sequence.T.ravel()[begins],
        cells.start.T.ravel()[begins],
        cells.stop.T.ravel()[ends],
        cells.low.T.ravel()[begins],
        cells.high.T.ravel()[begins],
    ]
    return [Run(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


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
