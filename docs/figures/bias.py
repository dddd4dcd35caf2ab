"""How much of the gradient a truncation keeps, in closed form: of a leaky memory, and of influence balancing.

In the steady state an update's gradient is the mean error times the mean of c over its depths k2 - k1 + 1, ..., k2,
where c(d) is what a change of the parameter in the last d timesteps does to the loss's state.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from style import COLOURS, FAINT, figure

LONGEST = 140


def kept(c: NDArray[np.float64], exact: float, k1: int, k2: int) -> float:
    """The gradient of TBPTT(k1, k2) over the exact one; below 0 it points the other way."""
    return float(c[k2 - k1 + 1 : k2 + 1].mean() / exact)


def balancing() -> NDArray[np.float64]:
    """c(0), c(1), ... of Tallec & Ollivier's (2017) 23 units: ten that push up, thirteen that pull down."""
    a = 0.5 * (np.eye(23) + np.eye(23, k=1))
    pushed = np.where(np.arange(23) < 10, 1.0, -1.0)
    out = [0.0]
    for _ in range(LONGEST):
        out.append(out[-1] + pushed[0])
        pushed = a @ pushed
    return np.array(out)


def fading(rate: float = 0.95) -> NDArray[np.float64]:
    """c(0), c(1), ... of a leaky memory."""
    return np.concatenate([[0.0], np.cumsum(rate ** np.arange(LONGEST))])


def draw() -> Figure:
    """The figure."""
    made, panels = figure(1, 2, height=3.6)
    cases = ((fading(), 1 / (1 - 0.95), "An influence that fades"), (balancing(), -6.0, "Influence balancing"))
    choices = (
        ("k1 = k2", lambda k2: k2, "-"),
        ("k1 = k2 / 2", lambda k2: max(1, k2 // 2), "--"),
        ("k1 = 1", lambda k2: 1, ":"),
    )
    for axes, (c, exact, title) in zip(panels, cases, strict=True):
        depths = np.arange(2, LONGEST + 1, 2)
        for colour, (label, k1, line) in zip(COLOURS, choices, strict=False):
            axes.plot(
                depths, [kept(c, exact, k1(k2), k2) for k2 in depths], line, color=colour, label=label, linewidth=2
            )
        axes.axhline(1, color=FAINT, linewidth=1)
        axes.axhline(0, color=FAINT, linewidth=1)
        axes.set(title=title, xlabel="k2", ylabel="gradient, of the exact one")
    panels[0].set_ylim(0, 1.08)
    panels[0].legend(loc="lower right")
    panels[1].axhspan(-3, 0, color=COLOURS[4], alpha=0.12, linewidth=0)
    panels[1].set_ylim(-3, 1.2)
    panels[1].text(139, -2.7, "points the other way", ha="right", va="center")
    return made
