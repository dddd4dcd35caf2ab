"""Segments: the parts of sequences that lie in one window, several on a lane where windows are packed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
# A structured array of dtype SEGMENT.
Segments = NDArray[np.void]

SEGMENT = np.dtype(
    [
        ("lane", np.int64),
        ("offset", np.int64),
        ("sequence", np.int64),
        ("start", np.int64),
        ("stop", np.int64),
        ("reset", np.bool_),
    ],
    align=True,
)
"""What a segment is: the place of its lane in the window, the timestep of the window that it begins at, the sequence,
the positions `[start, stop)` in it, and whether the state before it is the initial one."""


def make_segments(*, lane: Int64, offset: Int64, sequence: Int64, start: Int64, stop: Int64, reset: Bool) -> Segments:
    """Segments from their columns, [S] each.

    Example:
        >>> column = np.array([0])
        >>> segments = make_segments(
        ...     lane=column, offset=column, sequence=column + 7, start=column, stop=column + 5, reset=column == 0
        ... )
        >>> [tuple(map(int, segment)) for segment in segments]
        [(0, 0, 7, 0, 5, 1)]
    """
    segments = np.empty(len(lane), SEGMENT)
    for name, column in zip(SEGMENT.names or (), (lane, offset, sequence, start, stop, reset), strict=True):
        segments[name] = column
    return segments


def segments_at(segments: Segments, lanes: int, offset: int) -> Int64:
    """For each lane the segment that holds the timestep `offset` of the window, or the last one before it.

    Args:
        segments: Of a window, sorted by lane, then offset.
        lanes: B.
        offset: A timestep of the window.

    Returns:
        int64 [B], places in `segments`; -1 where the lane has no segment that begins so early.
    """
    stride = max(int(segments["offset"].max(initial=0)), offset) + 1
    wanted = np.arange(lanes) * stride + offset
    place = np.searchsorted(segments["lane"] * stride + segments["offset"], wanted, "right") - 1
    found = np.zeros(lanes, np.bool_)
    if len(segments):
        found = (place >= 0) & (segments["lane"][place] == np.arange(lanes))
    return np.where(found, place, -1)


def cut_segments(segments: Segments, start: int, stop: int) -> Segments:
    """What of segments lies in the timesteps `[start, stop)` of the window, with offsets from `start` on."""
    ends = segments["offset"] + segments["stop"] - segments["start"]
    part: Segments = segments[(segments["offset"] < stop) & (ends > start)]
    before = np.maximum(start - part["offset"], 0)
    after = np.maximum(part["offset"] + part["stop"] - part["start"] - stop, 0)
    part["start"] += before
    part["stop"] -= after
    part["offset"] += before - start
    part["reset"] &= before == 0
    return part


def to_table(segments: Segments) -> Int64:
    """Segments as int64 [S, 6]."""
    return np.stack([segments[name].astype(np.int64) for name in SEGMENT.names or ()], 1)


def from_table(table: NDArray[Any]) -> Segments:
    """The segments of which `to_table` made int64 [S, 6]."""
    segments = np.empty(len(table), SEGMENT)
    for name, column in zip(SEGMENT.names or (), table.T, strict=True):
        segments[name] = column
    return segments
