"""A file in memory, of which parts come and go: read in one step, without holding the interpreter, and let go of."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# Linux 5.14 and newer; older ones say that they do not know it.
_MADV_POPULATE_READ = 22


def _madvise() -> Any:
    """The C library's madvise, which lets other threads run meanwhile, as `mmap.madvise` does not; None: no Linux."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]
    return function


_ADVISE = _madvise()


class MappedFile:
    """A read-only memory map of a whole file. Views of `data` keep it open.

    Args:
        path: The file, which is not empty.
        num_bytes: Its size.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It has another size.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != num_bytes or not size:
                raise ValueError(f"has {size} bytes and was written with {num_bytes}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.data = memoryview(self._map)
        self._address = int(np.frombuffer(self.data, np.uint8).ctypes.data)

    def will_need(self, offset: int, size: int) -> None:
        """Let the operating system begin to read a part."""
        if _ADVISE is not None:
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            _ADVISE(self._address + first, offset + size - first, mmap.MADV_WILLNEED)

    def read(self, offset: int, size: int) -> None:
        """Bring a part into memory, and its pages into the map."""
        if _ADVISE is not None:
            first = offset // mmap.PAGESIZE * mmap.PAGESIZE
            _ADVISE(self._address + first, offset + size - first, _MADV_POPULATE_READ)

    def release(self, offset: int, size: int) -> None:
        """Let go of the pages that lie in a part; views stay valid, and bring them back when they are read."""
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if _ADVISE is not None and last > first:
            _ADVISE(self._address + first, last - first, mmap.MADV_DONTNEED)
