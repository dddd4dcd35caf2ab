"""Decoded chunks, at most so many: those that were read to the last timestep go first, then the least recently used."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

from streamseq.storage.interface import InFile


class ChunkCache:
    """Keeps decoded chunks by number.

    A stream moves forward, so a chunk of which as many timesteps were read as it has is not likely to be needed again.

    Args:
        limit: Chunks kept at most, with those that are being decoded.
        uses: How often each timestep is read.
        keep: Whether chunks that were read are kept until there is no room; otherwise one goes whenever one comes.
    """

    __slots__ = ("_keep", "_left", "_limit", "_read", "_unread", "_uses")

    def __init__(self, limit: int, uses: int = 1, keep: bool = True) -> None:
        self._limit = limit
        self._uses = uses
        self._keep = keep
        self._unread: OrderedDict[int, NDArray[Any] | InFile] = OrderedDict()
        self._read: OrderedDict[int, NDArray[Any] | InFile] = OrderedDict()
        self._left: dict[int, int] = {}

    def __contains__(self, key: int) -> bool:
        return key in self._unread or key in self._read

    def get(self, key: int, count: int) -> NDArray[Any] | InFile | None:
        """Return a chunk that is kept, and note that `count` timesteps of it are read."""
        chunk = self._unread.get(key)
        if chunk is None:
            return self._read.get(key)
        left = self._left[key] - count
        if left > 0:
            self._left[key] = left
            self._unread.move_to_end(key)
        else:
            del self._left[key]
            self._read[key] = self._unread.pop(key)
        return chunk

    def make_room(self, coming: int) -> NDArray[Any] | None:
        """Drop chunks until there is room for one more: the array of one that nobody else held, to decode into.

        Args:
            coming: Chunks that are being decoded, for which there must be room as well.
        """
        spare = self._drop_read() if self._read and not (self._keep and self._has_room(coming)) else None
        while not self._has_room(coming) and (self._read or self._unread):
            key, chunk = (self._read or self._unread).popitem(last=False)
            self._left.pop(key, None)
            # A slice that was handed out holds its chunk: only one that `chunk` and the argument refer to is free.
            if spare is None and sys.getrefcount(chunk) == 2:
                spare = _spare(chunk)
        return spare

    def _has_room(self, coming: int) -> bool:
        return len(self._unread) + len(self._read) + coming < self._limit

    def _drop_read(self) -> NDArray[Any] | None:
        """Drop a chunk that was read and that nobody else holds, if there is one; return its array."""
        # The one that was read last may still be in the processor's cache.
        for key in self._read if self._keep else reversed(self._read):
            chunk = self._read[key]
            # The dictionary, `chunk` and the argument.
            if sys.getrefcount(chunk) == 3:
                del self._read[key]
                return _spare(chunk)
        return None

    def put(self, key: int, chunk: NDArray[Any] | InFile, steps: int) -> None:
        """Keep a chunk of `steps` timesteps, read-only from now on."""
        if not isinstance(chunk, InFile):
            chunk.flags.writeable = False
        self._unread[key] = chunk
        self._left[key] = steps * self._uses

    def clear(self) -> None:
        """Drop all chunks."""
        self._unread.clear()
        self._read.clear()
        self._left.clear()


def _spare(chunk: NDArray[Any] | InFile) -> NDArray[Any] | None:
    """The memory of a chunk, where it has some."""
    if isinstance(chunk, InFile) or not chunk.flags.owndata:
        return None
    chunk.flags.writeable = True
    return chunk
