"""Boundaries: the positions in sequences at which windows end because the data says so."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from streamseq.core.layout import Numbers, number_dtype

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Boundaries:
    """The boundaries of many sequences.

    A boundary at position p means that one window ends with timestep p - 1 and the next one begins with p. At a *break*
    the state begins anew.

    Args:
        sequence: int64 [S], indices of the sequences that have boundaries, ascending.
        counts: int64 [S], how many each has, at least 1.
        position: int [M], those of one sequence after those of another, ascending in each.
        breaks: bool [M], which of them are breaks.

    Example:
        >>> boundaries = Boundaries(np.array([3]), np.array([2]), np.array([5, 8]), np.array([False, True]))
        >>> boundaries.last_break(np.array([3, 3, 4]), np.array([7, 8, 9])).tolist()
        [0, 8, 0]
    """

    def __init__(self, sequence: Int64, counts: Int64, position: Numbers, breaks: Bool) -> None:
        self.sequence = sequence
        #: int64 [S + 1], where the boundaries of each sequence begin.
        self.first: Int64 = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self.position: Numbers = position.astype(number_dtype(int(position.max(initial=0))), copy=False)
        self.breaks = breaks
        #: int64 [R], the places of the breaks.
        self.broken: Int64 = np.flatnonzero(breaks)
        self._fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.position)

    @property
    def fingerprint(self) -> str:
        """A hash of the boundaries and of which are breaks."""
        if self._fingerprint is None:
            digest = hashlib.blake2b(digest_size=16)
            for array in (self.sequence, self.first, self.position):
                digest.update(np.ascontiguousarray(array, "<i8").data)
            digest.update(np.packbits(self.breaks).data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def inside(self, sequence: Int64, start: Int64, stop: Int64) -> tuple[Int64, Int64]:
        """The boundaries inside spans: at positions above `start` and below `stop`.

        Args:
            sequence, start, stop: int64 [Q] each.

        Returns:
            Two int64 [Q]: the place of the first one, and that after the last one.
        """
        if not len(self.sequence):
            return np.zeros(len(sequence), np.int64), np.zeros(len(sequence), np.int64)
        slot = np.minimum(np.searchsorted(self.sequence, sequence), len(self.sequence) - 1)
        low = self.first[slot]
        high = np.where(self.sequence[slot] == sequence, self.first[slot + 1], low)
        return self._search(low, high, start), self._search(low, high, stop - 1)

    def _search(self, low: Int64, high: Int64, limit: Int64) -> Int64:
        """The first place in each of some ranges with a position above a limit: a binary search in all at once."""
        low, high = low.copy(), high.copy()
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            above = self.position[np.minimum(middle, len(self.position) - 1)] > limit
            going = low < high
            high = np.where(going & above, middle, high)
            low = np.where(going & ~above, middle + 1, low)
        return low

    def last_break(self, sequence: Int64, position: Int64) -> Int64:
        """The last break at or before positions of sequences, int64 [Q]; 0 where there is none."""
        low, place = self.inside(sequence, np.zeros_like(position), position + 1)
        found, last = self.break_before(place)
        return np.where(found & (last >= low), self.position[last] if len(self) else 0, 0).astype(np.int64)

    def break_before(self, place: Int64) -> tuple[Bool, Int64]:
        """Whether there is a break before places, and the place of the last one."""
        at = np.searchsorted(self.broken, place) - 1
        if not len(self.broken):
            return np.zeros(len(place), np.bool_), np.zeros(len(place), np.int64)
        return at >= 0, self.broken[np.maximum(at, 0)]

    def break_from(self, place: Int64) -> tuple[Bool, Int64]:
        """Whether there is a break at or after places, and the place of the first one."""
        at = np.searchsorted(self.broken, place)
        if not len(self.broken):
            return np.zeros(len(place), np.bool_), np.zeros(len(place), np.int64)
        return at < len(self.broken), self.broken[np.minimum(at, len(self.broken) - 1)]
