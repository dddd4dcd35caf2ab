"""Where the timesteps of a sequence lie: from pieces to rows, the positions in the concatenation of all shards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Pieces = Int64
"""int64 `[P, 3]`: sequence, first row, length."""


def sort_pieces(pieces: Pieces) -> Pieces:
    """Sort by sequence; those of one sequence keep their order.

    Example:
        >>> sort_pieces(np.array([[1, 0, 5], [0, 5, 2], [1, 7, 1]])).tolist()
        [[0, 5, 2], [1, 0, 5], [1, 7, 1]]
    """
    if np.any(pieces[1:, 0] < pieces[:-1, 0]):
        return pieces[np.argsort(pieces[:, 0], kind="stable")]
    return pieces


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


class RowIndexBuilder:
    """Collects the pieces of all sequences, checked, and keeps few bytes of each where they lie as they usually do.

    Usually every sequence is one piece, and their rows follow each other: then only their lengths are kept.

    Args:
        num_sequences: N.
        num_timesteps: Timesteps of all shards together.
    """

    def __init__(self, num_sequences: int, num_timesteps: int) -> None:
        self._num_sequences = num_sequences
        self._num_timesteps = num_timesteps
        self._found = 0
        self._usual: list[Int64] = []
        self._usual_sequences = 0
        self._rest: list[Pieces] = []

    def add(self, sequence: Int64, row: Int64, length: Int64) -> None:
        """Add pieces, int64 `[P]` each.

        Raises:
            ValueError: A piece is of no sequence, empty, or out of the shards.
        """
        total = self._num_timesteps
        if not len(sequence):
            return
        if sequence.min() < 0 or sequence.max() >= self._num_sequences:
            raise ValueError(f"a piece belongs to none of {self._num_sequences} sequences")
        # Compared as what is left, for a sum of two large numbers could wrap.
        if length.min() < 1 or row.min() < 0 or row.max() > total or np.any(length > total - row):
            raise ValueError(f"a piece does not lie in {total} timesteps")
        before = self._found
        # No sum of so many of them can wrap, and together they are not more than the timesteps.
        if len(length) > total - before or length.astype(np.float64).sum() > 2.0**62:
            raise ValueError(f"the pieces have not {total} timesteps together")
        self._found += int(length.sum())
        if self._found > total:
            raise ValueError(f"the pieces have not {total} timesteps together")
        count = self._usual_sequences
        if (
            not self._rest
            and np.array_equal(sequence, np.arange(count, count + len(sequence)))
            and row[0] == before
            and np.array_equal(row[1:], row[:-1] + length[:-1])
        ):
            self._usual.append(np.ascontiguousarray(length))
            self._usual_sequences += len(sequence)
        else:
            self._rest.append(np.stack([sequence, row, length], axis=1))

    def finish(self) -> RowIndex:
        """Return the index of what was added.

        Raises:
            ValueError: The pieces are not as long as the shards.
        """
        if self._found != self._num_timesteps:
            raise ValueError(f"the pieces have not {self._num_timesteps} timesteps together")
        starts = np.zeros(self._usual_sequences + 1, np.int64)
        position = 1
        for length in self._usual:
            np.cumsum(length, out=starts[position : position + len(length)])
            starts[position : position + len(length)] += starts[position - 1]
            position += len(length)
        self._usual = []
        if not self._rest and self._usual_sequences == self._num_sequences:
            return RowIndex(self._num_sequences, starts, None, None)
        number = np.arange(self._usual_sequences)
        pieces = np.concatenate([np.stack([number, starts[:-1], np.diff(starts)], axis=1), *self._rest])
        self._rest = []
        sequence, row, length = merge_pieces(sort_pieces(pieces)).T
        return RowIndex(
            self._num_sequences,
            np.concatenate(([0], np.cumsum(length))),
            np.ascontiguousarray(row),
            np.searchsorted(sequence, np.arange(self._num_sequences + 1)),
        )


def row_index(pieces: Pieces, num_sequences: int, num_timesteps: int) -> RowIndex:
    """Return the index of pieces, int64 `[P, 3]`, those of one sequence in the order of its timesteps.

    Raises:
        ValueError: A piece is of no sequence, empty, or out of the shards; or the pieces are not as long as the shards.

    Example:
        >>> index = row_index(np.array([[0, 0, 5], [1, 5, 2], [0, 7, 1]]), 2, 8)
        >>> found = index.pieces(np.array([0]), np.array([3]), np.array([6]))
        >>> index.lengths.tolist(), found.row.tolist(), found.count.tolist()
        ([6, 2], [3, 7], [2, 1])
    """
    builder = RowIndexBuilder(num_sequences, num_timesteps)
    builder.add(*pieces.T)
    return builder.finish()


class RowIndex:
    """Where every sequence lies; made by `row_index`.

    Args:
        num_sequences: N.
        starts: int64 `[P + 1]`: where each piece starts, with all sequences end to end.
        first_row: int64 `[P]`, the first row of each piece; None: where it starts.
        offsets: int64 `[N + 1]`: the pieces of sequence s are `[offsets[s], offsets[s + 1])`; None: piece s alone.
    """

    def __init__(self, num_sequences: int, starts: Int64, first_row: Int64 | None, offsets: Int64 | None) -> None:
        self.num_sequences = num_sequences
        self._starts = starts
        self._first_row = starts[:-1] if first_row is None else first_row
        self._offsets = offsets
        self.lengths: Int64 = np.diff(starts if offsets is None else starts[offsets])
        self.lengths.flags.writeable = False

    def single_rows(self, sequences: Int64) -> Int64:
        """The first row of each sequence that lies in one piece, -1 where it does not: int64 `[S]`."""
        if self._offsets is None:
            return self._first_row[sequences]
        first = self._offsets[sequences]
        alone = self._offsets[sequences + 1] - first == 1
        return np.where(alone, self._first_row[np.minimum(first, len(self._first_row) - 1)], -1)

    def pieces_of(self, sequence: int) -> Pieces:
        """The pieces of one sequence, int64 `[P, 3]`: 0, first row, length."""
        low, high = self._range(sequence)
        row, length = self._first_row[low:high], np.diff(self._starts[low : high + 1])
        return np.stack([np.zeros_like(row), row, length], axis=1)

    def _range(self, sequence: int) -> tuple[int, int]:
        if self._offsets is None:
            return sequence, sequence + 1
        return int(self._offsets[sequence]), int(self._offsets[sequence + 1])

    def pieces(self, sequence: Int64, start: Int64, stop: Int64) -> PiecesOfSpans:
        """Where timesteps `[start, stop)` of sequences lie, int64 `[S]` each; every span lies in its sequence."""
        base = self._starts[sequence if self._offsets is None else self._offsets[sequence]]
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
