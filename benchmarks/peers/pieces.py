"""What the peers' formats are written from, and lanes by hand over any format with random access.

A peer's own way gets the values of all sequences end to end, cut into samples of K timesteps: what their guides
recommend for tokens, and the fastest to read. Lanes by hand get longer pieces, so that a piece is asked for once in
many windows: whole sequences in W3, 512 windows of a lane in W1 (256 KiB) and 32 in W2 (512 KiB).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from workloads import LANES, Workload

_WINDOWS = {"w1": 512, "w2": 32}


def samples(workload: Workload, raw_folder: Path) -> Iterator[np.ndarray]:
    """[K, *D] each, a whole number of batches; the last ones end in zeros."""
    values = workload.values(raw_folder)
    for number in range(sample_count(workload, len(values))):
        part = values[number * workload.window : (number + 1) * workload.window]
        if len(part) < workload.window:
            part = np.concatenate([part, np.zeros((workload.window - len(part), *workload.step), workload.dtype)])
        yield part


def sample_count(workload: Workload, timesteps: int) -> int:
    """How many samples there are."""
    return -(-timesteps // (workload.window * LANES)) * LANES


def bounds(workload: Workload, raw_folder: Path) -> np.ndarray:
    """int64 [P + 1], where the pieces start and stop in the values."""
    lengths = workload.lengths(raw_folder)
    if len(lengths) > 1:
        return np.concatenate([[0], np.cumsum(lengths)])
    total = int(lengths[0])
    return np.append(np.arange(0, total, _WINDOWS[workload.name] * workload.window), total)


def pieces(workload: Workload, raw_folder: Path) -> Iterator[np.ndarray]:
    """[n, *D] each."""
    values = workload.values(raw_folder)
    edges = bounds(workload, raw_folder).tolist()
    for low, high in itertools.pairwise(edges):
        yield values[low:high]


def lanes(workload: Workload, raw_folder: Path, read: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """Endless windows [B, K, *D] of contiguous lanes, in one batch that is filled again and again.

    Args:
        workload: Which windows.
        raw_folder: Where the lengths are; the values come from `read`.
        read: Gives a piece by its number; each lane keeps the last one it asked for.
    """
    edges = bounds(workload, raw_folder)
    starts, stops = workload.spans(raw_folder)
    out = np.zeros((LANES, workload.window, *workload.step), workload.dtype)
    while True:
        held: list[tuple[int, int, np.ndarray]] = [(0, 0, out[0])] * LANES
        for first in range(0, len(starts), 256):
            rows = zip(starts[first : first + 256].tolist(), stops[first : first + 256].tolist(), strict=True)
            for begin, end in rows:
                for lane in range(LANES):
                    done, stop, place = begin[lane], end[lane], 0
                    while done < stop:
                        low, high, piece = held[lane]
                        if not low <= done < high:
                            number = int(np.searchsorted(edges, done, "right")) - 1
                            low, high = int(edges[number]), int(edges[number + 1])
                            piece = read(number)
                            held[lane] = low, high, piece
                        upto = stop if stop < high else high
                        out[lane, place : place + upto - done] = piece[done - low : upto - low]
                        place += upto - done
                        done = upto
                yield out
