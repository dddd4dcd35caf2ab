"""Policies: from a truncation to the history that says where back-propagation starts, and to the grid of updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from streamseq.core.grid import Grid
from streamseq.core.truncation import Adaptive, Fixed, Random, Truncation
from streamseq.data.window import Window
from streamseq.tbptt.adaptive import AdaptiveHistory
from streamseq.tbptt.history import GridHistory, History
from streamseq.tbptt.influence import Influence, measure_influence
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.random_history import RandomHistory


def make_history(
    policy: Truncation,
    grid: Grid,
    *,
    all_losses: bool,
    model: StatefulModel,
    measure: Callable[[list[Window], Any, int, int], Influence],
) -> History:
    """The history of a truncation.

    Args:
        policy: The truncation.
        grid: As k1 and k2 were given.
        all_losses: Whether every loss since the start of back-propagation counts in each update.
        model: What is trained.
        measure: See `AdaptiveHistory`.

    Raises:
        TypeError: It is no truncation.
        ValueError: It does not go with the grid or the losses.
    """
    k1, losses = grid.k1, "window" if all_losses else "new"
    if isinstance(policy, Fixed):
        return GridHistory(grid, to_grid=all_losses)
    if isinstance(policy, Adaptive):
        if k1 is None or all_losses:
            raise ValueError(
                "adaptive truncation chooses k2 for updates of k1 timesteps whose losses are new, got "
                f'k1={k1}, losses={losses}: pass a number for k1, and losses="new"'
            )
        return AdaptiveHistory(policy, grid, measure)
    if not isinstance(policy, Random):
        raise TypeError(f"truncation is ss.truncation.Fixed(), Random(mean) or Adaptive(bias), got {policy!r}")
    if k1 is None or grid.k2 is not None or all_losses:
        raise ValueError(
            "random truncation has cuts instead of k2, after each of which losses are new once, got "
            f'k1={k1}, k2={grid.k2}, losses={losses}: pass a number for k1, k2=None and losses="new"'
        )
    return RandomHistory(policy.with_unit(k1), model)


def measurer(
    policy: Truncation,
    model: Callable[..., Any],
    loss: Callable[..., Any],
    inputs: Inputs,
    lane_axis: Any,
    autocast: torch.dtype | None,
) -> Callable[[list[Window], Any, int, int], Influence]:
    """What measures the influence on a probe, from the state before it, at a stride and up to a lag."""
    tau = policy.tau if isinstance(policy, Adaptive) else None

    def measure(probe: list[Window], state: Any, stride: int, lags: int) -> Influence:
        return measure_influence(
            model,
            loss,
            probe,
            inputs=inputs,
            state=state,
            stride=stride,
            lags=lags,
            tau=tau,
            lane_axis=lane_axis,
            autocast=autocast,
        )

    return measure


def fit_grid(policy: Truncation, grid: Grid, window: int | None, longest: int | None) -> Grid:
    """The grid for windows and sequences of given lengths; see `Grid.fit`."""
    if not isinstance(policy, Adaptive):
        return grid.fit(window, longest)
    # The largest k2 is a number, also where it is n.
    k1 = grid.fit(window, longest).k1
    numbers = [number for number in (grid.k2, longest) if number is not None]
    return Grid(k1=k1, k2=None if not numbers else max(min(numbers), k1 or 1))
