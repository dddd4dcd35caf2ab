"""What a search found: its trials, the best of them, and a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from streamseq.search.space import Value
from streamseq.search.study import FIGURES, REASON, SECONDS

_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate that was tried.

    Args:
        number: From 0, in the order in which they were begun.
        chosen: Its settings as they were chosen, such as "2*k1".
        values: Its settings.
        state: "complete"; "pruned": it fell behind and was stopped; "failed": it could not be trained.
        loss: On the held-out sequences at the end, in nats a timestep; of a pruned one the last; None of a failed one.
        curve: The losses of its evaluations before the end, by their numbers from 1.
        seconds: That it took.
        peak_rss_bytes: The most memory of its process while it ran; None where it is not known.
        timesteps_per_second: While it trained; None where it is not known.
        reason: Why it failed; else empty.
    """

    number: int
    chosen: dict[str, Value]
    values: dict[str, Value]
    state: str
    loss: float | None
    curve: dict[int, float]
    seconds: float
    peak_rss_bytes: int | None
    timesteps_per_second: float | None
    reason: str


def trial_of(trial: FrozenTrial, chosen: Mapping[str, Value], values: Mapping[str, Value]) -> Trial:
    """A trial as the study has it."""
    figures = trial.user_attrs.get(FIGURES, {})
    curve = dict(sorted(trial.intermediate_values.items()))
    loss = trial.value if trial.state == TrialState.COMPLETE else None
    if trial.state == TrialState.PRUNED and curve:
        loss = curve[max(curve)]
    return Trial(
        number=trial.number,
        chosen=dict(chosen),
        values=dict(values),
        state=_STATES[trial.state],
        loss=loss,
        curve=curve,
        seconds=float(trial.user_attrs.get(SECONDS, 0.0)),
        peak_rss_bytes=figures.get("peak_rss_bytes"),
        timesteps_per_second=figures.get("timesteps_per_second"),
        reason=trial.user_attrs.get(REASON, ""),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found, so far.

    Args:
        out: Its folder.
        trials: Those that have ended.
        planned: How many there are to be.
        budget: What every candidate got: timesteps, updates or seconds of training; empty where a function decides.
        checkpoint: The best one's; None where there is none yet.
    """

    out: str
    trials: tuple[Trial, ...]
    planned: int
    budget: dict[str, float]
    checkpoint: str | None

    @property
    def ranking(self) -> list[Trial]:
        """Those that came to the end, the best first; then pruned ones, the one that came farthest first."""
        complete = [trial for trial in self.trials if trial.state == "complete" and trial.loss is not None]
        pruned = [trial for trial in self.trials if trial.state == "pruned" and trial.loss is not None]
        return [
            *sorted(complete, key=lambda trial: (trial.loss, trial.number)),
            *sorted(pruned, key=lambda trial: (-max(trial.curve, default=0), trial.loss, trial.number)),
        ]

    @property
    def best(self) -> Trial | None:
        """The one with the lowest loss at the end; None where none came to it."""
        return next((trial for trial in self.ranking if trial.state == "complete"), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "out": self.out,
            "planned": self.planned,
            "budget": self.budget,
            "checkpoint": self.checkpoint,
            "best": None if self.best is None else asdict(self.best),
            "trials": [asdict(trial) for trial in self.trials],
        }

    def __str__(self) -> str:
        names = list(self.trials[0].values) if self.trials else []
        head = ["trial", *names, "held-out loss", "seconds", "peak MiB", ""]
        rows = [head]
        failed = [trial for trial in self.trials if trial.state == "failed"]
        for trial in [*self.ranking[:_SHOWN], *failed[:_SHOWN]]:
            peak = "" if trial.peak_rss_bytes is None else f"{trial.peak_rss_bytes / 2**20:,.0f}"
            loss = "" if trial.loss is None else f"{trial.loss:.4f}"
            state = "" if trial.state == "complete" else trial.state
            settings = ["n" if trial.values[name] is None else str(trial.values[name]) for name in names]
            note = f"{state}: {trial.reason}" if trial.reason else state
            rows.append([str(trial.number), *settings, loss, f"{trial.seconds:,.1f}", peak, note])
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=False)) + f"  {row[-1]}"
            for row in rows
        ]
        budget = ", ".join(f"{value:,} {name}" for name, value in self.budget.items())
        lines = [line.rstrip() for line in lines]
        if len(self.ranking) > _SHOWN:
            lines.append(f"and {len(self.ranking) - _SHOWN:,} more: --json lists them")
        done = f"{len(self.trials)} of {self.planned} trials" + (f", each with {budget}" if budget else "")
        best = "" if self.checkpoint is None else f"; the best one's checkpoint is {self.checkpoint}"
        return "\n".join([*lines, done + best])
