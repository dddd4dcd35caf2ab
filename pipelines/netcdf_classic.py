"""How long a file in a classic NetCDF format has to be: its library reads zeros where one was cut off."""

from __future__ import annotations

import math
from typing import IO

# Of the types 1 to 11 of the NetCDF Classic Format Specification (CDF-1, CDF-2, CDF-5).
_SIZES = (1, 1, 2, 4, 4, 8, 1, 2, 4, 8, 8)
_STREAMING = {4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}


def least_size(stream: IO[bytes]) -> int:
    """Return the bytes up to the last value that the header of a file speaks of; 0 where it is in no classic format.

    Args:
        stream: The file, at its start.

    Raises:
        ValueError: The header ends early, or is none.
    """
    magic = stream.read(4)
    if magic[:3] != b"CDF" or magic[3:] not in (b"\1", b"\2", b"\5"):
        return 0
    return _Header(stream, magic[3]).least_size()


class _Header:
    def __init__(self, stream: IO[bytes], version: int) -> None:
        self._stream = stream
        self._count_bytes = 8 if version == 5 else 4
        self._offset_bytes = 4 if version == 1 else 8

    def least_size(self) -> int:
        records = self._count()
        if records == _STREAMING[self._count_bytes]:
            records = 0
        dims = [self._dim() for _ in range(self._list())]
        self._attributes()
        fixed: list[int] = [0]
        recorded: list[tuple[int, int]] = []
        for _ in range(self._list()):
            self._skip(self._count())
            shape = [dims[self._count()] for _ in range(self._count())]
            self._attributes()
            item = self._item_size()
            self._count()
            begin = self._number(self._offset_bytes)
            if shape and shape[0] == 0:
                recorded.append((begin, math.prod(shape[1:]) * item))
            else:
                fixed.append(begin + math.prod(shape) * item)
        # A variable that alone has records is not padded.
        record = recorded[0][1] if len(recorded) == 1 else sum(-(-size // 4) * 4 for _, size in recorded)
        if records:
            fixed += [begin + (records - 1) * record + size for begin, size in recorded]
        return max(fixed)

    def _number(self, num_bytes: int) -> int:
        data = self._stream.read(num_bytes)
        if len(data) < num_bytes:
            raise ValueError("its header ends early")
        return int.from_bytes(data, "big")

    def _count(self) -> int:
        return self._number(self._count_bytes)

    def _list(self) -> int:
        """How many items of a list follow."""
        self._number(4)
        return self._count()

    def _dim(self) -> int:
        self._skip(self._count())
        return self._count()

    def _attributes(self) -> None:
        for _ in range(self._list()):
            self._skip(self._count())
            item = self._item_size()
            self._skip(self._count() * item)

    def _item_size(self) -> int:
        kind = self._number(4)
        if not 1 <= kind <= len(_SIZES):
            raise ValueError(f"its header has a type {kind}, of which there is none")
        return _SIZES[kind - 1]

    def _skip(self, num_bytes: int) -> None:
        padded = -(-num_bytes // 4) * 4
        if num_bytes > 1 << 32 or len(self._stream.read(padded)) < padded:
            raise ValueError("its header ends early")
