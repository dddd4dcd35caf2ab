"""What is known of the values of a field, channel by channel: figures, histograms and quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """How values are counted: which values are one cell.

    Args:
        dtype: Of the values.
        bits: There are 2^bits cells.
        exact: Whether each value is a cell of its own, numbered by its bits. Otherwise a cell has the values that agree
            in their first bits as a float32, which are its number.
    """

    dtype: np.dtype
    bits: int
    exact: bool

    def values(self, numbers: Int64) -> NDArray[Any]:
        """The value of each of some cells, where each has one."""
        return numbers.astype(f"u{self.dtype.itemsize}").view(self.dtype)

    def bounds(self, numbers: Int64) -> tuple[Float64, Float64]:
        """The least and the largest value of each of some cells, float64 of the shape of `numbers`."""
        if self.exact:
            values = self.values(numbers).astype(np.float64)
            return values, values
        shift = 32 - self.bits
        first = numbers.astype(np.uint32) << np.uint32(shift)
        one, other = (each.view(np.float32) for each in (first, first | np.uint32((1 << shift) - 1)))
        # What is larger than any float32 is in the cell of infinity, whose other end is no number.
        other = np.where(np.isnan(other), one, other)
        largest = float(np.finfo(np.float32).max)
        low, high = (
            np.clip(pick(one, other), -largest, largest).astype(np.float64) for pick in (np.minimum, np.maximum)
        )
        return low, high


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
class Statistics:
    """What is known of each channel of a field. A channel is one place in a timestep; arrays have its step shape [*D].

    Args:
        field: The field.
        count: int64 [*D], finite values.
        missing: int64 [*D], values that are NaN.
        infinite: int64 [*D].
        min, max: [*D] of the field's dtype (of bool: uint8), of the finite values; 0 where there are none.
        mean: float64 [*D], of the finite values; 0 where there are none. Not finite where their sum is none.
        std: float64 [*D], their standard deviation, which divides by their number.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0, 3.0]}, "b": {"x": [6.0, float("nan")]}})
        >>> x = ss.statistics(store)["x"]
        >>> x.count.item(), x.missing.item(), x.mean.item(), x.max.item(), x.quantile(1).item()
        (4, 1, 3.0, 6.0, 6.0)
    """

    field: Field
    count: Int64
    missing: Int64
    infinite: Int64
    min: NDArray[Any]
    max: NDArray[Any]
    mean: Float64
    std: Float64
    _cells: Cells | None = dataclass_field(repr=False)
    # Of each channel: the numbers of the cells that have any values, ascending, and how many.
    _held: tuple[tuple[Int64, Int64], ...] = dataclass_field(repr=False)

    @property
    def counted(self) -> bool:
        """Whether there are histograms and quantiles: values are counted of fields with up to 1,024 channels."""
        return self._cells is not None

    def histogram(self, channel: int = 0) -> Histogram:
        """How the finite values of one channel are spread.

        Args:
            channel: Its number, from 0: the place in a timestep, in C order.

        Raises:
            ValueError: There is no such channel, or the field has too many channels to count values.
        """
        cells = self._counted()
        if not 0 <= channel < len(self._held):
            raise ValueError(f"channels are numbered from 0 to {len(self._held) - 1}, got {channel}")
        numbers, count = self._held[channel]
        low, high = cells.bounds(numbers)
        order = np.argsort(low, kind="stable")
        return Histogram(low=low[order], high=high[order], count=count[order])

    def quantile(self, q: float) -> Float64:
        """The least value that a share q of the finite values do not exceed, float64 [*D]; NaN where there are none.

        Exact for bool and integers of at most 16 bits; of other values within 2^-8 of it, relatively, with up to 64
        channels, and within 2^-4 with up to 1,024.

        Raises:
            ValueError: q is not within 0 and 1, or the field has too many channels to count values.
        """
        self._counted()
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile is of a share from 0 to 1, got {q}")
        low, high = (bound.reshape(-1).astype(np.float64) for bound in (self.min, self.max))
        found = np.full(len(self._held), math.nan)
        for channel in range(len(self._held)):
            histogram = self.histogram(channel)
            if len(histogram.count):
                ends = np.cumsum(histogram.count)
                at = int(np.searchsorted(ends, max(1, math.ceil(q * int(ends[-1])))))
                middle = histogram.low[at] + (histogram.high[at] - histogram.low[at]) / 2
                found[channel] = min(max(middle, low[channel]), high[channel])
        return found.reshape(self.field.shape)

    def _counted(self) -> Cells:
        if self._cells is None:
            channels = math.prod(self.field.shape)
            raise ValueError(f"values are counted of fields with up to 1024 channels, this one has {channels}")
        return self._cells
