"""The picture of an advice: influence and bias over the lag, as a PNG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from streamseq.storage.places.commit import replace_file
from streamseq.tbptt.influence import Influence

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure() -> Figure:
    """An empty figure: before anything is measured it shows that it can be drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install streamseq[plot]") from error
    return Figure(figsize=(8, 6), layout="constrained")


def draw_bias(
    figure: Figure,
    path: Path,
    influence: Influence,
    *,
    wish: float,
    depths: Sequence[int],
    measured: Sequence[float],
) -> None:
    """Draw into a PNG, which appears at once.

    Args:
        figure: From `new_figure`.
        path: Of the PNG; its folder exists.
        influence: The upper curve, and the bound in the lower one.
        wish: The relative bias that is tolerated.
        depths: Of truncations whose bias was measured.
        measured: Their relative biases.
    """
    above, below = figure.subplots(2, 1, sharex=True)
    above.plot(influence.lags, influence.phi, linewidth=1, label="influence φ of the state k timesteps before a loss")
    begin = influence.index(influence.tau)
    lags = influence.lags[begin:]
    fit = influence.phi[begin] * influence.beta ** ((lags - lags[0]) / influence.lags[0])
    above.plot(lags, fit, "--", linewidth=1, label=f"its decay from k = {influence.tau:,} on")
    above.set_ylabel("norm of the gradient")
    finite = influence.delta < math.inf
    below.plot(influence.lags[finite], influence.delta[finite], linewidth=1, label="bound δ of depth k")
    below.plot(depths, measured, "o-", markersize=4, linewidth=1, label="measured, at the least depth k of a loss")
    below.axhline(wish, color="gray", linestyle=":", linewidth=1, label=f"tolerated: {wish:g}")
    below.set_ylabel("relative bias")
    below.set_xlabel("k, timesteps")
    for axes in (above, below):
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend()

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", dpi=120)

    replace_file(path, write)
