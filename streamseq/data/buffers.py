"""Buffers: memory for blocks, used again when nobody holds a tensor of it any more."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

# References to a buffer that nobody else holds: the deque's, the loop variable's and the argument's.
_OURS = 3


class Buffers:
    """Hands out arrays of one shape and dtype. Fresh memory costs two to six times the copy into it, in page faults.

    A tensor made by `torch.from_numpy` holds its array, as does every view of it, so the array's reference count says
    whether somebody still looks at it.

    Args:
        limit: Arrays that are remembered at most.
    """

    def __init__(self, limit: int = 8) -> None:
        self._arrays: deque[NDArray[Any]] = deque(maxlen=limit)

    def take(self, shape: tuple[int, ...], dtype: np.dtype) -> NDArray[Any]:
        """An array with any contents, which nobody else holds."""
        for array in self._arrays:
            if sys.getrefcount(array) == _OURS and array.shape == shape:
                return array
        fresh = np.empty(shape, dtype)
        self._arrays.append(fresh)
        return fresh
