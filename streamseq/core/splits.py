"""Splits: how long sequences are cut into the windows that a stream emits."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

PERIODS = ("minute", "hour", "day", "week", "month", "year")
UNITS = ("D", "h", "m", "s", "ms", "us", "ns")


@dataclass(frozen=True, slots=True)
class AsIs:
    """Every sequence is one window, as long as the longest over all lanes; nothing is cut and no state is carried.

    Args:
        buckets: Sequences of similar lengths come in the same windows, so that there is less padding: so many windows
            of them at a time are sorted by length and cut into windows, the buckets. With shuffling the buckets of each
            time come in random order, and the sequences in each too. None: sequences come as they are.

    Raises:
        TypeError, ValueError: `buckets` is not a whole number of at least 1.

    Example:
        >>> AsIs(), AsIs(buckets=100)
        (AsIs(), AsIs(buckets=100))
    """

    buckets: int | None = None

    def __post_init__(self) -> None:
        if self.buckets is not None:
            if isinstance(self.buckets, bool) or not isinstance(self.buckets, int | np.integer):
                raise TypeError(f"buckets is a number of windows, got {self.buckets!r}")
            if self.buckets < 1:
                raise ValueError(f"buckets is at least 1 window, got {self.buckets}: leave it out for none")

    def __repr__(self) -> str:
        return "AsIs()" if self.buckets is None else f"AsIs(buckets={self.buckets})"


@dataclass(frozen=True, slots=True)
class Naive:
    """Contiguous windows of `window` timesteps: the state is kept between them and reset at the sequence's true end."""


@dataclass(frozen=True, slots=True)
class Marker:
    """A boundary at every timestep that a field marks.

    Args:
        field: Its name.
        value: A timestep is marked where an entry of it equals this, or one of these; None: where an entry is not 0.
        after: A window ends with the marked timestep, as with the end of a sentence or record; otherwise it begins
            with it.
        reset: Whether the state begins anew there.

    Example:
        >>> Marker("text", ord("."), after=True)
        Marker(field='text', value=46, after=True, reset=False)
    """

    field: str
    value: Any = None
    _: KW_ONLY
    after: bool = False
    reset: bool = False

    def __post_init__(self) -> None:
        _check_field(self)


@dataclass(frozen=True, slots=True)
class Gap:
    """A boundary where time jumps: between two timesteps that are far apart, in either direction.

    Args:
        field: A timestamp, one number a timestep.
        longer_than: Two neighbours that are further apart than this, in the field's unit, have a gap between them.
        reset: Whether the state begins anew after a gap.

    Raises:
        ValueError: `longer_than` is negative or no number.
    """

    field: str
    _: KW_ONLY
    longer_than: float
    reset: bool = True

    def __post_init__(self) -> None:
        _check_field(self)
        _check_number(self, "longer_than", least=0)


@dataclass(frozen=True, slots=True)
class Calendar:
    """A boundary where a new day, hour, week, ... begins: at the first timestep of each.

    With a time zone it is what the clocks there show: an hour that they go through twice is one of 120 minutes.

    Args:
        field: A timestamp, one number a timestep, that counts from 1970-01-01 00:00 UTC.
        every: "minute", "hour", "day", "week" (from Monday), "month" or "year".
        unit: What the field counts: "D", "h", "m" (minutes), "s", "ms", "us" or "ns".
        timezone: A name such as "Europe/Vienna", whose days, hours, ... are meant; None: UTC.
        reset: Whether the state begins anew there.

    Raises:
        ValueError: A period, unit or time zone that there is not.
    """

    field: str
    _: KW_ONLY
    every: str
    unit: str = "s"
    timezone: str | None = None
    reset: bool = False

    def __post_init__(self) -> None:
        _check_field(self)
        for name, known in (("every", PERIODS), ("unit", UNITS)):
            if getattr(self, name) not in known:
                raise ValueError(f"a calendar's {name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.timezone is not None:
            try:
                datetime.now(ZoneInfo(self.timezone))
            except (ZoneInfoNotFoundError, ValueError, OSError):
                raise ValueError(
                    f'a calendar\'s timezone is a name such as "Europe/Vienna" that this machine knows, got '
                    f"{self.timezone!r}: see zoneinfo.available_timezones(), or pip install tzdata"
                ) from None


@dataclass(frozen=True, slots=True)
class Change:
    """A boundary where a field changes: at each timestep that has another value than the one before it.

    Args:
        field: Its name. Missing values (NaN) are equal to each other.
        reset: Whether the state begins anew there.
    """

    field: str
    _: KW_ONLY
    reset: bool = False

    def __post_init__(self) -> None:
        _check_field(self)


@dataclass(frozen=True, slots=True)
class Silence:
    """A boundary after every silence: at the first timestep that is not silent any more.

    Args:
        field: Its name. A timestep is silent where the magnitude of every entry is below a threshold.
        below: The threshold, above 0.
        at_least: Silent timesteps in a row that make a silence.
        reset: Whether the state begins anew there.

    Raises:
        ValueError: `below` is not above 0, or `at_least` is less than 1.
    """

    field: str
    _: KW_ONLY
    below: float
    at_least: int
    reset: bool = False

    def __post_init__(self) -> None:
        _check_field(self)
        _check_number(self, "below", least=0)
        if not self.below:
            raise ValueError("silence is a magnitude below a threshold, got below=0: pass more than 0")
        if isinstance(self.at_least, bool) or not isinstance(self.at_least, int | np.integer) or self.at_least < 1:
            raise ValueError(f"a silence has at_least 1 timestep, a whole number, got {self.at_least!r}")


@dataclass(frozen=True, slots=True)
class At:
    """Boundaries at positions that are given.

    Args:
        positions: Id -> positions, whole numbers of 0 to the length of the sequence, in any order. Sequences that are
            not named have none.
        reset: Whether the state begins anew there.
    """

    positions: Mapping[str, Any]
    _: KW_ONLY
    reset: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.positions, Mapping):
            raise TypeError(f"positions are given by id, as a dict, got a {type(self.positions).__name__}")

    def __repr__(self) -> str:
        return f"At({len(self.positions):,} sequences, reset={self.reset})"


@dataclass(frozen=True, slots=True)
class Where:
    """Boundaries that a function finds.

    Args:
        function: Gets the arrays `[n, *D]` of one sequence by field, and returns the positions of its boundaries.
        fields: Which it gets; None: all.
        pieces: It gets an iterator over the sequence instead, in pieces of a few MiB that are such arrays each; for
            sequences that do not fit in memory.
        reset: Whether the state begins anew there.

    Example:
        >>> import numpy as np
        >>> peaks = Where(lambda arrays: np.flatnonzero(arrays["x"] > 3), ["x"])
    """

    function: Callable[[Any], Iterable[int]]
    fields: Iterable[str] | None = None
    _: KW_ONLY
    pieces: bool = False
    reset: bool = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"Where(function) takes a function, got {self.function!r}")
        if isinstance(self.fields, str):
            raise TypeError(f"fields is a list of names, got the string {self.fields!r}: pass [{self.fields!r}]")
        if self.fields is not None:
            object.__setattr__(self, "fields", tuple(self.fields))

    def __reduce__(self) -> tuple[Any, ...]:
        # Processes get what was found: few of them ever call the function, and a lambda must not stop the others.
        try:
            pickle.dumps(self.function)
            function: Any = self.function
        except Exception:
            function = NotPickled(repr(self.function))
        return _where, (function, self.fields, self.pieces, self.reset)


def _where(function: Any, names: Any, pieces: bool, reset: bool) -> Where:
    return Where(function, names, pieces=pieces, reset=reset)


@dataclass(frozen=True, slots=True)
class NotPickled:
    """What another process has of a function that cannot be pickled."""

    name: str

    def __call__(self, arrays: Any) -> Iterable[int]:
        """Say so."""
        raise TypeError(
            f"boundaries are looked for again in another process, which has no {self.name}, as it cannot be pickled: "
            "give the function a name at the top of a module, or start the workers anew"
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """Boundaries that were found before and are stored beside the sequences, by `ss.mark` or by `ss.ingest`.

    Args:
        name: The name that they were given; `Domain("days")` is short for `Domain(Stored("days"))`.
    """

    name: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"stored boundaries have a name, got {self.name!r}")


Rule = Marker | Gap | Calendar | Change | Silence | At | Where | Stored


@dataclass(frozen=True, slots=True, init=False)
class Domain:
    """Windows of at most `window` timesteps that end where the data says.

    A boundary at position p means that a window ends with timestep p - 1, and the next one begins with p. What lies
    between two boundaries is cut into windows as usual. The state goes on over a boundary, each lane's from its own
    stop, unless the boundary is a *break*: there the state begins anew.

    What lies between two breaks is laid out on lanes as a whole, and shuffled as a whole; a lookahead does not see
    beyond a break.

    Args:
        boundaries: A rule: `Marker`, `Gap`, `Calendar`, `Change`, `Silence`, `At`, `Where` or `Stored`; or several, of
            which all boundaries count. A dict id -> positions is `At`, a function `Where`, the name of stored
            boundaries `Stored`. Where two rules have a boundary at the same position, it is a break if it is one of
            either.

    Raises:
        TypeError: Something else.
        ValueError: There is no rule.

    Example:
        >>> Domain([Calendar("time", every="day"), Gap("time", longer_than=3600)]).rules[1].reset
        True
        >>> Domain({"plant-3": [100, 250]})
        Domain(At(1 sequences, reset=False))
        >>> Domain(["days", Gap("time", longer_than=3600)]).rules[0]
        Stored(name='days')
    """

    rules: tuple[Rule, ...]

    def __init__(self, boundaries: Any) -> None:
        several = isinstance(boundaries, list | tuple)
        rules = tuple(_as_rule(each) for each in (boundaries if several else [boundaries]))
        if not rules:
            raise ValueError("Domain needs at least one rule, got none: use Naive() for windows of one length")
        object.__setattr__(self, "rules", rules)

    def __repr__(self) -> str:
        return f"Domain({', '.join(map(repr, self.rules))})"


Split = AsIs | Naive | Domain


def _as_rule(given: Any) -> Rule:
    if isinstance(given, Rule):
        return given
    if isinstance(given, Mapping):
        return At(given)
    if isinstance(given, str):
        return Stored(given)
    if callable(given) and not isinstance(given, type):
        return Where(given)
    kinds = "Marker, Gap, Calendar, Change, Silence, At, Where or Stored"
    raise TypeError(
        f"a boundary rule is a {kinds}, a dict id -> positions, a function or the name of stored boundaries, got "
        f"{given!r}"
    )


def _check_field(rule: Any) -> None:
    if not isinstance(rule.field, str):
        raise TypeError(f"{type(rule).__name__} takes the name of a field, got {rule.field!r}")


def _check_number(rule: Any, name: str, *, least: float) -> None:
    value = getattr(rule, name)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} of {type(rule).__name__} is a number, got {value!r}")
    if math.isnan(value) or value < least:
        raise ValueError(f"{name} of {type(rule).__name__} is at least {least}, got {value}")
