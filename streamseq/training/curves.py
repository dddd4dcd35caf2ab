"""The picture of a run: losses over updates, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from streamseq.storage.places.commit import replace_file


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of a `MetricsLog` into a PNG, which appears at once.

    Args:
        rows: With event "train" or "evaluate", update, bits and, of training, timesteps_per_second.
        path: Of the PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("curves need matplotlib: pip install streamseq[plot]") from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    loss, speed = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    train = [row for row in rows if row["event"] == "train"]
    held = [row for row in rows if row["event"] == "evaluate"]
    loss.plot([row["update"] for row in train], [row["bits"] for row in train], linewidth=1, label="training")
    loss.plot([row["update"] for row in held], [row["bits"] for row in held], "o-", markersize=4, label="held out")
    loss.set_ylabel("bits per timestep")
    if train or held:
        loss.legend()
    speed.plot([row["update"] for row in train], [row["timesteps_per_second"] for row in train], linewidth=1)
    speed.set_ylabel("timesteps/s")
    speed.set_ylim(bottom=0)
    speed.set_xlabel("updates")
    for axes in (loss, speed):
        axes.grid(alpha=0.3)

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", dpi=120)

    replace_file(path, write)
