"""Selections: which spans of which sequences a plan lays out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import PlanError

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
