"""Domain pieces: spans cut at boundaries, and the groups of them that lie between breaks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.core.boundaries import Boundaries
from streamseq.core.layout import Numbers, number_dtype
from streamseq.core.selection import Selection, first_pieces

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reach:
    """Where pieces lie in their groups; arguments are [Q] for Q pieces.

    Args:
        opens: bool, whether a group begins with the piece: the state before it is the initial one.
        closes: bool, whether a group ends with it.
        low, high: int64, where its group begins and ends in the span.
    """

    opens: Bool
    closes: Bool
    low: Int64
    high: Int64


class DomainPieces:
    """The pieces of chosen spans between boundaries, numbered in order; a *group* lies between breaks.

    Kept are four numbers for each span that has boundaries inside; the positions are those of `boundaries`.

    Args:
        selection: The spans.
        boundaries: Of their sequences.

    Example:
        >>> from streamseq.core.selection import select_all
        >>> boundaries = Boundaries(np.array([1]), np.array([2]), np.array([3, 7]), np.array([False, True]))
        >>> pieces = DomainPieces(select_all(np.array([4, 9])), boundaries)
        >>> pieces.lengths().tolist(), pieces.group_first().tolist()
        ([4, 3, 4, 2], [0, 1, 3])
        >>> [column.tolist() for column in pieces.locate(np.array([0, 2]))]
        [[0, 1], [0, 3], [4, 4]]
    """

    def __init__(self, selection: Selection, boundaries: Boundaries) -> None:
        self._selection = selection
        self._boundaries = boundaries
        if selection.sequence is None:
            cut, low, number = boundaries.sequence, boundaries.first[:-1], np.diff(boundaries.first)
        else:
            rows = np.arange(len(selection))
            start = selection.starts_of(rows)
            low, high = boundaries.inside(selection.sequence, start, start + selection.lengths)
            cut = np.flatnonzero(high > low)
            low, number = low[cut], (high - low)[cut]
        self._count = len(selection) + int(number.sum())
        dtype = number_dtype(max(self._count, len(boundaries)))
        # Of each span that is cut: its row, the number of its first piece, the place of the first boundary in it, and
        # how many there are.
        self._cut: Numbers = cut.astype(dtype)
        self._first: Numbers = (cut + np.cumsum(number) - number).astype(dtype)
        self._low: Numbers = low.astype(dtype)
        self._number: Numbers = number.astype(dtype)

    def __len__(self) -> int:
        return self._count

    def _places(self) -> Numbers:
        """The places of the boundaries that lie in spans, in the order of the pieces that begin there."""
        number = self._number
        shift = self._low - (np.cumsum(number, dtype=number.dtype) - number)
        places: Numbers = np.repeat(shift, number)
        places += np.arange(len(places), dtype=places.dtype)
        return places

    def _begun(self) -> Bool:
        """bool [P], the pieces that begin at a boundary; the others begin with their spans."""
        begun = np.zeros(len(self), np.bool_)
        shift = self._first + 1 - (np.cumsum(self._number, dtype=self._first.dtype) - self._number)
        pieces = np.repeat(shift, self._number)
        pieces += np.arange(len(pieces), dtype=pieces.dtype)
        begun[pieces] = True
        return begun

    def lengths(self) -> Numbers:
        """Timesteps of each piece: int64 or int32 [P]."""
        selection, begun = self._selection, self._begun()
        spans = selection.lengths
        last = 0 if selection.start is None else int(selection.start.max(initial=0))
        dtype = number_dtype(last + int(spans.max(initial=0)))
        at = self._boundaries.position[self._places()]
        starts = np.empty(len(self), dtype)
        starts[begun] = at
        starts[~begun] = 0 if selection.start is None else selection.start
        ends = np.empty(len(self), dtype)
        # A piece ends where the next one begins, the last one of a span with it.
        ends[:-1] = starts[1:]
        ends[np.append(~begun[1:], True)] = spans if selection.start is None else selection.start + spans
        ends -= starts
        return ends

    def first_of(self, spans: Int64) -> Int64:
        """The number of the first piece of each of some spans; of M the number of all pieces."""
        return first_pieces(spans, self._cut, self._first, len(self) - len(self._selection))

    def group_first(self) -> Int64:
        """int64 [G], the first piece of each group."""
        opens = ~self._begun()
        opens[~opens] = self._boundaries.breaks[self._places()]
        return np.flatnonzero(opens)

    def _within(self, pieces: Int64) -> tuple[Int64, Int64, Bool, Int64]:
        """Of pieces: the entry of a cut span, the place in it, whether it is of that span, and the row of its span."""
        if not len(self._cut):
            nothing = np.zeros(len(pieces), np.int64)
            return nothing, nothing, np.zeros(len(pieces), np.bool_), pieces
        near = np.searchsorted(self._first, pieces.astype(self._first.dtype), "right") - 1
        before = near < 0
        near = np.maximum(near, 0)
        within = pieces - self._first[near]
        more = within - self._number[near]
        inside = ~before & (more <= 0)
        # Pieces of spans that are not cut follow each other like their spans.
        row = np.where(before, pieces, self._cut[near] + np.maximum(more, 0))
        return near, within, inside, row

    def _offset(self, place: Int64, row: Int64) -> Int64:
        """Where boundaries lie in their spans."""
        positions = self._boundaries.position
        if not len(positions):
            return np.zeros(len(place), np.int64)
        return positions[np.clip(place, 0, len(positions) - 1)] - self._selection.starts_of(row)

    def _ends(self, pieces: Int64) -> tuple[Int64, Int64, Int64, Bool, Bool]:
        """Rows, the places of the boundaries at which pieces begin and end, and whether it is a boundary."""
        near, within, inside, row = self._within(pieces)
        if not len(self._cut):
            return row, near, near, inside, inside
        end = self._low[near] + within
        return row, end - 1, end, inside & (within > 0), inside & (within < self._number[near])

    def locate(self, pieces: Int64) -> tuple[Int64, Int64, Int64]:
        """Of pieces: the span that each is of, where in that span it starts, and its timesteps, int64 each."""
        row, begin, end, begun, ended = self._ends(pieces)
        start = np.where(begun, self._offset(begin, row), 0)
        stop = np.where(ended, self._offset(end, row), self._selection.lengths[row])
        return row, start, stop - start

    def reach(self, pieces: Int64) -> Reach:
        """Where pieces lie in their groups."""
        row, begin, end, begun, ended = self._ends(pieces)
        near, _, inside, _ = self._within(pieces)
        lengths = self._selection.lengths[row]
        if not len(self._cut):
            ones = np.ones(len(pieces), np.bool_)
            return Reach(opens=ones, closes=ones, low=np.zeros(len(pieces), np.int64), high=lengths)
        first, stop = self._low[near], self._low[near] + self._number[near]
        there, last = self._boundaries.break_before(np.where(begun, begin, -1) + 1)
        low = inside & there & (last >= first)
        coming, next_one = self._boundaries.break_from(end)
        high = inside & coming & (next_one < stop)
        return Reach(
            opens=~begun | (low & (last == begin)),
            closes=~ended | (high & (next_one == end)),
            low=np.where(low, self._offset(last, row), 0),
            high=np.where(high, self._offset(next_one, row), lengths),
        )
