"""What the folder of a search holds: its trials with their curves, whether it is finished or goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamseq.core.errors import StreamseqError
from streamseq.training.metrics import MetricsLog
from streamseq.training.trainer import METRICS

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from streamseq.search.result import Trial
    from streamseq.search.space import Space, Value

#: The file in the folder of a search that says that it is one.
JOURNAL = "study.log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """The held-out losses of a trial.

    Args:
        loss: Of each evaluation.
        evaluation: Their numbers, from 1.
        timesteps, seconds: Trained on, and for how long, until then; None where the trial did not log them.
    """

    loss: Sequence[float]
    evaluation: Sequence[float]
    timesteps: Sequence[float] | None = None
    seconds: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFiles:
    """What the folder of a search holds.

    Args:
        about: What the search was begun with.
        trials: All that were begun; the state of those that have not ended is "running".
        waiting: How many of a grid were not begun.
        curves: By the number of the trial.
    """

    about: Mapping[str, Any]
    trials: Sequence[Trial]
    waiting: int
    curves: Mapping[int, Curve]

    @property
    def settings(self) -> list[str]:
        """The settings that were tried, those with several values first."""
        names = list(self.about.get("space", {}))
        return sorted(names, key=lambda name: len(set(self.values(name))) < 2)

    def values(self, name: str) -> list[Value]:
        """The values that a setting took, trial by trial."""
        return [trial.values[name] for trial in self.trials if name in trial.values]

    @property
    def complete(self) -> list[Trial]:
        """Those that came to the end, the best first."""
        done = [trial for trial in self.trials if trial.state == "complete" and trial.loss is not None]
        return sorted(done, key=lambda trial: (trial.loss, trial.number))

    @property
    def pruned(self) -> list[Trial]:
        """Those that were stopped before the end and were evaluated, the lowest last loss first."""
        stopped = [trial for trial in self.of("pruned") if trial.loss is not None]
        return sorted(stopped, key=lambda trial: (trial.loss, trial.number))

    def of(self, state: str) -> list[Trial]:
        """The trials in one state, in their order."""
        return [trial for trial in self.trials if trial.state == state]


def read_search(folder: Path) -> SearchFiles:
    """Read the folder of a search.

    Args:
        folder: With the study of the search; trials have folders of their own below it.

    Raises:
        ImportError: optuna is not installed.
        StreamseqError: There is no study of a search in it.
    """
    try:
        import optuna
        from optuna.trial import TrialState

        from streamseq.search.space import Space
        from streamseq.search.study import NAME, SEARCH, storage_of
    except ImportError as error:
        raise ImportError("a report of a search needs optuna: pip install streamseq[search]") from error
    try:
        study = optuna.load_study(study_name=NAME, storage=storage_of(folder))
    except Exception as error:  # whatever a journal that is none makes optuna raise
        raise StreamseqError(
            f"{folder / JOURNAL} holds no search ({type(error).__name__}): name the folder of streamseq search --out"
        ) from error
    about = study.user_attrs.get(SEARCH, {})
    space = Space(choices=dict.fromkeys(about.get("space", {}), ()))
    every = study.get_trials(deepcopy=False)
    begun = [trial for trial in every if trial.state != TrialState.WAITING]
    return SearchFiles(
        about=about,
        trials=tuple(_trial(trial, space) for trial in begun),
        waiting=len(every) - len(begun),
        curves={trial.number: _curve(trial, folder, int(about.get("evaluations", 0))) for trial in begun},
    )


def _trial(trial: FrozenTrial, space: Space) -> Trial:
    """A trial, also one that has not ended."""
    from optuna.trial import TrialState

    from streamseq.search.result import Trial, trial_of
    from streamseq.search.study import chosen_of

    if trial.params.keys() >= space.choices.keys():
        chosen = chosen_of(trial, space)
        values = space.resolve(chosen)
    else:  # it was killed before it chose them
        chosen, values = {}, {}
    if trial.state != TrialState.RUNNING:
        return trial_of(trial, chosen, values)
    curve = dict(sorted(trial.intermediate_values.items()))
    return Trial(
        number=trial.number,
        chosen=chosen,
        values=values,
        state="running",
        loss=curve[max(curve)] if curve else None,
        curve=curve,
        seconds=0.0,
        peak_rss_bytes=None,
        timesteps_per_second=None,
        reason="",
    )


def _curve(trial: FrozenTrial, folder: Path, evaluations: int) -> Curve:
    from streamseq.search.trial import TRIALS

    told = sorted(trial.intermediate_values.items())
    evaluation, loss = [float(step) for step, _ in told], [value for _, value in told]
    rows = MetricsLog(folder / TRIALS / f"{trial.number:04d}" / METRICS).rows()
    held = [row for row in rows if row.get("event") == "evaluate" and isinstance(row.get("loss"), float)]
    train = [row for row in rows if row.get("event") == "train" and {"timesteps", "seconds"} <= row.keys()]
    if held and train:
        at = [row["update"] for row in held]
        logged = [0, *(row["update"] for row in train)]
        timesteps, seconds = (
            np.interp(at, logged, [0.0, *(row[name] for row in train)]).tolist() for name in ("timesteps", "seconds")
        )
        numbers = [float(place + 1) for place in range(len(held))]
        return Curve(loss=[row["loss"] for row in held], evaluation=numbers, timesteps=timesteps, seconds=seconds)
    if trial.value is not None:
        evaluation.append(max(evaluations, evaluation[-1] + 1 if evaluation else 1))
        loss.append(trial.value)
    return Curve(loss=loss, evaluation=evaluation)
