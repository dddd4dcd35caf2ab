"""The cells of a table's columns: what they are good for, and how they become numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_TICKS = {"D": 86_400, "s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_SHOWN = 40


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
        unit: One of `table_columns.UNITS`; None for integers only.
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
