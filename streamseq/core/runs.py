"""What lanes hold in windows: as runs of consecutive timesteps, and window by window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """What some lanes hold in some windows: W windows by B lanes.

    Args:
        sequence: int64 [W, B], index of the sequence, -1 where the lane is idle.
        start, stop: int64 [W, B], positions in the sequence; both 0 where the lane is idle.
        reset: bool [W, B], whether the state before the window is the initial one.
        final: bool [W, B], whether the lane's state ends with the window.
    """

    sequence: Int64
    start: Int64
    stop: Int64
    reset: Bool
    final: Bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """What B lanes hold in W consecutive windows, as R runs: windows of a lane with consecutive timesteps, or idle.

    Args:
        windows, lanes: W and B.
        window: Timesteps K of a window; None where each sequence is one, and then W is 1.
        lane: int64 [R], from 0.
        first, last: int64 [R], the windows `[first, last)`, from 0.
        sequence: int64 [R], index of the sequence, -1 where the lane is idle.
        start, stop: int64 [R], positions in the sequence; both 0 where the lane is idle.
        low, high: int64 [R], the span that was chosen of the sequence: no datum outside it may be shown.
        reset: bool [R], whether the state before the run is the initial one.
        final: bool [R], whether the lane's state ends with the run.
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

    def __len__(self) -> int:
        return len(self.lane)

    def cells(self) -> Cells:
        """The same, window by window."""
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
