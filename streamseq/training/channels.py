"""Channels of numeric fields: how each is normalised, which can be learnt, and what share of the values is there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from streamseq.storage.interface import Store
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.statistics.describe import statistics as compute_statistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """What is known of the channels of a field: its numbers a timestep, in C order.

    Args:
        shape: The step shape of the field.
        offset, scale: Of each channel: values are normalised to (value - offset) / scale.
        varies: Whether a channel has values that differ. One that has not teaches nothing.
        empty: Whether a channel has no value at all.
        present: The share of the values of varying channels that are there, neither NaN nor infinite.
    """

    shape: tuple[int, ...]
    offset: tuple[float, ...]
    scale: tuple[float, ...]
    varies: tuple[bool, ...]
    empty: tuple[bool, ...]
    present: float

    @property
    def count(self) -> int:
        """Numbers a timestep."""
        return math.prod(self.shape)

    def normalization(self) -> tuple[Any, Any]:
        """Offset and scale, float64 of the step shape, as `StreamDataset(normalize={name: ...})` takes them."""
        return np.reshape(self.offset, self.shape), np.reshape(self.scale, self.shape)

    @classmethod
    def of(cls, name: str, statistics: Statistics) -> Self:
        """From the statistics of a field: mean and standard deviation of each channel.

        Raises:
            ValueError: A sum of its values is not finite.
        """
        if not np.isfinite(statistics.mean).all() or not np.isfinite(statistics.std).all():
            raise ValueError(
                f"values of {name!r} are too large to be normalised, their sum is no number: ingest them in another "
                "unit, or name other fields as inputs and targets"
            )
        empty = (statistics.count == 0).reshape(-1)
        varies = (statistics.min != statistics.max).reshape(-1) & ~empty & (statistics.std > 0).reshape(-1)
        every = (statistics.count + statistics.missing + statistics.infinite).reshape(-1)
        total = int(every[varies].sum())
        return cls(
            shape=statistics.field.shape,
            offset=tuple(statistics.mean.reshape(-1).tolist()),
            scale=tuple(np.where(varies, statistics.std.reshape(-1), 1.0).tolist()),
            varies=tuple(varies.tolist()),
            empty=tuple(empty.tolist()),
            present=int(statistics.count.reshape(-1)[varies].sum()) / total if total else 0.0,
        )

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> Self:
        """From `asdict`, as a checkpoint holds it."""
        lists = {name: tuple(values[name]) for name in ("shape", "offset", "scale", "varies", "empty")}
        return cls(**lists, present=values["present"])


def statistics_of(store: Store, names: Sequence[str]) -> Mapping[str, Statistics]:
    """The statistics of some fields: those that are kept with the store, or computed by reading the fields once.

    Raises:
        ValueError: A field has too many numbers a timestep.
    """
    kept = store.statistics
    if kept is not None and all(name in kept for name in names):
        return kept
    return compute_statistics(store, fields=list(names))
