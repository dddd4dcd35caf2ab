"""Four sequences on three lanes, cut into windows, with the token of each window below it: from a real stream."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import COLOURS, FAINT, INK, ON_FILL, figure

import streamseq as ss

LENGTHS = {"A": 14, "B": 7, "C": 9, "D": 6}
LANES, WINDOW = 3, 4


def draw() -> Figure:
    """The figure."""
    store = ss.from_arrays({name: {"x": np.zeros(n)} for name, n in LENGTHS.items()})
    stream = ss.StreamDataset(store, lanes=LANES, window=WINDOW)
    names = store.ids.to_pylist()
    made, (axes,) = figure(height=4.4)
    for step, window in enumerate(stream):
        token, left = window.token, step * WINDOW
        for lane in range(LANES):
            sequence, start, stop = (int(each[lane]) for each in (token.sequence, token.start, token.stop))
            used = max(stop - start, 0)
            if sequence >= 0:
                box = Rectangle((left, lane - 0.34), used, 0.68, facecolor=COLOURS[sequence], edgecolor="none")
                axes.add_patch(box)
                label = f"{names[sequence]} {start}–{stop}"
                axes.text(left + used / 2, lane, label, ha="center", va="center", color=ON_FILL)
            if token.reset[lane]:
                axes.plot([left + 0.12], [lane - 0.44], marker="v", color=COLOURS[4], markersize=7, clip_on=False)
            if used < WINDOW:
                rest = (left + used, lane - 0.34), WINDOW - used, 0.68
                axes.add_patch(Rectangle(*rest, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0))
        rows = {
            "sequence": [names[s] if s >= 0 else "–" for s in token.sequence],
            "start": token.start,
            "stop": token.stop,
            "reset": ["yes" if each else "·" for each in token.reset],
            "final": ["yes" if each else "·" for each in token.final],
        }
        axes.text(left + WINDOW / 2, LANES - 0.15, f"window {step}", ha="center", va="center", fontweight="bold")
        for at, (name, values) in enumerate(rows.items()):
            y = LANES + 0.32 + 0.36 * at
            if step == 0:
                axes.text(-0.25, y, name, ha="right", va="center")
            for lane, value in enumerate(values):
                axes.text(left + (lane + 0.5) * WINDOW / LANES, y, str(value), ha="center", va="center")
    steps = len(stream)
    for step in range(steps + 1):
        axes.plot([step * WINDOW] * 2, [-0.5, LANES + 2], color=FAINT, linewidth=1)
    axes.set(xlim=(-2.2, steps * WINDOW), ylim=(LANES + 2, -0.7), yticks=range(LANES), xticks=[])
    for lane in range(LANES):
        axes.text(-0.25, lane, f"lane {lane}", ha="right", va="center", color=INK)
    axes.set_axis_off()
    return made
