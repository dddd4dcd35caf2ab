"""Transforms that need a sequence from its first timestep on: resampling, filled gaps, and the user's running state."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamseq.core.fields import Field
from streamseq.etl.transforms_base import (
    BLOCK_BYTES,
    Arrays,
    BadTimestepError,
    InOrder,
    Operator,
    holds,
    join,
    named_arrays,
    num_steps,
    probe,
    put,
    take,
)

METHODS = ("linear", "nearest", "mean")
# More timesteps are hardly ever missing in one gap: a timestamp of 0 would fill a disk.
_MOST_MISSING = 10**8


@dataclass(frozen=True, slots=True, eq=False)
class Resample(InOrder):
    """From one regular rate to another, along time.

    Timestep j of the result lies at j · rate / to of the input's timesteps, exactly; the last one is the last that is
    not after the input's last. By "linear" it is interpolated between the two timesteps around it, by "nearest" it is
    the nearest one (the later of two), by "mean" it is the mean of the input from it to the next, where timesteps
    that lie in it only in part count as that part. Only the mean keeps what is faster than the new rate from turning up
    as something slower (aliasing): filter before the others.

    Integers are rounded; bool and uint64 fields go by "nearest" only. Reals keep their dtype. A NaN makes NaN of
    what is made from it.

    Args:
        rate: Timesteps of the input, in any unit of time.
        to: Timesteps of the result in the same unit.
        method: One of the three, or a dict of them by field.

    Raises:
        ValueError: A rate is not positive, or a method has another name.

    Example:
        >>> sequence = Resample(2, 4).begin("a")
        >>> np.concatenate([made["x"] for made in sequence.push({"x": np.array([0.0, 1.0, 4.0])})])
        array([0. , 0.5, 1. , 2.5, 4. ])
    """

    rate: float | Fraction
    to: float | Fraction
    method: str | Mapping[str, str] = "linear"

    def __post_init__(self) -> None:
        for name in ("rate", "to"):
            given = getattr(self, name)
            if not math.isfinite(given) or given <= 0:
                raise ValueError(f"a rate is above 0 and finite, {self} got {given}")
            # As it is written: 0.1 is a tenth.
            object.__setattr__(self, name, given if isinstance(given, Fraction) else Fraction(str(given)))
        methods = [self.method] if isinstance(self.method, str) else list(self.method.values())
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"the method of {self} is one of {', '.join(METHODS)}, got {method!r}")

    @property
    def length_ratio(self) -> float:
        """The ratio of the rates."""
        return float(Fraction(self.to) / Fraction(self.rate))

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The same fields."""
        if not isinstance(self.method, str):
            for name in self.method:
                take(fields, name, self)
            missing = [name for name in fields if name not in self.method]
            if missing:
                raise ValueError(f"{self} has a method for every field, got none for {', '.join(missing)}: name one")
        for name, field in fields.items():
            method = self._method(name)
            if method != "nearest" and (field.dtype.kind == "b" or field.dtype == np.uint64):
                raise ValueError(f"{self} of {field.dtype} fields goes by 'nearest', {name!r} by {method!r}: change it")
        return dict(fields)

    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence."""
        return _Resampler(Fraction(self.rate) / Fraction(self.to), self._method)

    def _method(self, name: str) -> str:
        return self.method if isinstance(self.method, str) else self.method[name]


class _Resampler:
    """Resamples one sequence.

    Args:
        step: Timesteps of the input from one of the result to the next.
        method: By field.
    """

    def __init__(self, step: Fraction, method: Callable[[str], str]) -> None:
        self._above, self._below = step.numerator, step.denominator
        self._method = method
        #: The input that is still needed, and the position of its first timestep.
        self._kept: Arrays | None = None
        self._first = 0
        #: Timesteps of the input so far, and of the result.
        self._taken = 0
        self._made = 0

    def push(self, arrays: Arrays) -> Iterable[Arrays]:
        self._kept = arrays if self._kept is None else join(self._kept, arrays)
        self._taken += num_steps(arrays)
        ready = self._all()
        if any(self._method(name) == "mean" for name in arrays):
            ready = min(ready, self._taken * self._below // self._above)
        return self._make(ready)

    def end(self) -> Iterable[Arrays]:
        return self._make(self._all()) if self._taken else []

    def _all(self) -> int:
        """How many timesteps the result has, if this is all of the input."""
        return (self._taken - 1) * self._below // self._above + 1

    def _make(self, stop: int) -> Iterator[Arrays]:
        if self._kept is None or stop <= self._made:
            return
        steps = np.arange(stop - self._made, dtype=np.int64)
        whole, part = divmod(self._made * self._above, self._below)
        # In units of 1 / below of a timestep, from the first one that is kept.
        begins = (whole - self._first) * self._below + part + steps * self._above
        made = {name: self._field(values, begins, self._method(name)) for name, values in self._kept.items()}
        self._made = stop
        needed = min(self._made * self._above // self._below, self._taken)
        drop = needed - self._first
        self._kept = {name: values[drop:].copy() if drop else values for name, values in self._kept.items()}
        self._first = needed
        yield made

    def _field(self, values: NDArray[Any], begins: NDArray[np.int64], method: str) -> NDArray[Any]:
        if method == "nearest":
            return np.asarray(values[(2 * begins + self._below) // (2 * self._below)])
        before = begins // self._below
        integers = values.dtype.kind != "f"
        # Integers are interpolated and averaged from where they begin: as reals they would lose digits.
        base = values[before] if integers or method == "linear" else np.zeros_like(values[before])
        per_step = (-1, *(1,) * (values.ndim - 1))
        with np.errstate(over="ignore", invalid="ignore"):
            if method == "linear":
                share = ((begins % self._below) / self._below).reshape(per_step)
                rise = _apart(values[np.minimum(before + 1, len(values) - 1)], base)
                # What counts nothing is left out, for it may be NaN.
                added = np.where(share > 0, rise * share, 0)
            else:
                added = self._mean(values, base, begins).reshape(base.shape)
        if integers:
            return np.asarray(base + np.rint(added).astype(np.int64).astype(values.dtype))
        return np.asarray(base + added, values.dtype)

    def _mean(self, values: NDArray[Any], base: NDArray[Any], begins: NDArray[np.int64]) -> NDArray[np.float64]:
        """The mean of the input from each timestep of the result to the next, less `base`."""
        per_step = (-1, *(1,) * (values.ndim - 1))
        total = np.zeros(base.shape)
        counted = np.zeros(len(begins), np.int64)
        first = begins // self._below
        # One timestep of the input after another, so that a sum has the same order wherever pieces end.
        for number in range(-(-self._above // self._below) + 1):
            place = first + number
            inside = np.minimum((place + 1) * self._below, begins + self._above) - np.maximum(
                place * self._below, begins
            )
            inside = np.where(place < len(values), np.maximum(inside, 0), 0)
            apart = _apart(values[np.minimum(place, len(values) - 1)], base)
            counts = inside.reshape(per_step)
            total += np.where(counts > 0, apart * counts, 0)
            counted += inside
        return np.asarray(total / counted.reshape(per_step))


def _apart(values: NDArray[Any], base: NDArray[Any]) -> NDArray[np.float64]:
    """Differences as float64, of integers exact before they are rounded."""
    wide = np.float64 if values.dtype.kind == "f" else np.int64
    return (values.astype(wide, copy=False) - base.astype(wide, copy=False)).astype(np.float64, copy=False)


@dataclass(frozen=True, slots=True, eq=False)
class FillGaps(InOrder):
    """Timesteps where a regular timestamp field leaves some out.

    Between timestamps that lie d apart, round(d / step) - 1 timesteps are inserted, at multiples of `step` after the
    first of the two; less than half a step of jitter is let be.

    Args:
        time: A field of timestamps, one number a timestep, that never go back.
        step: The time from one timestep to the next, in the unit of the field.
        fill: What inserted timesteps hold in the other fields: "forward", the values before the gap; a number
            (float("nan") for reals); or a dict of these by field.
        mask: A new bool field: True where there was a timestep, False where it was inserted. None for none.
        longest: Gaps of more missing timesteps than this stay gaps; None: all are filled, and one of more than a
            hundred million is an error.

    Raises:
        ValueError: The step or `longest` is not positive, or `fill` is something else.

    Example:
        >>> sequence = FillGaps("time", 10, fill=0).begin("a")
        >>> [made] = sequence.push({"time": np.array([0, 10, 30]), "x": np.array([5, 6, 7])})
        >>> made["time"].tolist(), made["x"].tolist(), made["observed"].tolist()
        ([0, 10, 20, 30], [5, 6, 0, 7], [True, True, False, True])
    """

    time: str
    step: float
    fill: str | float | Mapping[str, str | float] = "forward"
    mask: str | None = "observed"
    longest: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.step) or self.step <= 0:
            raise ValueError(f"the step of {self} is above 0, got {self.step}")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"the longest gap that {self} fills has at least 1 timestep, got {self.longest}")
        for fill in self.fill.values() if isinstance(self.fill, Mapping) else [self.fill]:
            if isinstance(fill, str) and fill != "forward":
                raise ValueError(f"{self} fills with 'forward' or a number, got {fill!r}")

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The same fields and the mask."""
        time = take(fields, self.time, self)
        if time.shape or time.dtype.kind == "b":
            raise ValueError(f"the times of {self} are one number a timestep, {self.time!r} is {time}")
        if time.dtype.kind != "f" and self.step != int(self.step):
            raise ValueError(f"the times of {self} are integers, so is the step, got {self.step}")
        if isinstance(self.fill, Mapping):
            for name in self.fill:
                take(fields, name, self)
            missing = [name for name in fields if name not in self.fill and name != self.time]
            if missing:
                raise ValueError(f"{self} fills every field, nothing is said of {', '.join(missing)}: add it to fill=")
        for name, field in fields.items():
            if name == self.time:
                continue
            fill = self._fill(name)
            if not isinstance(fill, str) and not holds(field, fill):
                raise ValueError(f"{self} fills {name!r} with {fill}, which {field.dtype} cannot hold: cast it first")
        return dict(fields) if self.mask is None else put(fields, self.time, self.mask, Field("bool"), self)

    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence."""
        return _GapFiller(self)

    def _fill(self, name: str) -> str | float:
        return self.fill[name] if isinstance(self.fill, Mapping) else self.fill


class _GapFiller:
    def __init__(self, transform: FillGaps) -> None:
        self._transform = transform
        #: The last timestep, from the second piece on.
        self._last: Arrays | None = None

    def push(self, arrays: Arrays) -> Iterable[Arrays]:
        # The first timestep of a sequence follows itself.
        last = {name: values[:1] for name, values in arrays.items()} if self._last is None else self._last
        joined = join(last, arrays)
        missing = self._missing(joined[self._transform.time])
        self._last = {name: values[-1:].copy() for name, values in arrays.items()}
        #: Of the result: the place after each timestep of the input.
        ends = np.cumsum(missing + 1)
        step_bytes = sum(values[:1].nbytes for values in arrays.values())
        rows = max(1, BLOCK_BYTES // max(1, step_bytes))
        for start in range(0, int(ends[-1]), rows):
            yield self._block(joined, missing, ends, np.arange(start, min(start + rows, int(ends[-1]))))

    def end(self) -> Iterable[Arrays]:
        return []

    def _missing(self, times: NDArray[Any]) -> NDArray[np.int64]:
        """How many timesteps are missing before each one but the first."""
        transform = self._transform
        if times.dtype.kind == "f":
            wrong = ~np.isfinite(times[1:])
            if wrong.any():
                raise BadTimestepError(int(wrong.argmax()), f"a timestamp is finite, got {times[1:][wrong][0]}")
        back = times[1:] < times[:-1]
        if back.any():
            place = int(back.argmax())
            raise BadTimestepError(place, f"timestamps never go back, {times[place + 1]} follows {times[place]}")
        apart = (
            _apart(times[1:], times[:-1]) if times.dtype != np.uint64 else (times[1:] - times[:-1]).astype(np.float64)
        )
        missing = np.maximum(np.rint(apart / transform.step) - 1, 0)
        if transform.longest is not None:
            missing[missing > transform.longest] = 0
        elif (missing > _MOST_MISSING).any():
            place = int((missing > _MOST_MISSING).argmax())
            raise BadTimestepError(
                place,
                f"{missing[place]:.0f} timesteps are missing between {times[place]} and {times[place + 1]}, one of "
                "which may be wrong: give longest=, above which gaps stay",
            )
        return np.asarray(missing, np.int64)

    def _block(
        self, joined: Arrays, missing: NDArray[np.int64], ends: NDArray[np.int64], places: NDArray[np.int64]
    ) -> Arrays:
        """Timesteps of the result, those at `places`."""
        transform = self._transform
        after = np.searchsorted(ends, places, "right")
        there = places == ends[after] - 1
        # Of what was inserted: the how many-th of its gap.
        number = places - (ends[after] - 1 - missing[after]) + 1
        made = {}
        for name, values in joined.items():
            # Before each timestep of the piece stands, in the joined arrays, the one that it follows.
            made[name] = values[after + there]
            gone = ~there
            if name == transform.time:
                made[name][gone] += (number[gone] * transform.step).astype(values.dtype)
            elif transform._fill(name) != "forward":
                made[name][gone] = transform._fill(name)
        if transform.mask is not None:
            made[transform.mask] = there
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Scan(InOrder):
    """Your own function with a running state, over each sequence in order: cumulative sums, recursive filters.

    Args:
        function: Takes the state and a dict of arrays `[n, *D]` by field, the next timesteps; returns the new state and
            a dict of arrays by field, of any number of timesteps. How many timesteps it gets at once must not matter.
        initial: The state before the first timestep of a sequence, of which each gets a copy; or a function of the
            sequence's id that returns it.
        end: Takes the last state and returns timesteps that were held back; None: there are none.
        fields: What the function puts out; None: found out by a call with zeros.
        threads: Whether it lets go of the interpreter lock, so that threads serve it; otherwise it is run in processes.
        version: Stands for the functions in the fingerprint; None: their code does.

    Example:
        >>> def add_up(total, arrays):
        ...     sums = total + np.cumsum(arrays["x"])
        ...     return sums[-1], {"x": sums}
        >>> sequence = Scan(add_up, 0.0).begin("a")
        >>> [sequence.push({"x": np.array(part)})[0]["x"].tolist() for part in ([1.0, 2.0], [3.0])]
        [[1.0, 3.0], [6.0]]
    """

    function: Callable[[Any, Arrays], tuple[Any, Mapping[str, ArrayLike]]]
    initial: Any = None
    end: Callable[[Any], Mapping[str, ArrayLike]] | None = None
    fields: Mapping[str, Field] | None = None
    threads: bool = False
    version: str | None = None

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """What the function puts out."""
        return probe(
            lambda arrays: self.function(self._state("probe"), arrays)[1], fields, self.fields, self, any_steps=True
        )

    def begin(self, id: str, *, continued: bool = False) -> Operator:
        """Begin with a sequence."""
        return _Scanner(self.function, self._state(id), self.end)

    def _state(self, id: str) -> Any:
        return self.initial(id) if callable(self.initial) else copy.deepcopy(self.initial)

    def _identity(self) -> object:
        code = (self.function, self.end) if self.version is None else self.version
        return type(self), code, self.initial, self.fields


class _Scanner:
    def __init__(self, function: Callable[..., Any], state: Any, end: Callable[[Any], Any] | None) -> None:
        self._function, self._state, self._end = function, state, end

    def push(self, arrays: Arrays) -> list[Arrays]:
        self._state, made = self._function(self._state, arrays)
        return [named_arrays(made)]

    def end(self) -> list[Arrays]:
        return [] if self._end is None else [named_arrays(self._end(self._state))]
