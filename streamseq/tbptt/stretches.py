"""Stretches: the timesteps of an update, cut where the state is touched and into segments."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from streamseq.data.window import Window


@dataclass(frozen=True, slots=True)
class Stretch:
    """Timesteps `[low, high)` of the window `step`, the first of which has the time `time`.

    `counts`: whether their losses are the update's.
    """

    time: int
    step: int
    low: int
    high: int
    counts: bool

    @property
    def end(self) -> int:
        """The time after the last timestep."""
        return self.time + self.high - self.low


Segment = list[Stretch]


def cut_stretches(
    start: int, new: int, stop: int, *, window: int, origin: int, segment: int, borders: Iterable[int] = ()
) -> list[Segment]:
    """Cut the times `[start, stop)` into segments of stretches.

    Segments are as equal as they can be: short ones at the end would waste what a fused kernel gains.

    Args:
        start: Where back-propagation starts.
        new: Losses count from here.
        stop: Where the update ends.
        window: Timesteps of a window.
        origin: The step of the window that begins at time 0.
        segment: Timesteps of a segment, at most.
        borders: Times at which a stretch ends, besides.
    """
    length = stop - start
    count = max(1, -(-length // segment))
    starts = {start + length * number // count for number in range(count)}
    cuts = starts | {new, stop, *borders, *range(start // window * window, stop, window)}
    times = sorted(time for time in cuts if start <= time <= stop)
    segments: list[Segment] = []
    for low, high in pairwise(times):
        step, offset = divmod(low, window)
        if low in starts:
            segments.append([])
        segments[-1].append(Stretch(low, origin + step, offset, offset + high - low, low >= new))
    return segments


def num_steps(segment: Segment) -> int:
    """Timesteps of a segment."""
    return sum(stretch.high - stretch.low for stretch in segment)


def steps_of(segment: Segment) -> list[int]:
    """The windows that a segment lies in, in order."""
    return list(dict.fromkeys(stretch.step for stretch in segment))


@dataclass(frozen=True, slots=True)
class Marks:
    """Where the states of some lanes of a window are not those of the timestep before.

    Args:
        borders: Offsets inside the window.
        resets: Whether a lane starts anew with the window.
        stops: Whether a lane stops inside its sequence.
        longest: Timesteps of input of the lane that has most.
    """

    borders: tuple[int, ...]
    resets: bool
    stops: bool
    longest: int


def marks_of(window: Window, *, resets: bool) -> Marks:
    """The marks of a window.

    Args:
        window: A window.
        resets: Whether sequences that start inside it are borders; stops inside a sequence always are.
    """
    token = window.token
    found: set[int] = set()
    if resets and token.segments is not None:
        found.update(token.segments["offset"][token.segments["reset"]].tolist())
    lengths = window.lengths.numpy()
    stops = False
    num_steps = window.num_steps
    if lengths.min() < num_steps:
        early = lengths[~(token.final | token.idle)]
        early = early[early < num_steps]
        stops = len(early) > 0
        found.update(early.tolist())
    found.discard(0)
    return Marks(tuple(sorted(found)), bool(token.starts_anew.any()), stops, int(lengths.max()))


def inner_borders(window: Window, *, resets: bool) -> tuple[int, ...]:
    """The offsets inside a window at which states are not those of the timestep before; see `marks_of`."""
    return marks_of(window, resets=resets).borders


def stopped(window: Window, offset: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [B]: lanes that stopped inside their sequences before an offset of a window, and go on in the next one."""
    token = window.token
    return (window.lengths.numpy() <= offset) & ~(token.final | token.idle)


def resets_at(window: Window, offset: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """bool [B]: lanes in which a sequence starts at an offset of a window; at 0 idle lanes too."""
    token = window.token
    if offset == 0:
        return token.starts_anew
    anew = np.zeros(len(token.lane), np.bool_)
    if token.segments is not None:
        rows = token.segments
        anew[rows["lane"][rows["reset"] & (rows["offset"] == offset)]] = True
    return anew
