"""One trial of a search, in whichever process it is run: a training with its candidate's settings, watched and told."""

from __future__ import annotations

import contextlib
import fcntl
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from streamseq.core.errors import ResumeError, StreamseqError
from streamseq.search.space import Value
from streamseq.search.study import FIGURES, NAME, REASON, SECONDS, pruner_of, storage_of
from streamseq.storage.store import open as open_store
from streamseq.training.progress import Progress
from streamseq.training.settings import TrainingSettings
from streamseq.training.trainer import CHECKPOINT, METRICS, train
from streamseq.training.usage import peak_rss_bytes, reset_peak_rss

TRIALS = "trials"


class Pruned(Exception):
    """The candidate has fallen behind."""


class Candidate:
    """One candidate of a search: its settings, a folder of its own, and somebody to tell how it does.

    Args:
        folder: Of the search.
        number: The number of the trial.
        values: Its settings.
        trial: The trial as the study has it.
        told: What was told before, where it is run again.
    """

    def __init__(
        self, folder: Path, number: int, values: Mapping[str, Value], trial: optuna.Trial, told: Mapping[int, float]
    ) -> None:
        #: The number of the trial.
        self.number = number
        #: Its settings.
        self.values = dict(values)
        #: A folder of its own, for checkpoints. It is there again where a trial that was killed is run again.
        self.folder = folder / TRIALS / f"{number:04d}"
        #: More to remember of it: plain values by name.
        self.figures: dict[str, Any] = {}
        self._trial = trial
        self._told = dict(told)

    def report(self, step: int, loss: float) -> None:
        """Say the validation loss after a number of steps, the same steps for every candidate.

        Raises:
            Pruned: It has fallen behind, and the search stops it: let this pass.
        """
        if step not in self._told:
            self._told[step] = loss
            self._trial.report(loss, step)
        if self._trial.should_prune():
            raise Pruned


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the reference trainer does for each candidate; picklable.

    Args:
        store: The address of the store.
        version: Its version.
        settings: Where a candidate says nothing else.
        timesteps: The budget of each candidate, where it is counted in timesteps.
        updates: The budget of each candidate, where it is counted in updates.
        seconds: The budget of each candidate, where it is counted in seconds of training.
        evaluations: How often each is evaluated, in equal parts of the budget.
        threads: torch's number of threads of each.
    """

    store: str
    version: int
    settings: TrainingSettings
    timesteps: int | None
    updates: int | None
    seconds: float | None
    evaluations: int
    threads: int

    def work(self, values: Mapping[str, Value]) -> float:
        """About how long one candidate takes beside others: the timesteps that it goes through, again and again.

        0 where the settings do not go together, inf where back-propagation has no limit.
        """
        try:
            settings = self.settings_of(values)
        except (TypeError, ValueError):
            return 0.0
        if settings.updates is None:
            return 1.0
        return float(settings.updates * settings.lanes) * (settings.k2 or math.inf)

    def settings_of(self, values: Mapping[str, Value]) -> TrainingSettings:
        """The settings of one candidate: with its values, and the budget in updates.

        Raises:
            TypeError: There is no such setting.
            ValueError: They do not go together.
        """
        settings = replace(self.settings, **values, threads=self.threads)  # type: ignore[arg-type]
        if self.seconds is not None:
            return replace(
                settings, updates=None, seconds=self.seconds, evaluate_seconds=self.seconds / self.evaluations
            )
        updates = self.updates
        if updates is None:
            assert self.timesteps is not None
            per_update = settings.lanes * (settings.k1 or settings.window_length)
            updates = max(1, -(-self.timesteps // per_update))
        every = max(1, updates // self.evaluations)
        return replace(settings, updates=updates, evaluate_every=every, checkpoint_every=every)

    def __call__(self, candidate: Candidate) -> float:
        """Train one candidate, and return its loss on the held-out sequences.

        Raises:
            Pruned: It has fallen behind.
            InterruptedError: A signal stopped it; it goes on when it is called again.
        """
        settings = self.settings_of(candidate.values)
        begun = (candidate.folder / CHECKPOINT).exists()
        watcher = _Watcher(candidate, settings)
        with contextlib.suppress(FileNotFoundError):
            if not begun:  # it was killed before there was anything to go on with
                (candidate.folder / METRICS).unlink()
        store = open_store(self.store, version=self.version)
        # The report has the curves of all: importing what draws these takes each worker longer than a short trial.
        result = train(store, candidate.folder, settings, resume=begun, reporter=watcher, draw=False)
        candidate.figures = {
            name: getattr(result, name) for name in ("updates", "timesteps", "timesteps_per_second", "loss")
        }
        if result.stopped_by is not None:
            raise InterruptedError(result.stopped_by)
        assert result.held_out_loss is not None, "a search holds sequences out"
        return result.held_out_loss


class _Watcher:
    """Hears of a run, and tells the candidate of each new evaluation."""

    def __init__(self, candidate: Candidate, settings: TrainingSettings) -> None:
        self._candidate = candidate
        self._every = settings.evaluate_every
        self._every_seconds = settings.evaluate_seconds
        # At the update before.
        self._seconds: float | None = None

    def show(self, progress: Progress) -> None:
        """Tell of the evaluation before this update, if there was one."""
        before = progress.seconds if self._seconds is None else self._seconds
        self._seconds = progress.seconds
        if progress.held_out_loss is None or progress.held_out_at != progress.update - 1:
            return
        steps = (progress.update - 1) / self._every if self._every_seconds is None else before / self._every_seconds
        if steps >= 1:
            self._candidate.report(int(steps), progress.held_out_loss)

    def note(self, text: str) -> None:
        """Nobody is told."""


def run_trial(
    folder: Path,
    function: Callable[[Candidate], float],
    prune: bool,
    trial_id: int,
    number: int,
    values: Mapping[str, Value],
) -> str:
    """Run one trial to its end, or to where it is stopped, tell the study, and return what became of it.

    A trial that was begun before goes on where its function does. Only one process runs a trial at a time.

    Args:
        folder: Of the search; all workers have it.
        function: Trains a candidate, and returns its loss.
        prune: Whether candidates that fall behind are stopped.
        trial_id: By which the study knows it.
        number: Its number.
        values: The settings of its candidate.
    """
    study = optuna.load_study(storage=storage_of(folder), study_name=NAME, pruner=pruner_of(prune))
    with _alone(folder / TRIALS / f"{number:04d}"):
        frozen = study.get_trials(deepcopy=False)[number]
        if frozen.state.is_finished():  # by a worker that outlived who had asked it to
            return frozen.state.name.lower()
        trial = optuna.Trial(study, trial_id)
        candidate = Candidate(folder, number, values, trial, frozen.intermediate_values)
        began = time.monotonic()
        before = float(frozen.user_attrs.get(SECONDS, 0.0))
        reset_peak_rss()
        state, value = TrialState.COMPLETE, None
        try:
            value = float(function(candidate))
            if not math.isfinite(value):
                raise ValueError(f"the loss of a candidate is finite, got {value}")
        except Pruned:
            state = TrialState.PRUNED
        except (ResumeError, InterruptedError):
            # What it was is not known any more, or it goes on when the search does.
            raise
        except (StreamseqError, TypeError, ValueError, ArithmeticError) as error:
            state, value = TrialState.FAIL, None
            trial.set_user_attr(REASON, " ".join(str(error).split()))
        finally:
            trial.set_user_attr(SECONDS, before + time.monotonic() - began)
        trial.set_user_attr(FIGURES, {**candidate.figures, "peak_rss_bytes": peak_rss_bytes()})
        study.tell(trial, value, state)
        return state.name.lower()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process runs the trial of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
