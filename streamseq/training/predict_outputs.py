"""What the models of the trainer say of a timestep, as fields of a new store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from streamseq.core.fields import Field
from streamseq.data.window import Window
from streamseq.training.forecast import ForecastTask
from streamseq.training.model import BYTES, next_byte_loss
from streamseq.training.predict_task import Outputs
from streamseq.training.task import LanguageTask, Task


def _nll(logits: Tensor, window: Window) -> Tensor:
    losses = next_byte_loss(logits, window)
    return torch.where(window.mask, losses, torch.nan).float()


def _entropy(logits: Tensor, window: Window) -> Tensor:
    chances = torch.log_softmax(logits, -1)
    return -(chances.exp() * chances).sum(-1).float()


def _likeliest(logits: Tensor, window: Window) -> Tensor:
    return logits.argmax(-1).to(torch.uint8 if logits.shape[-1] <= BYTES else torch.int32)


def _logits(logits: Tensor, window: Window) -> Tensor:
    return logits.float()


_OF_LANGUAGE: dict[str, Callable[[Tensor, Window], Tensor]] = {
    "nll": _nll,
    "entropy": _entropy,
    "likeliest": _likeliest,
    "logits": _logits,
}
_OF_FORECASTS = ("forecast", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageOutputs:
    """Fields of the logits of a language model, for `predict(outputs=)`. Those of timestep t are about x[t+1].

    - `nll`, float32: -ln p(x[t+1] | x[0], ..., x[t]) in nats, the model starting from its initial state before x[0].
      The last timestep of a sequence has no next one, and is NaN. (The first one is not predicted by anything.)
    - `entropy`, float32: of p(. | x[0], ..., x[t]), in nats; at the last timestep too.
    - `likeliest`, uint8, or int32 of more than 256 tokens: the one with the highest probability.
    - `logits`, float32 [V].

    Args:
        names: Which of them.

    Raises:
        ValueError: There is none, or one has another name or is named twice.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_names(self.names, tuple(_OF_LANGUAGE))

    def __call__(self, logits: Tensor, window: Window) -> dict[str, Tensor]:
        """The fields of a window.

        Args:
            logits: float [B, K, V].
            window: Its "target" is the next byte or token.
        """
        return {name: _OF_LANGUAGE[name](logits, window) for name in self.names}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastOutputs:
    """Fields of a forecast, for `predict(outputs=)`, in the unit of the field x that is forecast, of its step shape.

    - `x_forecast`: at timestep t what x[t + horizon] is going to be, as far as x[0], ..., x[t] say; so the last
      timesteps are about what comes after the end of the sequence. NaN for a channel that had no value in training.
    - `x_error`: that less x[t + horizon] itself; NaN where there is none.

    Both are float64 where x is, else float32.

    Args:
        names: "forecast", "error" or both.
        task: What the model forecasts.
        fields: Of the store.

    Raises:
        ValueError: There is none, or one has another name or is named twice.
    """

    names: tuple[str, ...]
    task: ForecastTask = field(repr=False)
    fields: dict[str, Field] = field(repr=False)

    def __post_init__(self) -> None:
        _check_names(self.names, _OF_FORECASTS)

    def __call__(self, outputs: Tensor, window: Window) -> dict[str, Tensor]:
        """The fields of a window.

        Args:
            outputs: float [B, K, D], normalised, of all targets.
            window: With what is forecast.
        """
        task = self.task
        made, first = {}, 0
        for target in task.targets:
            shape, count = task.channels[target].shape, task.channels[target].count
            normalised = outputs[..., first : first + count].reshape(*outputs.shape[:2], *shape)
            forecast = task.in_original_units(target, normalised)
            first += count
            dtype = torch.float64 if self.fields[target].dtype == np.float64 else torch.float32
            if "forecast" in self.names:
                made[f"{target}_forecast"] = forecast.to(dtype)
            if "error" in self.names:
                came = task.in_original_units(target, window[task.ahead(target)])
                known = window.mask.reshape(*window.mask.shape, *[1] * len(shape)) & came.isfinite()
                made[f"{target}_error"] = torch.where(known, forecast - came, torch.nan).to(dtype)
        return made


def outputs_of(task: Task, names: tuple[str, ...] | None, fields: dict[str, Field]) -> Outputs:
    """The fields that a task's model gives.

    Args:
        task: Of the model.
        names: Which; None: "nll" of a language model, "forecast" of a forecast.
        fields: Of the store.

    Raises:
        ValueError: There are no such for this task.
    """
    if isinstance(task, ForecastTask):
        return ForecastOutputs(names=names or _OF_FORECASTS[:1], task=task, fields=fields)
    assert isinstance(task, LanguageTask)
    return LanguageOutputs(names=names or ("nll",))


def _check_names(names: tuple[str, ...], known: tuple[str, ...]) -> None:
    if not names or len(set(names) & set(known)) != len(names):
        raise ValueError(
            f"what this model predicts is one or more of {', '.join(known)}, each once, got "
            f"{', '.join(names) or 'nothing'}"
        )
