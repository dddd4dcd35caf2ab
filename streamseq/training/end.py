"""When a run ends: after how many updates, seconds or epochs, and how far it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from streamseq.data.dataset import StreamDataset
from streamseq.training.result import Totals
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import Task

_WINDOWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnd:
    """The limits of a run, of which the first that is reached ends it.

    Args:
        updates: The most updates; None: any number.
        seconds: The most seconds of training; None: any number.
        epochs: How often the stream is gone through; None: until another limit is reached.
        planned: About how many updates there will be, where nobody says for how long.
    """

    updates: int | None
    seconds: float | None
    epochs: int | None
    planned: int

    @classmethod
    def of(cls, stream: StreamDataset, settings: TrainingSettings, task: Task) -> Self:
        """From the settings; where they give no limit it is one epoch, or as many as the task usually takes."""
        epochs = None
        planned = settings.updates or 0
        if settings.updates is None and settings.seconds is None:
            of_epoch = updates_of_epoch(stream, settings)
            epochs = settings.epochs or max(1, -(-task.usual_updates // max(1, of_epoch)))
            planned = epochs * of_epoch
        return cls(updates=settings.updates, seconds=settings.seconds, epochs=epochs, planned=planned)

    def is_reached(self, run: Totals) -> bool:
        """Whether there are no updates left; the last epoch is left to `is_after`."""
        enough = self.updates is not None and run.updates >= self.updates
        return enough or (self.seconds is not None and run.seconds >= self.seconds)

    def is_after(self, epoch: int) -> bool:
        """Whether an epoch, from 0, is one too many."""
        return self.epochs is not None and epoch >= self.epochs

    def expected(self, run: Totals) -> int:
        """How many updates the run will have made at its end, as it looks now."""
        if self.seconds is None:
            return self.planned
        at_this_rate = max(1, run.updates, round(run.updates * self.seconds / max(run.seconds, 1e-9)))
        return at_this_rate if self.updates is None else min(self.updates, at_this_rate)

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.planned:,} updates"
        most = "" if self.updates is None else f", at most {self.updates:,} updates"
        return f"{self.seconds:g} s{most}"


def updates_of_epoch(stream: StreamDataset, settings: TrainingSettings) -> int:
    """About how many updates an epoch gives."""
    if settings.k1 is None:
        return _num_cohorts(stream)
    if stream.window is None:
        return sum(-(-stream.plan.window_length(step) // settings.k1) for step in range(len(stream)))
    return -(-len(stream) * stream.window // settings.k1)


def _num_cohorts(stream: StreamDataset) -> int:
    """Windows at which every lane starts anew."""
    count = 0
    for first in range(0, len(stream), _WINDOWS_AT_ONCE):
        cells = stream.plan.cells(first, min(first + _WINDOWS_AT_ONCE, len(stream)), 0, stream.lanes)
        count += int((cells.reset | (cells.sequence < 0)).all(1).sum())
    return count
