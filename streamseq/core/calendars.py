"""Calendars: which day, hour, week, ... timestamps lie in, in any time zone."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from streamseq.core.splits import Calendar

Int64 = NDArray[np.int64]

_DAY = 86_400
_SECONDS = {"D": _DAY, "h": 3_600, "m": 60}
_FRACTIONS = {"ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_CODES = {"minute": "m", "hour": "h", "day": "D", "week": "D", "month": "M", "year": "Y"}
_NEVER = np.iinfo(np.int64).max
# The first week that is numbered begins on a Monday, 1969-12-29.
_TO_MONDAY = 3


class Periods:
    """Numbers the days, hours, ... of a calendar.

    Args:
        calendar: Which, of what unit, in which time zone.

    Example:
        >>> from streamseq.core.splits import Calendar
        >>> days = Periods(Calendar("time", every="day", unit="h", timezone="Asia/Tokyo"))
        >>> days.of(np.array([0, 14, 15, 38, 39])).tolist()
        [0, 0, 1, 1, 2]
    """

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._zone = None if calendar.timezone is None else _Zone(calendar.timezone)

    def of(self, times: NDArray[Any]) -> Int64:
        """The numbers of the periods that timestamps lie in, ascending with time.

        Args:
            times: int or float [T], none missing.

        Returns:
            int64 [T].

        Raises:
            ValueError: A timestamp is of no year from 1 to 9999, and there is a time zone.
        """
        calendar = self._calendar
        if times.dtype.kind == "f":
            wide = times.astype(np.float64)
            # Not a product with a fraction, which would not be exact.
            wide = wide * _SECONDS.get(calendar.unit, 1) / _FRACTIONS.get(calendar.unit, 1)
            seconds = np.floor(wide).astype(np.int64)
        else:
            seconds = times.astype(np.int64).view(f"M8[{calendar.unit}]").astype("M8[s]").view(np.int64)
        if self._zone is not None:
            seconds = seconds + self._zone.offsets(seconds)
        periods = seconds.view("M8[s]").astype(f"M8[{_CODES[calendar.every]}]")
        number: Int64 = periods.view(np.int64)
        weeks: Int64 = (number + _TO_MONDAY) // 7
        return weeks if calendar.every == "week" else number


class _Zone:
    """How far the clocks of a time zone are ahead of UTC."""

    def __init__(self, name: str) -> None:
        self._zone = ZoneInfo(name)
        # By day: seconds ahead of UTC at its start, from when on they are others, and how many then.
        self._days: dict[int, tuple[int, int, int]] = {}

    def offsets(self, seconds: Int64) -> Int64:
        """Seconds ahead of UTC at instants, int64 [T]."""
        days = seconds // _DAY
        starts = np.flatnonzero(np.diff(days, prepend=days[:1] - 1))
        table = np.array([self._day(day) for day in days[starts].tolist()], np.int64).reshape(-1, 3)
        before, at, after = table[np.repeat(np.arange(len(starts)), np.diff(starts, append=len(days)))].T
        offsets: Int64 = np.where(seconds < at, before, after)
        return offsets

    def _day(self, day: int) -> tuple[int, int, int]:
        found = self._days.get(day)
        if found is None:
            low, high = day * _DAY, (day + 1) * _DAY
            before, after = self._ahead(low), self._ahead(high)
            at = _NEVER
            if before != after:
                # Clocks are changed once a day at most; this finds the second.
                while high - low > 1:
                    middle = (low + high) // 2
                    low, high = (middle, high) if self._ahead(middle) == before else (low, middle)
                at = high
            found = self._days[day] = (before, at, after)
        return found

    def _ahead(self, second: int) -> int:
        try:
            offset = datetime.fromtimestamp(second, self._zone).utcoffset()
        except (ValueError, OverflowError, OSError):
            raise ValueError(
                f"a time zone is known in the years 1 to 9999, got {second:,} seconds after 1970: is the unit of the "
                "calendar rule that of the field?"
            ) from None
        assert offset is not None
        return int(offset.total_seconds())
