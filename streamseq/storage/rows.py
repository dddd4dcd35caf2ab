"""Where the timesteps of a sequence lie: from pieces to rows, the positions in the concatenation of all shards."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Pieces = NDArray[np.int64]
"""int64 `[P, 3]`: sequence, first row, length."""


def merge_pieces(pieces: Pieces) -> Pieces:
    """Join neighbours that are consecutive rows of one sequence.

    Example:
        >>> merge_pieces(np.array([[0, 0, 5], [0, 5, 2], [1, 7, 1], [0, 8, 1]])).tolist()
        [[0, 0, 7], [1, 7, 1], [0, 8, 1]]
    """
    if len(pieces) < 2:
        return pieces
    sequence, row, length = pieces.T
    goes_on = (sequence[1:] == sequence[:-1]) & (row[1:] == row[:-1] + length[:-1])
    if not goes_on.any():
        return pieces
    first = np.flatnonzero(np.concatenate(([True], ~goes_on)))
    return np.stack([sequence[first], row[first], np.add.reduceat(length, first)], axis=1)


class RowIndex:
    """The pieces of every sequence, in order.

    Args:
        pieces: int64 `[P, 3]`, those of one sequence in the order of its timesteps.
        num_sequences: N.
        num_timesteps: Timesteps of all shards together.

    Raises:
        ValueError: A piece is of no sequence, empty, or out of the shards; or the pieces are not as long as the shards.

    Example:
        >>> index = RowIndex(np.array([[0, 0, 5], [1, 5, 2], [0, 7, 1]]), 2, 8)
        >>> index.lengths.tolist(), list(index.spans(0, 3, 6))
        ([6, 2], [(3, 2), (7, 1)])
    """

    def __init__(self, pieces: Pieces, num_sequences: int, num_timesteps: int) -> None:
        sequence, row, length = pieces.T
        if np.any(sequence < 0) or np.any(sequence >= num_sequences):
            raise ValueError(f"a piece belongs to none of {num_sequences} sequences")
        # Compared as what is left, for a sum of two large numbers could wrap.
        if np.any(length < 1) or np.any(row < 0) or np.any(row > num_timesteps) or np.any(length > num_timesteps - row):
            raise ValueError(f"a piece does not lie in {num_timesteps} timesteps")
        if len(pieces) > num_timesteps or length.astype(np.float64).sum() > 2.0**62 or length.sum() != num_timesteps:
            raise ValueError(f"the pieces have not {num_timesteps} timesteps together")
        if np.any(sequence[1:] < sequence[:-1]):
            pieces = pieces[np.argsort(sequence, kind="stable")]
        sequence, row, length = merge_pieces(pieces).T
        self.num_sequences = num_sequences
        self._first_row = np.ascontiguousarray(row)
        # The pieces of sequence s are [offsets[s], offsets[s + 1]).
        self._offsets = np.searchsorted(sequence, np.arange(num_sequences + 1))
        # Where each piece starts, with all sequences end to end.
        self._starts = np.concatenate(([0], np.cumsum(length)))
        bounds = self._starts[self._offsets]
        self.lengths: NDArray[np.int64] = np.diff(bounds)
        self.lengths.flags.writeable = False

    def single_row(self, sequence: int) -> int:
        """The first row of a sequence that lies in one piece, -1 where it does not."""
        first = self._offsets.item(sequence)
        return self._first_row.item(first) if self._offsets.item(sequence + 1) - first == 1 else -1

    def single_rows(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """`single_row` of many sequences that exist: int64 `[S]`."""
        first = self._offsets[sequences]
        alone = self._offsets[sequences + 1] - first == 1
        return np.where(alone, self._first_row[np.minimum(first, len(self._first_row) - 1)], -1)

    def spans(self, sequence: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield (first row, number of rows) for consecutive parts of timesteps `[start, stop)` of a sequence."""
        first, last = self._offsets.item(sequence), self._offsets.item(sequence + 1)
        base = self._starts.item(first)
        piece = bisect_right(self._starts, base + start, first, last) - 1
        while start < stop:
            skipped = base + start - self._starts.item(piece)
            count = min(stop - start, self._starts.item(piece + 1) - base - start)
            yield self._first_row.item(piece) + skipped, count
            start += count
            piece += 1
