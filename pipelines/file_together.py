"""Many small files that are read at once: a call for each would take longer than reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Skipped

from .file_bytes import codec_of
from .file_parts import FilePart

try:
    _read: Any = import_module("streamseq_pipelines._read")
except ImportError:  # built without a compiler
    _read = None

# Files that are read at once: each at most so large, so many of them, and so many bytes.
_SMALL_BYTES, _MOST_FILES, _MOST_BYTES = 256 << 10, 1024, 4 << 20


def runs(items: Sequence[FilePart | Skipped]) -> Iterator[list[FilePart | Skipped]]:
    """Cut items into runs: of small plain files of this machine that follow each other, and others alone."""
    run: list[FilePart | Skipped] = []
    filled = 0
    for item in items:
        small, size = False, 0
        if isinstance(item, FilePart):
            size = item.file.size
            small = size <= _SMALL_BYTES and _can_be_read(item)
        if run and (not small or len(run) >= _MOST_FILES or filled + size > _MOST_BYTES):
            yield run
            run, filled = [], 0
        if small:
            run.append(item)
            filled += size
        else:
            yield [item]
    if run:
        yield run


def _can_be_read(part: FilePart) -> bool:
    """Whether it is a whole plain file of this machine."""
    file = part.file
    return _read is not None and part.whole and file.modified is not None and codec_of(file.address) is None


def read_together(parts: Sequence[FilePart]) -> tuple[NDArray[np.uint8], int]:
    """Read whole small files.

    Args:
        parts: Of one run, two or more.

    Returns:
        The bytes end to end, uint8, and of how many of the files: those before the first that cannot be read, or is not
        the one that was found any more.
    """
    sizes = np.array([part.file.size for part in parts], np.int64)
    modified = np.array([part.file.modified for part in parts], np.int64)
    values = np.empty(int(sizes.sum()), np.uint8)
    done = _read.read_files([os.fsencode(part.file.address) for part in parts], sizes, modified, values)
    return values[: int(sizes[:done].sum())], done
