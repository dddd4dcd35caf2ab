"""Transforms of a timestep and those around it: filters, derivatives, and the user's function of moving windows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray

from streamseq.core.fields import Field
from streamseq.etl.transforms_base import (
    Arrays,
    BadTimestepError,
    Halo,
    float_like,
    holds,
    named_arrays,
    probe,
    put,
    take,
)

NEAREST = "nearest"


@dataclass(frozen=True, slots=True, eq=False)
class Filter(Halo):
    """A linear filter: y[t] = Σ_k taps[k] · x[t + ahead - k], as `np.convolve` has it.

    The taps of `scipy.signal.firwin`, of a moving average (`[1 / 24] * 24`) and the like. Computed in float64; the
    result is float64 of a float64 field, float32 of others.

    Args:
        field: A field of any step shape; each channel is filtered by itself.
        taps: At least one number.
        ahead: How many timesteps ahead it looks: 0 is causal, as `scipy.signal.lfilter`; None: (len(taps) - 1) // 2,
            which is centred.
        edges: What stands before the first and after the last timestep of a sequence: "nearest", those repeated, or a
            number.
        into: A new field for the result; None: it replaces the field.

    Example:
        >>> sequence = Filter("x", [0.5, 0.5], ahead=0, edges=0.0).begin("a")
        >>> [made["x"].tolist() for made in sequence.push({"x": np.array([2.0, 4.0, 0.0])})]
        [[1.0, 3.0, 2.0]]
    """

    field: str
    taps: Sequence[float]
    ahead: int | None = None
    edges: str | float = NEAREST
    into: str | None = None

    def __post_init__(self) -> None:
        taps = tuple(float(tap) for tap in np.asarray(self.taps, np.float64).ravel())
        if not taps or not np.isfinite(taps).all():
            raise ValueError(f"{self} has finite taps, at least one, got {list(taps)}")
        if self.ahead is not None and not 0 <= self.ahead < len(taps):
            raise ValueError(
                f"{self} with {len(taps)} taps looks 0 to {len(taps) - 1} timesteps ahead, got {self.ahead}"
            )
        _check_edges(self.edges)
        object.__setattr__(self, "taps", taps)

    @property
    def after(self) -> int:
        """The timesteps that it looks ahead."""
        return (len(self.taps) - 1) // 2 if self.ahead is None else self.ahead

    @property
    def before(self) -> int:
        """All taps but one, without those ahead."""
        return len(self.taps) - 1 - self.after

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The result is real."""
        old = take(fields, self.field, self)
        return put(fields, self.field, self.into, Field(float_like(old), old.shape, old.codec), self)

    def apply(self, arrays: Arrays, lead: int, trail: int) -> Arrays:
        """Filter."""
        values = arrays[self.field]
        dtype = np.dtype("float64" if values.dtype == np.float64 else "float32")
        padded = _pad(values.astype(np.float64, copy=False), self.before - lead, self.after - trail, self.edges)
        steps = len(padded) - len(self.taps) + 1
        made = np.zeros((steps, *values.shape[1:]))
        with np.errstate(over="ignore", invalid="ignore"):
            # Tap by tap, so that a sum has the same order wherever pieces end.
            for number, tap in enumerate(reversed(self.taps)):
                made += tap * padded[number : number + steps]
            return {**_inner(arrays, lead, trail), self.into or self.field: made.astype(dtype, copy=False)}


@dataclass(frozen=True, slots=True, eq=False)
class Derivative(Halo):
    """The derivative along time by central differences, at a sequence's ends by one-sided ones: `np.gradient`.

    With timestamps it is the second-order formula for uneven steps. The result is float64 of a float64 field, float32
    of others; NaN of a sequence of one timestep.

    Args:
        field: The field.
        step: The time between timesteps.
        time: A field of ascending timestamps, instead of `step`: the result is per its unit.
        into: A new field for the result; None: it replaces the field.

    Raises:
        ValueError: The step is not positive and finite.

    Example:
        >>> sequence = Derivative("x", step=0.5).begin("a")
        >>> [*sequence.push({"x": np.array([0.0, 1.0, 4.0])}), *sequence.end()][-1]["x"].tolist()
        [6.0]
    """

    field: str
    step: float = 1.0
    time: str | None = None
    into: str | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.step) and self.step > 0):
            raise ValueError(f"the step of {self} is above 0, got {self.step}")
        if self.time is not None and self.step != 1.0:
            raise ValueError(f"{self} takes its steps from the field {self.time!r} or from step=, got both: give one")

    @property
    def before(self) -> int:
        """1."""
        return 1

    @property
    def after(self) -> int:
        """1."""
        return 1

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The result is real."""
        old = take(fields, self.field, self)
        if self.time is not None:
            time = take(fields, self.time, self)
            if time.shape or time.dtype.kind == "b":
                raise ValueError(f"the times of {self} are one number a timestep, {self.time!r} is {time}")
        return put(fields, self.field, self.into, Field(float_like(old), old.shape, old.codec), self)

    def apply(self, arrays: Arrays, lead: int, trail: int) -> Arrays:
        """Differentiate."""
        values = arrays[self.field]
        dtype = np.dtype("float64" if values.dtype == np.float64 else "float32")
        gaps = np.full(max(0, len(values) - 1), float(self.step))
        if self.time is not None:
            gaps = _differences(arrays[self.time])
            if not (gaps > 0).all():
                later = int((~(gaps > 0)).argmax()) + 1
                times = arrays[self.time]
                raise BadTimestepError(later, f"times ascend, {times[later]} follows {times[later - 1]}")
        with np.errstate(over="ignore", invalid="ignore"):
            made = _gradient(_differences(values), gaps.reshape(-1, *(1,) * (values.ndim - 1)), self.time is None)
        inner = made[lead : len(values) - trail].astype(dtype, copy=False)
        return {**_inner(arrays, lead, trail), self.into or self.field: inner}


def _differences(values: NDArray[Any]) -> NDArray[np.float64]:
    """Differences between timesteps, of integers exact before they are rounded."""
    if values.dtype.kind in "bui" and values.dtype != np.uint64:
        return np.diff(values.astype(np.int64, copy=False), axis=0).astype(np.float64)
    return np.diff(values.astype(np.float64), axis=0)


def _gradient(rises: NDArray[np.float64], gaps: NDArray[np.float64], even: bool) -> NDArray[np.float64]:
    """The derivative at T timesteps, of the T - 1 differences between them."""
    if not len(rises):
        return np.full((1, *rises.shape[1:]), np.nan)
    slopes = rises / gaps
    made = np.empty((len(rises) + 1, *rises.shape[1:]))
    made[0], made[-1] = slopes[0], slopes[-1]
    if even:
        made[1:-1] = (rises[:-1] + rises[1:]) / (gaps[:-1] + gaps[1:])
    else:
        # The slope on each side, the nearer side counting more (Fornberg 1988, second order).
        left, right = gaps[:-1], gaps[1:]
        made[1:-1] = (right * slopes[:-1] + left * slopes[1:]) / (left + right)
    return made


@dataclass(frozen=True, slots=True, eq=False)
class Windowed(Halo):
    """Your own function of the timesteps around each one: moving means, medians, filters that are not linear.

    Args:
        function: Takes a dict of windows `[n, W, *D]` by field, where W = before + 1 + after, and window i is that
            around timestep i; read-only. Returns one of arrays `[n, ...]` by field; fields that it does not return are
            left out. It is called with as many windows at once as happen to be there.
        before, after: Timesteps of a window before and after its own.
        edges: What stands before the first and after the last timestep of a sequence: "nearest", those repeated, or a
            number.
        fields: What the function returns; None: found out by a call with zeros.
        threads: Whether it lets go of the interpreter lock, so that threads serve it; otherwise it is run in processes.
        version: Stands for the function in the fingerprint; None: its code does.

    Example:
        >>> median = Windowed(lambda windows: {"x": np.median(windows["x"], axis=1)}, before=1, after=1).begin("a")
        >>> [made["x"].tolist() for made in (*median.push({"x": np.array([1.0, 9.0, 2.0, 3.0])}), *median.end())]
        [[1.0, 2.0, 3.0], [3.0]]
    """

    function: Callable[[Arrays], Mapping[str, ArrayLike]]
    before: int = 0
    after: int = 0
    edges: str | float = NEAREST
    fields: Mapping[str, Field] | None = None
    threads: bool = False
    version: str | None = None

    def __post_init__(self) -> None:
        if self.before < 0 or self.after < 0:
            raise ValueError(f"{self} looks at 0 or more timesteps on each side, got {self.before} and {self.after}")
        _check_edges(self.edges)

    @property
    def working_steps(self) -> int:
        """The timesteps of a window."""
        return self.before + 1 + self.after

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """What the function returns."""
        if self.edges != NEAREST:
            for name, field in fields.items():
                if not holds(field, float(self.edges)):
                    raise ValueError(f"{self} has {self.edges} at its edges, {name!r} is {field.dtype}: cast it first")
        return probe(self.function, fields, self.fields, self, (self.working_steps,))

    def apply(self, arrays: Arrays, lead: int, trail: int) -> Arrays:
        """Call the function."""
        windows = {}
        for name, values in arrays.items():
            padded = _pad(values, self.before - lead, self.after - trail, self.edges)
            windows[name] = np.moveaxis(sliding_window_view(padded, self.working_steps, axis=0), -1, 1)
        return named_arrays(self.function(windows))

    def _identity(self) -> object:
        function = self.function if self.version is None else self.version
        return type(self), function, self.before, self.after, self.edges, self.fields


def _check_edges(edges: object) -> None:
    if edges != NEAREST and (isinstance(edges, (bool, str)) or not isinstance(edges, (int, float))):
        raise ValueError(f"edges is {NEAREST!r} or a number, got {edges!r}")


def _pad(values: NDArray[Any], first: int, last: int, edges: str | float) -> NDArray[Any]:
    """Timesteps with others before and after them."""
    if not first and not last:
        return values
    ends = (values[:1], values[-1:]) if edges == NEAREST else (np.full_like(values[:1], edges),) * 2
    return np.concatenate([np.repeat(ends[0], first, axis=0), values, np.repeat(ends[1], last, axis=0)])


def _inner(arrays: Arrays, lead: int, trail: int) -> Arrays:
    return {name: values[lead : len(values) - trail] for name, values in arrays.items()}
