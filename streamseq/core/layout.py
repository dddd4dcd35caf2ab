"""Layouts: which sequences, or pieces of them, each lane gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heapreplace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
# int64, or int32 where that is enough: see number_dtype.
Numbers = NDArray[Any]

GROUP = 4096
# Long arrays are gone through in blocks of this many entries, so that temporaries are small: they stay in the cache,
# and below the size from which memory is asked of the operating system and given back each time.
BLOCK = 1 << 14


def number_dtype(largest: int) -> type[np.signedinteger]:
    """The dtype of many whole numbers up to `largest`: half the memory where they fit into 32 bits."""
    return np.int32 if largest < 2**31 else np.int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """The pieces that each lane holds, in order; the window length has no part in it.

    Args:
        pieces: int32 or int64 [P], numbers of pieces, lane by lane.
        first: int64 [B + 1], where those of each lane begin.
        skip: int64 [B], timesteps of a lane's first piece that it does not hold: they lie in the lane before, or came
            before the layout begins.
        cut: int64 [B], timesteps of a lane's last piece that lie in the lane after.
        goes_on: bool [B], whether a lane's first piece goes on with a state that there is already.
    """

    pieces: Numbers
    first: Int64
    skip: Int64
    cut: Int64
    goes_on: NDArray[np.bool_]

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return len(self.skip)

    @property
    def held(self) -> NDArray[np.bool_]:
        """bool [B], lanes that hold a piece."""
        return self.first[1:] > self.first[:-1]

    def lengths_of(self, lengths: Numbers, start: int, stop: int) -> Int64:
        """int64, timesteps of the pieces `[start, stop)` that are held, of `lengths` [P] timesteps in all."""
        part = lengths.take(self.pieces[start:stop]).astype(np.int64, copy=False)
        held = self.held
        for at, less in ((self.first[:-1][held], self.skip[held]), (self.first[1:][held] - 1, self.cut[held])):
            low, high = np.searchsorted(at, (start, stop))
            part[at[low:high] - start] -= less[low:high]
        return part

    def without(self, empty: NDArray[np.bool_]) -> Layout:
        """Without some pieces, bool [P]; a border cuts the lane's first or last piece only if that one is kept."""
        kept = ~empty
        first, last = self.first[:-1], self.first[1:] - 1
        first_kept = self.held & kept[np.minimum(first, len(kept) - 1)]
        last_kept = self.held & kept[np.maximum(last, 0)]
        # How many are kept before each lane: counted lane by lane, not by a number for each piece.
        counts = [np.count_nonzero(kept[low:high]) for low, high in pairwise(self.first.tolist())]
        return Layout(
            pieces=self.pieces[kept],
            first=np.concatenate([[0], np.cumsum(counts)]),
            skip=np.where(first_kept, self.skip, 0),
            cut=np.where(last_kept, self.cut, 0),
            goes_on=self.goes_on & first_kept,
        )

    def after(self, piece: Int64, begun: Int64, goes_on: NDArray[np.bool_]) -> Layout:
        """What is left of it.

        Args:
            piece: int64 [B], the place in `pieces` at which each lane goes on; the end of the lane if it is done.
            begun: int64 [B], timesteps of that piece that the lane has held already.
            goes_on: bool [B], whether the piece goes on with the state after the one before it.
        """
        last = self.first[1:]
        counts = last - piece
        rest = [self.pieces[low:high] for low, high in zip(piece.tolist(), last.tolist(), strict=True) if high > low]
        return Layout(
            pieces=np.concatenate(rest) if rest else self.pieces[:0],
            first=np.concatenate([[0], np.cumsum(counts)]),
            skip=begun + np.where(piece == self.first[:-1], self.skip, 0),
            cut=np.where(counts > 0, self.cut, 0),
            goes_on=(begun > 0) | (np.where(piece == self.first[:-1], self.goes_on, goes_on) & (counts > 0)),
        )

    def until(self, limit: int, lengths: Numbers | None) -> Layout:
        """What each lane holds up to a limit: the rest is left out, and a piece on the limit is cut there.

        Args:
            limit: Timesteps of a lane; pieces of it without `lengths`.
            lengths: int [P], timesteps of the pieces.
        """
        borders = list(pairwise(self.first.tolist()))
        kept, cut = [], self.cut.copy()
        for lane, (low, high) in enumerate(borders):
            count, over = min(high - low, limit), 0
            if lengths is not None and high > low:
                ends = np.cumsum(self.lengths_of(lengths, low, high))
                count = min(high - low, int(np.searchsorted(ends, limit)) + 1)
                over = max(0, int(ends[count - 1]) - limit)
            cut[lane] = over + (cut[lane] if count == high - low else 0)
            kept.append(self.pieces[low : low + count])
        first = np.concatenate([[0], np.cumsum([len(part) for part in kept])])
        return replace(self, pieces=np.concatenate(kept), first=first, cut=cut)

    def expanded(self, first: Int64, lengths: Numbers) -> Layout:
        """With every piece, here a group, replaced by finer ones that follow each other.

        Args:
            first: int64 [G + 1], the first of the finer ones of each group.
            lengths: int [P], their timesteps.
        """
        low, high = first[self.pieces], first[self.pieces + 1]
        skip, cut = self.skip.copy(), self.cut.copy()
        group, ends = -1, np.zeros(1, np.int64)
        for lane in np.flatnonzero(self.held & ((skip > 0) | (cut > 0))).tolist():
            for at, sides in ((int(self.first[lane]), skip), (int(self.first[lane + 1]) - 1, cut)):
                if not sides[lane]:
                    continue
                # Lanes that share a group follow each other.
                if group != self.pieces[at]:
                    group = int(self.pieces[at])
                    ends = np.cumsum(lengths[first[group] : first[group + 1]], dtype=np.int64)
                if sides is skip:
                    place = int(np.searchsorted(ends, skip[lane], "right"))
                    low[at] = first[group] + place
                    skip[lane] -= ends[place - 1] if place else 0
                else:
                    stop = ends[-1] - cut[lane]
                    place = int(np.searchsorted(ends, stop))
                    high[at] = first[group] + place + 1
                    cut[lane] = ends[place] - stop
        counts = high - low
        total = np.concatenate([[0], np.cumsum(counts)])
        dtype = number_dtype(len(lengths))
        pieces = np.repeat((low - total[:-1]).astype(dtype), counts)
        pieces += np.arange(len(pieces), dtype=dtype)
        return Layout(pieces=pieces, first=total[self.first], skip=skip, cut=cut, goes_on=self.goes_on)


def join_lanes(layouts: Sequence[Layout], shifts: Sequence[int], dtype: Any) -> Layout:
    """The lanes of several layouts, one layout after the other, with a shift added to the numbers of pieces of each."""
    counts = np.concatenate([np.diff(layout.first) for layout in layouts])
    pieces = np.empty(int(counts.sum()), dtype)
    at = 0
    for layout, shift in zip(layouts, shifts, strict=True):
        part = pieces[at : at + len(layout.pieces)]
        part[:] = layout.pieces
        part += shift
        at += len(part)
    skip, cut, goes_on = (
        np.concatenate([getattr(each, name) for each in layouts]) for name in ("skip", "cut", "goes_on")
    )
    return Layout(pieces=pieces, first=np.concatenate([[0], np.cumsum(counts)]), skip=skip, cut=cut, goes_on=goes_on)


def _whole_pieces(pieces: Numbers, first: Int64) -> Layout:
    lanes = len(first) - 1
    nothing = np.zeros(lanes, np.int64)
    return Layout(pieces=pieces, first=first, skip=nothing, cut=nothing, goes_on=np.zeros(lanes, np.bool_))


def fill_lanes(lengths: Numbers, lanes: int, order: Numbers | None = None) -> Layout:
    """Give whole sequences, in order, to lanes, so that the lanes fill evenly.

    Greedy: a sequence goes to the lane that has least so far. Where there are more than `GROUP` sequences, all but
    the last of them are dealt in groups, each at once: lanes get neighbours in proportion to what they lack of the
    common level. Lanes end within one longest sequence of each other either way.

    Args:
        lengths: int [N], timesteps.
        lanes: Number of lanes B.
        order: int, the order in which the sequences are taken, some perhaps several times or not at all; None for each
            once, as they are.

    Example:
        >>> layout = fill_lanes(np.array([5, 2, 2, 3]), lanes=2)
        >>> layout.pieces.tolist(), layout.first.tolist()
        ([0, 1, 2, 3], [0, 1, 4])
    """
    count = len(lengths) if order is None else len(order)
    size = max(GROUP, 32 * lanes)
    groups = max(0, -(-count // size) - 1)
    dtype = number_dtype(max(count, len(lengths)))
    load = np.zeros(lanes, np.int64)
    # The neighbours that each lane gets of each group, as places in the order.
    begin = np.zeros((lanes, groups), dtype)
    number = np.zeros((lanes, groups), dtype)
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        taking, ends = _deal(lengths[part] if order is None else lengths.take(order[part]), load)
        begin[taking, group] = group * size + np.concatenate([[0], ends[:-1]])
        number[taking, group] = np.diff(ends, prepend=0)
    done = groups * size
    rest = _fill_one_by_one(lengths[done:] if order is None else lengths.take(order[done:]), load)
    last = done + np.argsort(rest, kind="stable")
    last_first = np.concatenate([[0], np.cumsum(np.bincount(rest, minlength=lanes))])
    first = np.concatenate([[0], np.cumsum(number.sum(1, dtype=np.int64) + np.diff(last_first))])
    pieces = np.empty(count, dtype)
    # Few groups at a time, which makes temporaries small.
    step = max(1, BLOCK * lanes // size)
    for lane in range(lanes):
        at = int(first[lane])
        for group in range(0, groups, step):
            counts = number[lane, group : group + step]
            shift = begin[lane, group : group + step] - (np.cumsum(counts, dtype=dtype) - counts)
            places = np.repeat(shift, counts)
            places += np.arange(len(places), dtype=dtype)
            pieces[at : at + len(places)] = places if order is None else order.take(places)
            at += len(places)
        places = last[last_first[lane] : last_first[lane + 1]]
        pieces[at : at + len(places)] = places if order is None else order.take(places)
    return _whole_pieces(pieces, first)


def _deal(lengths: Numbers, load: Int64) -> tuple[Int64, Int64]:
    """Deal a group: neighbours together, to the emptiest lanes first, up to a common level. Adds them to `load`.

    Returns:
        The lanes that get something, in order, and where what each of them gets of the group ends.
    """
    cumulated = np.cumsum(lengths, dtype=np.int64)
    total = int(cumulated[-1])
    order = np.argsort(load, kind="stable")
    # The level up to which `total` timesteps fill the emptiest lanes, as water fills the lowest vessels.
    sorted_load = load[order]
    below = np.cumsum(sorted_load)
    filled = np.arange(1, len(load) + 1) * sorted_load - below
    used = int(np.searchsorted(filled, total, "left")) or 1
    level = -(-(total + int(below[used - 1])) // used)
    border = np.cumsum(level - sorted_load[:used])
    # A sequence goes where its middle lies.
    middle = 2 * cumulated - lengths
    ends = np.searchsorted(middle, 2 * border, "left")
    ends[-1] = len(lengths)
    lane = order[:used]
    load[lane] += np.diff(np.concatenate([[0], cumulated])[ends], prepend=0)
    return lane, ends


def _fill_one_by_one(lengths: Numbers, load: Int64) -> NDArray[np.int32]:
    """The lane of each sequence, the one with least each time."""
    lane = np.empty(len(lengths), np.int32)
    lanes = len(load)
    # A lane's load and number in one integer: the heap then compares integers only, and the lower lane wins a tie.
    heap = np.sort(load * lanes + np.arange(lanes)).tolist()
    for index, length in enumerate(lengths.tolist()):
        first = heap[0]
        lane[index] = first % lanes
        heapreplace(heap, first + length * lanes)
    return lane


def deal_in_turn(lengths: Numbers, lanes: int, order: Numbers | None) -> Layout:
    """Give the sequences that are not empty to one lane after the other."""
    pieces = not_empty(lengths, order)
    each = [pieces[lane::lanes] for lane in range(lanes)]
    return _whole_pieces(np.concatenate(each), np.concatenate([[0], np.cumsum([len(part) for part in each])]))


def lay_end_to_end(lengths: Numbers, lanes: int, order: Numbers | None, total: int | None = None) -> Layout:
    """Lane b gets timesteps `[borders[b], borders[b+1])` of the sequences end to end, of `total` or all of them."""
    rows = not_empty(lengths, order)
    ends = np.cumsum(lengths[rows], dtype=np.int64)
    borders = cut_evenly(int(ends[-1]) if total is None else total, lanes)
    low = np.searchsorted(ends, borders[:-1], "right")
    high = np.where(borders[1:] > borders[:-1], np.searchsorted(ends, borders[1:], "left") + 1, low)
    held = high > low
    parts = [rows[start:stop] for start, stop in zip(low.tolist(), high.tolist(), strict=True)]
    # How much of a lane's first span lies in the lane before it, and of its last span in the lane after it.
    begins = np.where(low > 0, ends[low - 1], 0)
    return Layout(
        pieces=np.concatenate(parts),
        first=np.concatenate([[0], np.cumsum(high - low)]),
        skip=np.where(held, borders[:-1] - begins, 0),
        cut=np.where(held, ends[np.maximum(high, 1) - 1] - borders[1:], 0),
        goes_on=np.zeros(lanes, np.bool_),
    )


def not_empty(lengths: Numbers, order: Numbers | None) -> Numbers:
    """The sequences that are not empty, in their order."""
    if order is None:
        order = np.arange(len(lengths), dtype=number_dtype(len(lengths)))
    return order if lengths.all() else order[lengths[order] > 0]


def cut_evenly(total: int, lanes: int) -> Int64:
    """The borders of `lanes` runs of `total` timesteps that differ by one at most, the longer ones first: int64 [B+1].

    Example:
        >>> cut_evenly(8, 3).tolist()
        [0, 3, 6, 8]
    """
    share, longer = divmod(total, lanes)
    lane = np.arange(lanes + 1, dtype=np.int64)
    return lane * share + np.minimum(lane, longer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """How full the lanes of a plan are.

    Args:
        lane_windows: Windows of all lanes.
        idle_lane_windows: Those in which the lane holds nothing.
        timesteps: That are emitted.
        padding_timesteps: Of the lane-windows that are not idle.

    Example:
        >>> occupancy = Occupancy(lane_windows=8, idle_lane_windows=2, timesteps=45, padding_timesteps=15)
        >>> occupancy.busy, occupancy.filled
        (0.75, 0.75)
    """

    lane_windows: int
    idle_lane_windows: int
    timesteps: int
    padding_timesteps: int

    @property
    def busy(self) -> float:
        """The share of lane-windows that are not idle."""
        return 1 - self.idle_lane_windows / max(1, self.lane_windows)

    @property
    def filled(self) -> float:
        """The share of the timesteps of the lane-windows that are not idle which are not padding."""
        return self.timesteps / max(1, self.timesteps + self.padding_timesteps)
