"""Forecasting: numbers a few timesteps ahead, by squared error in normalised units."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from streamseq.data.window import Window
from streamseq.storage.interface import Store
from streamseq.training.channels import Channels
from streamseq.training.evaluate import Evaluation, evaluate
from streamseq.training.forecast_model import ForecastModel, channels_of
from streamseq.training.settings import TrainingSettings
from streamseq.training.task import listed_fields, named_left_out
from streamseq.training.unit import MSE

# A small table has few windows, and one epoch teaches nothing.
USUAL_UPDATES = 400
USUAL_HIDDEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastTask:
    """The values of some fields are forecast, `horizon` timesteps ahead, from those of some fields until now.

    Values are normalised channel by channel by mean and standard deviation. The loss is the mean squared error of the
    normalised values, over all values of all channels that are there: 1 is what forecasting the mean gives. Values that
    are missing do not count, and neither do channels whose values never differ.

    Args:
        inputs: The fields that the model gets.
        targets: The fields that are forecast.
        horizon: How many timesteps ahead, at least 1.
        channels: By field, of inputs and targets.
        left_out: What else the store has, for the description.
    """

    inputs: list[str]
    targets: list[str]
    horizon: int
    channels: dict[str, Channels]
    left_out: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Of a forecast."""
        return "forecast"

    @property
    def unit(self) -> str:
        """Mean squared error, in variances."""
        return MSE

    @property
    def least(self) -> int:
        """One, and one that is `horizon` later."""
        return 1 + self.horizon

    @property
    def usual_updates(self) -> int:
        """So many at least, in whole epochs."""
        return USUAL_UPDATES

    @property
    def varying(self) -> tuple[bool, ...]:
        """Of each channel of the targets, whether it is forecast."""
        return tuple(varies for name in self.targets for varies in self.channels[name].varies)

    def ahead(self, target: str) -> str:
        """Under which name windows hold the values of a target that are forecast. No field has such a name."""
        return f"{target}+{self.horizon}"

    def stream_options(self) -> dict[str, Any]:
        """Inputs and targets normalised, and what is forecast as lookaheads."""
        names = list(dict.fromkeys([*self.inputs, *self.targets]))
        return {
            "fields": names,
            "lookahead": {self.ahead(name): (name, self.horizon) for name in self.targets},
            "normalize": {name: self.channels[name].normalization() for name in names},
        }

    def check(self, store: Store) -> None:
        """Fields of numbers with the same step shapes."""
        for name, channels in self.channels.items():
            field = store.fields.get(name)
            if field is None or field.shape != channels.shape or field.dtype.kind not in "iuf":
                raise ValueError(
                    f"the model reads the field {name!r} of numbers with step shape {channels.shape}, {store.uri} has "
                    f"{listed_fields(store)}: pass a store with such a field"
                )

    def as_settings(self) -> dict[str, Any]:
        """A forecast of the targets from the inputs."""
        fields = {"inputs": tuple(self.inputs), "targets": tuple(self.targets)}
        return {"task": self.kind, "horizon": self.horizon, **fields}

    def example(self, lanes: int, steps: int) -> tuple[Tensor, ...]:
        """Zeros."""
        return tuple(torch.zeros(lanes, steps, *self.channels[name].shape) for name in self.inputs)

    def build(self, settings: TrainingSettings) -> ForecastModel:
        """Of as many channels as there are."""
        counts = [self.channels[name].count for name in self.inputs]
        first = dict(zip(self.inputs, accumulate(counts, initial=0), strict=False))
        stays = [
            first[name] + channel if name in first else None
            for name in self.targets
            for channel in range(self.channels[name].count)
        ]
        return ForecastModel(
            inputs=sum(counts),
            stays=stays,
            cell=settings.cell,
            hidden=settings.hidden or USUAL_HIDDEN,
            layers=settings.layers,
            dropout=settings.dropout,
        )

    def errors(self, outputs: Tensor, window: Window) -> tuple[Tensor, Tensor]:
        """Squared errors, 0 where a value is missing or of a channel that is not forecast; and which values count.

        Args:
            outputs: float [B, K, D], normalised.
            window: With what is forecast.

        Returns:
            float [B, K, D] and bool [B, K, D]; the mask of the window is not in them.
        """
        target = channels_of([window[self.ahead(name)] for name in self.targets])
        there = target.isfinite() & torch.tensor(self.varying, device=target.device)
        # Both before and after the square: neither a value nor a derivative comes from what is not there.
        error = torch.where(there, outputs - torch.where(there, target, 0.0), 0.0)
        return error.square(), there

    def loss(self, outputs: Tensor, window: Window) -> Tensor:
        """The squared error of a timestep's values, added up, by how many there are of a timestep on average.

        The mean over many timesteps is so the mean squared error of all values that are there.
        """
        found = [self.channels[name] for name in self.targets]
        usual = sum(each.present * sum(each.varies) for each in found)
        return self.errors(outputs, window)[0].sum(-1) / usual

    def evaluate(self, model: nn.Module, windows: Iterable[Window]) -> Evaluation:
        """The mean squared error of all values that are there, counted exactly."""
        total, count = 0.0, 0

        def losses(outputs: Tensor, window: Window) -> Tensor:
            nonlocal total, count
            squares, there = self.errors(outputs, window)
            counts = window.mask.unsqueeze(-1)
            total += float(torch.where(counts, squares, 0.0).sum(dtype=torch.float64))
            count += int((there & counts).sum())
            return squares.sum(-1)

        timesteps = evaluate(model, losses, windows, inputs=self.inputs).num_timesteps
        if not count:
            raise ValueError(
                f"an evaluation needs values to compare with, and what is held out of {', '.join(self.targets)} has "
                "none: hold out more, or take another seed"
            )
        return Evaluation(loss=total / count, num_timesteps=timesteps)

    def in_original_units(self, target: str, values: Tensor) -> Tensor:
        """Forecasts in the unit of the field, NaN for channels that have no value in the store.

        Args:
            target: Which of the targets.
            values: float [B, K, *S], normalised.

        Returns:
            float64 of the same shape.
        """
        channels = self.channels[target]
        offset, scale = (torch.as_tensor(each, device=values.device) for each in channels.normalization())
        empty = torch.from_numpy(np.reshape(channels.empty, channels.shape)).to(values.device)
        return torch.where(empty, torch.nan, values.double() * scale + offset)

    def describe(self) -> str:
        """In a few words."""
        ahead = "one timestep ahead" if self.horizon == 1 else f"{self.horizon:,} timesteps ahead"
        number, every = sum(self.varying), len(self.varying)
        what = "1 channel" if number == 1 else f"{number:,} channels"
        source = "" if self.inputs == self.targets else f" from {', '.join(self.inputs)}"
        empty = sum(sum(self.channels[name].empty) for name in self.targets)
        notes = []
        if every > number + empty:
            notes.append(f"{every - number - empty:,} never change")
        if empty:
            notes.append(f"{empty:,} have no value")
        never = f" ({' and '.join(notes)}: not forecast)" if notes else ""
        return f"forecasting {what} of {', '.join(self.targets)}{source} {ahead}{never}{named_left_out(self.left_out)}"

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> Self:
        """From `as_dict` without its kind."""
        channels = {name: Channels.from_saved(each) for name, each in values["channels"].items()}
        return cls(**{**values, "channels": channels, "left_out": tuple(values["left_out"])})
