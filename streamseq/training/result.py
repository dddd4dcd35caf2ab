"""What a run adds up, and what comes of it."""

from __future__ import annotations

import signal
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What came of a run, over all of its parts where it was resumed.

    Args:
        loss: Mean training loss in nats a timestep, of the last `log_every` updates or what there is of them; None
            before the first update.
        bits_per_byte: The same in bits.
        held_out_loss, held_out_bits_per_byte: The last evaluation; None where nothing is held out or it was not yet.
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

    loss: float | None
    bits_per_byte: float | None
    held_out_loss: float | None
    held_out_bits_per_byte: float | None
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

    @property
    def exit_code(self) -> int:
        """0, or 128 and the number of the signal that ended the run, as a shell has it."""
        return 0 if self.stopped_by is None else 128 + signal.Signals[self.stopped_by]


@dataclass(slots=True, kw_only=True)
class Totals:
    """What a run adds up over all of its parts; saved with its checkpoints. Losses are in nats a timestep."""

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
    threads: int = 1
    finished: bool = False

    def mean_loss(self) -> float | None:
        """Mean training loss since the last row of the log, or in it."""
        return self.loss_sum / self.loss_timesteps if self.loss_timesteps else self.loss
