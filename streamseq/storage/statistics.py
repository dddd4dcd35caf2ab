"""Statistics of the values of a field, channel by channel: gathered piece by piece, merged, kept with a version.

A channel is one place in a timestep: a field with step shape D has the channels of D, flattened in C order.

Integers of at most 16 bits are counted, value by value, and everything is exact. Of other values the moments are merged
as Chan, Golub & LeVeque (1983) do, and they are counted in cells: one for all values that have the same sign, exponent
and first bits of the mantissa as a float32. That is the idea of DDSketch (Masson, Rim & Lee 2019), with cells that are
found without a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field

try:
    _count: Any = import_module("streamseq.storage._count")
except ImportError:  # built without a compiler
    _count = None

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]

# Bits of a float32 that tell cells apart: fewer of them where there are many channels.
_MOST_BITS, _FEWEST_BITS = 16, 12
# Cells of all channels together; with more channels than that allows none are counted.
_MOST_CELLS = 1 << 22
# Values whose temporaries are held at once, where there is no compiled code.
_BLOCK_VALUES = 1 << 16
# What is kept of a channel, as the compiled code has it.
_COUNT, _MISSING, _INFINITE, _MEAN, _SQUARES, _LOW, _HIGH = range(7)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histogram:
    """How many values of one channel lie where: only cells that have any, ascending.

    Args:
        low: float64 [C], the least value of each cell.
        high: float64 [C], the largest.
        count: int64 [C].
    """

    low: Float64
    high: Float64
    count: Int64


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """What is known of each channel of a field: arrays [*D].

    Args:
        count: int64, finite values.
        missing: int64, values that are NaN.
        infinite: int64.
        minimum, maximum: Of the finite values, of the field's dtype (of bool: uint8); 0 where there are none.
        mean: float64, of the finite values; 0 where there are none.
        std: float64, their standard deviation, which divides by their number.
    """

    count: Int64
    missing: Int64
    infinite: Int64
    minimum: NDArray[Any]
    maximum: NDArray[Any]
    mean: Float64
    std: Float64


class FieldStatistics:
    """Gathers what is known of all values of one field.

    Args:
        field: The field.

    Example:
        >>> statistics = FieldStatistics(Field("float32", (2,)))
        >>> statistics.add(np.float32([[1, 5], [2, np.nan], [6, 7]]))
        >>> summary = statistics.summary()
        >>> summary.count.tolist(), summary.mean.tolist(), summary.missing.tolist()
        ([3, 2], [3.0, 6.0], [0, 1])
        >>> statistics.quantile(1).tolist()
        [6.0, 7.0]
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        #: The dtype of values as they are counted.
        self._kind = np.dtype("uint8") if field.dtype.kind == "b" else field.dtype
        self._channels = channels = math.prod(field.shape)
        self._bits = 8 * self._kind.itemsize
        #: Whether every value is a cell of its own.
        self._exact = self._kind.kind in "iu" and self._bits <= 16
        if not self._exact:
            self._bits = _MOST_BITS
            while self._bits > _FEWEST_BITS and channels << self._bits > _MOST_CELLS:
                self._bits -= 1
        #: Whether values are counted in cells.
        self.counted = channels << self._bits <= _MOST_CELLS
        self._exact = self._exact and self.counted
        self._cells: Int64 = np.zeros((channels, 1 << self._bits if self.counted else 0), np.int64)
        self._kept = np.zeros((channels, 7))
        # Of wide integers, for which a float64 is not enough.
        self._low = np.full(channels, np.iinfo(self._kind).max if self._kind.kind in "iu" else 0, self._kind)
        self._high = np.full(channels, np.iinfo(self._kind).min if self._kind.kind in "iu" else 0, self._kind)

    def add(self, values: NDArray[Any]) -> None:
        """Add timesteps `[n, *D]` of the field's dtype."""
        if not values.size:
            return
        flat = np.ascontiguousarray(values).view(self._kind).reshape(len(values), self._channels)
        if self._exact:
            self._count_exactly(flat)
            return
        if self._kind.kind in "iu":
            np.minimum(self._low, flat.min(0), out=self._low)
            np.maximum(self._high, flat.max(0), out=self._high)
        step = max(1, _BLOCK_VALUES // self._channels)
        for start in range(0, len(flat), step):
            self._add_block(flat[start : start + step])

    def _count_exactly(self, values: NDArray[Any]) -> None:
        unsigned = values.view(f"u{self._kind.itemsize}")
        if _count is not None:
            _count.count(unsigned, self._cells, self._kind.itemsize, self._channels)
            return
        for start in range(0, len(unsigned), _BLOCK_VALUES):
            for channel in range(self._channels):
                part = unsigned[start : start + _BLOCK_VALUES, channel]
                self._cells[channel] += np.bincount(part, minlength=1 << self._bits)

    def _add_block(self, values: NDArray[Any]) -> None:
        wide = np.float32 if values.dtype in (np.float16, np.float32) else np.float64
        values = np.ascontiguousarray(values.astype(wide, copy=False))
        if _count is not None:
            _count.moments(values, wide is np.float64, self._kept, self._cells, self._channels, self._bits)
            return
        finite = np.isfinite(values)
        found = np.zeros((self._channels, 7))
        found[:, _COUNT] = finite.sum(0)
        found[:, _MISSING] = np.isnan(values).sum(0)
        found[:, _INFINITE] = len(values) - found[:, _COUNT] - found[:, _MISSING]
        count = np.maximum(found[:, _COUNT], 1)
        found[:, _MEAN] = np.where(finite, values, 0).sum(0, dtype=np.float64) / count
        apart = np.where(finite, values - found[:, _MEAN], 0)
        # The second sum is of rounding alone.
        found[:, _SQUARES] = np.maximum(0, (apart * apart).sum(0) - apart.sum(0) ** 2 / count)
        found[:, _LOW] = np.where(finite, values, np.inf).min(0)
        found[:, _HIGH] = np.where(finite, values, -np.inf).max(0)
        self._merge_kept(found)
        if self.counted:
            with np.errstate(over="ignore"):
                raw = np.ascontiguousarray(values.astype(np.float32)).view(np.uint32) >> np.uint32(32 - self._bits)
            for channel in range(self._channels):
                held = raw[finite[:, channel], channel]
                self._cells[channel] += np.bincount(held, minlength=1 << self._bits)

    def _merge_kept(self, other: Float64) -> None:
        kept, before = self._kept, self._kept[:, _COUNT].copy()
        total = before + other[:, _COUNT]
        share = other[:, _COUNT] / np.maximum(total, 1)
        apart = other[:, _MEAN] - kept[:, _MEAN]
        there = other[:, _COUNT] > 0
        for column, pick in ((_LOW, np.minimum), (_HIGH, np.maximum)):
            both = np.where(before > 0, pick(kept[:, column], other[:, column]), other[:, column])
            kept[:, column] = np.where(there, both, kept[:, column])
        kept[:, _SQUARES] += other[:, _SQUARES] + apart * apart * before * share
        kept[:, _MEAN] += apart * share
        kept[:, _COUNT] = total
        kept[:, _MISSING] += other[:, _MISSING]
        kept[:, _INFINITE] += other[:, _INFINITE]

    def merge(self, other: FieldStatistics) -> None:
        """Add what another one has gathered of the same field.

        Raises:
            ValueError: It is of a field of another dtype or shape.
        """
        if (other.field.dtype, other.field.shape) != (self.field.dtype, self.field.shape):
            raise ValueError(f"statistics of one field are merged, got those of {other.field} for {self.field}")
        self._cells += other._cells
        self._merge_kept(other._kept)
        self._low = np.minimum(self._low, other._low)
        self._high = np.maximum(self._high, other._high)

    def summary(self) -> Summary:
        """What is known of each channel."""
        kept, shape = self._kept, self.field.shape
        count = self._cells.sum(1) if self._exact else kept[:, _COUNT].astype(np.int64)
        low, high, mean, std = self._exact_moments() if self._exact else self._moments()
        return Summary(
            count=count.reshape(shape),
            missing=kept[:, _MISSING].astype(np.int64).reshape(shape),
            infinite=kept[:, _INFINITE].astype(np.int64).reshape(shape),
            minimum=low.reshape(shape),
            maximum=high.reshape(shape),
            mean=mean.reshape(shape),
            std=std.reshape(shape),
        )

    def _moments(self) -> tuple[NDArray[Any], NDArray[Any], Float64, Float64]:
        kept = self._kept
        there = kept[:, _COUNT] > 0
        low, high = (self._low, self._high) if self._kind.kind in "iu" else (kept[:, _LOW], kept[:, _HIGH])
        std = np.sqrt(kept[:, _SQUARES] / np.maximum(kept[:, _COUNT], 1))
        low, high = (np.where(there, bound, 0).astype(self._kind) for bound in (low, high))
        return low, high, kept[:, _MEAN].copy(), std

    def _exact_moments(self) -> tuple[NDArray[Any], NDArray[Any], Float64, Float64]:
        values = self._cell_values()
        low, high = np.zeros(self._channels, self._kind), np.zeros(self._channels, self._kind)
        mean, std = np.zeros(self._channels), np.zeros(self._channels)
        for channel in range(self._channels):
            held = np.flatnonzero(self._cells[channel])
            if not len(held):
                continue
            # Python's integers, which have no end.
            these, counts = values[held].tolist(), self._cells[channel][held].tolist()
            number = sum(counts)
            total = sum(value * count for value, count in zip(these, counts, strict=True))
            squares = sum(value * value * count for value, count in zip(these, counts, strict=True))
            low[channel], high[channel] = min(these), max(these)
            mean[channel] = float(Fraction(total, number))
            std[channel] = math.sqrt(Fraction(number * squares - total * total, number * number))
        return low, high, mean, std

    def _cell_values(self) -> NDArray[Any]:
        """The value of each cell, where each has one."""
        return np.arange(1 << self._bits, dtype=f"u{self._kind.itemsize}").view(self._kind)

    def histogram(self, channel: int = 0) -> Histogram:
        """How the values of one channel, a number from 0, are spread.

        Raises:
            ValueError: There is no such channel, or the field has too many channels to count cells.
        """
        if not self.counted:
            most = _MOST_CELLS >> _FEWEST_BITS
            raise ValueError(f"values are counted of fields with up to {most} channels, this one has {self._channels}")
        if not 0 <= channel < self._channels:
            raise ValueError(f"channels are numbered from 0 to {self._channels - 1}, got {channel}")
        held = np.flatnonzero(self._cells[channel])
        if self._exact:
            low = high = self._cell_values()[held].astype(np.float64)
        else:
            shift = 32 - self._bits
            first = held.astype(np.uint32) << np.uint32(shift)
            one, other = (each.view(np.float32) for each in (first, first | np.uint32((1 << shift) - 1)))
            # What is larger than any float32 is in the cell of infinity, whose other end is no number.
            other = np.where(np.isnan(other), one, other)
            largest = float(np.finfo(np.float32).max)
            low, high = (
                np.clip(pick(one, other), -largest, largest).astype(np.float64) for pick in (np.minimum, np.maximum)
            )
        order = np.argsort(low, kind="stable")
        return Histogram(low=low[order], high=high[order], count=self._cells[channel][held][order])

    def quantile(self, q: float) -> Float64:
        """The least value that a share q of the finite values do not exceed, float64 [*D]; NaN where there are none.

        Exact for integers of at most 16 bits; of other values within 2^-8 of it, relatively, with up to 64 channels,
        and within 2^-4 with up to 1,024.

        Raises:
            ValueError: q is not within 0 and 1, or the field has too many channels to count cells.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is of a share from 0 to 1, got {q}")
        summary = self.summary()
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (summary.minimum, summary.maximum))
        found = np.full(self._channels, math.nan)
        for channel in range(self._channels):
            histogram = self.histogram(channel)
            if len(histogram.count):
                ends = np.cumsum(histogram.count)
                at = int(np.searchsorted(ends, max(1, math.ceil(q * int(ends[-1])))))
                middle = histogram.low[at] + (histogram.high[at] - histogram.low[at]) / 2
                found[channel] = min(max(middle, low[channel]), high[channel])
        return found.reshape(self.field.shape)

    def document(self) -> dict[str, Any]:
        """What was gathered, as JSON holds it."""
        document: dict[str, Any] = {"cells": None, "moments": None, "bounds": None}
        if self.counted:
            held = [np.flatnonzero(cells) for cells in self._cells]
            document["cells"] = [
                [numbers.tolist(), cells[numbers].tolist()] for numbers, cells in zip(held, self._cells, strict=True)
            ]
        if not self._exact:
            document["moments"] = self._kept.tolist()
            if self._kind.kind in "iu":
                document["bounds"] = [self._low.tolist(), self._high.tolist()]
        return document

    @classmethod
    def from_document(cls, field: Field, document: Mapping[str, Any]) -> FieldStatistics:
        """What `document` returned, of a field.

        Raises:
            ValueError: It is something else.
        """
        found = cls(field)
        try:
            if found.counted:
                for cells, (numbers, counts) in zip(found._cells, document["cells"], strict=True):
                    each = np.array([numbers, counts], np.int64)
                    if np.any(each < 0) or np.any(each[0] >= len(cells)):
                        raise ValueError("it counts cells that there are not")
                    cells[each[0]] = each[1]
            if not found._exact:
                kept = np.array(document["moments"], np.float64)
                if kept.shape != found._kept.shape:
                    raise ValueError(f"it has moments {list(kept.shape)}, not {list(found._kept.shape)}")
                found._kept = kept
                if found._kind.kind in "iu":
                    found._low[:], found._high[:] = (np.array(bound, found._kind) for bound in document["bounds"])
        except (KeyError, TypeError, IndexError, OverflowError) as error:
            raise ValueError(f"it is no statistics of {field}: {error}") from None
        return found

    def __getstate__(self) -> tuple[Field, dict[str, Any]]:
        # Few of the cells hold anything.
        return self.field, self.document()

    def __setstate__(self, state: tuple[Field, dict[str, Any]]) -> None:
        self.__dict__.update(FieldStatistics.from_document(*state).__dict__)
