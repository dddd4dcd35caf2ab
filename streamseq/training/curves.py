"""The picture of a run: losses over updates, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from streamseq.storage.places.commit import replace_file
from streamseq.training.unit import MSE, in_unit


def draw_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the rows of a `MetricsLog` into a PNG, which appears at once.

    Args:
        rows: With event "train" or "evaluate", update, loss, unit and, of training, timesteps_per_second; of forecasts
            also what simple ones come to, under "baselines".
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
    for part, mark, label in ((train, "", "training"), (held, "o", "held out")):
        losses = [in_unit(row["loss"], row["unit"]) for row in part]
        loss.plot([row["update"] for row in part], losses, marker=mark, markersize=4, linewidth=1, label=label)
    baselines = held[-1].get("baselines", {}) if held else {}
    for line, (name, value) in zip(("--", ":"), baselines.items(), strict=False):
        loss.axhline(value, linestyle=line, linewidth=1, color="gray", label=name)
    unit = rows[-1]["unit"] if rows else ""
    loss.set_ylabel("mean squared error, in variances" if unit == MSE else unit)
    if unit == MSE and (train or held):
        loss.set_yscale("log")
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
