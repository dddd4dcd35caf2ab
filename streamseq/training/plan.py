"""What a run of the reference trainer is going to need, before anything runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from streamseq.core.grid import Grid
from streamseq.core.layout import Occupancy
from streamseq.core.sizes import format_bytes, parse_bytes
from streamseq.storage.interface import Store
from streamseq.tbptt.memory import Memory, choose_segment, longest_cohort
from streamseq.tbptt.memory import predict as predict_memory
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.probe import probe
from streamseq.tbptt.replay import Replay
from streamseq.training.build import build_streams
from streamseq.training.end import updates_of_epoch
from streamseq.training.settings import TrainingSettings

# A parameter, its gradient, and Adam's two averages.
_COPIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a run needs and what an epoch of it is.

    Args:
        memory: Of an update.
        model_bytes: Of parameters, their gradients and the optimizer's state.
        lanes, window, k1, k2: What it is for; k1 and k2 are None where they are n, window where sequences
            are read whole.
        longest: Timesteps n of the longest sequence.
        windows, updates, timesteps: Of an epoch; without the sequences that are held out.
        occupancy: How full the lanes are.
    """

    memory: Memory
    model_bytes: int
    lanes: int
    window: int | None
    k1: int | None
    k2: int | None
    longest: int
    windows: int
    updates: int
    timesteps: int
    occupancy: Occupancy

    def as_dict(self) -> dict[str, Any]:
        """The figures by name; those of an update's memory under "memory"."""
        shares = {"busy": self.occupancy.busy, "filled": self.occupancy.filled}
        return asdict(self) | {"memory": self.memory.as_dict(), "occupancy": asdict(self.occupancy) | shares}

    def as_table(self) -> str:
        """The figures for people."""
        k1, k2 = ("n" if k is None else f"{k:,}" for k in (self.k1, self.k2))
        windows = "windows of whole sequences" if self.window is None else f"windows of {self.window:,} timesteps"
        return "\n".join(
            [
                f"TBPTT({k1}, {k2}) on {self.lanes:,} lanes, {windows}, sequences of up to {self.longest:,}",
                self.memory.as_table(),
                f"beside that {format_bytes(self.model_bytes)} for parameters, gradients and optimizer, and what "
                "reading takes (StreamDataset's memory)",
                f"an epoch: {self.windows:,} windows, {self.updates:,} updates, {self.timesteps:,} timesteps; "
                f"{100 * self.occupancy.busy:.1f} % of the lane-windows are busy, "
                f"{100 * self.occupancy.filled:.1f} % of their timesteps are filled",
            ]
        )


def plan(
    store: Store,
    settings: TrainingSettings,
    *,
    model: nn.Module | None = None,
    memory: int | str | None = None,
) -> TrainingPlan:
    """Say what a run with these settings needs: its first window is read, and its model run on a few timesteps.

    Args:
        store: What is trained on.
        settings: Of the run.
        model: A trained one, in place of a new one as the settings describe it.
        memory: A budget for an update, in bytes or as text such as "500MB", which chooses the segment.

    Raises:
        ValueError: The store cannot be trained on so, `memory` is too little, or `memory` and `segment` are both given.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({f"{i}": {"x": np.arange(200, dtype=np.uint8)} for i in range(4)})
        >>> settings = TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, held_out=0)
        >>> found = plan(store, settings)
        >>> found.windows, found.updates, found.memory.segment
        (26, 26, 32)
    """
    memory = settings.memory if memory is None else memory
    budget = None if memory is None else parse_bytes(memory)
    if budget is not None and settings.segment is not None:
        raise ValueError(
            f"a budget chooses the segment, got memory={format_bytes(budget)} and segment={settings.segment}: pass one"
        )
    streams = build_streams(store, settings)
    stream, task = streams.train, streams.task
    window = stream.window
    grid = Grid(k1=settings.k1, k2=settings.k2).fit(window, stream.plan.longest)
    # The trainer's generator goes on from the parameters; here nothing may move it.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        if model is None:
            model = task.build(settings).to(settings.device)
        found = probe(
            StatefulModel(model, task.loss, task.inputs, None),
            Replay(model),
            stream[0].to(settings.device),
        )
    n = stream.plan.longest if grid.k1 is not None else longest_cohort(stream.plan)
    options: dict[str, Any] = {"k1": grid.k1, "k2": grid.k2, "n": n, "window": window}
    segment = settings.segment if budget is None else choose_segment(found, budget, **options)
    epoch = replace(settings, k1=grid.k1, k2=grid.k2)
    return TrainingPlan(
        memory=predict_memory(found, **options, segment=segment),
        model_bytes=_COPIES * sum(parameter.nbytes for parameter in model.parameters()),
        lanes=settings.lanes,
        window=window,
        k1=grid.k1,
        k2=grid.k2,
        longest=stream.plan.longest,
        windows=len(stream),
        updates=updates_of_epoch(stream, epoch),
        timesteps=stream.num_timesteps,
        occupancy=stream.occupancy,
    )
