"""Counts: how many losses an update has, over all lanes and ranks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamseq.data.window import Window
from streamseq.tbptt.past import Past
from streamseq.tbptt.ranks import Ranks

Int64 = NDArray[np.int64]


class Counts:
    """The valid timesteps of windows, by step.

    Args:
        past: Where windows are that have not been counted.
        ranks: Whose counts are added up.
    """

    def __init__(self, past: Past, ranks: Ranks) -> None:
        self._past = past
        #: Whose counts are added up.
        self.ranks = ranks
        self._of: dict[int, Int64] = {}

    def add(self, window: Window) -> None:
        """Count a window."""
        self._of[window.token.step] = self._count(window)

    def _count(self, window: Window) -> Int64:
        """int64 [K], over lanes and ranks."""
        return self.ranks.total(window.mask.cpu().numpy().sum(1 - window.time_axis))

    def between(self, start: int, stop: int, *, length: int, origin: int) -> int:
        """Valid timesteps at the times `[start, stop)`.

        Args:
            start, stop: Times.
            length: Timesteps of a window.
            origin: The step of the window at time 0.
        """
        total = 0
        for step in range(start // length, -(-stop // length)):
            counts = self._of.get(origin + step)
            if counts is None:
                counts = self._of[origin + step] = self._count(self._past[origin + step])
            total += int(counts[max(0, start - step * length) : stop - step * length].sum())
        return total

    def since(self, starts: Int64, stop: int, *, length: int, origin: int) -> int:
        """Valid timesteps from a time of each lane, int64 [B], on."""
        count = 0
        for step in range(int(starts.min()) // length, -(-stop // length)):
            window = self._past[origin + step]
            times = step * length + np.arange(length)
            counted = (times >= starts[:, None]) & (times < stop)
            mask = window.mask.cpu().numpy()
            count += int(np.count_nonzero(mask & (counted if window.batch_first else counted.T)))
        return int(self.ranks.total(np.array([count]))[0])

    def forget_before(self, step: int) -> None:
        """Let go of windows before `step`."""
        for old in [old for old in self._of if old < step]:
            del self._of[old]

    def clear(self) -> None:
        """Let go of everything."""
        self._of.clear()
