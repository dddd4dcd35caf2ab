"""Samples as timesteps: fewer channels, another rate, another dtype, frames; block by block, as if all were one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .audio_files import package


def to_mono(blocks: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    """The mean of the channels: float32 [n, channels] -> [n, 1]."""
    for block in blocks:
        yield block.mean(axis=1, keepdims=True, dtype=np.float32)


def resample(
    blocks: Iterable[NDArray[np.float32]], channels: int, rate: int, new_rate: int
) -> Iterator[NDArray[np.float32]]:
    """Another sample rate, by soxr at its quality "HQ".

    In float32 soxr's streams yield, bit by bit, what `soxr.resample` makes of all samples at once, for any blocks.

    Args:
        blocks: float32 [n, channels].
        channels: How many.
        rate: Samples a second, as they are.
        new_rate: As they are to be.
    """
    stream = package("soxr").ResampleStream(rate, new_rate, channels, dtype="float32", quality="HQ")
    for block in blocks:
        made = stream.resample_chunk(np.ascontiguousarray(block))
        if len(made):
            yield made
    made = stream.resample_chunk(np.empty((0, channels), np.float32), last=True)
    if len(made):
        yield made


def to_dtype(blocks: Iterable[NDArray[np.float32]], dtype: str) -> Iterator[NDArray[Any]]:
    """Samples as float32, or as int16: 32,768 times as large, rounded and clipped."""
    for block in blocks:
        if dtype == "int16":
            yield np.clip(np.rint(block * np.float32(32768)), -32768, 32767).astype(np.int16)
        else:
            yield block


def to_frames(blocks: Iterable[NDArray[Any]], frame: int, hop: int) -> Iterator[NDArray[Any]]:
    """Frames of samples: [n, channels] -> [frames, frame, channels].

    Frame i begins at sample i times hop. The last one is filled with zeros where the samples end within it, so every
    sample is in a frame: `frame_count` says how many there are.

    Args:
        blocks: Samples.
        frame: Samples a frame.
        hop: Samples from one frame to the next, at most as many.
    """
    rest: NDArray[Any] | None = None
    begun = False
    for block in blocks:
        rest = block if rest is None or not len(rest) else np.concatenate([rest, block])
        count = max(0, (len(rest) - frame) // hop + 1)
        if count:
            begun = True
            windows = np.lib.stride_tricks.sliding_window_view(rest, frame, axis=0)[: count * hop : hop]
            yield np.ascontiguousarray(windows.swapaxes(1, 2))
            rest = rest[count * hop :]
    if rest is not None and len(rest) > (frame - hop if begun else 0):
        padded = np.zeros((1, frame, *rest.shape[1:]), rest.dtype)
        padded[0, : len(rest)] = rest
        yield padded


def frame_count(samples: int, frame: int, hop: int) -> int:
    """How many frames so many samples have.

    Example:
        >>> [frame_count(samples, 4, 2) for samples in (0, 1, 4, 5, 6, 7)]
        [0, 1, 1, 2, 2, 3]
    """
    return 0 if not samples else 1 + max(0, -(-(samples - frame) // hop))
