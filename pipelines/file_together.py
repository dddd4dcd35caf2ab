"""Many small files that are read at once: a call for each would take longer than reading them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Skipped

from .file_bytes import CODEC_ENDS, codec_of
from .file_parts import FilePart, FileParts

try:
    _read: Any = import_module("streamseq_pipelines._read")
except ImportError:  # built without a compiler
    _read = None

# Files that are read at once: each at most so large, so many of them, and so many bytes.
_SMALL_BYTES, _MOST_FILES, _MOST_BYTES = 256 << 10, 1024, 1 << 20
# One is written while the next is filled.
_BUFFERS = 2


class Run(NamedTuple):
    """Parts `[begin, end)` of those that are in columns, to be read together."""

    begin: int
    end: int


def runs(content: FileParts) -> Iterator[Run | FilePart | Skipped]:
    """Cut a partition into runs of small plain files of this machine that follow each other, and others alone."""
    small = _small(content)
    begin = 0
    for behind, (number, item) in enumerate(content.others):
        yield from _runs(content, small, begin, number - behind)
        begin = number - behind
        yield item
    yield from _runs(content, small, begin, len(small))


def _runs(content: FileParts, small: list[bool], begin: int, end: int) -> Iterator[Run | FilePart]:
    while begin < end:
        stop, filled = begin, 0
        while stop < end and small[stop] and stop - begin < _MOST_FILES:
            filled += content.sizes[stop]
            if filled > _MOST_BYTES:
                break
            stop += 1
        if stop - begin > 1:
            yield Run(begin, stop)
        else:
            stop = begin + 1
            yield from content.parts(begin, stop)
        begin = stop


def _small(content: FileParts) -> list[bool]:
    """Whether each part in columns is a whole, small and plain file of this machine."""
    if _read is None:
        return [False] * len(content.addresses)
    small = [
        size <= _SMALL_BYTES
        and modified is not None
        and not (address[-4:].lower().endswith(CODEC_ENDS) and codec_of(address) is not None)
        for address, size, modified in zip(content.addresses, content.sizes, content.modified, strict=True)
    ]
    for number, *_ in content.spans:
        small[number] = False
    return small


class TogetherReader:
    """Reads whole small files end to end, into memory that is used again once nobody holds what was read into it."""

    def __init__(self) -> None:
        self._buffers: list[NDArray[np.uint8]] = []

    def read(self, content: FileParts, begin: int, end: int) -> tuple[NDArray[np.uint8], int]:
        """Read parts `[begin, end)` of those that are in columns, all of one run.

        Returns:
            The bytes end to end, uint8, and of how many of the files: those before the first that cannot be read, or is
            not the one that was found any more.
        """
        sizes = np.array(content.sizes[begin:end], np.int64)
        modified = np.array(content.modified[begin:end], np.int64)
        values = self._free(int(sizes.sum()))
        done = _read.read_files(content.addresses[begin:end], sizes, modified, values)
        return values[: int(sizes[:done].sum())], done

    def _free(self, num_bytes: int) -> NDArray[np.uint8]:
        # New memory for each run costs the system as much as reading files into it.
        for buffer in self._buffers:
            # The list, the loop and the call: views hold their array as well.
            if len(buffer) >= num_bytes and sys.getrefcount(buffer) == 3:
                return buffer
        fresh = np.empty(max(num_bytes, _MOST_BYTES), np.uint8)
        if len(self._buffers) < _BUFFERS:
            self._buffers.append(fresh)
        return fresh
