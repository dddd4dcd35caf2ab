"""Streamed losses: the mean loss over a stream for loops that hand over one window at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from streamseq.core.tokens import StateToken
from streamseq.data.carry import check_follows
from streamseq.data.window import Window
from streamseq.integrations.across_ranks import rank_and_world_size
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.ranks import unwrapped
from streamseq.training.evaluate import Evaluation


class StreamedLoss:
    """Runs a model over windows with a carried state of its own, without gradients, and averages over valid timesteps.

    It gives what `streamseq.training.evaluate` gives. The model is in the mode in which it is left.

    Args:
        model: `model(inputs, state) -> (outputs, state)`.
        loss: `loss(outputs, window)`, one loss in nats per timestep.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        lane_axis: See `streamseq.Carry`.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.arange(5, dtype=np.float32)}})
        >>> mean = StreamedLoss(lambda x, s: (x, x.sum(1)), lambda y, window: y)
        >>> for window in ss.StreamDataset(store, lanes=1, window=2):
        ...     mean.take(window)
        >>> mean.result()
        Evaluation(loss=2.0, num_timesteps=5)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        loss: Callable[[Any, Window], Tensor],
        *,
        inputs: Inputs = "x",
        lane_axis: Any = None,
    ) -> None:
        self._model = StatefulModel(unwrapped(model), loss, inputs, lane_axis)
        self.reset()

    def reset(self) -> None:
        """Begin anew, with the first window of a stream."""
        self._state: Any = None
        self._previous: StateToken | None = None
        self._device = torch.device("cpu")
        self._total, self._count = 0.0, 0

    @torch.no_grad()
    def take(self, window: Window) -> None:
        """Take the next window, and add its losses.

        Raises:
            ContinuityError: It does not follow the one before on some lane.
        """
        for part, outputs in self.outputs(window):
            self._total += float(self._model.losses(outputs, part)[part.mask].sum(dtype=torch.float64))
        self._count += int(window.mask.sum())

    @torch.no_grad()
    def outputs(self, window: Window) -> list[tuple[Window, Any]]:
        """Take the next window without its losses.

        Returns:
            Its parts, cut where lanes stop or sequences start inside it, and the outputs of each.

        Raises:
            ContinuityError: It does not follow the one before on some lane.
        """
        check_follows(window.token, self._previous)
        self._previous, self._device = window.token, window.mask.device
        parts = []
        for part, outputs, after in self._model.through(window, self._state):
            self._state = after
            parts.append((part, outputs))
        return parts

    def result(self) -> Evaluation:
        """The mean over the timesteps so far, of all ranks, which all call it.

        Raises:
            ValueError: No timestep was valid.
        """
        total, count = self._total, self._count
        if rank_and_world_size()[1] > 1:
            both = torch.tensor([total, count], dtype=torch.float64, device=self._device)
            torch.distributed.all_reduce(both)
            total, count = float(both[0]), int(both[1])
        if not count:
            raise ValueError("a mean loss needs at least one timestep with a target, got none: pass longer sequences")
        return Evaluation(loss=total / count, num_timesteps=count)
