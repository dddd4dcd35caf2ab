"""Transforms of each timestep by itself: cast, select, rename, normalise, clip, one-hot, and the user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from streamseq.core.fields import Field
from streamseq.etl.transforms_base import (
    Arrays,
    BadTimestepError,
    Stepwise,
    float_like,
    named_arrays,
    probe,
    put,
    take,
)


@dataclass(frozen=True, slots=True, eq=False)
class Cast(Stepwise):
    """A field in another dtype.

    Reals lose their fraction when they become integers, and precision when they become narrower. A value that the dtype
    cannot hold (300 in uint8, NaN in an integer, 1e9 in float16) is an error. Everything but 0 is True.

    Args:
        field: The field.
        dtype: Its new dtype.

    Example:
        >>> Cast("x", "int8").apply({"x": np.array([1.9, -2.0])})["x"]
        array([ 1, -2], dtype=int8)
    """

    field: str
    dtype: DTypeLike

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", Field(self.dtype).dtype)

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The field has the new dtype."""
        old = take(fields, self.field, self)
        return put(fields, self.field, None, Field(self.dtype, old.shape, old.codec), self)

    def apply(self, arrays: Arrays) -> Arrays:
        """Cast."""
        values, dtype = arrays[self.field], np.dtype(self.dtype)
        if dtype.kind != "b" and not np.can_cast(values.dtype, dtype, "safe"):
            bad = _beyond(values, dtype)
            if bad.any():
                place = np.unravel_index(int(bad.argmax()), bad.shape)
                raise BadTimestepError(int(place[0]), f"{dtype} cannot hold {values[place]}")
        return {**arrays, self.field: values.astype(dtype, copy=False)}


def _beyond(values: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.bool_]:
    """Which values a dtype cannot hold."""
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            return np.asarray(np.isinf(values.astype(dtype)) & np.isfinite(values))
    limits = np.iinfo(dtype)
    if values.dtype.kind == "f":
        wide = np.trunc(values.astype(np.float64, copy=False))
        # The largest integer itself may be no float64, the power of two after it is.
        return ~((wide >= float(limits.min)) & (wide < float(limits.max // 2 + 1) * 2))
    own = np.iinfo(values.dtype)
    return np.asarray((values < max(limits.min, own.min)) | (values > min(limits.max, own.max)))


@dataclass(frozen=True, slots=True, eq=False)
class Select(Stepwise):
    """Only some of the fields, in this order.

    Args:
        fields: Their names.
    """

    fields: Sequence[str]

    def __post_init__(self) -> None:
        if isinstance(self.fields, str) or not self.fields:
            raise ValueError(f"Select takes a list of at least one field, got {self.fields!r}")
        object.__setattr__(self, "fields", tuple(self.fields))

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The fields that were named."""
        return {name: take(fields, name, self) for name in self.fields}

    def apply(self, arrays: Arrays) -> Arrays:
        """Leave out the others."""
        return {name: arrays[name] for name in self.fields}


@dataclass(frozen=True, slots=True, eq=False)
class Rename(Stepwise):
    """A field under another name.

    Args:
        field: Its name.
        to: Its new name.
    """

    field: str
    to: str

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The field has the new name, in its old place."""
        take(fields, self.field, self)
        if self.to in fields:
            raise ValueError(f"{self} to {self.to!r}, which is another field: choose another name")
        return {self._new(name): field for name, field in fields.items()}

    def apply(self, arrays: Arrays) -> Arrays:
        """Rename."""
        return {self._new(name): values for name, values in arrays.items()}

    def _new(self, name: str) -> str:
        return self.to if name == self.field else name


class Moments(Protocol):
    """Statistics of one field: arrays [*D]."""

    @property
    def mean(self) -> NDArray[np.float64]:
        """The mean of each channel."""
        ...

    @property
    def std(self) -> NDArray[np.float64]:
        """The standard deviation of each channel."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Normalise(Stepwise):
    """(x - mean) / std, in float64; then float64 of a float64 field, float32 of others.

    Args:
        field: The field.
        mean, std: Numbers, or arrays [*D] or what broadcasts to them. A channel whose std is 0 is only shifted.

    Raises:
        ValueError: A mean is not finite, or a std is negative or not finite.

    Example:
        >>> Normalise("x", mean=[1, 2], std=[2, 0]).apply({"x": np.float32([[5, 5]])})["x"]
        array([[2., 3.]], dtype=float32)
    """

    field: str
    mean: ArrayLike
    std: ArrayLike

    def __post_init__(self) -> None:
        mean, std = np.asarray(self.mean, np.float64), np.asarray(self.std, np.float64)
        if not np.isfinite(mean).all():
            raise ValueError(f"the mean that {self} takes off is finite, got {mean.tolist()}")
        if not (np.isfinite(std) & (std >= 0)).all():
            raise ValueError(f"the std that {self} divides by is finite and at least 0, got {std.tolist()}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", np.where(std == 0, 1.0, std))

    @classmethod
    def from_statistics(cls, field: str, statistics: Moments) -> Normalise:
        """Normalise by what is known of a field.

        Args:
            field: The field.
            statistics: Anything with `mean` and `std`, such as the summary of a field of a store.
        """
        return cls(field, statistics.mean, statistics.std)

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The field is real."""
        old = take(fields, self.field, self)
        for name, value in (("mean", self.mean), ("std", self.std)):
            _broadcasts(np.asarray(value), old, f"the {name} of {self}")
        return put(fields, self.field, None, Field(float_like(old), old.shape, old.codec), self)

    def apply(self, arrays: Arrays) -> Arrays:
        """Normalise."""
        values = arrays[self.field]
        dtype = np.dtype("float64" if values.dtype == np.float64 else "float32")
        with np.errstate(over="ignore", invalid="ignore"):
            return {**arrays, self.field: ((values - np.asarray(self.mean)) / np.asarray(self.std)).astype(dtype)}


@dataclass(frozen=True, slots=True, eq=False)
class Clip(Stepwise):
    """Values between two bounds, which they become where they are beyond. NaN stays NaN.

    Args:
        field: The field.
        low, high: Numbers, arrays [*D] or what broadcasts to them; None for no bound. Of integers those between the
            bounds are kept.

    Raises:
        ValueError: Both are None, one is NaN, or low is above high.

    Example:
        >>> Clip("x", 0, 1.5).apply({"x": np.array([-1.0, 0.5, 9.0])})["x"]
        array([0. , 0.5, 1.5])
    """

    field: str
    low: ArrayLike | None = None
    high: ArrayLike | None = None

    def __post_init__(self) -> None:
        low, high = (None if bound is None else np.asarray(bound) for bound in (self.low, self.high))
        if low is None and high is None:
            raise ValueError(f"{self} has at least one bound, got none")
        for bound in (low, high):
            if bound is not None and np.isnan(bound).any():
                raise ValueError(f"the bounds of {self} are numbers, got {bound.tolist()}")
        if low is not None and high is not None and (low > high).any():
            raise ValueError(f"low is at most high, {self} got {low.tolist()} and {high.tolist()}")
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The same fields."""
        old = take(fields, self.field, self)
        if old.dtype.kind == "b":
            raise ValueError(f"{self} works on integers and reals, {self.field!r} is bool: cast it first")
        for bound in (self.low, self.high):
            if bound is not None:
                _broadcasts(np.asarray(bound), old, f"a bound of {self}")
        return dict(fields)

    def apply(self, arrays: Arrays) -> Arrays:
        """Clip."""
        values = arrays[self.field]
        low, high = _bound(self.low, np.ceil, values.dtype), _bound(self.high, np.floor, values.dtype)
        return {**arrays, self.field: np.clip(values, low, high)}


def _bound(bound: ArrayLike | None, inwards: Any, dtype: np.dtype[Any]) -> NDArray[Any] | None:
    """A bound in the dtype of the values."""
    if bound is None:
        return None
    given = np.asarray(bound)
    if dtype.kind == "f":
        # Beyond what the dtype has, it is infinite, and bounds nothing.
        with np.errstate(over="ignore"):
            return given.astype(dtype)
    limits = np.iinfo(dtype)
    exact = [
        min(max(int(value) if np.isfinite(value) else limits.max if value > 0 else limits.min, limits.min), limits.max)
        for value in np.atleast_1d(inwards(given) if given.dtype.kind == "f" else given).ravel()
    ]
    return np.array(exact, dtype).reshape(given.shape)


@dataclass(frozen=True, slots=True, eq=False)
class OneHot(Stepwise):
    """Integers [*D] as [*D, classes] that are 1 at the integer and 0 elsewhere.

    Args:
        field: A field of integers.
        classes: How many there are: 0 to classes - 1.
        dtype: Of the result.
        unknown: What another integer is: "error", or "zeros", zeros in all classes.

    Raises:
        ValueError: There is no class, or `unknown` has another value.

    Example:
        >>> OneHot("base", 4).apply({"base": np.uint8([2, 0])})["base"].tolist()
        [[0, 0, 1, 0], [1, 0, 0, 0]]
    """

    field: str
    classes: int
    dtype: DTypeLike = "uint8"
    unknown: str = "error"

    def __post_init__(self) -> None:
        if self.classes < 1:
            raise ValueError(f"{self} has at least 1 class, got {self.classes}")
        if self.unknown not in ("error", "zeros"):
            raise ValueError(f"what is unknown to {self} is 'error' or 'zeros', got {self.unknown!r}")
        object.__setattr__(self, "dtype", Field(self.dtype).dtype)

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """The field has one more axis."""
        old = take(fields, self.field, self)
        if old.dtype.kind not in "iu":
            raise ValueError(f"{self} works on integers, {self.field!r} is {old.dtype}: cast it first")
        return put(fields, self.field, None, Field(self.dtype, (*old.shape, self.classes), old.codec), self)

    def apply(self, arrays: Arrays) -> Arrays:
        """Encode."""
        values = arrays[self.field]
        known = (values >= 0) & (values < self.classes)
        if self.unknown == "error" and not known.all():
            place = np.unravel_index(int((~known).argmax()), known.shape)
            raise BadTimestepError(int(place[0]), f"{values[place]} is none of the {self.classes} classes from 0 on")
        made = np.zeros((values.size, self.classes), self.dtype)
        rows = np.flatnonzero(known)
        made[rows, values.ravel()[rows].astype(np.int64)] = 1
        return {**arrays, self.field: made.reshape(*values.shape, self.classes)}


@dataclass(frozen=True, slots=True, eq=False)
class Function(Stepwise):
    """Your own function of arrays, which needs no streamseq.

    Args:
        function: Takes a dict of arrays `[n, *D]` by field, returns one of arrays `[n, ...]` of the same n; fields that
            it does not return are left out. A timestep of its result depends only on the same timestep of its input: it
            is called with as many timesteps at once as happen to be there.
        fields: What it returns; None: found out by a call with zeros.
        threads: Whether it lets go of the interpreter lock, so that threads serve it; otherwise it is run in processes.
        version: Stands for the function in the fingerprint; None: its code does.

    Example:
        >>> Function(lambda arrays: {"speed": np.hypot(arrays["u"], arrays["v"])}).output_fields(
        ...     {"u": Field("float32"), "v": Field("float32")}
        ... )
        {'speed': Field(dtype=dtype('float32'), shape=(), codec=None)}
    """

    function: Callable[[Arrays], Mapping[str, ArrayLike]]
    fields: Mapping[str, Field] | None = None
    threads: bool = False
    version: str | None = None

    def output_fields(self, fields: Mapping[str, Field]) -> dict[str, Field]:
        """What the function returns."""
        return probe(self.function, fields, self.fields, self)

    def apply(self, arrays: Arrays) -> Arrays:
        """Call the function."""
        return named_arrays(self.function(arrays))

    def _identity(self) -> object:
        return type(self), self.function if self.version is None else self.version, self.fields


def _broadcasts(value: NDArray[Any], field: Field, what: str) -> None:
    try:
        fits = np.broadcast_shapes(value.shape, field.shape) == field.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{what} fits the step shape {list(field.shape)}, got shape {list(value.shape)}")
