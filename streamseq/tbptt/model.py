"""The user's model and loss: called on stretches of a window, and checked for what they return."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.data import state as states
from streamseq.data.window import Window
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.stretches import inner_borders, resets_at, stopped

Inputs = str | list[str] | tuple[str, ...] | Callable[[Window], Any]


class StatefulModel:
    """`model(inputs, state) -> (outputs, state)` and `loss(outputs, window)` on a window's timesteps.

    Args:
        model: The model; `state=None` at a start means zeros unless it has `initial_state(B)`. Where it has
            `advance(inputs, state) -> state`, that takes the state on where no output is needed.
        loss: Gives one loss per timestep.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        lane_axis: See `streamseq.Carry`.
        autocast: The dtype in which model and loss compute what torch deems fit; None: as they are.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        loss: Callable[[Any, Window], Tensor],
        inputs: Inputs,
        lane_axis: Any,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._model = model
        self._loss = loss
        self._inputs = inputs
        self._lane_axis = lane_axis
        self._autocast = autocast
        self._axes: dict[tuple[Any, ...], list[int | None]] = {}
        initial = getattr(model, "initial_state", None)
        self._initial: Callable[[int], Any] | None = initial if callable(initial) else None
        advance = getattr(model, "advance", None)
        self._advance: Callable[[Any, Any], Any] | None = advance if callable(advance) else None
        #: Gives the state before an offset of a window where sequences start, from the initial one; None: that itself.
        self.begin: Callable[[Window, int, Any], Any] | None = None

    def forward(self, window: Window, state: Any) -> tuple[Any, Any]:
        """Outputs and state of a window's timesteps.

        Raises:
            TypeError: The model returns something else than a pair.
        """
        with self._precision(window):
            result = self._model(self._pick(window), state)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"model(inputs, state) returns (outputs, state), got a {type(result).__name__}")
        return result

    def forward_state(self, window: Window, state: Any) -> Any:
        """The state after a window's timesteps."""
        return self.forward(window, state)[1]

    def advance(self, window: Window, state: Any) -> Any:
        """The state after a window's timesteps, of which no output is needed."""
        if self._advance is None:
            return self.forward_state(window, state)
        with self._precision(window):
            return self._advance(self._pick(window), state)

    def _precision(self, window: Window) -> AbstractContextManager[Any]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(window.mask.device.type, self._autocast)

    def _pick(self, window: Window) -> Any:
        if isinstance(self._inputs, str):
            return window[self._inputs]
        if callable(self._inputs):
            return self._inputs(window)
        return tuple(window[name] for name in self._inputs)

    def losses(self, outputs: Any, window: Window) -> Tensor:
        """The losses of a window's timesteps, [B, K] or [K, B], whether they are valid or not.

        Raises:
            TypeError: The loss is not a tensor.
            ValueError: It is not one loss per timestep.
        """
        with self._precision(window):
            losses = self._loss(outputs, window)
        if not isinstance(losses, Tensor):
            raise TypeError(f"loss(outputs, window) returns a tensor, got a {type(losses).__name__}")
        if losses.shape[:2] != window.mask.shape:
            raise ValueError(
                f"loss(outputs, window) returns one loss per timestep, {list(window.mask.shape)}, got "
                f"{list(losses.shape)}: use reduction='none'"
            )
        return losses.flatten(2).sum(2) if losses.ndim > 2 else losses

    @staticmethod
    def valid_sum(losses: Tensor, mask: Tensor | None) -> Tensor:
        """The sum of the losses of the timesteps that a mask, bool of the same shape, has (None: all); 0-dim."""
        # Not a product: what stands in the padding may be infinite. (Its derivative must not, or it becomes 0 * inf.)
        counted = losses if mask is None else torch.where(mask, losses, losses.new_zeros(()))
        # Thousands of losses do not fit into 16 bits.
        return counted.sum(dtype=torch.float32) if losses.dtype in (torch.float16, torch.bfloat16) else counted.sum()

    def loss_sum(self, outputs: Any, window: Window, mask: Tensor | None = None) -> Tensor:
        """The sum of the losses of the valid timesteps, 0-dim.

        Args:
            outputs: Of the window's timesteps.
            window: The window.
            mask: bool [B, K] or [K, B], the timesteps that count; None: the valid ones.

        Raises:
            TypeError, ValueError: As for `losses`.
        """
        return self.valid_sum(self.losses(outputs, window), window.mask if mask is None else mask)

    def through(self, window: Window, state: Any) -> Iterator[tuple[Window, Any, Any]]:
        """Run a whole window, cut where sequences start or lanes stop inside it.

        Args:
            window: The window.
            state: Before it; None: the initial one.

        Yields:
            Each part of the window, its outputs, and the state after it.
        """
        for low, high in pairwise([0, *inner_borders(window, resets=True), window.num_steps]):
            high = min(high, int(window.lengths.max()))
            if high <= low:
                return
            state = self.enter(window, low, state)
            part = window.cut(low, high)
            outputs, after = self.forward(part, state)
            held = stopped(window, low)
            state = self.replace(window, after, held, state) if held.any() else after
            yield part, outputs, state

    def enter(self, window: Window, offset: int, state: Any) -> Any:
        """The state before a timestep of a window, the initial one on lanes in which a sequence starts there."""
        anew = resets_at(window, offset)
        if state is not None and not anew.any():
            return state
        initial = self.initial(len(anew))
        if self.begin is not None:
            initial = self.begin(window, offset, initial)
        if state is None or (offset == 0 and anew.all()):
            return initial
        return self.replace(window, state, anew, initial)

    def initial(self, lanes: int) -> Any:
        """The initial state of so many lanes; None for zeros."""
        return None if self._initial is None else self._initial(lanes)

    def replace(self, window: Window, state: Any, lanes: NDArray[np.bool_], by: Any) -> Any:
        """The state, but that of `by` (None: zeros) on some lanes, bool [B], of a window."""
        return states.replace_lanes(state, lanes, by, self.lane_axes(window, state))

    def lane_axes(self, window: Window, state: Any) -> list[int | None]:
        """The lane axis of each leaf of a state; where the sizes do not tell, the model is run on one lane more.

        Raises:
            ValueError: The axis that was given is not one.
        """
        lanes = len(window.token.lane)
        if self._lane_axis is not None:
            return states.lane_axes(state, lanes, self._lane_axis)
        shapes = tuple(leaf.shape if isinstance(leaf, Tensor) else None for leaf in states.leaves(state))
        if shapes not in self._axes:
            try:
                self._axes[shapes] = states.lane_axes(state, lanes)
            except ValueError:
                self._axes[shapes] = self._probe_lane_axes(window)
        return self._axes[shapes]

    def _probe_lane_axes(self, window: Window) -> list[int | None]:
        """Run one timestep with one lane more and see which axis of each leaf has grown."""
        first = window.cut(0, 1)
        lanes = list(range(first.num_lanes))
        replay = Replay(self._model)
        moment = replay.moment()
        shapes = []
        with torch.no_grad(), replay.without_effect():
            for chosen in (lanes, [*lanes, 0]):
                part = _select_lanes(first, chosen)
                state = self.initial(len(chosen))
                shapes.append([getattr(leaf, "shape", ()) for leaf in states.leaves(self.forward(part, state)[1])])
        replay.set_noise(moment.noise)
        axes: list[int | None] = []
        for few, more in zip(*shapes, strict=True):
            grown = [axis for axis, (a, b) in enumerate(zip(few, more, strict=True)) if b == a + 1]
            axes.append(grown[0] if len(grown) == 1 else None)
        return axes


def _select_lanes(window: Window, lanes: list[int]) -> Window:
    index = torch.tensor(lanes)
    axis = 1 - window.time_axis

    def select(tensor: Tensor) -> Tensor:
        return tensor.index_select(axis, index.to(tensor.device))

    fields = {name: select(window[name]) for name in window}
    return Window(fields, select(window.mask), window.token, window.batch_first, window.lengths[index])
