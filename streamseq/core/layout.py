"""Layouts: which sequences, or pieces of them, each lane gets."""

from __future__ import annotations

from heapq import heapreplace

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]

GROUP = 4096


def lane_dtype(lanes: int) -> np.dtype:
    """The dtype of lane numbers while a plan is made: a short one sorts ten times as fast."""
    return np.dtype(np.int16 if lanes < 2**15 else np.int32)


def fill_lanes(lengths: Int64, lanes: int) -> NDArray[np.signedinteger]:
    """Give whole sequences, in order, to lanes, so that the lanes fill evenly: the lane of each, [N].

    Greedy: a sequence goes to the lane that has least so far. Where there are more than `GROUP` sequences, all but
    the last of them are dealt in groups, each at once: lanes get neighbours in proportion to what they lack of the
    common level. Lanes end within one longest sequence of each other either way.

    Args:
        lengths: int64 [N], timesteps, in the order in which the sequences are taken.
        lanes: Number of lanes B.

    Example:
        >>> fill_lanes(np.array([5, 2, 2, 3]), lanes=2).tolist()
        [0, 1, 1, 1]
    """
    lane = np.empty(len(lengths), lane_dtype(lanes))
    load = np.zeros(lanes, np.int64)
    group = max(GROUP, 32 * lanes)
    done = 0
    while len(lengths) - done > group:
        part = slice(done, done + group)
        lane[part] = _deal(lengths[part], load)
        load += np.bincount(lane[part], lengths[part], lanes).astype(np.int64)
        done += group
    # A lane's load and number in one integer: the heap then compares integers only, and the lower lane wins a tie.
    heap = np.sort(load * lanes + np.arange(lanes)).tolist()
    for index, length in enumerate(lengths[done:].tolist(), done):
        first = heap[0]
        lane[index] = first % lanes
        heapreplace(heap, first + length * lanes)
    return lane


def _deal(lengths: Int64, load: Int64) -> Int64:
    """The lane of each sequence of a group: neighbours together, to the emptiest lanes first, up to a common level."""
    total = int(lengths.sum())
    order = np.argsort(load, kind="stable")
    # The level up to which `total` timesteps fill the emptiest lanes, as water fills the lowest vessels.
    sorted_load = load[order]
    filled = np.arange(1, len(load) + 1) * sorted_load - np.cumsum(sorted_load)
    used = int(np.searchsorted(filled, total, "left")) or 1
    level = -(-(total + int(sorted_load[:used].sum())) // used)
    border = np.cumsum(level - sorted_load[:used])
    middle = 2 * np.cumsum(lengths) - lengths
    return order[np.minimum(np.searchsorted(2 * border, middle, "right"), used - 1)]


def cut_evenly(total: int, lanes: int) -> Int64:
    """The borders of `lanes` runs of `total` timesteps that differ by one at most, the longer ones first: int64 [B+1].

    Example:
        >>> cut_evenly(8, 3).tolist()
        [0, 3, 6, 8]
    """
    share, longer = divmod(total, lanes)
    lane = np.arange(lanes + 1, dtype=np.int64)
    return lane * share + np.minimum(lane, longer)
