"""What a run adds up, and what comes of it."""

from __future__ import annotations

import math
import signal
from dataclasses import asdict, dataclass, field
from typing import Any

from streamseq.training.unit import in_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What came of a run, over all of its parts where it was resumed.

    Args:
        task: "language" or "forecast".
        unit: In what losses are shown: "bits/byte", "bits/token" or "mse".
        loss: Mean training loss a timestep, in nats or as a mean squared error in variances, of the last `log_every`
            updates or what there is of them; None before the first update.
        bits_per_byte: The same in bits; None of a forecast.
        held_out_loss, held_out_bits_per_byte: The last evaluation; None where nothing is held out or it was not yet.
        baselines: What simple forecasts come to on what is held out, by name; none for bytes and tokens.
        updates, timesteps: Trained on, in all.
        timesteps_per_second: Over the seconds that training took, evaluations and checkpoints not counted.
        seconds: Those.
        data_wait_fraction: The share of them that was spent waiting for the next window.
        peak_rss_bytes: The most memory that this process has held.
        threads: torch's number of threads.
        finished: Whether the run made all its updates.
        stopped_by: The name of the signal that ended it before, or None.
        out, checkpoint, metrics, curves: Paths; curves is None where it was not drawn.
    """

    task: str
    unit: str
    loss: float | None
    bits_per_byte: float | None
    held_out_loss: float | None
    held_out_bits_per_byte: float | None
    baselines: dict[str, float]
    updates: int
    timesteps: int
    timesteps_per_second: float
    seconds: float
    data_wait_fraction: float
    peak_rss_bytes: int
    threads: int
    finished: bool
    stopped_by: str | None
    out: str
    checkpoint: str
    metrics: str
    curves: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        loss = "" if self.loss is None else f", {in_unit(self.loss, self.unit):.3f} {self.unit}"
        held_out = "" if self.held_out_loss is None else f" (held out {in_unit(self.held_out_loss, self.unit):.3f})"
        lines = [
            f"{'finished' if self.finished else 'stopped'} after {self.updates:,} updates on {self.timesteps:,} "
            f"timesteps{loss}{held_out}",
            f"{self.timesteps_per_second:,.0f} timesteps/s, {100 * self.data_wait_fraction:.1f} % waiting for data, "
            f"peak {self.peak_rss_bytes / 2**20:,.0f} MiB",
            *self._against_baselines(),
        ]
        return "\n".join([*lines, f"the run is in {self.out}"])

    def _against_baselines(self) -> list[str]:
        """One line, where there is something to compare with."""
        if self.held_out_loss is None or not self.baselines:
            return []
        each = ", ".join(f"{loss:.4g} of the {name}" for name, loss in self.baselines.items())
        best = min(self.baselines, key=self.baselines.__getitem__)
        share = self.held_out_loss / self.baselines[best] if self.baselines[best] else math.inf
        verdict = (
            f"{100 * (1 - share):.1f} % below the {best}"
            if share < 1
            else f"no better than the {best}: train longer, or with other settings"
        )
        return [f"held-out error {self.held_out_loss:.4g} (mean squared, in variances), to {each}: {verdict}"]

    @property
    def exit_code(self) -> int:
        """0, or 128 and the number of the signal that ended the run, as a shell has it."""
        return 0 if self.stopped_by is None else 128 + signal.Signals[self.stopped_by]


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a run adds up over all of its parts; saved with its checkpoints."""

    updates: int = 0
    timesteps: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    # Since the last row of the log.
    loss_sum: float = 0.0
    loss_timesteps: int = 0
    seconds_then: float = 0.0
    # In the last row, and of the last evaluation.
    loss: float | None = None
    held_out_loss: float | None = None
    held_out_at: int = -1
    baselines: dict[str, float] = field(default_factory=dict)
    threads: int = 1
    finished: bool = False

    def mean_loss(self) -> float | None:
        """Mean training loss since the last row of the log, or in it."""
        return self.loss_sum / self.loss_timesteps if self.loss_timesteps else self.loss
