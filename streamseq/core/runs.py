"""What lanes hold in windows: as runs of consecutive timesteps, and window by window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.segments import Segments, make_segments

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """What some lanes hold in some windows: W windows by B lanes.

    Args:
        sequence: int64 [W, B], index of the sequence, -1 where the lane is idle. Of packed windows that of the lane's
            first segment.
        start, stop: int64 [W, B], positions in the sequence; both 0 where the lane is idle. Of packed windows where the
            first segment starts and where the last one stops.
        reset: bool [W, B], whether the state before the window is the initial one.
        final: bool [W, B], whether the lane's state ends with the window.
        segments: Those of packed windows, sorted by window, lane and offset; None of others.
        borders: int64 [W + 1], where those of each window begin.
    """

    sequence: Int64
    start: Int64
    stop: Int64
    reset: Bool
    final: Bool
    segments: Segments | None = None
    borders: Int64 | None = None

    def segments_of(self, row: int) -> Segments | None:
        """The segments of a window; None where windows are not packed."""
        if self.segments is None or self.borders is None:
            return None
        return self.segments[self.borders[row] : self.borders[row + 1]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """What B lanes hold in W consecutive windows, as R runs: consecutive timesteps of a lane, or none (idle).

    A run begins and ends with a window, and may have padding at its end; where windows are packed it begins and ends
    anywhere, and padding is an idle run.

    Args:
        windows, lanes: W and B.
        window: Timesteps K of a window; None where each sequence is one, and then W is 1.
        lane: int64 [R], from 0.
        first, last: int64 [R], the windows `[first, last)`, from 0; where windows are packed the timesteps of the lane.
        sequence: int64 [R], index of the sequence, -1 where the lane is idle.
        start, stop: int64 [R], positions in the sequence; both 0 where the lane is idle.
        low, high: int64 [R], the span that was chosen of the sequence, or what of it lies between breaks: no datum
            outside it may be shown.
        reset: bool [R], whether the state before the run is the initial one.
        final: bool [R], whether the lane's state ends with the run.
        packed: Whether windows are packed across the ends of sequences.
    """

    windows: int
    lanes: int
    window: int | None
    lane: Int64
    first: Int64
    last: Int64
    sequence: Int64
    start: Int64
    stop: Int64
    low: Int64
    high: Int64
    reset: Bool
    final: Bool
    packed: bool = False

    def __len__(self) -> int:
        return len(self.lane)

    def ends(self, length: int) -> tuple[Int64, Int64]:
        """Where each run begins and ends on its lane, in timesteps from the first of W windows of `length` timesteps.

        Returns:
            Two int64 [R].
        """
        return (self.first, self.last) if self.packed else (self.first * length, self.last * length)

    def cells(self) -> Cells:
        """The same, window by window."""
        if self.packed and self.window is not None:
            return self._packed_cells(self.window)
        shape = (self.lanes, self.windows)
        counts = self.last - self.first
        # Where each cell lies in its run; the cells of a lane are consecutive once the runs are sorted.
        order = np.argsort(self.lane * self.windows + self.first)
        run = np.repeat(order, counts[order]).reshape(shape).T
        index = np.arange(self.windows)[:, None] - self.first[run]
        start, stop = self.start[run], self.stop[run]
        if self.window is not None:
            start = np.minimum(start + index * self.window, stop)
            np.minimum(start + self.window, stop, out=stop)
        return Cells(
            sequence=self.sequence[run],
            start=start,
            stop=stop,
            reset=self.reset[run] & (index == 0),
            final=self.final[run] & (index == counts[run] - 1),
        )

    def _packed_cells(self, window: int) -> Cells:
        # Each run cut at the borders of windows.
        held = np.flatnonzero(self.sequence >= 0)
        first = self.first[held] // window
        counts = (self.last[held] - 1) // window - first + 1
        run = np.repeat(held, counts)
        row = np.arange(len(run)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        order = np.lexsort((self.first[run], self.lane[run], row))
        run, row = run[order], row[order]
        begin = np.maximum(self.first[run], row * window)
        end = np.minimum(self.last[run], (row + 1) * window)
        start = self.start[run] + begin - self.first[run]
        segments = make_segments(
            lane=self.lane[run],
            offset=begin - row * window,
            sequence=self.sequence[run],
            start=start,
            stop=start + end - begin,
            reset=self.reset[run] & (begin == self.first[run]),
        )
        final = self.final[run] & (end == self.last[run])
        # The first and the last segment of each cell.
        shape = (self.windows, self.lanes)
        cell = row * self.lanes + self.lane[run]
        borders = np.searchsorted(cell, np.arange(self.windows * self.lanes + 1))
        there = borders[1:] > borders[:-1]
        low, high = borders[:-1][there], borders[1:][there] - 1

        def spread(values: NDArray[Any], elsewhere: int) -> NDArray[Any]:
            cells = np.full(len(there), elsewhere, values.dtype)
            cells[there] = values
            return cells.reshape(shape)

        return Cells(
            sequence=spread(segments["sequence"][low], -1),
            start=spread(segments["start"][low], 0),
            stop=spread(segments["stop"][high], 0),
            reset=spread(segments["reset"][low], 0),
            final=spread(final[high], 0),
            segments=segments,
            borders=borders[:: self.lanes],
        )
