"""From settings and the fields of a store to the task: what can be tokens, what is a time, what are numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from streamseq.storage.interface import Store
from streamseq.training.channels import Channels, statistics_of
from streamseq.training.forecast import ForecastTask
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import LanguageTask, Task, listed_fields

# More tokens than that are hardly a vocabulary, and times and counters go beyond it.
MOST_TOKENS = 1 << 16
# Timesteps, and sequences, that are looked at to know a time from tokens.
LOOKED_AT, LOOKED_INTO = 1024, 8
FEWEST = 8


def find_task(store: Store, settings: TrainingSettings) -> Task:
    """What a run with these settings learns of a store.

    With `task="auto"`: bytes or tokens, where `field` holds such and no inputs or targets are named; else a forecast of
    the inputs and targets. Where those are not named they are all fields of floats; where there are none, all of
    integers that are neither a time nor a counter.

    Tokens are whole numbers from 0 to at most 65,535, one a timestep. A field of integers that never falls from one
    timestep to the next is a time or a counter.

    Raises:
        ValueError: There is no such field, or the store has nothing that the task could learn.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> rows = {"time": np.arange(50), "wind": np.arange(50) % 7.0}
        >>> task = find_task(ss.from_arrays({"a": rows}), TrainingSettings())
        >>> task.describe()
        'forecasting 1 channel of wind one timestep ahead; left out: time'
    """
    named = [*(settings.inputs or ()), *(settings.targets or ())]
    for name in named:
        _check_there(store, name)
    if settings.task == "language":
        return _language(store, settings.field)
    if settings.task == "forecast" or named:
        return _forecast(store, settings)
    if settings.field in store.fields and vocabulary_of(store, settings.field) is not None:
        return _language(store, settings.field)
    if settings.field != TrainingSettings().field:
        return _language(store, settings.field)  # which says what is wrong with it
    return _forecast(store, settings)


def task_of_saved(values: Mapping[str, Any] | None, settings: TrainingSettings) -> Task:
    """The task of a run, from its checkpoint.

    Args:
        values: What `as_dict` gave; None: of a run from before there were tasks, which learnt bytes.
        settings: Of the run.
    """
    if values is None:
        return LanguageTask(field=settings.field)
    rest = {name: value for name, value in values.items() if name != "kind"}
    if values["kind"] == "forecast":
        return ForecastTask.from_saved(rest)
    return LanguageTask(**rest | {"left_out": tuple(rest["left_out"])})


def vocabulary_of(store: Store, name: str) -> int | None:
    """How many tokens a field has, 256 for bytes; None where it does not hold tokens."""
    field = store.fields[name]
    if field.shape or field.dtype.kind not in "iu":
        return None
    if field.dtype == np.uint8:
        return 256
    statistics = statistics_of(store, [name])[name]
    least, most = int(statistics.min), int(statistics.max)
    if not statistics.count or least < 0 or most >= MOST_TOKENS or _never_falls(store, name):
        return None
    return most + 1


def _never_falls(store: Store, name: str) -> bool:
    """Whether the numbers of the first sequences only rise: a time or a counter."""
    rises, seen = False, 0
    for index in np.flatnonzero(store.lengths > 1)[:LOOKED_INTO].tolist():
        stop = min(int(store.lengths[index]), LOOKED_AT)
        values = store.read(index, 0, stop, fields=[name])[name]
        if (values[1:] < values[:-1]).any():
            return False
        rises |= bool(values[-1] > values[0])
        seen += stop
    return rises and seen >= FEWEST


def _language(store: Store, name: str) -> LanguageTask:
    _check_there(store, name)
    vocabulary = vocabulary_of(store, name)
    if vocabulary is None:
        field = store.fields[name]
        raise ValueError(
            f"a language model learns bytes or tokens, one whole number from 0 to {MOST_TOKENS - 1:,} a timestep that "
            f"is no time, and {name!r} of {store.uri} is {field.dtype} with step shape {field.shape}: name another "
            f"field, or forecast numbers with inputs={name}"
        )
    return LanguageTask(field=name, vocabulary=vocabulary, left_out=_others(store, [name]))


def _forecast(store: Store, settings: TrainingSettings) -> ForecastTask:
    inputs, targets = settings.inputs, settings.targets
    if inputs is None:
        inputs = _numbers(store) or targets
    if not inputs:
        raise ValueError(
            f"training learns bytes, tokens or numbers, and {store.uri} has {listed_fields(store)}: name fields as "
            "inputs, ingest columns of numbers, or write a loop of your own around ss.TBPTT"
        )
    if targets is None:
        targets = inputs
    used = list(dict.fromkeys([*inputs, *targets]))
    for name in used:
        if store.fields[name].dtype.kind == "b":
            raise ValueError(
                f"numbers are forecast, and {name!r} of {store.uri} is bool: name other fields as inputs and targets"
            )
    statistics = statistics_of(store, used)
    for name in used:
        if name not in statistics:
            raise ValueError(f"{name!r} of {store.uri} has too many numbers a timestep to forecast: name other fields")
    task = ForecastTask(
        inputs=list(inputs),
        targets=list(targets),
        horizon=settings.horizon,
        channels={name: Channels.of(name, statistics[name]) for name in used},
        left_out=_others(store, used),
    )
    if not any(task.varying):
        raise ValueError(
            f"there is nothing to forecast, as no channel of {', '.join(targets)} of {store.uri} has values that "
            "differ: name other fields as inputs and targets"
        )
    return task


def _numbers(store: Store) -> tuple[str, ...]:
    """The fields of floats; where there are none, the integers that are no times."""
    floats = tuple(name for name, field in store.fields.items() if field.dtype.kind == "f")
    if floats:
        return floats
    integers = [name for name, field in store.fields.items() if field.dtype.kind in "iu"]
    return tuple(name for name in integers if store.fields[name].shape or not _never_falls(store, name))


def _check_there(store: Store, name: str) -> None:
    if name not in store.fields:
        raise ValueError(f"training reads the field {name!r}, {store.uri} has {listed_fields(store)}: name one of them")


def _others(store: Store, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in store.fields if name not in names)
