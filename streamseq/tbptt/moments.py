"""Moments: the updates that are about to be made, seen from the lanes."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from streamseq.data.window import Window
from streamseq.tbptt.history import Moment
from streamseq.tbptt.past import Past
from streamseq.tbptt.stretches import resets_at
from streamseq.tbptt.timeline import Timeline

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


def make_moment(
    timeline: Timeline, past: Past, window: Window, offset: int, time: int, stop: int, began: Int64
) -> Moment:
    """The moment before an update.

    Args:
        timeline: Of the epoch.
        past: Where the windows of the update are.
        window: In which the update begins.
        offset: The timestep of the window at which it begins.
        time, stop: The times `[time, stop)` are new.
        began: int64 [B], each lane's latest reset until the start of the window.
    """
    token = window.token
    if offset:
        began = timeline.began_at(token, offset)
    return Moment(
        time=time,
        stop=stop,
        began=began,
        # A lane that stopped inside its sequence holds a state for its next window.
        holding=(window.lengths.numpy() > offset) | ~(token.final | token.idle),
        goes_on=partial(_goes_on, timeline, stop),
        resets=partial(_resets, timeline.origin, past, time, stop, window.num_steps),
        lane=token.lane,
        # In the as-is split time begins anew with each window.
        index=0 if token.window is not None else (token.step + 1) << 32,
        epoch=token.epoch,
        # In the as-is split nothing goes on after the window.
        last=token.window is None and stop == window.num_steps,
    )


def _goes_on(timeline: Timeline, stop: int) -> Bool:
    """bool [B], lanes whose sequence goes on after a time in the newest window, or after its end."""
    newest = timeline.window
    assert newest is not None
    begin = (newest.token.step - timeline.origin) * newest.num_steps
    held: Bool = newest.lengths.numpy() > stop - begin
    return held | ~(newest.token.final | newest.token.idle)


def _resets(origin: int, past: Past, time: int, stop: int, length: int) -> dict[int, Bool]:
    """When sequences start in (time, stop), and in which lanes, bool [B]."""
    resets = {}
    for step in range(time // length, -(-stop // length)):
        window = past[origin + step]
        segments = window.token.segments
        for offset in [0] if segments is None else sorted({0, *segments["offset"].tolist()}):
            at = step * length + offset
            lanes = resets_at(window, offset)
            if time < at < stop and lanes.any():
                resets[at] = lanes
    return resets
