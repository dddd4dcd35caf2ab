"""Evaluation: the mean loss over a stream, which is run through once with a carried state of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamseq.core.tokens import StateToken
from streamseq.data.carry import check_follows
from streamseq.data.window import Window
from streamseq.tbptt.burn_in import BurnIn
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.past import stream_of
from streamseq.tbptt.ranks import unwrapped
from streamseq.tbptt.replay import Replay


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The mean loss over the valid timesteps of a stream.

    Args:
        loss: In nats.
        num_timesteps: How many it is the mean of.
    """

    loss: float
    num_timesteps: int

    @property
    def bits(self) -> float:
        """The loss in bits."""
        return self.loss / math.log(2)


def evaluate(
    model: nn.Module,
    loss: Callable[[Any, Window], Tensor],
    windows: Iterable[Window],
    *,
    inputs: Inputs = "x",
    burn_in: int = 0,
    lane_axis: Any = None,
) -> Evaluation:
    """Stream through `windows` without gradients, and average the loss over all valid timesteps.

    The model is in eval mode meanwhile; its modes and the random generators are afterwards as they were.

    Args:
        model: `model(inputs, state) -> (outputs, state)`; one that starts from something else than zeros has
            `initial_state(B)`.
        loss: `loss(outputs, window)`, one loss in nats per timestep, [B, K] or [K, B] like the mask.
        windows: A stream or loader, from its start.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        burn_in: Where a lane starts in the middle of a sequence, as in a slice, its state is found by running so many
            timesteps before it; 0: it starts from the initial state.
        lane_axis: See `streamseq.Carry`.

    Raises:
        ValueError: No timestep is valid, or `burn_in` is wanted of something else than a stream or a loader over one.
    """
    inner = unwrapped(model)
    called, replay = StatefulModel(inner, loss, inputs, lane_axis), Replay(inner)
    stream = stream_of(windows)
    if burn_in:
        if stream is None:
            raise ValueError(f"burn_in={burn_in} reads what lies before windows: pass a stream, or a loader over one")
        called.begin = BurnIn(called, replay, stream, burn_in).state
    state: Any = None
    previous: StateToken | None = None
    total, count = 0.0, 0
    with _at_rest(model), torch.no_grad():
        for window in windows:
            check_follows(window.token, previous)
            previous = window.token
            for part, outputs, after in called.through(window, state):
                state = after
                total += float(called.losses(outputs, part)[part.mask].sum(dtype=torch.float64))
            count += int(window.mask.sum())
    if not count:
        raise ValueError("an evaluation needs at least one timestep with a target, got none: pass longer sequences")
    return Evaluation(loss=total / count, num_timesteps=count)


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, and nothing that is drawn changes what is drawn afterwards."""
    training = [module for module in model.modules() if module.training]
    devices = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    model.eval()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        for module in training:
            module.training = True
