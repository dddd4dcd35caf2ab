"""`search`: every candidate gets the same budget and is judged by the same held-out sequences; the best one is kept."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial

from streamseq.core.errors import StreamseqError
from streamseq.etl.workers import Workers
from streamseq.search.result import SearchResult, Trial, trial_of
from streamseq.search.space import Range, Space, Value
from streamseq.search.study import SAMPLERS, choose, chosen_of, distributions_of, ended, open_study, unfinished, waiting
from streamseq.search.trial import TRIALS, Candidate, Training, run_trial
from streamseq.storage.interface import Store
from streamseq.storage.store import open as open_store
from streamseq.training.settings import TrainingSettings
from streamseq.training.trainer import CHECKPOINT

if TYPE_CHECKING:
    import optuna
    from distributed import Client

    from streamseq.etl.cluster import Pool

BEST = "best.pt"
USUAL_TIMESTEPS = 1_000_000


def search(
    what: Store | str | os.PathLike[str] | Callable[[Candidate], float],
    out: str | os.PathLike[str],
    space: Mapping[str, Sequence[Value] | Range | str] | Space | None = None,
    *,
    advice: str | os.PathLike[str] | bool = False,
    settings: TrainingSettings | None = None,
    timesteps: int | None = None,
    updates: int | None = None,
    seconds: float | None = None,
    evaluations: int = 9,
    sampler: str = "grid",
    trials: int | None = None,
    prune: bool = False,
    seed: int = 0,
    workers: int | None = None,
    scheduler: str | None = None,
    client: Client | None = None,
    progress: Callable[[SearchResult], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> SearchResult:
    """Try many candidates, each with the same budget, and take the best.

    The reference trainer trains each of them on the same sequences of a store, and evaluates it on the same held-out
    ones with carried state. What was tried is kept in `out/study.log`: a search that was stopped or killed goes on
    when it is called again, with the trials that it had begun. `optuna-dashboard out/study.log` shows it.

    Args:
        what: A store, or where one lies. Or a function that trains a candidate and returns its validation loss; it
            gets a `Candidate` with `values` and a `folder`, and may `report` how it does on the way.
        out: The folder of the search; on a cluster all workers have it. It gets the study, a folder for each trial and
            the best one's checkpoint, `best.pt`.
        space: By setting of `TrainingSettings` (or by any name, for a function), the values to try: a list, text such
            as "32,64,128" or "1e-4..1e-2", or a `Range`. "2*k1" is computed from another setting. None: the grid around
            what `ss.advise` proposes.
        advice: Whether the grid is that of an advice, with the values of `space` in place of it or beside it; the
            folder of one that was made before, or True: it is made now. It is kept in `out/advice.json`, and lanes,
            layout and split are as it proposes, where the settings have them as they are by default.
        settings: What no candidate says otherwise; None: the defaults, but for fewer held-out timesteps where the
            budget is small, so that evaluating takes no longer than training.
        timesteps: The budget of each candidate, in timesteps of all lanes that it trains on; None: 1,000,000, where
            `updates` is not given.
        updates: The budget in updates instead.
        seconds: The budget in seconds of training instead, evaluations and checkpoints not counted: candidates that
            share a machine's cores get less done in them, and so do those of a slow worker.
        evaluations: How often each candidate is evaluated, in equal parts of the budget.
        sampler: "grid": all; "random"; "tpe": where earlier ones were good (Bergstra et al. 2011).
        trials: How many candidates; None: the whole grid.
        prune: Stop candidates that fall behind: of those that come to an evaluation, one third goes on (successive
            halving, Li et al. 2018).
        seed: Of the sampler; that of the training is in `settings`.
        workers: How many processes of this machine, which share its cores; None or 1: this one.
        scheduler: The address of a Dask scheduler whose workers run the trials instead; each has one thread.
        client: A Dask client, the same.
        progress: Called at the start and after each trial with the result so far.
        say: Called with what is done for an advice.

    Raises:
        ValueError: An argument is wrong.
        ResumeError: Another search was begun in the folder.
        StreamseqError: No candidate could be trained.
        KeyboardInterrupt: Ctrl-C; the same call goes on.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> def train(candidate):
        ...     return (candidate.values["k2"] - 40) ** 2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = ss.search(train, folder, {"k1": [16, 32], "k2": "k1,2*k1"})
        >>> result.best.values, len(result.trials)
        ({'k1': 16, 'k2': 32}, 4)
    """
    budgets = {"timesteps": timesteps, "updates": updates, "seconds": seconds}
    for name, value in {"evaluations": evaluations, **budgets}.items():
        least = 0.001 if name == "seconds" else 1
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name} is at least {least:g}, got {value}")
    budget = {name: value for name, value in budgets.items() if value is not None}
    where = Workers(client=client, threads=workers, scheduler=scheduler)
    folder = Path(out).absolute()
    _check_sampler(sampler, trials)
    advised = space is None or bool(advice)
    space = _space_of(space or {}, least=0 if advised else 1)
    function: Callable[[Candidate], float]
    if callable(what):
        if settings is not None or budget:
            raise ValueError(
                "settings and budgets are the reference trainer's, got some for a function: it has its own"
            )
        if advised:
            raise ValueError("advice is on the reference trainer, got a function: name values, such as k1=[32, 64]")
        function, about = what, {"function": getattr(what, "__qualname__", type(what).__qualname__)}
    else:
        if len(budget) > 1:
            raise ValueError(
                "every candidate gets the same budget, in timesteps, in updates or in seconds: give one of them"
            )
        store = what if isinstance(what, Store) else open_store(what)
        _check(space)
        settings = settings or usual_settings(timesteps, evaluations)
        if advised:
            from streamseq.search.start import starting_point

            folder_of = None if isinstance(advice, bool) else advice
            space, settings = starting_point(store, folder, space, settings, advice=folder_of, say=say)
        given = budget or {"timesteps": USUAL_TIMESTEPS}
        function, about = _training(store, settings, given, evaluations, _threads(where))
    total = _number_of_trials(space, sampler, trials)
    folder.mkdir(parents=True, exist_ok=True)
    whole = sampler == "grid" and total == len(space.grid())
    work = function.work if whole and isinstance(function, Training) else None
    study = open_study(folder, space, sampler=sampler, prune=prune, seed=seed, search=about, work=work)

    def result() -> SearchResult:
        return _result(study, folder, space, total, about)

    if progress is not None:
        progress(result())
    with _runners(where) as pool:
        for _ in _run(study, space, total, pool, folder, function, prune):
            if progress is not None:
                progress(result())
    found = result()
    if found.best is None:
        reasons = {trial.reason for trial in found.trials if trial.reason}
        raise StreamseqError(f"no candidate of {folder} could be trained: {'; '.join(sorted(reasons)[:3])}")
    checkpoint = folder / TRIALS / f"{found.best.number:04d}" / CHECKPOINT
    if checkpoint.exists():
        shutil.copyfile(checkpoint, folder / f".{BEST}")
        os.replace(folder / f".{BEST}", folder / BEST)
    return result()


def usual_settings(timesteps: int | None, evaluations: int, **given: Any) -> TrainingSettings:
    """The settings of a search that says no others: no more timesteps are evaluated than trained on, about.

    Args:
        timesteps: The budget; None: the usual one.
        evaluations: How often a candidate is evaluated.
        given: Settings that are given.
    """
    usual = TrainingSettings(**given)
    if "held_out_timesteps" in given:
        return usual
    # Without a backward pass a timestep takes a third of the time.
    most = max(2, 3 * (timesteps or USUAL_TIMESTEPS) // evaluations)
    return replace(usual, held_out_timesteps=min(usual.held_out_timesteps, most))


def _space_of(space: Mapping[str, Sequence[Value] | Range | str] | Space, least: int) -> Space:
    found = space if isinstance(space, Space) else Space.of(space)
    if len(found.choices) < least:
        raise ValueError("a search has at least one setting to choose, got none: name values, such as k1=[32, 64]")
    return found


def _check_sampler(sampler: str, trials: int | None) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"candidates are chosen by {', '.join(SAMPLERS)}, got {sampler!r}")
    if trials is not None and trials < 1:
        raise ValueError(f"a search has at least 1 trial, got {trials}")
    if trials is None and sampler != "grid":
        raise ValueError(f"a search by {sampler!r} has no end of its own: give the number of trials")


def _number_of_trials(space: Space, sampler: str, trials: int | None) -> int:
    if sampler == "grid":
        whole = len(space.grid())
        return whole if trials is None else min(trials, whole)
    assert trials is not None
    return trials


def _threads(where: Workers) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if where.client is not None or where.scheduler is not None else max(1, cores // (where.threads or 1))


def _training(
    store: Store, settings: TrainingSettings, budget: Mapping[str, float], evaluations: int, threads: int
) -> tuple[Training, dict[str, Any]]:
    if not settings.held_out:
        raise ValueError("candidates are judged by held-out sequences, got held_out=0: hold some out")
    counts = {name: int(budget[name]) if name in budget else None for name in ("timesteps", "updates")}
    training = Training(
        store=store.uri,
        version=store.version,
        settings=settings,
        **counts,
        seconds=budget.get("seconds"),
        evaluations=evaluations,
        threads=settings.threads or threads,
    )
    about = {"store": store.uri, "fingerprint": store.fingerprint, "settings": asdict(settings), "budget": dict(budget)}
    return training, about | {"evaluations": evaluations, "threads": training.threads}


def _check(space: Space) -> None:
    """Refuse settings that the trainer does not have, before anything is trained."""
    own = {"updates", "seconds", "epochs", "threads", "seed", "held_out", "held_out_timesteps", "log_every"}
    own |= {"evaluate_every", "evaluate_seconds", "checkpoint_every"}
    for name in space.choices:
        if name not in TrainingSettings.__dataclass_fields__:
            known = ", ".join(sorted(set(TrainingSettings.__dataclass_fields__) - own))
            raise ValueError(f"a search chooses settings of the trainer, got {name!r}: they are {known}")
        if name in own:
            raise ValueError(
                f"{name} is the same for every candidate, so that they can be compared: give it in settings"
            )


@contextmanager
def _runners(where: Workers) -> Iterator[Pool | None]:
    """The pool of processes; None where this process is enough."""
    if where.client is None and where.scheduler is None and (where.threads or 1) == 1:
        yield None
        return
    from streamseq.etl.cluster import connect

    with connect(where, threads=False) as pool:
        if pool.most_threads() > 1:
            raise ValueError(
                "a trial has a process of its own, for torch has one random generator in each: start the workers with "
                "--nthreads 1"
            )
        yield pool


def _run(
    study: optuna.Study,
    space: Space,
    total: int,
    pool: Pool | None,
    folder: Path,
    function: Callable[[Candidate], float],
    prune: bool,
) -> Iterator[None]:
    """Run what is not done; yields after each trial that has ended."""
    left = iter(unfinished(study))
    distributions = distributions_of(space)

    def following() -> FrozenTrial | None:
        for trial in left:
            return choose(study, trial, distributions)
        if len(study.get_trials(deepcopy=False)) - waiting(study) >= total:
            return None
        asked = study.ask(distributions)
        return study.get_trials(deepcopy=False)[asked.number]

    def task(trial: FrozenTrial) -> tuple[Any, ...]:
        return folder, function, prune, trial._trial_id, trial.number, space.resolve(chosen_of(trial, space))

    if pool is None:
        while (trial := following()) is not None:
            try:
                run_trial(*task(trial))
            except InterruptedError:
                raise KeyboardInterrupt from None
            yield
        return
    flying: list[Any] = []
    more = True
    while flying or more:
        while more and len(flying) < pool.num_threads():
            trial = following()
            more = trial is not None
            if trial is not None:
                flying.append(pool.submit(run_trial, *task(trial)))
        if not flying:
            return
        for future in pool.wait(flying):
            flying.remove(future)
            pool.result(future)
            yield


def _result(study: optuna.Study, folder: Path, space: Space, total: int, about: Mapping[str, Any]) -> SearchResult:
    found: list[Trial] = []
    for trial in ended(study):
        chosen = chosen_of(trial, space)
        found.append(trial_of(trial, chosen, space.resolve(chosen)))
    best = folder / BEST
    return SearchResult(
        out=str(folder),
        trials=tuple(found),
        planned=total,
        budget=dict(about.get("budget", {})),
        checkpoint=str(best) if best.exists() else None,
    )
