"""What becomes of the end of a sequence that is no whole window: padded, dropped, or packed; from real streams."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import COLOURS, FAINT, ON_FILL, figure

import streamseq as ss

LENGTHS = {"A": 6, "B": 7, "C": 5, "D": 9}
WINDOW = 4


def draw() -> Figure:
    """The figure."""
    store = ss.from_arrays({name: {"x": np.zeros(n)} for name, n in LENGTHS.items()})
    names = store.ids.to_pylist()
    made, (axes,) = figure(height=2.3)
    longest = 0
    for row, tail in enumerate(("pad", "drop", "pack")):
        stream = ss.StreamDataset(store, lanes=1, window=WINDOW, tail=tail)
        longest = max(longest, len(stream))
        for step, window in enumerate(stream):
            left = step * WINDOW
            axes.add_patch(
                Rectangle((left, row - 0.3), WINDOW, 0.6, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0)
            )
            parts = (
                window.token.segments.tolist()
                if tail == "pack"
                else [
                    (
                        0,
                        0,
                        int(window.token.sequence[0]),
                        int(window.token.start[0]),
                        int(window.token.stop[0]),
                        bool(window.token.reset[0]),
                    )
                ]
            )
            for _, offset, sequence, start, stop, reset in parts:
                box = Rectangle(
                    (left + offset, row - 0.3), stop - start, 0.6, facecolor=COLOURS[sequence], edgecolor="none"
                )
                axes.add_patch(box)
                axes.text(
                    left + offset + (stop - start) / 2, row, names[sequence], ha="center", va="center", color=ON_FILL
                )
                if reset:
                    axes.plot(
                        [left + offset + 0.15], [row - 0.4], marker="v", color=COLOURS[4], markersize=6, clip_on=False
                    )
        for step in range(len(stream) + 1):
            axes.plot([step * WINDOW] * 2, [row - 0.36, row + 0.36], color=FAINT, linewidth=1)
        axes.text(-0.4, row, f'tail="{tail}"', ha="right", va="center")
        count = f"{len(stream)} windows" + (f", {stream.left_out} timesteps left out" if stream.left_out else "")
        axes.text(len(stream) * WINDOW + 0.4, row, count, va="center")
    axes.set(xlim=(-4, longest * WINDOW + 5), ylim=(2.5, -0.6))
    axes.set_axis_off()
    return made
