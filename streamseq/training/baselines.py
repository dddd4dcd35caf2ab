"""What a model's loss is held against: how well simple means compress the same bytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Baselines:
    """Bits per byte of some texts.

    Args:
        order_0: The entropy of their byte frequencies, as if those were known beforehand.
        zlib_each: zlib at level 9, each text by itself.
        zlib_joined: zlib at level 9, all texts end to end.
    """

    order_0: float
    zlib_each: float
    zlib_joined: float


def baselines(texts: Sequence[bytes]) -> Baselines:
    """Compress texts by simple means.

    Args:
        texts: At least one byte in all.

    Raises:
        ValueError: There is no byte.

    Example:
        >>> baselines([b"abab", b"cdcd"]).order_0
        2.0
    """
    joined = b"".join(texts)
    if not joined:
        raise ValueError("baselines need at least one byte, got none")
    counts = np.bincount(np.frombuffer(joined, np.uint8))
    shares = counts[counts > 0] / len(joined)
    return Baselines(
        order_0=float(-(shares * np.log2(shares)).sum()),
        zlib_each=8 * sum(len(zlib.compress(text, 9)) for text in texts) / len(joined),
        zlib_joined=8 * len(zlib.compress(joined, 9)) / len(joined),
    )
