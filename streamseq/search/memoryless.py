"""What a timestep alone tells of the next one: the loss that a model has to fall below to show that it remembers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from streamseq.data.dataset import StreamDataset
from streamseq.search.sample import Sample, Span
from streamseq.training.forecast import ForecastTask
from streamseq.training.forecast_model import channels_of
from streamseq.training.task import LanguageTask, Task

# Above this number of values pairs of them are too many to count.
_VALUES = 256
# Timesteps that a linear forecast is fitted to, and its ridge, in variances of the inputs.
_FITTED, _RIDGE = 1 << 16, 1e-3


def memoryless_loss(task: Task, sample: Sample, train: list[Span], held_out: list[Span]) -> float:
    """The loss on held-out timesteps of a forecast from the newest timestep alone.

    Of bytes and tokens by the frequencies of pairs, mixed with those of single values (Witten & Bell 1991), or by the
    latter alone where that is better; in nats. Of numbers by linear regression, as mean squared error.

    Args:
        task: What is learnt.
        sample: What of.
        train: Spans that the frequencies or weights are from.
        held_out: Spans that the loss is of.
    """
    if isinstance(task, ForecastTask):
        return _linear(task, sample, train, held_out)
    assert isinstance(task, LanguageTask)
    return _frequencies(task, sample, train, held_out)


def _frequencies(task: LanguageTask, sample: Sample, train: list[Span], held_out: list[Span]) -> float:
    def values(span: Span) -> NDArray[np.int64]:
        return sample.store.read(*span, [task.field])[task.field].astype(np.int64)

    size = task.vocabulary
    singles = np.ones(size)  # none is impossible (Laplace)
    pairs = np.zeros((size, size) if size <= _VALUES else (0, 0))
    for each in map(values, train):
        singles += np.bincount(each, minlength=size)
        if len(pairs):
            pairs += np.bincount(each[:-1] * size + each[1:], minlength=size * size).reshape(size, size)
    singles /= singles.sum()
    nats = -np.log(singles)
    if len(pairs):
        kinds = np.count_nonzero(pairs, 1, keepdims=True)
        mixed = (pairs + np.maximum(kinds, 1) * singles) / (pairs.sum(1, keepdims=True) + np.maximum(kinds, 1))
        of_pairs = -np.log(mixed)
    alone, together, count = 0.0, 0.0, 0
    for each in map(values, held_out):
        alone += float(nats[each[1:]].sum())
        together += float(of_pairs[each[:-1], each[1:]].sum()) if len(pairs) else np.inf
        count += len(each) - 1
    return min(alone, together) / count


def _linear(task: ForecastTask, sample: Sample, train: list[Span], held_out: list[Span]) -> float:
    inputs, targets = _rows(task, sample, train)
    square = inputs.T @ inputs + _RIDGE * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(square, inputs.T @ np.nan_to_num(targets))
    inputs, targets = _rows(task, sample, held_out)
    errors = np.square(targets - inputs @ weights)[:, list(task.varying)]
    return float(np.nanmean(errors)) if np.isfinite(errors).any() else float("nan")


def _rows(task: ForecastTask, sample: Sample, spans: list[Span]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Inputs with a 1 at the end, [n, C + 1], missing ones 0; and targets, [n, D], missing ones NaN."""
    stream = StreamDataset(sample.store, 1, 1024, sequences=spans, **task.stream_options())
    inputs: list[NDArray[np.float64]] = []
    targets: list[NDArray[np.float64]] = []
    for window in stream:
        mask = window.mask
        here = torch.nan_to_num(channels_of([window[name] for name in task.inputs])[mask]).double()
        inputs.append(np.concatenate([here.numpy(), np.ones((len(here), 1))], 1))
        ahead = channels_of([window[task.ahead(name)] for name in task.targets])[mask].double()
        targets.append(torch.where(ahead.isfinite(), ahead, torch.nan).numpy())
        if sum(map(len, inputs)) >= _FITTED:
            break
    return np.concatenate(inputs), np.concatenate(targets)
