"""What a forecast is held against: that the last value stays, and the mean."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from streamseq.data.window import Window
from streamseq.training.forecast import ForecastTask
from streamseq.training.forecast_model import channels_of

LAST_VALUE, MEAN = "last value", "mean"


def forecast_baselines(task: ForecastTask, windows: Iterable[Window]) -> dict[str, float]:
    """Mean squared errors of simple forecasts, over the same values as those of a model.

    Args:
        task: What is forecast.
        windows: A stream of `task.stream_options()`, from its start, with the naive split.

    Returns:
        "last value": what was last there in the sequence stays, or the mean where nothing was yet. "mean": of each
        channel over the whole store. NaN where there is no value to compare with.

    Example:
        >>> import streamseq as ss
        >>> from streamseq.training import TrainingSettings
        >>> from streamseq.training.choose_task import find_task
        >>> store = ss.from_arrays({"a": {"x": [0.0, 2.0, 0.0, 2.0]}})
        >>> task = find_task(store, TrainingSettings())
        >>> forecast_baselines(task, ss.StreamDataset(store, 1, 4, **task.stream_options()))
        {'last value': 4.0, 'mean': 1.0}
    """
    sums, count = {LAST_VALUE: 0.0, MEAN: 0.0}, 0
    last: torch.Tensor | None = None
    for window in windows:
        now = channels_of([window[name] for name in task.targets])
        if last is None:
            last = now.new_zeros(now.shape[0], now.shape[2])
        last[torch.from_numpy(window.token.reset)] = 0.0
        stays = _filled(now, last)
        last = stays[:, -1].clone()
        for name, forecast in ((LAST_VALUE, stays), (MEAN, torch.zeros_like(now))):
            squares, there = task.errors(forecast, window)
            counts = there & window.mask.unsqueeze(-1)
            sums[name] += float(torch.where(counts, squares, 0.0).sum(dtype=torch.float64))
        count += int(counts.sum())
    return {name: total / count if count else float("nan") for name, total in sums.items()}


def _filled(values: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Values [B, K, D], the last one that was there in place of each that is missing; `before` [B, D] came first."""
    held = torch.cat([before.unsqueeze(1), values], 1)
    there = held.isfinite()
    there[:, 0] = True
    places = torch.arange(held.shape[1]).view(1, -1, 1).expand_as(held)
    return held.gather(1, torch.where(there, places, 0).cummax(1).values)[:, 1:]
