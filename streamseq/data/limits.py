"""How much memory a stream uses: windows of a block, decoded chunks, and blocks that are read ahead."""

from __future__ import annotations

from dataclasses import dataclass

from streamseq.core.shuffle import GROUP, RUN

BLOCK_BYTES = 8 << 20
MAX_WINDOWS = 256
# Chunks of each field that are decoded ahead at most.
MAX_AHEAD = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a reader of blocks may hold.

    Args:
        windows: Windows of a block.
        chunks: Decoded chunks that are kept of each field.
        ahead: Chunks of each field that are decoded before they are needed, beside those.
    """

    windows: int
    chunks: int
    ahead: int


def usual_limits(lanes: int, window_bytes: int | None) -> Limits:
    """What is fast: blocks of about `BLOCK_BYTES`, a chunk for each lane and those that shuffled sequences share.

    Args:
        lanes: Lanes of this rank.
        window_bytes: Of all tensors of a window, masks left out; None where each sequence is a window.
    """
    windows = 1 if window_bytes is None else min(MAX_WINDOWS, max(1, BLOCK_BYTES // window_bytes))
    return Limits(windows=windows, chunks=lanes + 2 * GROUP * RUN, ahead=min(lanes, MAX_AHEAD))
