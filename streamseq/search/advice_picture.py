"""The picture of a dependence by lag, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from streamseq.search.dependence import Dependence
from streamseq.storage.places.commit import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_dependence(figure: Figure, path: Path, dependences: Sequence[Dependence], depth: int) -> None:
    """Draw into a PNG, which appears at once.

    Args:
        figure: From `new_figure`.
        path: Of the PNG; its folder exists.
        dependences: A panel each.
        depth: Timesteps that are proposed to look back, at least.
    """
    panels = figure.subplots(len(dependences), 1, squeeze=False)[:, 0]
    for axes, each in zip(panels, dependences, strict=True):
        axes.plot(each.lags, np.where(each.values > 0, each.values, np.nan), ".-", linewidth=1, markersize=3)
        axes.plot(each.lags, each.chance, "--", linewidth=1, color="gray", label="what chance makes of none")
        if each.memory:
            axes.axvline(each.memory, color="tab:orange", linewidth=1, label=f"memory: {each.memory:,}")
        axes.axvline(depth, color="tab:green", linestyle=":", linewidth=1, label=f"depth proposed: {depth:,}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(each.field, fontsize="medium")
        axes.set_ylabel(each.kind + (", nats" if each.kind == "mutual information" else ""))
        axes.grid(alpha=0.3)
        axes.legend()
    panels[-1].set_xlabel("lag, timesteps")

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", dpi=120)

    replace_file(path, write)
