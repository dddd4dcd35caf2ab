"""Buffers: memory for blocks, used again when nobody holds a tensor of it any more."""

from __future__ import annotations

import math
import sys
import threading
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

# References to a buffer that nobody else holds: the deque's, the loop variable's and the argument's.
_OURS = 3


class Buffers:
    """Hands out arrays, for any thread. Fresh memory costs two to six times the copy into it, in page faults.

    A tensor made by `torch.from_numpy` holds its array, as does every view of it, so the array's reference count says
    whether somebody still looks at it.

    Args:
        limit: Arrays that are remembered at most; those that were made last.
        all_at_once: Whether so many are made before one is used again. What a stream needs depends on how threads take
            turns; its memory would grow by a block after hours. Otherwise the fewest are used, which may still be in
            the processor's cache.
    """

    def __init__(self, limit: int, all_at_once: bool = False) -> None:
        self.limit = limit
        self._all_at_once = all_at_once
        self._arrays: deque[NDArray[Any]] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
        """An array with any contents, which nobody else holds."""
        with self._lock:
            found, larger = self._find(shape, dtype)
            if found is not None and not (self._all_at_once and len(self._arrays) < self.limit):
                return found
            if larger is not None:
                # The last block of an epoch is shorter; memory for both would be more than the stream may use.
                del self._arrays[larger]
            fresh = np.empty(shape, dtype)
            self._arrays.append(fresh)
            return fresh

    def _find(self, shape: tuple[int, ...], dtype: np.dtype) -> tuple[NDArray[Any] | None, int | None]:
        """An array that nobody holds, or else the place of a larger one that nobody holds."""
        larger, place = None, 0
        # Not enumerate: it would hold the array as well.
        for array in self._arrays:
            if sys.getrefcount(array) == _OURS and array.dtype == dtype:
                if array.shape == shape:
                    return array, None
                if array.size >= math.prod(shape):
                    larger = place
            place += 1  # noqa: SIM113
        return None, larger

    def nbytes(self) -> int:
        """Bytes of the arrays that are remembered."""
        with self._lock:
            return sum(array.nbytes for array in self._arrays)

    def __reduce__(self) -> tuple[type[Buffers], tuple[int, bool]]:
        # Memory stays in its process.
        return Buffers, (self.limit, self._all_at_once)
