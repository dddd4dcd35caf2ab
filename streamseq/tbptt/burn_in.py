"""Burn-in: a state in the middle of a sequence, found by running the timesteps before it without a loss."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamseq.core.segments import segments_at
from streamseq.data import state as states
from streamseq.data.before import read_before
from streamseq.data.dataset import StreamDataset
from streamseq.data.window import Window
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.ranks import unwrapped
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.stretches import inner_borders


class BurnIn:
    """Finds the states before timesteps in the middle of sequences (R2D2's remedy, Kapturowski et al. 2019).

    Args:
        model: What to run; parameters, gradients, buffers and random generators stay as they are.
        replay: Of the same model.
        stream: Whose sequences are read.
        timesteps: How many are run at most.
    """

    def __init__(self, model: StatefulModel, replay: Replay, stream: StreamDataset, timesteps: int) -> None:
        # One that starts from the initial state, whatever the other does.
        self._model = copy(model)
        self._model.begin = None
        self._replay = replay
        self._stream = stream
        self._timesteps = timesteps
        # Of one update, whose sweeps must see the same.
        self._found: dict[tuple[int, int], tuple[NDArray[np.bool_], Any]] = {}

    def forget(self) -> None:
        """The parameters have changed."""
        self._found.clear()

    def state(self, window: Window, offset: int, initial: Any) -> Any:
        """The state before a timestep of a window: burnt in where a sequence is under way, the initial one elsewhere.

        Args:
            window: A window of the stream.
            offset: The timestep.
            initial: The initial state of all lanes; None: zeros.
        """
        lanes = under_way(window, offset)
        if not lanes.any():
            return initial
        key = (window.token.step, offset)
        if key not in self._found:
            before = read_before(self._stream, window, self._timesteps, offset)
            self._found[key] = (~before.token.idle, self._run(before))
        # Where a lane has just come over a break of the data nothing is before it.
        there, found = self._found[key]
        lanes &= there
        # What has no lane axis is a constant of the model's.
        return states.replace_lanes(found, ~lanes, initial, self._model.lane_axes(window, found))

    def _run(self, before: Window) -> Any:
        noise = self._replay.noise()
        state: Any = None
        borders = [0, *inner_borders(before, resets=True), before.num_steps]
        with torch.no_grad(), self._replay.without_effect():
            for low, high in pairwise(borders):
                state = self._model.advance(before.cut(low, high), self._model.enter(before, low, state))
        self._replay.set_noise(noise)
        return states.detach(state)


def under_way(window: Window, offset: int) -> NDArray[np.bool_]:
    """bool [B]: lanes whose sequence is not at its first timestep at an offset of a window."""
    token = window.token
    held: NDArray[np.bool_] = (token.sequence >= 0) & (token.lengths > offset)
    if token.segments is None:
        return held & (token.start + offset > 0)
    place = segments_at(token.segments, len(token.sequence), offset)
    rows = token.segments[place]
    later: NDArray[np.bool_] = rows["start"] + offset > rows["offset"]
    return held & (place >= 0) & later


def burn_in(
    model: Callable[..., Any],
    stream: StreamDataset,
    window: Window,
    timesteps: int,
    *,
    inputs: Inputs = "x",
    lane_axis: Any = None,
) -> Any:
    """The state before a window that was reached by random access, from the timesteps before it.

    The model runs over the `timesteps` before the window, from the initial state, without gradients. Where a sequence
    has no more than these before it, the state is exactly that of running it from its start.

    Args:
        model: `model(inputs, state) -> (outputs, state)`, as for `TBPTT`.
        stream: Of which the window is.
        window: Any window of it, such as `stream[t]`.
        timesteps: How many are run at most.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        lane_axis: See `streamseq.Carry`.

    Returns:
        The state of each lane; the initial one (None: zeros) where a sequence starts with the window.

    Raises:
        TypeError, ValueError: `timesteps` is not an integer of at least 1.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.ones(9)}}), lanes=1, window=3)
        >>> count = lambda x, s: (x, x.sum(1) if s is None else s + x.sum(1))
        >>> burn_in(count, stream, stream[2], timesteps=4)
        tensor([4.], dtype=torch.float64)
    """
    model = unwrapped(model)
    called = StatefulModel(model, _no_loss, inputs, lane_axis)
    return BurnIn(called, Replay(model), stream, timesteps).state(window, 0, called.initial(window.num_lanes))


def _no_loss(outputs: Any, window: Window) -> torch.Tensor:
    raise AssertionError("no loss is wanted of timesteps that are burnt in")
