"""Uses: how much of each chosen span an epoch emits, and what of it more than once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Uses:
    """How often an epoch emits what was chosen.

    Args:
        sequence: int64 [M], the index of the sequence that each chosen span is of.
        lengths: int64 [M], timesteps of each span.
        timesteps: int64 [M], those that are emitted of it, each as often as it is.
        distinct: int64 [M], how many different ones these are.

    Example:
        >>> uses = Uses(sequence=np.arange(3), lengths=np.array([4, 6, 5]), timesteps=np.array([8, 6, 2]),
        ...             distinct=np.array([4, 6, 2]))
        >>> uses.times.tolist(), uses.left_out, uses.repeated
        ([2.0, 1.0, 0.4], 3, 4)
    """

    sequence: Int64
    lengths: Int64
    timesteps: Int64
    distinct: Int64

    @property
    def times(self) -> NDArray[np.float64]:
        """float64 [M], how often each span is emitted; 0 where it is empty."""
        return self.timesteps / np.maximum(1, self.lengths)

    @property
    def left_out(self) -> int:
        """Timesteps that are not emitted."""
        return int((self.lengths - self.distinct).sum())

    @property
    def repeated(self) -> int:
        """Emitted timesteps that were emitted before."""
        return int((self.timesteps - self.distinct).sum())


def count_uses(sequence: Int64, lengths: Int64, row: Int64, start: Int64, stop: Int64) -> Uses:
    """Count what of M spans is emitted.

    Args:
        sequence: int64 [M], the index of the sequence that each span is of.
        lengths: int64 [M], timesteps of each span.
        row, start, stop: int64 [E], what is emitted: timesteps `[start, stop)` of span `row`.
    """
    begin = np.cumsum(lengths) - lengths
    low, high = begin[row] + start, begin[row] + stop
    order = np.argsort(low, kind="stable")
    row, low, high = row[order], low[order], high[order]
    # How far everything up to each one reaches: spans lie end to end, so an earlier one never reaches into it.
    reached = np.maximum.accumulate(high)
    before = np.concatenate([[0], reached[:-1]])
    timesteps, distinct = np.zeros(len(lengths), np.int64), np.zeros(len(lengths), np.int64)
    np.add.at(timesteps, row, high - low)
    np.add.at(distinct, row, np.maximum(0, high - np.maximum(low, before)))
    return Uses(sequence=sequence, lengths=lengths, timesteps=timesteps, distinct=distinct)
