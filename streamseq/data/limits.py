"""How much memory a stream uses: windows of a block, decoded chunks, and blocks that are read ahead."""

from __future__ import annotations

from dataclasses import dataclass

from streamseq.core.errors import PlanError
from streamseq.core.shuffle import GROUP, RUN
from streamseq.core.sizes import format_bytes
from streamseq.data.normalization import emitted_dtype
from streamseq.data.requests import TOGETHER, View
from streamseq.storage.interface import Store

BLOCK_BYTES = 8 << 20
MAX_WINDOWS = 256
# Chunks of each field that are decoded ahead at most.
MAX_AHEAD = 16
# Chunks beside those of the lanes, for lanes that follow each other.
_SHARED_CHUNKS = 8
# Blocks that are filled at a time: by a thread, and by who waits for it.
THREADS = 2
# What decoding uses beside the chunks: one that is read, and one that is dropped but not used again yet.
_DECODING = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader of blocks may hold.

    Args:
        windows: Windows of a block.
        chunks: Decoded chunks that are kept of each field.
        ahead: Chunks of each field that are decoded before they are needed, beside those.
        threads: Blocks that are filled at a time.
    """

    windows: int
    chunks: int
    ahead: int
    threads: int

    @property
    def batch(self) -> int:
        """Chunks that are copied from at a time, and held although they may have been dropped."""
        return max(1, self.chunks // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the memory of a stream depends on.

    Args:
        lanes: Lanes of this rank.
        window_bytes: Of all tensors of a window and its mask; with the as-is split of the longest one.
        single: Whether blocks are single windows, as with the as-is split.
        chunk_bytes: Of a decoded chunk of each field together; 0 where nothing is decoded.
        shuffle: Whether sequences are shuffled, and chunks are needed for longer.
        blocks: Blocks that are held at a time: read ahead, being read, and looked at.
    """

    lanes: int
    window_bytes: int
    single: bool
    chunk_bytes: int
    shuffle: bool
    blocks: int

    def total_bytes(self, limits: Limits) -> int:
        """The most that a reader with these limits holds."""
        chunks = limits.chunks + limits.threads * limits.batch + limits.ahead + _DECODING
        return chunks * self.chunk_bytes + self.blocks * limits.windows * self.window_bytes


def needs_of(store: Store, view: View, length: int, *, single: bool, shuffle: bool, blocks: int) -> Needs:
    """What a stream needs that shows `view` of a store.

    Args:
        store: The store.
        view: What is shown.
        length: Timesteps of a window; with the as-is split of the longest one.
        single, shuffle, blocks: As in `Needs`.
    """
    # With a byte for each timestep of the mask.
    step_bytes = 1 + sum(_step_bytes(store, view, each.field) for each in view.emitted.values())
    read = {each.field for each in view.emitted.values()}
    return Needs(
        lanes=view.lanes,
        window_bytes=view.lanes * length * step_bytes,
        single=single,
        chunk_bytes=sum(store.decoded_chunk_bytes[name] for name in read),
        shuffle=shuffle,
        blocks=blocks,
    )


def tensors_of(store: Store, view: View, name: str) -> int:
    """How many tensors of a block a field takes: two where it is emitted in another dtype than it is read in."""
    field = store.fields[name]
    return 1 + (emitted_dtype(field, view.scales.get(name)) != field.dtype)


def _step_bytes(store: Store, view: View, name: str) -> int:
    """Bytes that a timestep of a field takes in a block, with those that it is converted from."""
    field = store.fields[name]
    if tensors_of(store, view, name) == 1:
        return field.step_bytes
    dtype = emitted_dtype(field, view.scales.get(name))
    return field.step_bytes + field.step_bytes // field.dtype.itemsize * dtype.itemsize


def usual_limits(needs: Needs) -> Limits:
    """What is fast: blocks of about `BLOCK_BYTES`, two chunks for each lane and those that shuffled sequences share.

    A lane needs two where it goes from one to the next while two threads are in different blocks.
    """
    windows = 1 if needs.single else _whole(min(MAX_WINDOWS, max(1, BLOCK_BYTES // max(1, needs.window_bytes))))
    shared = 2 * GROUP * RUN if needs.shuffle else _SHARED_CHUNKS
    chunks = 2 * needs.lanes + shared
    return Limits(windows=windows, chunks=chunks, ahead=min(needs.lanes, MAX_AHEAD), threads=THREADS)


def _whole(windows: int) -> int:
    """So many windows at most, as many times `TOGETHER` as there are in them."""
    return windows if windows < TOGETHER else windows - windows % TOGETHER


def limits_within(needs: Needs, memory: int) -> Limits:
    """The limits that are fastest in `memory` bytes.

    First fewer chunks are decoded ahead, then blocks get smaller. Where there is not room for a chunk of each lane,
    blocks are as large as they can be instead, for then every block decodes the chunks of all its lanes again.

    Raises:
        PlanError: There is not room for single windows and a few chunks; it says how much there must be.
    """
    usual = usual_limits(needs)
    if needs.total_bytes(usual) <= memory:
        return usual
    smaller = ((usual.chunks, 2, THREADS), (2 * needs.lanes, 2, THREADS), (needs.lanes + _SHARED_CHUNKS, 2, 1))
    for chunks, ahead, threads in (*smaller, (needs.lanes, 1, 1), (1, 1, 1)):
        limits = Limits(windows=1, chunks=chunks, ahead=ahead, threads=threads)
        left = memory - needs.total_bytes(limits)
        if left >= 0:
            more = 0 if needs.single else left // (needs.blocks * needs.window_bytes)
            # Where the chunks of the lanes are kept, larger blocks than usual gain nothing.
            most = usual.windows if chunks >= needs.lanes else 1 + more
            return Limits(windows=_whole(min(most, 1 + more)), chunks=chunks, ahead=ahead, threads=threads)
    least = needs.total_bytes(Limits(windows=1, chunks=1, ahead=1, threads=1))
    raise PlanError(
        f"memory={format_bytes(memory)} is too little: {needs.blocks} blocks of at least one window of "
        f"{format_bytes(needs.window_bytes)} and the decoding of chunks of {format_bytes(needs.chunk_bytes)} take "
        f"{least:,} bytes: pass memory={least}, fewer lanes, a shorter window, or write the store with smaller chunks"
    )
