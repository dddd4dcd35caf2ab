"""The columns of a table: which become which field, and how their cells become numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamseq.core.fields import Field, check_fields

ALL = "*"
UNITS = ("s", "ms", "us", "ns")
_TICKS = {"D": 86_400, "s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that make one field.

    Args:
        names: A column, whose field has step shape `()`; or several, which are stacked to a field of shape `[D]`. `"*"`
            is all columns of numbers that nothing else takes.
        dtype: The dtype of the field.

    Raises:
        TypeError: `names` is neither text nor a list of text, or the dtype is none of a field.
        ValueError: There is no column, or one comes twice.

    Example:
        >>> Columns(["wind", "rain"]).field
        Field(dtype=dtype('float32'), shape=(2,), codec=None)
    """

    names: tuple[str, ...]
    dtype: str
    stacked: bool

    def __init__(self, names: str | Sequence[str], dtype: str = "float32") -> None:
        several = (names,) if isinstance(names, str) else tuple(names)
        if not several or not all(isinstance(name, str) and name for name in several):
            raise ValueError(f"a field is made of at least one column, each with a name, got {names!r}")
        if len(set(several)) < len(several):
            raise ValueError(f"a column is in a field once, got {', '.join(several)}")
        object.__setattr__(self, "names", several)
        object.__setattr__(self, "dtype", str(Field(dtype).dtype))
        object.__setattr__(self, "stacked", not isinstance(names, str) or names == ALL)

    @property
    def field(self) -> Field:
        """The field, once `"*"` is resolved."""
        return Field(self.dtype, (len(self.names),) if self.stacked else ())

    def resolved(self, names: Sequence[str]) -> Columns:
        """The same with the columns that `"*"` stands for."""
        return Columns(list(names), self.dtype) if self.names == (ALL,) else self


def parse_field(text: str) -> tuple[str, Columns]:
    """Read `NAME[=COLUMN,...][:DTYPE]`, as on the command line. A comma at the end makes one column a `[1]`.

    Raises:
        TypeError: The dtype is none of a field.
        ValueError: There is no name or no column.

    Example:
        >>> parse_field("x=wind,rain:float64")
        ('x', Columns(names=('wind', 'rain'), dtype='float64', stacked=True))
        >>> parse_field("wind")
        ('wind', Columns(names=('wind',), dtype='float32', stacked=False))
    """
    left, colon, dtype = text.rpartition(":")
    name, equals, columns = (left if colon else text).partition("=")
    if not name or (equals and not columns):
        raise ValueError(f"a field is NAME, NAME=COLUMN or NAME=COLUMN,COLUMN, with :DTYPE after it, got {text!r}")
    wanted = columns if equals else name
    names: str | list[str] = wanted
    if "," in wanted:
        names = wanted.removesuffix(",").split(",")
    return name, Columns(names, dtype) if colon else Columns(names)


def check_columns(fields: Mapping[str, Any]) -> dict[str, Columns]:
    """Return the columns of each field, after checking names and kinds.

    Raises:
        TypeError: A value is neither `Columns`, nor text, nor a list of text.
        ValueError: A field has a name that no field has.
    """
    found = {name: given if isinstance(given, Columns) else Columns(given) for name, given in fields.items()}
    check_fields({name: Field(columns.dtype) for name, columns in found.items()})
    return found


def kind_of(type: pa.DataType) -> str:
    """What a column's type is good for: "number", "bool", "time", "text" or "other"."""
    if pa.types.is_dictionary(type):
        type = type.value_type
    if pa.types.is_boolean(type):
        return "bool"
    if pa.types.is_integer(type) or pa.types.is_floating(type) or pa.types.is_decimal(type):
        return "number"
    if pa.types.is_timestamp(type) or pa.types.is_date(type):
        return "time"
    if pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type):
        return "text"
    return "other"


@dataclass(frozen=True, slots=True)
class Converted:
    """Values of one column, and which of them are no values.

    Args:
        values: `[n]`, of the dtype that was asked for; anything where `bad`.
        bad: bool `[n]`.
    """

    values: NDArray[Any]
    bad: NDArray[np.bool_]


def to_numbers(column: pa.ChunkedArray, dtype: np.dtype, allow_missing: bool) -> Converted:
    """Return the cells of a column as numbers of a dtype.

    Floats are rounded to it; an integer or bool must be exactly what it was. What overflows is bad.

    Args:
        column: Cells of kind "number" or "bool".
        dtype: The dtype of the field.
        allow_missing: A null is NaN in a float field; otherwise nulls and NaN are bad.
    """
    plain = _plain(column)
    null = pc.is_null(plain).to_numpy(zero_copy_only=False)
    if pa.types.is_decimal(plain.type):
        plain = plain.cast(pa.float64())
    source = (plain.fill_null(False if pa.types.is_boolean(plain.type) else 0) if null.any() else plain).to_numpy(
        zero_copy_only=False
    )
    with np.errstate(over="ignore", invalid="ignore"):
        values = source.astype(dtype)
    if dtype.kind == "f":
        bad = np.isinf(values) & ~np.isinf(source)
        values[null] = np.nan
        if not allow_missing:
            bad |= np.isnan(values)
        return Converted(values, bad)
    return Converted(values, null | ~_exact(source, values))


def _exact(source: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether each value is the number that it comes from; `values` are bool or integers."""
    if source.dtype == values.dtype or source.dtype.kind == "b":
        return np.ones(len(source), np.bool_)
    if values.dtype.kind == "b":
        return np.asarray((source == 0) | (source == 1))
    limits = np.iinfo(values.dtype)
    if source.dtype.kind == "f":
        # The upper limit itself may not be a float, the power of two above it is.
        fits = (source >= float(limits.min)) & (source < float(limits.max // 2 + 1) * 2)
        with np.errstate(invalid="ignore"):
            return np.asarray(fits & (np.floor(source) == source))
    low, high = max(limits.min, np.iinfo(source.dtype).min), min(limits.max, np.iinfo(source.dtype).max)
    return np.asarray((source >= low) & (source <= high))


def to_times(column: pa.ChunkedArray, unit: str | None) -> Converted:
    """Return timestamps as int64 counts of a unit since 1970-01-01 (UTC where they have a zone).

    Args:
        column: Integers, which are taken as they are, timestamps or dates. Nulls, and what is between two counts or
            beyond int64, are bad.
        unit: One of `UNITS`; None for integers only.
    """
    plain = _plain(column)
    null = pc.is_null(plain).to_numpy(zero_copy_only=False)
    if pa.types.is_integer(plain.type):
        source = (plain.fill_null(0) if null.any() else plain).to_numpy(zero_copy_only=False)
        values = source.astype(np.int64)
        return Converted(values, null | ~_exact(source, values))
    assert unit is not None
    if pa.types.is_date32(plain.type):
        own, counts = "D", plain.cast(pa.int32()).cast(pa.int64())
    elif pa.types.is_date64(plain.type):
        own, counts = "ms", plain.cast(pa.int64())
    else:
        own, counts = plain.type.unit, plain.cast(pa.int64())
    values = counts.fill_null(0).to_numpy(zero_copy_only=False)
    if own == "D":
        factor, divisor = 86_400 * _TICKS[unit], 1
    else:
        factor, divisor = max(1, _TICKS[unit] // _TICKS[own]), max(1, _TICKS[own] // _TICKS[unit])
    limit = np.iinfo(np.int64).max // factor
    bad = null | (values > limit) | (values < -limit) | (values % divisor != 0)
    with np.errstate(over="ignore"):
        return Converted(values // divisor * factor, bad)


def shown(column: pa.ChunkedArray, row: int) -> str:
    """One cell as text for a message."""
    if not column[row].is_valid:
        return "missing"
    text = repr(cell(column, row))
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def cell(column: pa.ChunkedArray, row: int) -> Any:
    """One cell as Python's own value; of times that Python cannot hold, the number."""
    try:
        return column[row].as_py()
    except (ValueError, OverflowError):
        return column[row].value


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array without a dictionary."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
