"""Where the timesteps of a sequence lie: from pieces to rows, the positions in the concatenation of all shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Pieces = Int64
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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PiecesOfSpans:
    """Where spans lie: int64 `[P]` each.

    Args:
        span: The number of the span.
        row: The first row.
        count: Rows.
        offset: Timesteps of the span before them.
    """

    span: Int64
    row: Int64
    count: Int64
    offset: Int64


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
        >>> found = index.pieces(np.array([0]), np.array([3]), np.array([6]))
        >>> index.lengths.tolist(), found.row.tolist(), found.count.tolist()
        ([6, 2], [3, 7], [2, 1])
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
        self.lengths: Int64 = np.diff(bounds)
        self.lengths.flags.writeable = False

    def single_rows(self, sequences: Int64) -> Int64:
        """The first row of each sequence that lies in one piece, -1 where it does not: int64 `[S]`."""
        first = self._offsets[sequences]
        alone = self._offsets[sequences + 1] - first == 1
        return np.where(alone, self._first_row[np.minimum(first, len(self._first_row) - 1)], -1)

    def pieces(self, sequence: Int64, start: Int64, stop: Int64) -> PiecesOfSpans:
        """Where timesteps `[start, stop)` of sequences lie, int64 `[S]` each; every span lies in its sequence."""
        base = self._starts[self._offsets[sequence]]
        begin, end = base + start, base + stop
        first = np.searchsorted(self._starts, begin, "right") - 1
        several = np.searchsorted(self._starts, end - 1, "right") - first
        span = np.repeat(np.arange(len(sequence)), several)
        piece = np.arange(len(span)) + np.repeat(first - (np.cumsum(several) - several), several)
        low = np.maximum(self._starts[piece], begin[span])
        high = np.minimum(self._starts[piece + 1], end[span])
        return PiecesOfSpans(
            span=span,
            row=self._first_row[piece] + low - self._starts[piece],
            count=high - low,
            offset=low - begin[span],
        )
