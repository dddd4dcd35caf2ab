"""Fields: the named per-timestep variables of a store, each with a dtype and a step shape."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
_KINDS = "biuf"

# Arrays have 64 at most, with lanes and timesteps.
_MAX_DIMENSIONS = 32

CODECS = ("none", "lz4", "zstd", "bitshuffle")


@dataclass(frozen=True, slots=True)
class Field:
    """One per-timestep variable: every timestep has one entry of this dtype and step shape.

    Args:
        dtype: A numpy bool, integer or float dtype, or its name.
        shape: The step shape D: `()` for one number a timestep, `(7,)` for seven.
        codec: How chunks are compressed: "none", "lz4", "zstd", or "bitshuffle" (bit-shuffled lz4, zarr only).
            None chooses by dtype.

    Raises:
        TypeError: The dtype is not bool, integer or float.
        ValueError: A dimension of the step shape is not positive, there are more than 32, or the codec has another
            name.

    Example:
        >>> Field("float32", (7,)).step_bytes
        28
    """

    dtype: np.dtype
    shape: tuple[int, ...] = ()
    codec: str | None = None

    def __init__(self, dtype: DTypeLike, shape: tuple[int, ...] | int = (), codec: str | None = None) -> None:
        try:
            np_dtype = np.dtype(dtype)
        except TypeError:
            raise TypeError(f"a field's dtype is a numpy dtype or its name, got {dtype!r}") from None
        if np_dtype.kind not in _KINDS or np_dtype.itemsize > 8:
            raise TypeError(f"a field's dtype is bool, an integer or a float of at most 64 bits, got {np_dtype}")
        steps = (shape,) if isinstance(shape, int) else tuple(int(size) for size in shape)
        if len(steps) > _MAX_DIMENSIONS:
            raise ValueError(f"a field's step shape has at most {_MAX_DIMENSIONS} dimensions, got {len(steps)}")
        if any(size < 1 for size in steps):
            raise ValueError(f"every dimension of a field's step shape is at least 1, got {steps}")
        if codec is not None and codec not in CODECS:
            raise ValueError(f"a field's codec is one of {', '.join(CODECS)} or None (by dtype), got {codec!r}")
        object.__setattr__(self, "dtype", np_dtype.newbyteorder("="))
        object.__setattr__(self, "shape", steps)
        object.__setattr__(self, "codec", codec)

    @property
    def step_bytes(self) -> int:
        """Bytes of one timestep, decoded."""
        return self.dtype.itemsize * math.prod(self.shape)


def check_fields(fields: Mapping[str, Field]) -> dict[str, Field]:
    """Return `fields` as a dict, after checking that there is one and that every name can name a file.

    Raises:
        TypeError: A value is not a `Field`.
        ValueError: There is no field, or a name is not a letter followed by letters, digits, `_` or `-`.
    """
    if not fields:
        raise ValueError("a store has at least one field, got none: pass {'x': ss.Field('float32')} or the like")
    for name, field in fields.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"a field's name is a letter or _ and up to 63 letters, digits, _ or -, got {name!r}: rename it"
            )
        if not isinstance(field, Field):
            raise TypeError(f"field {name!r} is an ss.Field, got {type(field).__name__}: use ss.Field(dtype, shape)")
    return dict(fields)


def check_step_array(name: str, field: Field, value: object) -> np.ndarray:
    """Return `value` as an array `[n, *D]` of the field's dtype, or say what is wrong with it.

    A cast that can lose nothing (int32 to int64) is made; any other is the caller's to make.

    Raises:
        TypeError: The dtype is another one and a cast could lose something.
        ValueError: The shape is not `[n, *D]`.
    """
    array = np.asarray(value)
    if array.dtype == field.dtype and array.shape[1:] == field.shape and array.ndim:
        return array
    if array.dtype != field.dtype and not np.can_cast(array.dtype, field.dtype, "safe"):
        raise TypeError(f"field {name!r} holds {field.dtype}, got {array.dtype}: cast it first")
    if array.ndim != 1 + len(field.shape) or array.shape[1:] != field.shape:
        wanted = ", ".join(["n", *map(str, field.shape)])
        raise ValueError(f"field {name!r} has shape [{wanted}], got {list(array.shape)}: timesteps come first")
    return array.astype(field.dtype, copy=False)
