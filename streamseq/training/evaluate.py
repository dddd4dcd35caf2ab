"""Evaluation: the mean loss over a stream, which is run through once with a carried state of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamseq.data.carry import Carry
from streamseq.data.window import Window


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
    model: nn.Module, loss: Callable[[Any, Window], Tensor], windows: Iterable[Window], *, inputs: str = "x"
) -> Evaluation:
    """Stream through `windows` without gradients, and average the loss over all valid timesteps.

    The model is in eval mode meanwhile; its modes and the random generators are afterwards as they were.

    Args:
        model: `model(inputs, state) -> (outputs, state)`; one that starts from something else than zeros has
            `initial_state(B)`.
        loss: `loss(outputs, window)`, one loss in nats per timestep, [B, K] or [K, B] like the mask.
        windows: A stream or loader, from its start.
        inputs: The name of the field that the model gets.

    Raises:
        ValueError: No timestep is valid.
    """
    carry = Carry(model if callable(getattr(model, "initial_state", None)) else None)
    total, count = 0.0, 0
    with _at_rest(model), torch.no_grad():
        for window in windows:
            outputs, state = model(window[inputs], carry.enter(window.token))
            carry.leave(window.token, state)
            losses = loss(outputs, window)
            total += float(losses[window.mask].sum(dtype=torch.float64))
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
