"""Scanning: where rules see boundaries in the values of a field, which come piece by piece.

Many sequences come end to end, cut into pieces anywhere. What a scanner has to know of the timestep before a piece it
remembers, so that gaps and changes between pieces are found, and none between sequences.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.calendars import Periods
from streamseq.core.fields import Field
from streamseq.core.splits import Calendar, Change, Gap, Marker, Silence

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Array = NDArray[Any]

Scanned = Marker | Gap | Calendar | Change | Silence
"""The rules that look at one field, timestep by timestep."""


class MissingTimeError(ValueError):
    """A timestep has no timestamp; `place` is where in the piece."""

    def __init__(self, place: int) -> None:
        super().__init__(f"no timestamp at {place}")
        self.place = place


class Scanner(ABC):
    """Finds the boundaries of one rule."""

    @abstractmethod
    def feed(self, values: Array, begins: Int64) -> Int64:
        """Take the next piece.

        Args:
            values: [T, *D], T of at least 1.
            begins: int64, the places in it at which sequences begin, ascending.

        Returns:
            int64, the places of the timesteps that begin a window, ascending; none that begins a sequence.

        Raises:
            MissingTimeError: A timestamp is NaN, or the smallest number of its type, which stands for a missing one.
            ValueError: A timestamp cannot be one.
        """


def make_scanner(rule: Scanned, field: Field) -> Scanner:
    """The scanner of a rule, for a field of that kind.

    Raises:
        ValueError: The rule does not go with the field.

    Example:
        >>> scanner = make_scanner(Gap("time", longer_than=1), Field("int64"))
        >>> scanner.feed(np.array([3, 4, 9]), np.array([0])).tolist()
        [2]
        >>> scanner.feed(np.array([20, 21, 1]), np.array([2])).tolist()
        [0]
    """
    if isinstance(rule, Gap | Calendar):
        if math.prod(field.shape) != 1 or field.dtype.kind == "b":
            raise ValueError(
                f"{type(rule).__name__} takes a timestamp, one number a timestep, and field {rule.field!r} is "
                f"{field.dtype}{list(field.shape)}: name another field"
            )
        return _Gaps(rule) if isinstance(rule, Gap) else _Calendars(rule)
    if isinstance(rule, Change):
        return _Changes()
    return _Markers(rule) if isinstance(rule, Marker) else _Silences(rule)


class _Neighbours(Scanner):
    """Compares each timestep with the one before it."""

    def __init__(self) -> None:
        self._last: Array | None = None

    def feed(self, values: Array, begins: Int64) -> Int64:
        keys = self._keys(values)
        # Before the first timestep of all there is none, and a sequence begins there.
        joined = np.concatenate([keys[:1] if self._last is None else self._last, keys])
        self._last = keys[-1:].copy()
        apart = self._apart(joined[:-1], joined[1:])
        apart[begins] = False
        return np.flatnonzero(apart)

    @abstractmethod
    def _keys(self, values: Array) -> Array:
        """[T, ...], what is compared."""

    @abstractmethod
    def _apart(self, before: Array, after: Array) -> Bool:
        """bool [T], whether there is a boundary between two timesteps."""


class _Gaps(_Neighbours):
    def __init__(self, rule: Gap) -> None:
        super().__init__()
        self._longer_than = rule.longer_than

    def _keys(self, values: Array) -> Array:
        return _times(values)

    def _apart(self, before: Array, after: Array) -> Bool:
        if before.dtype.kind == "f":
            jumps: Bool = np.abs(after.astype(np.float64) - before) > self._longer_than
            return jumps
        # Differences of 64-bit numbers need 65 bits, magnitudes of differences do not.
        wide = np.int64 if before.dtype.kind == "i" else np.uint64
        low, high = (each.astype(wide, copy=False).view(np.uint64) for each in (before, after))
        distance = np.where(after >= before, high - low, low - high)
        found: Bool = distance > self._longer_than
        return found


class _Calendars(_Neighbours):
    def __init__(self, rule: Calendar) -> None:
        super().__init__()
        self._periods = Periods(rule)

    def _keys(self, values: Array) -> Array:
        return self._periods.of(_times(values))

    def _apart(self, before: Array, after: Array) -> Bool:
        found: Bool = np.not_equal(before, after)
        return found


class _Changes(_Neighbours):
    def _keys(self, values: Array) -> Array:
        return values.reshape(len(values), -1)

    def _apart(self, before: Array, after: Array) -> Bool:
        same: Bool = np.equal(before, after)
        if before.dtype.kind == "f":
            same |= np.isnan(before) & np.isnan(after)
        return ~np.asarray(same.all(1))


class _Markers(Scanner):
    def __init__(self, rule: Marker) -> None:
        self._value = None if rule.value is None else np.asarray(rule.value)
        self._after = rule.after
        # Whether the last timestep was marked, with `after`.
        self._pending = False

    def feed(self, values: Array, begins: Int64) -> Int64:
        found: Bool = values.astype(np.bool_) if self._value is None else np.isin(values, self._value)
        marked: Bool = np.asarray(found.reshape(len(values), -1).any(1))
        if self._after:
            pending, self._pending = self._pending, bool(marked[-1])
            marked = np.concatenate([[pending], marked[:-1]])
        marked[begins] = False
        return np.flatnonzero(marked)


class _Silences(Scanner):
    def __init__(self, rule: Silence) -> None:
        self._below = rule.below
        self._at_least = rule.at_least
        # Silent timesteps at the end of what came before.
        self._silent = 0

    def feed(self, values: Array, begins: Int64) -> Int64:
        flat = values.reshape(len(values), -1)
        # Not by the magnitude, which the smallest integer does not have.
        quiet = (flat < self._below) & (flat > -self._below) if values.dtype.kind in "if" else flat < self._below
        loud = np.flatnonzero(~quiet.all(1))
        # Silence lasts since the loud timestep before, or since the sequence began.
        begun = np.concatenate([[-self._silent], begins])
        since = begun[np.searchsorted(begins, loud, "right")]
        before = np.maximum(np.concatenate([[-self._silent], loud[:-1] + 1]), since)[: len(loud)]
        last = max(int(begun[-1]), int(loud[-1]) + 1 if len(loud) else -self._silent)
        self._silent = len(values) - last
        found: Int64 = loud[loud - before >= self._at_least]
        return found


def _times(values: Array) -> Array:
    """Timestamps [T].

    Raises:
        MissingTimeError: One is missing.
    """
    times = values.reshape(-1)
    missing = None
    if times.dtype.kind == "f":
        missing = ~np.isfinite(times)
    elif times.dtype == np.int64:
        missing = times == np.iinfo(np.int64).min
    if missing is not None and missing.any():
        raise MissingTimeError(int(np.argmax(missing)))
    return times
