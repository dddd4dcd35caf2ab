"""What a run says while it goes on: to nobody, or to a terminal as a bar."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from tqdm import tqdm

from streamseq.training.unit import in_unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is.

    Args:
        update: Updates made.
        planned: Updates that there will be, about.
        loss: Mean training loss a timestep, of the last few updates: in nats, or a mean squared error.
        held_out_loss: The loss on held-out sequences when last evaluated, None before.
        held_out_at: Updates made then; -1 before.
        seconds: That training has taken, evaluations not counted.
        unit: In what people are shown losses: "bits/byte", "bits/token" or "mse".
        timesteps_per_second: Since the run started, evaluations not counted.
        peak_rss_bytes: Of memory.
    """

    update: int
    planned: int
    loss: float
    held_out_loss: float | None
    held_out_at: int
    seconds: float
    unit: str
    timesteps_per_second: float
    peak_rss_bytes: int

    def __str__(self) -> str:
        held_out = "" if self.held_out_loss is None else f" (held out {in_unit(self.held_out_loss, self.unit):.3f})"
        return (
            f"{in_unit(self.loss, self.unit):.3f} {self.unit}{held_out}, "
            f"{self.timesteps_per_second:,.0f} timesteps/s, peak {self.peak_rss_bytes / 2**20:,.0f} MiB"
        )


class Reporter(Protocol):
    """Hears of each update, and of what happens besides."""

    def show(self, progress: Progress) -> None:
        """Called after each update."""

    def note(self, text: str) -> None:
        """One line for the user."""


class Silent:
    """Says nothing."""

    def show(self, progress: Progress) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


class ProgressBar:
    """A bar and lines on standard error. A context manager.

    Example:
        >>> from streamseq.training import train
        >>> with ProgressBar() as bar:  # doctest: +SKIP
        ...     train("books.zarr", "out", reporter=bar)
    """

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def show(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is None:
            self._bar = tqdm(total=progress.planned, initial=progress.update - 1, unit="update", dynamic_ncols=True)
        self._bar.set_postfix_str(str(progress), refresh=False)
        self._bar.total = progress.planned
        self._bar.update(progress.update - self._bar.n)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            tqdm.write(text, file=sys.stderr)
        else:
            self._bar.write(text, file=sys.stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
