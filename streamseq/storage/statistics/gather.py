"""Gathering statistics of the values of a field, channel by channel: piece by piece, merged, packed into a document.

A channel is one place in a timestep: a field with step shape D has the channels of D, flattened in C order.

Integers of at most 16 bits are counted, value by value, and everything is exact. Of other values the moments are merged
as Chan, Golub & LeVeque (1983) do, and they are counted in cells: one for all values that have the same sign, exponent
and first bits of the mantissa as a float32. That is the idea of DDSketch (Masson, Rim & Lee 2019), with cells that are
found without a logarithm.
"""

from __future__ import annotations

import base64
import binascii
import math
import zlib
from collections.abc import Mapping
from fractions import Fraction
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.storage.statistics.channels import Cells, Statistics

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
# Values of a channel that a document may count: a float64 has every number up to it.
_MOST = 1 << 53


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
        >>> summary.quantile(1).tolist()
        [6.0, 7.0]
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        #: The dtype of values as they are counted.
        self._kind = np.dtype("uint8") if field.dtype.kind == "b" else field.dtype
        self._channels = channels = math.prod(field.shape)
        self._bits = 8 * self._kind.itemsize
        #: Whether every value is a cell of its own.
        self._exact = self._kind.kind in "iu" and self._bits <= 16 and channels << self._bits <= _MOST_CELLS
        if not self._exact:
            self._bits = _MOST_BITS
            while self._bits > _FEWEST_BITS and channels << self._bits > _MOST_CELLS:
                self._bits -= 1
        #: Whether values are counted in cells.
        self.counted = channels << self._bits <= _MOST_CELLS
        self._cells: Int64 = np.zeros((channels, 1 << self._bits if self.counted else 0), np.int64)
        self._kept = np.zeros((channels, 7))
        # Of wide integers, for which a float64 is not enough.
        limits = np.iinfo(self._kind) if self._kind.kind in "iu" else None
        self._bounds = (
            np.full(channels, 0 if limits is None else limits.max, self._kind),
            np.full(channels, 0 if limits is None else limits.min, self._kind),
        )

    def add(self, values: NDArray[Any]) -> None:
        """Add timesteps `[n, *D]` of the field's dtype."""
        if not values.size:
            return
        flat = np.ascontiguousarray(values).view(self._kind).reshape(len(values), self._channels)
        if self._exact:
            self._count_exactly(flat)
            return
        if self._kind.kind in "iu":
            low, high = self._bounds
            self._bounds = (np.minimum(low, flat.min(0)), np.maximum(high, flat.max(0)))
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
        # Sums may exceed what a float64 holds.
        with np.errstate(over="ignore", invalid="ignore"):
            self._add_slowly(values)

    def _add_slowly(self, values: NDArray[Any]) -> None:
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
        with np.errstate(over="ignore", invalid="ignore"):
            self._merge_kept(other._kept)
        (low, high), (its_low, its_high) = self._bounds, other._bounds
        self._bounds = (np.minimum(low, its_low), np.maximum(high, its_high))

    def summary(self) -> Statistics:
        """What is known of each channel, now."""
        kept, shape = self._kept, self.field.shape
        count = self._cells.sum(1) if self._exact else kept[:, _COUNT].astype(np.int64)
        low, high, mean, std = self._exact_moments() if self._exact else self._moments()
        held = [np.flatnonzero(cells) for cells in self._cells] if self.counted else []
        return Statistics(
            field=self.field,
            count=count.reshape(shape),
            missing=kept[:, _MISSING].astype(np.int64).reshape(shape),
            infinite=kept[:, _INFINITE].astype(np.int64).reshape(shape),
            min=low.reshape(shape),
            max=high.reshape(shape),
            mean=mean.reshape(shape),
            std=std.reshape(shape),
            _cells=self._as_cells() if self.counted else None,
            _held=tuple((numbers, self._cells[channel][numbers]) for channel, numbers in enumerate(held)),
        )

    def _moments(self) -> tuple[NDArray[Any], NDArray[Any], Float64, Float64]:
        kept = self._kept
        there = kept[:, _COUNT] > 0
        low, high = self._bounds if self._kind.kind in "iu" else (kept[:, _LOW], kept[:, _HIGH])
        std = np.sqrt(kept[:, _SQUARES] / np.maximum(kept[:, _COUNT], 1))
        with np.errstate(over="ignore"):
            low, high = (np.where(there, bound, 0).astype(self._kind) for bound in (low, high))
        return low, high, kept[:, _MEAN].copy(), std

    def _exact_moments(self) -> tuple[NDArray[Any], NDArray[Any], Float64, Float64]:
        cells = self._as_cells()
        low, high = np.zeros(self._channels, self._kind), np.zeros(self._channels, self._kind)
        mean, std = np.zeros(self._channels), np.zeros(self._channels)
        for channel in range(self._channels):
            held = np.flatnonzero(self._cells[channel])
            if not len(held):
                continue
            these, counts = cells.values(held).astype(np.int64), self._cells[channel][held]
            number = int(counts.sum())
            if number >= 1 << 31:  # Python's integers have no end
                these, counts = these.astype(object), counts.astype(object)
            total, squares = int((these * counts).sum()), int((these * these * counts).sum())
            low[channel], high[channel] = these.min(), these.max()
            mean[channel] = float(Fraction(total, number))
            std[channel] = math.sqrt(Fraction(number * squares - total * total, number * number))
        return low, high, mean, std

    def _as_cells(self) -> Cells:
        return Cells(dtype=self._kind, bits=self._bits, exact=self._exact)

    def document(self) -> dict[str, Any]:
        """What was gathered, as JSON holds it: see docs/format.md."""
        held = np.flatnonzero(self._cells)
        gaps = np.diff(held, prepend=-1).astype("<u4")
        bounds = self._kind.kind in "iu" and not self._exact
        return {
            "dtype": self.field.dtype.name,
            "shape": list(self.field.shape),
            "cells": _packed(gaps, self._cells.reshape(-1)[held].astype("<i8")) if self.counted else None,
            "moments": None if self._exact else _packed(self._kept.astype("<f8")),
            "bounds": _packed(*(bound.astype(self._kind.newbyteorder("<")) for bound in self._bounds))
            if bounds
            else None,
        }

    @classmethod
    def from_document(cls, field: Field, document: Mapping[str, Any]) -> FieldStatistics:
        """What `document` returned, of a field.

        Raises:
            ValueError: It is something else.
        """
        found = cls(field)
        try:
            if [document["dtype"], document["shape"]] != [field.dtype.name, list(field.shape)]:
                raise ValueError(f"they are of {document['dtype']} {document['shape']}, and the field is {field}")
            if found.counted:
                found._set_cells(document["cells"])
            if not found._exact:
                found._set_moments(document["moments"])
                if found._kind.kind in "iu":
                    raw = _unpacked(document["bounds"], 2 * found._bounds[0].nbytes, exactly=True)
                    low, high = np.frombuffer(raw, found._kind.newbyteorder("<")).reshape(2, -1)
                    found._bounds = (low.astype(found._kind), high.astype(found._kind))
        except (KeyError, TypeError) as error:
            raise ValueError(f"they are no statistics of {field}: {error!r}") from None
        return found

    def _set_cells(self, packed: object) -> None:
        raw = _unpacked(packed, 12 * self._cells.size)
        number, left = divmod(len(raw), 12)
        if left:
            raise ValueError(f"a cell has 12 bytes, and {left} are left over")
        gaps, counts = np.frombuffer(raw, "<u4", number), np.frombuffer(raw, "<i8", offset=4 * number)
        held = np.cumsum(gaps, dtype=np.int64) - 1
        if number and (not gaps.all() or held[-1] >= self._cells.size or not np.all((counts > 0) & (counts <= _MOST))):
            raise ValueError("they count what there is not")
        self._cells.reshape(-1)[held] = counts

    def _set_moments(self, packed: object) -> None:
        raw = _unpacked(packed, self._kept.nbytes, exactly=True)
        kept = np.frombuffer(raw, "<f8").astype(np.float64).reshape(self._kept.shape)
        numbers = kept[:, [_COUNT, _MISSING, _INFINITE]]
        if not np.all((numbers >= 0) & (numbers <= _MOST) & (numbers == np.floor(numbers))):
            raise ValueError("they count no whole number of values")
        if self.counted and not np.array_equal(kept[:, _COUNT], self._cells.sum(1)):
            raise ValueError("they count values twice, and not the same")
        if np.any(kept[:, _SQUARES] < 0) or not np.isfinite(kept[:, [_LOW, _HIGH]]).all():
            raise ValueError("they have moments that no values have")
        self._kept = kept

    def __getstate__(self) -> tuple[Field, dict[str, Any]]:
        # Few of the cells hold anything.
        return self.field, self.document()

    def __setstate__(self, state: tuple[Field, dict[str, Any]]) -> None:
        self.__dict__.update(FieldStatistics.from_document(*state).__dict__)


def _packed(*arrays: NDArray[Any]) -> str:
    """The bytes of arrays, compressed, as text."""
    return base64.b64encode(zlib.compress(b"".join(array.tobytes() for array in arrays))).decode()


def _unpacked(packed: object, num_bytes: int, exactly: bool = False) -> bytes:
    """What was packed.

    Args:
        packed: What `_packed` returned, or something else.
        num_bytes: How many bytes there are at most.
        exactly: Whether there must be so many.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(packed, str):
        raise ValueError(f"values are packed as text, got {type(packed).__name__}")
    try:
        reader = zlib.decompressobj()
        raw = reader.decompress(base64.b64decode(packed.encode("ascii"), validate=True), num_bytes + 1)
    except (binascii.Error, zlib.error, UnicodeEncodeError) as error:
        raise ValueError(f"values are packed by zlib and base64: {error}") from None
    if not reader.eof or reader.unused_data or len(raw) > num_bytes or (exactly and len(raw) != num_bytes):
        raise ValueError(f"there are {'' if exactly else 'at most '}{num_bytes} bytes of values, got {len(raw)}")
    return raw
