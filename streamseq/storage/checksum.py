"""crc32c over arrays and buffers, and how it is written down."""

from __future__ import annotations

from typing import Any, cast

import google_crc32c
import numpy as np
from numpy.typing import NDArray


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a contiguous array `[...]` of any dtype as its bytes `[nbytes]`, without a copy."""
    return array.reshape(-1).view(np.uint8)


def crc32c(data: bytes | NDArray[np.uint8], before: int = 0) -> int:
    """Return the crc32c of bytes, going on from that of the bytes before them.

    Example:
        >>> crc32c(b"56789", before=crc32c(b"1234")) == crc32c(b"123456789") == 0xE3069283
        True
    """
    return cast(int, google_crc32c.extend(before, data))


def to_hex(crc: int) -> str:
    """Write a checksum as eight hexadecimal digits."""
    return f"{crc:08x}"
