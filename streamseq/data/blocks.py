"""Blocks: many windows read at once, lane by lane, and handed out as views."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core.errors import CorruptionError
from streamseq.core.plan import Plan
from streamseq.data.buffers import Buffers
from streamseq.data.limits import Limits
from streamseq.data.normalization import Scale, emitted_dtype, normalise
from streamseq.data.pieces import announce, copy_pieces
from streamseq.data.requests import Column, Masks, Request, Requests, View
from streamseq.data.window import Block
from streamseq.storage.interface import ReaderCounts, Store

Array = NDArray[Any]

# Blocks of which it is known what they are going to hold, where chunks of all of them can be decoded ahead.
_MOST_AHEAD = 64
# Blocks of which the operating system reads the chunks ahead.
_MOST_ANNOUNCED = 8


class BlockReader:
    """Reads windows of a plan from a store, a block at a time.

    Args:
        store: Where the timesteps are.
        plan: What each window holds.
        view: What to show.
        limits: How much memory to use.
        buffers: Where the memory of blocks comes from.
        mask_buffers: Where that of masks comes from.
        ahead: Whether a thread of its own decodes chunks before they are needed.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        view: View,
        limits: Limits,
        buffers: Buffers,
        mask_buffers: Buffers,
        ahead: bool,
    ) -> None:
        self._view = view
        self._fields = {name: store.fields[emitted.field] for name, emitted in view.emitted.items()}
        self._limits = limits
        self._buffers = buffers
        self._mask_buffers = mask_buffers
        names = [emitted.field for emitted in view.emitted.values()]
        self._reader = store.reader(names, limits.chunks, limits.ahead if ahead else 0)
        self._chunk_bytes = (limits.chunks + (limits.ahead if ahead else 0)) * sum(
            store.decoded_chunk_bytes[name] for name in set(names)
        )
        # Where a chunk is stored as it is, holding it takes no memory.
        self._decodes = self._chunk_bytes > 0
        self._requests = Requests(plan, view, self._reader, store.version)

    def close(self) -> None:
        """Let go of the store's files, and end the thread."""
        self._reader.close()

    @property
    def counts(self) -> ReaderCounts:
        """What was read and decoded so far."""
        return self._reader.counts

    @property
    def threads(self) -> int:
        """How many blocks may be read at a time."""
        return self._limits.threads

    @property
    def memory_bytes(self) -> int:
        """Memory for blocks, and the most that decoded chunks may take."""
        return self._buffers.nbytes() + self._mask_buffers.nbytes() + self._chunk_bytes

    def requests(self, steps: range) -> Iterator[Request]:
        """What `read` reads of the windows `steps`, in order: blocks, or single windows that are not consecutive."""
        requests = self._requests.of(steps, self._limits.windows)
        coming: deque[Request] = deque()
        prefetched = announced = 0
        while True:
            # The first ones do not wait for what comes later.
            announced = min(_MOST_ANNOUNCED, announced + 1)
            # What is going to be read is found out as far ahead as there is room for decoded chunks.
            while len(coming) < announced or prefetched == len(coming) < _MOST_AHEAD:
                request = next(requests, None)
                if request is None:
                    break
                coming.append(request)
                self._announce(request)
                if prefetched == len(coming) - 1:
                    prefetched += self._prefetch(request)
            if not coming:
                return
            if prefetched < len(coming):
                prefetched += self._prefetch(coming[prefetched])
            yield coming.popleft()
            prefetched = max(0, prefetched - 1)

    def _announce(self, request: Request) -> None:
        for column in request.columns.values():
            announce(self._reader.extents(column.field, column.chunks))

    def _prefetch(self, request: Request) -> bool:
        there = [self._reader.prefetch(column.field, column.chunks) for column in request.columns.values()]
        return all(there)

    def request(self, step: int) -> Request:
        """What `read` reads of one window."""
        (request,) = self._requests.of(range(step, step + 1), 1)
        return request

    def read(self, request: Request) -> Block:
        """The windows of a block. Several threads may read at once."""
        fields = {name: self._fill(name, column, request.windows) for name, column in request.columns.items()}
        masks = request.masks
        return Block(
            fields=fields,
            num_windows=masks.windows,
            together=masks.together,
            masks=partial(_make_masks, self._mask_buffers, masks),
            tokens=request.make_tokens,
            batch_first=self._view.batch_first,
        )

    def _fill(self, name: str, column: Column, windows: int) -> Tensor:
        """[W, B, K, *D] or [W, K, B, *D] of one tensor of the windows."""
        field, most = self._fields[name], self._limits.batch if self._decodes else max(1, len(column.chunks))
        block = self._buffers.take((windows, *column.rows.axes, *field.shape), field.dtype)
        scale = self._view.scales.get(column.field)
        if scale is None and len(column.padding):
            copy_pieces(block, column.rows, [], column.padding)
        for first in range(0, len(column.chunks), most):
            last = first + most
            sources = self._reader.load(column.field, column.chunks[first:last], column.uses[first:last])
            table = column.table
            if len(column.chunks) > most:
                table = table[(table[:, 0] >= first) & (table[:, 0] < last)]
                table[:, 0] -= first
            try:
                copy_pieces(block, column.rows, sources, table)
            except EOFError:
                raise CorruptionError(f"a chunk of field {column.field!r} ends early: restore the shard") from None
            # The next chunks are decoded into the memory of these.
            del sources
        if scale is not None:
            block = self._normalised(block, column, scale)
        return torch.from_numpy(block)

    def _normalised(self, block: Array, column: Column, scale: Scale) -> Array:
        """A block of a field that is normalised, and then padded: in place, where the dtype stays."""
        rows, padding = column.rows, column.padding
        dtype = emitted_dtype(self._reader.fields[column.field], scale)
        into = block
        if dtype != block.dtype:
            into = self._buffers.take(block.shape, dtype)
            step_bytes = rows.step_bytes // block.dtype.itemsize * dtype.itemsize
            padding = padding.copy()
            padding[:, 1:] = padding[:, 1:] // rows.step_bytes * step_bytes
            rows = replace(rows, step_bytes=step_bytes)
        normalise(block, into, scale)
        if len(padding):
            copy_pieces(into, rows, [], padding)
        return into


def _make_masks(buffers: Buffers, masks: Masks, number: int) -> Sequence[Tensor]:
    """The masks of a few windows, bool [B, K] or [K, B] each."""
    windows = min(masks.together, masks.windows - number * masks.together)
    mask = buffers.take((windows, *masks.rows.axes), np.dtype(np.bool_))
    mask.fill(True)
    if len(masks.zeros[number]):
        copy_pieces(mask, masks.rows, [], masks.zeros[number])
    return torch.from_numpy(mask).unbind(0)
