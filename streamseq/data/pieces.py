"""Pieces: what goes where in a block, and the copy of all of them at once.

The copy is C, without the interpreter, so that a training loop runs meanwhile, as is telling the operating system what
to read ahead; where the package was installed without a compiler it is numpy, piece after piece, which takes several
times as long, and nothing is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.interface import InFile

try:
    _copy: Any = import_module("streamseq.data._copy")
except ImportError:  # installed without a compiler
    _copy = None

Array = NDArray[Any]
Int64 = NDArray[np.int64]

ZEROS = -1
"""The source of pieces that are set to zero instead of copied."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """How the timesteps of a lane lie in a block [W, B, K, *D] or [W, K, B, *D].

    Args:
        lanes: B.
        length: K.
        step_bytes: Bytes of a timestep.
        batch_first: Whether lanes come before timesteps.
    """

    lanes: int
    length: int
    step_bytes: int
    batch_first: bool

    @property
    def axes(self) -> tuple[int, int]:
        """The axes of a window."""
        return (self.lanes, self.length) if self.batch_first else (self.length, self.lanes)

    @property
    def row(self) -> int:
        """Bytes of a lane that lie together: a window's, or a timestep's."""
        return self.step_bytes * (self.length if self.batch_first else 1)

    @property
    def stride(self) -> int:
        """Bytes from one such row of a lane to the next."""
        return self.row * self.lanes

    def table(self, source: Int64 | int, low: Int64 | int, lane: Int64, at: Int64, count: Int64) -> Int64:
        """Pieces as `copy_pieces` wants them, int64 [P, 5]; arguments are int64 [P], in timesteps.

        Args:
            source: The number of the source, or `ZEROS`.
            low: The first timestep in the source.
            lane: The lane, from 0.
            at: The first timestep on the lane, with its windows end to end.
            count: Timesteps.
        """
        table = np.empty((len(lane), 5), np.int64)
        for column, values in enumerate((source, low, lane, at, count)):
            table[:, column] = values
        table[:, 1] *= self.step_bytes
        table[:, 2] *= self.row
        table[:, 3:] *= self.step_bytes
        return table


def copy_pieces(block: Array, rows: Rows, sources: Sequence[Array | InFile], table: Int64) -> None:
    """Copy, read or set pieces.

    Args:
        block: [W, B, K, *D] or [W, K, B, *D], contiguous.
        rows: How lanes lie in it.
        sources: Arrays [m, *D] of the block's dtype, or files that hold such arrays.
        table: int64 [P, 5], from `Rows.table`.

    Raises:
        EOFError: A file ends early.
        OSError: It cannot be read.
    """
    if _copy is None or not all(isinstance(each, InFile) or each.flags.c_contiguous for each in sources):
        copy_pieces_slowly(block, rows, sources, table)
        return
    plain = [(each.descriptor, each.offset, each.num_bytes) if isinstance(each, InFile) else each for each in sources]
    _copy.copy(block, plain, table, rows.row, rows.stride)


def announce(extents: Sequence[InFile]) -> None:
    """Let the operating system begin to read what is not in its cache, so that nobody waits for the disk later."""
    if extents and _copy is not None:
        _copy.announce([(each.descriptor, each.offset, each.num_bytes) for each in extents])


def copy_pieces_slowly(block: Array, rows: Rows, sources: Sequence[Array | InFile], table: Int64) -> None:
    """`copy_pieces`, for any strides of the sources and without C."""
    lane_first = block if rows.batch_first else block.swapaxes(1, 2)
    length, shape = lane_first.shape[2], lane_first.shape[3:]
    step = rows.step_bytes
    for source, low, base, at, count in table.tolist():
        place = lane_first[:, base // rows.row]
        values = None
        if source >= 0:
            held = sources[source]
            first, last = low // step, (low + count) // step
            values = held.read(block.dtype, shape, first, last) if isinstance(held, InFile) else held[first:last]
        window, begin = divmod(at // step, length)
        left, done = count // step, 0
        while left:
            part = min(length - begin, left)
            whole = left // length if not begin else 0
            if whole > 1:
                part = whole * length
                each = 0 if values is None else values[done : done + part].reshape(whole, length, *shape)
                place[window : window + whole] = each
                window += whole
            else:
                place[window, begin : begin + part] = 0 if values is None else values[done : done + part]
                window += 1
            begin, left, done = 0, left - part, done + part
