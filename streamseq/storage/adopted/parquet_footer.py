"""Null counts in the footer of a Parquet file, read without pyarrow, which ends the process over some damaged footers.

A footer is the struct `FileMetaData` in Thrift's compact protocol, its length as four bytes, and "PAR1" (Parquet
format, parquet.thrift). Of it are read row_groups (4) / columns (1) / meta_data (3) / statistics (12) / null_count (3).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

_MAGIC = b"PAR1"
_TAIL_BYTES = 8
_TRUE, _FALSE, _BYTE, _INT16, _INT32, _INT64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
# Structs in structs; Parquet has less than ten.
_DEEPEST = 32


def null_counts(path: str) -> list[list[int]] | None:
    """Nulls in each column of each row group as the footer counts them, 0 where it does not; None without a footer.

    The columns are those that Parquet stores, of which a nested column has several.
    """
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _TAIL_BYTES:
            return None
        file.seek(size - _TAIL_BYTES)
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or length > size - _TAIL_BYTES:
            return None
        file.seek(size - _TAIL_BYTES - length)
        footer = _Compact(file.read(length))
    counts: list[list[int]] = []
    try:
        for _ in footer.structs(4):
            counts.append([])
            for _ in footer.structs(1):
                found = [
                    footer.integer()
                    for _ in footer.struct(3)
                    for _ in footer.struct(12)
                    for _ in footer.field(3, _INT64)
                ]
                counts[-1].append(found[0] if found else 0)
    except (IndexError, ValueError):
        return None
    return counts


class _Compact:
    """A struct in Thrift's compact protocol, read from front to back.

    What the methods yield for has to be read before they are asked for more; they skip everything else.
    """

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def structs(self, wanted: int) -> Iterator[None]:
        """Yield before each struct of a list, that is a field of the struct that begins here."""
        for _ in self.field(wanted, _LIST):
            size, kind = self._list()
            if kind != _STRUCT:
                raise ValueError("it is a list of something else")
            for _ in range(size):
                yield

    def struct(self, wanted: int) -> Iterator[None]:
        """Yield before a struct, that is a field of the struct that begins here, if it is there."""
        yield from self.field(wanted, _STRUCT)

    def field(self, wanted: int, kind: int) -> Iterator[None]:
        """Yield before a field of the struct that begins here, if it is there; skip the others."""
        for number, found in self._fields():
            if number == wanted and found == kind:
                yield
            else:
                self._skip(found, 0)

    def integer(self) -> int:
        """A number with a sign."""
        value = self._varint()
        return value >> 1 ^ -(value & 1)

    def _fields(self) -> Iterator[tuple[int, int]]:
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self.integer()
            yield number, header & 15

    def _byte(self) -> int:
        value = self._content[self._at]
        self._at += 1
        return value

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number is too long")

    def _list(self) -> tuple[int, int]:
        header = self._byte()
        return header >> 4 if header >> 4 < 15 else self._varint(), header & 15

    def _skip(self, kind: int, depth: int) -> None:
        """Skip a value; truth values lie in the header of their field."""
        if depth > _DEEPEST:
            raise ValueError("it is nested too deep")
        if kind == _BYTE:
            self._at += 1
        elif kind in (_INT16, _INT32, _INT64):
            self._varint()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            size = self._varint()
            self._at += size
        elif kind in (_LIST, _SET):
            size, inner = self._list()
            for _ in range(size):
                self._skip_element(inner, depth)
        elif kind == _MAP:
            size = self._varint()
            kinds = self._byte() if size else 0
            for _ in range(size):
                self._skip_element(kinds >> 4, depth)
                self._skip_element(kinds & 15, depth)
        elif kind == _STRUCT:
            for _, inner in self._fields():
                self._skip(inner, depth + 1)
        elif kind not in (_TRUE, _FALSE):
            raise ValueError(f"there is no kind {kind}")

    def _skip_element(self, kind: int, depth: int) -> None:
        """Skip an element of a list or map, where truth values take a byte."""
        self._skip(_BYTE if kind in (_TRUE, _FALSE) else kind, depth + 1)
        if self._at > len(self._content):
            raise IndexError("it ends early")
