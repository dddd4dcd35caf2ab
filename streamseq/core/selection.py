"""Selections: which spans of which sequences a plan lays out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import PlanError
from streamseq.core.layout import BLOCK, Numbers, number_dtype

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """M spans `[start, start + length)` of sequences, in the order in which a plan without shuffling takes them.

    Args:
        lengths: int64 [M], timesteps of each span.
        sequence: int64 [M], the index of the sequence that each span is of; None: span i is of sequence i.
        start: int64 [M], the position in its sequence at which each span starts; None: zeros.
    """

    lengths: Int64
    sequence: Int64 | None = None
    start: Int64 | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def fingerprint(self) -> str:
        """A hash of what was chosen; "all" for every sequence whole, whose lengths the store's fingerprint covers."""
        if self.sequence is None:
            return "all"
        digest = hashlib.blake2b(digest_size=16)
        for array in (self.sequence, self.start, self.lengths):
            digest.update(np.ascontiguousarray(array, dtype="<i8").data)
        return digest.hexdigest()

    def sequences_of(self, rows: Int64) -> Int64:
        """The sequence index of each of the spans `rows`, int64 of the shape of `rows`."""
        return rows if self.sequence is None else self.sequence[rows]

    def starts_of(self, rows: Int64) -> Int64:
        """The first position of each of the spans `rows`, int64 of the shape of `rows`."""
        return np.zeros(rows.shape, np.int64) if self.start is None else self.start[rows]


class Pieces:
    """The pieces of spans that a layout gives to lanes: the spans, those longer than `longest` cut evenly.

    A cut span of n timesteps is `ceil(n / longest)` pieces that differ by one timestep at most, the longer ones first,
    with numbers that follow each other. Kept are only the spans that are cut, two numbers for each.

    Args:
        lengths: int64 [M], timesteps of each span.
        longest: Timesteps of a piece at most; None to cut nothing.

    Example:
        >>> pieces = Pieces(np.array([7, 2]), longest=3)
        >>> pieces.lengths().tolist()
        [3, 2, 2, 2]
        >>> [column.tolist() for column in pieces.locate(np.array([1, 3]))]
        [[0, 1], [3, 0], [2, 2]]
    """

    def __init__(self, lengths: Int64, longest: int | None) -> None:
        self._spans = lengths
        self._longest = longest
        self._cut: Numbers = np.empty(0, np.int64)
        if longest is not None:
            self._cut = np.flatnonzero(lengths > longest)
        extra = self._counts(self._cut) - 1
        self._count = len(lengths) + int(extra.sum())
        # The number of the first piece of each span that is cut.
        self._first: Numbers = self._cut + np.cumsum(extra) - extra
        self._cut = self._cut.astype(number_dtype(self._count))
        self._first = self._first.astype(number_dtype(self._count))

    def __len__(self) -> int:
        return self._count

    def _counts(self, spans: Numbers) -> Int64:
        """How many pieces each of some spans that are cut is cut into."""
        return -(-self._spans[spans] // (self._longest or 1))

    def first_of(self, spans: Int64) -> Int64:
        """The number of the first piece of each of some spans; of M the number of all pieces."""
        return first_pieces(spans, self._cut, self._first, len(self) - len(self._spans))

    def lengths(self) -> Numbers:
        """Timesteps of each piece: int64 or int32 [P]."""
        if not len(self._cut):
            return self._spans
        longest = int(self._longest or 1)
        lengths = np.empty(len(self), number_dtype(longest))
        done = 0
        for first in range(0, len(self._spans), BLOCK):
            spans = self._spans[first : first + BLOCK]
            counts = np.maximum(1, -(-spans // longest))
            share, longer = np.divmod(spans, counts)
            ends = np.cumsum(counts)
            held = lengths[done : done + int(ends[-1])]
            within = np.arange(len(held)) - np.repeat(ends - counts, counts)
            held[:] = np.repeat(share, counts) + (within < np.repeat(longer, counts))
            done += len(held)
        return lengths

    def locate(self, pieces: Int64) -> tuple[Int64, Int64, Int64]:
        """Of pieces: the span that each is of, where in that span it starts, and its timesteps, int64 each."""
        if not len(self._cut):
            return pieces, np.zeros(pieces.shape, np.int64), self._spans[pieces]
        # The last cut span that begins at or before each piece.
        near = np.searchsorted(self._first, pieces.astype(self._first.dtype), "right") - 1
        before = near < 0
        near = np.maximum(near, 0)
        span = self._cut[near].astype(np.int64)
        count = self._counts(span)
        within = pieces - self._first[near]
        inside = ~before & (within < count)
        share, longer = np.divmod(self._spans[span], count)
        start = np.where(inside, within * share + np.minimum(within, longer), 0)
        outside = np.where(before, pieces, span + 1 + within - count)
        span = np.where(inside, span, outside)
        return span, start, np.where(inside, share + (within < longer), self._spans[span])


def first_pieces(spans: Int64, cut: Numbers, first: Numbers, more: int) -> Int64:
    """The number of the first piece of each of some spans, where most spans are one piece.

    Args:
        spans: int64 [Q].
        cut: int [C], the spans that are several pieces, ascending.
        first: int [C], the number of the first piece of each of these.
        more: How many more pieces there are than spans.
    """
    place = np.searchsorted(cut, spans.astype(cut.dtype) if len(cut) else spans)
    before = np.append(first.astype(np.int64) - cut, more)
    numbers: Int64 = spans + before[place]
    return numbers


def select_all(lengths: Int64) -> Selection:
    """Every sequence of a catalogue, whole.

    Args:
        lengths: int64 [N], timesteps of each sequence.
    """
    return Selection(lengths=lengths)


def select_spans(lengths: Int64, spans: list[tuple[int, int, int | None]]) -> Selection:
    """Some spans of the sequences of a catalogue.

    Args:
        lengths: int64 [N], timesteps of each sequence.
        spans: `(sequence index, start, stop)`; a stop of None is the end of the sequence.

    Raises:
        PlanError: There is no span.
        ValueError: A span does not lie in its sequence.
    """
    if not spans:
        raise PlanError("a plan needs at least one sequence, got an empty subset: pass sequences=None for all of them")
    ends = [(index, start, lengths[index] if stop is None else stop) for index, start, stop in spans]
    table = np.array(ends, np.int64)
    sequence, start, stop = table.T
    bad = np.flatnonzero((start < 0) | (stop < start) | (stop > lengths[sequence]))
    if bad.size:
        row = bad[0]
        raise ValueError(
            f"a span lies in its sequence: 0 <= start <= stop <= {lengths[sequence[row]]} for sequence "
            f"{sequence[row]}, got [{start[row]}, {stop[row]})"
        )
    whole = len(spans) == len(lengths) and not start.any() and np.array_equal(stop, lengths)
    if whole and np.array_equal(sequence, np.arange(len(lengths))):
        return Selection(lengths=lengths)
    return Selection(lengths=stop - start, sequence=sequence.copy(), start=start.copy())
