"""Which timesteps the updates of TBPTT(k1, k2) back-propagate through, from the grid that the engine uses."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from style import COLOURS, FAINT, figure

from streamseq.core.grid import Grid

N = 16
CASES = ((4, 4), (4, 8), (2, 8), (4, None))


def draw() -> Figure:
    """The figure."""
    made, panels = figure(2, 2, height=5.2)
    for axes, (k1, k2) in zip(panels, CASES, strict=True):
        grid = Grid(k1=k1, k2=k2)
        times = range(0, N, k1)
        for row, time in enumerate(times):
            first = max(0, grid.start(time)) if k2 is not None else 0
            stop = time + k1
            axes.add_patch(Rectangle((first, row), time - first, 1, facecolor=COLOURS[1], alpha=0.75))
            axes.add_patch(Rectangle((time, row), stop - time, 1, facecolor=COLOURS[0]))
            axes.plot([first] * 2, [row + 0.08, row + 0.92], color=COLOURS[4], linewidth=2.5)
        axes.vlines(range(N + 1), 0, len(times), color=FAINT, linewidth=0.4)
        axes.hlines(range(len(times) + 1), 0, N, color=FAINT, linewidth=0.4)
        axes.set(xlim=(-0.2, N + 0.2), ylim=(len(times) + 0.1, -0.1), xticks=[0, 4, 8, 12, 16])
        axes.set_yticks([row + 0.5 for row in range(len(times))], [str(row + 1) for row in range(len(times))])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        depth = "" if k2 is None else f": depth {k2 - k1 + 1} to {k2}"
        axes.set(title=f"TBPTT({k1}, {'n' if k2 is None else k2}){depth}", ylabel="update", xlabel="timestep")
    return made
