"""The study of a search: what Optuna remembers of its trials, in a journal that several processes may write at once."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from streamseq.core.errors import ResumeError
from streamseq.search.space import Range, Space, Value

NAME = "streamseq"
JOURNAL = "study.log"
#: What the study remembers of a search, and of a trial beside its parameters.
SEARCH, SECONDS, FIGURES, REASON = "search", "seconds", "figures", "reason"
SAMPLERS = ("grid", "random", "tpe")
# Of successive halving: a third of the candidates goes on at each rung.
REDUCTION = 3
# Of the differences to another search.
_SHOWN = 4

optuna.logging.set_verbosity(optuna.logging.WARNING)


def storage_of(folder: Path) -> JournalStorage:
    """The storage in the folder of a search; `optuna-dashboard FOLDER/study.log` shows it."""
    return JournalStorage(JournalFileBackend(os.fspath(folder / JOURNAL)))


def open_study(
    folder: Path,
    space: Space,
    *,
    sampler: str,
    prune: bool,
    seed: int,
    search: Mapping[str, Any],
    work: Callable[[Mapping[str, Value]], float] | None = None,
) -> optuna.Study:
    """The study of a search, new or as it was left.

    Args:
        folder: Of the search.
        space: What is tried.
        sampler: One of `SAMPLERS`.
        prune: Whether candidates that fall behind are stopped.
        seed: Of the sampler.
        search: All else that the trials depend on, as JSON holds it: a search goes on only with the same.
        work: About how long a candidate of a grid takes, resolved: those that take longest begin first, so that
            workers come to an end together.

    Raises:
        ResumeError: Another search was begun in the folder.
        ValueError: There is no such sampler, or a grid is wanted of ranges.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"candidates are chosen by {', '.join(SAMPLERS)}, got {sampler!r}")
    grid = space.grid() if sampler == "grid" else []
    said = {**search, "sampler": sampler, "prune": prune, "seed": seed, "space": _document(space)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            storage=storage_of(folder),
            study_name=NAME,
            load_if_exists=True,
            direction="minimize",
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=8, constant_liar=True)
            if sampler == "tpe"
            else optuna.samplers.RandomSampler(seed=seed),
            pruner=pruner_of(prune),
        )
    before = study.user_attrs.get(SEARCH)
    if before is None:
        study.set_user_attr(SEARCH, said)
    elif before != json.loads(json.dumps(said)):
        other = list(_differences(before, json.loads(json.dumps(said))))
        raise ResumeError(
            f"a search goes on with what it was begun with, and in {folder} {'; '.join(other[:_SHOWN])}: repeat that "
            "one, or take another folder"
        )
    if work is not None:
        grid.sort(key=lambda chosen: -work(space.resolve(chosen)))
    for chosen in grid:
        study.enqueue_trial(named(chosen), skip_if_exists=True)
    return study


def pruner_of(prune: bool) -> optuna.pruners.BasePruner:
    """What stops candidates that fall behind: successive halving over the evaluations, or nothing."""
    if not prune:
        return optuna.pruners.NopPruner()
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)


def named(chosen: Mapping[str, Value]) -> dict[str, str | float]:
    """A candidate as the study knows it: its values as text, so that `n` is one, too."""
    return {name: json.dumps(value) if not isinstance(value, float) else value for name, value in chosen.items()}


def distributions_of(space: Space) -> dict[str, optuna.distributions.BaseDistribution]:
    """How each setting is spread over its values."""
    found: dict[str, optuna.distributions.BaseDistribution] = {}
    for name, values in space.choices.items():
        if isinstance(values, Range):
            if isinstance(values.low, int) and isinstance(values.high, int):
                found[name] = optuna.distributions.IntDistribution(values.low, values.high, log=values.log)
            else:
                found[name] = optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
        else:
            found[name] = optuna.distributions.CategoricalDistribution(list(named_values(values)))
    return found


def named_values(values: tuple[Value, ...]) -> list[str | float]:
    """Values as the study knows them."""
    return [value if isinstance(value, float) else json.dumps(value) for value in values]


def chosen_of(trial: FrozenTrial, space: Space) -> dict[str, Value]:
    """The candidate of a trial, unresolved."""
    return {
        name: json.loads(value) if isinstance(value := trial.params[name], str) else value for name in space.choices
    }


def unfinished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that were begun by a process that is gone, in their order."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def choose(
    study: optuna.Study, trial: FrozenTrial, distributions: Mapping[str, optuna.distributions.BaseDistribution]
) -> FrozenTrial:
    """A trial with all its parameters, also where it was begun by a process that was killed before it chose them."""
    if trial.params.keys() == distributions.keys():
        return trial
    begun = optuna.Trial(study, trial._trial_id)
    for name, each in distributions.items():
        if isinstance(each, optuna.distributions.CategoricalDistribution):
            begun.suggest_categorical(name, each.choices)
        elif isinstance(each, optuna.distributions.IntDistribution):
            begun.suggest_int(name, each.low, each.high, log=each.log)
        elif isinstance(each, optuna.distributions.FloatDistribution):
            begun.suggest_float(name, each.low, each.high, log=each.log)
    return study.get_trials(deepcopy=False)[trial.number]


def waiting(study: optuna.Study) -> int:
    """How many candidates of a grid were not begun."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))


def ended(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have come to an end, in their order."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], of: str = "") -> Iterator[str]:
    for name in dict.fromkeys([*before, *now]):
        was, is_ = before.get(name), now.get(name)
        if isinstance(was, dict) and isinstance(is_, dict):
            yield from _differences(was, is_, f"{of}{name} ")
        elif was != is_:
            yield f"{of}{name} was {was} and is {is_}"


def _document(space: Space) -> dict[str, Any]:
    return {
        name: [values.low, values.high, values.log] if isinstance(values, Range) else list(values)
        for name, values in space.choices.items()
    }
