"""What the model of a checkpoint says about every timestep of a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from streamseq.storage.interface import Store
from streamseq.training.build import load_run
from streamseq.training.predict import PredictReport, open_input, predict
from streamseq.training.predict_outputs import outputs_of
from streamseq.training.task import Task
from streamseq.training.threads import available_cores, candidate_threads, choose_threads


def predict_checkpoint(
    store: Store | str | os.PathLike[str],
    checkpoint: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    what: Sequence[str] | None = None,
    lanes: int = 32,
    window: int = 256,
    workers: int = 0,
    threads: int | None = None,
    backend: str | None = None,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> PredictReport:
    """Run the model of a checkpoint of the trainer over a store, and write what it says about every timestep.

    Numbers are normalised as they were in training, and forecasts are written in the unit of their field.

    Args:
        store: A store, or where one lies, with the fields that the model was trained on.
        checkpoint: A checkpoint that the trainer wrote.
        uri: Where to put the new store.
        what: Names of quantities, see `LanguageOutputs` and `ForecastOutputs`; None: "nll" or "forecast".
        lanes, window, workers, backend, restart, progress: See `predict`.
        threads: torch's threads in each process; None: the number with which the model is fastest, probed, at most a
            worker's share of the cores.

    Raises:
        ResumeError: It is no such checkpoint; or see `predict`.
        ValueError: The store has not the fields that the model reads, or something is named that there is not; or see
            `predict`.
    """
    run = load_run(checkpoint)
    opened = open_input(store, uri, restart=restart)
    run.task.check(opened)
    options: dict[str, Any] = {name: value for name, value in run.task.stream_options().items() if name != "fields"}
    return predict(
        run.model,
        opened,
        uri,
        outputs=outputs_of(run.task, None if what is None else tuple(what), dict(opened.fields)),
        inputs=run.task.inputs,
        lanes=lanes,
        window=window,
        workers=workers,
        threads=threads or _probe_threads(run.model, run.task, lanes, window, workers),
        backend=backend,
        restart=restart,
        progress=progress,
        **options,
    )


def _probe_threads(model: nn.Module, task: Task, lanes: int, window: int, workers: int) -> int:
    share = max(1, available_cores() // max(1, workers))
    x = task.example(lanes, min(256, window))
    with torch.no_grad():
        return choose_threads(lambda: model(x, None), candidate_threads(share))
