"""Cohorts: with k1 = n, the windows from a step at which every lane starts anew to the next such step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator

from streamseq.data.window import Window
from streamseq.tbptt.counts import Counts
from streamseq.tbptt.past import Past
from streamseq.tbptt.stretches import Segment, cut_stretches, num_steps
from streamseq.tbptt.sweep import Sweep
from streamseq.tbptt.timeline import Timeline


def sweep_cohorts(
    windows: Iterable[Window],
    *,
    arrive: Callable[[Window, bool], int],
    begin: Callable[[Window], Sweep],
    timeline: Timeline,
    past: Past,
    counts: Counts,
    segment: int | None,
) -> Iterator[tuple[Sweep, Segment, int]]:
    """Run the forward sweep of each cohort, up to its last segment.

    Args:
        windows: In stream order.
        arrive: Takes a window up, the first of a cohort (True) or another; the time of its start.
        begin: Makes the sweep of a cohort that begins with a window.
        timeline, past, counts: That `arrive` fills.
        segment: Timesteps whose activations live at once; None: a window.

    Yields:
        The sweep, the segment that is left to be run with its graph, and the number of losses over all ranks.
    """
    sweep: Sweep | None = None
    pending: Segment = []
    start = valid = number = 0
    uneven = False
    for window in windows:
        if sweep is not None and counts.ranks.everywhere(bool(window.token.starts_anew.all())):
            yield sweep, pending, valid
            sweep = None
        time = arrive(window, sweep is None)
        if sweep is None:
            sweep = begin(window)
            pending, start, valid, number = [], time, 0, number + 1
        else:
            uneven = uneven or bool(window.token.reset.any())
        step, length = window.token.step, window.num_steps
        valid += counts.between(time, time + length, length=length, origin=timeline.origin)
        counts.forget_before(step)
        most = segment or length
        # What comes last is run with its graph; whether a window is the last one shows when the next one comes.
        for part in cut_stretches(
            time,
            start,
            time + length,
            window=length,
            origin=timeline.origin,
            segment=min(most, length),
            borders=[time + offset for offset in past.marks(step).borders],
        ):
            if pending and num_steps(pending) + num_steps(part) > most:
                sweep.advance(pending)
                pending = []
            pending = pending + part
    if sweep is not None:
        if number == 1 and uneven:
            warnings.warn(
                "k1=n makes one update of sequences that start together; here no later window resets every lane, "
                "so the whole epoch is one update: sequences of one length, or a lane for each, give more",
                stacklevel=4,
            )
        yield sweep, pending, valid
