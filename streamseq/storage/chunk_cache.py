"""Decoded chunks, at most so many, the least recently used going first."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

from numpy.typing import NDArray

Key = tuple[int, int]


class ChunkCache:
    """Keeps decoded chunks by (shard, chunk).

    A chunk that was read up to its end is the first to go: a stream moves forward, and reads it again only where
    another lane is in the same chunk.

    Args:
        limit: Chunks kept at most.
    """

    __slots__ = ("_chunks", "_limit")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: OrderedDict[Key, NDArray[Any]] = OrderedDict()

    def get(self, key: Key) -> NDArray[Any] | None:
        """Return a chunk that is kept, and make it the last to go."""
        chunk = self._chunks.get(key)
        if chunk is not None:
            self._chunks.move_to_end(key)
        return chunk

    def make_room(self) -> tuple[Key | None, NDArray[Any] | None]:
        """Drop a chunk where there are `limit` of them.

        Returns:
            Its key, and its array where nobody else holds it, to decode into.
        """
        if len(self._chunks) < self._limit:
            return None, None
        key, chunk = self._chunks.popitem(last=False)
        # A slice that was handed out holds its chunk: only one that `chunk` and the argument alone refer to is free.
        if chunk.flags.owndata and sys.getrefcount(chunk) == 2:
            chunk.flags.writeable = True
            return key, chunk
        return key, None

    def put(self, key: Key, chunk: NDArray[Any]) -> None:
        """Keep a chunk, read-only from now on."""
        chunk.flags.writeable = False
        self._chunks[key] = chunk

    def first_to_go(self, key: Key) -> None:
        """Make a chunk the first to go."""
        self._chunks.move_to_end(key, last=False)

    def clear(self) -> None:
        """Drop all chunks."""
        self._chunks.clear()
