"""The carry: keeps the recurrent state that the next token asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from streamseq.core.errors import ContinuityError, ResumeError
from streamseq.core.segments import from_table, to_table
from streamseq.core.tokens import TOKEN_NAMES, StateToken
from streamseq.data import state as states


def initial_state_of(source: Any) -> Callable[[int], Any] | None:
    """What makes the initial state of B lanes: `source.initial_state`, or `source` itself if it can be called.

    Raises:
        TypeError: `source` is neither, nor None.
    """
    if source is None:
        return None
    if callable(getattr(source, "initial_state", None)):
        return source.initial_state  # type: ignore[no-any-return]
    if isinstance(source, torch.nn.Module) or not callable(source):
        raise TypeError(f"initial_state is a callable of B or has .initial_state(B), got a {type(source).__name__}")
    return source  # type: ignore[no-any-return]


def check_follows(token: StateToken, previous: StateToken | None) -> None:
    """Check that a window goes on where the carried state stopped.

    Raises:
        ContinuityError: On some lane it does not.
    """
    if previous is None:
        if token.starts_anew.all():
            return
        place = int(np.argmin(token.starts_anew))
        kept = "no state is carried"
    else:
        broken = token.broken_lane(previous)
        if broken is None:
            return
        place = broken
        if token.fingerprint != previous.fingerprint or not np.array_equal(token.lane, previous.lane):
            kept = "the carried state is of another plan or other lanes"
        elif previous.final[place] or previous.idle[place]:
            kept = "the carried state of that lane has ended"
        else:
            kept = f"the carried state ends at {previous.stop[place]} of sequence {previous.last_sequence[place]}"
    raise ContinuityError(
        f"window {token.step} of lane {token.lane[place]} starts at {token.start[place]} of sequence "
        f"{token.sequence[place]}, but {kept}: windows must arrive in stream order, from one unshuffled loader, and "
        "after a resume with the state that was saved with the position"
    )


_STOPS = ("refuse", "model")


def _check_stops(token: StateToken) -> None:
    """Refuse a window in which a lane holds timesteps, stops, and goes on in the next one.

    Raises:
        ValueError: There is such a lane.
    """
    lengths = token.lengths
    early = ~token.final & (lengths > 0) & (lengths < token.num_steps)
    if early.any():
        place = int(np.argmax(early))
        raise ValueError(
            f"lane {token.lane[place]} stops after {lengths[place]} of {token.num_steps} timesteps of window "
            f"{token.step} and goes on in the next one: padding must not be fed into its state: iterate "
            'window.parts(), or run the model with pack_padded_sequence and window.lengths and say Carry(stops="model")'
        )


class Carry:
    """Carries the state of each lane from one window to the next, and starts it anew where the token says so.

    With tail="pack" sequences also start inside windows, of which a carry knows nothing: there the model itself must
    take the initial state, at `token.resets` or between the borders of `token.cu_seqlens`.

    With `ss.splits.Domain` lanes stop inside their sequences at different timesteps, and go on in the next window with
    the state of their own stop. What a model makes of the padding after it must not be carried on, and a carry cannot
    take it out of a state again.

    For both there is `window.parts()`: each part of a window is entered and left like a window. (`TBPTT` needs
    neither.)

    Args:
        initial_state: The state before a sequence: None for zeros, a callable of B, or a module with
            `.initial_state(B)`.
        lane_axis: The axis of the state's tensors that counts lanes: an int, or a pytree like the state's; None: the
            only axis of size B.
        stops: Where a lane stops before the end of a window and goes on in the next one: "refuse": it is an error;
            "model": the model gives the state of each lane at its own stop, `window.lengths`, as PyTorch's
            `pack_padded_sequence` does.

    Raises:
        ValueError: `stops` is neither.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.ones(5)}}), lanes=1, window=2)
        >>> carry = ss.Carry()
        >>> for window in stream:
        ...     state = carry.enter(window.token)
        ...     total = window["x"].sum(1, keepdim=True) + (0 if state is None else state)
        ...     carry.leave(window.token, total)
        >>> total.item()
        5.0
    """

    def __init__(self, initial_state: Any = None, lane_axis: Any = None, stops: str = "refuse") -> None:
        if stops not in _STOPS:
            raise ValueError(f"stops is one of {', '.join(_STOPS)}, got {stops!r}")
        self._own_stops = stops == "model"
        self._initial = initial_state_of(initial_state)
        self._lane_axis = lane_axis
        self._token: StateToken | None = None
        self._state: Any = None

    def enter(self, token: StateToken) -> Any:
        """The state before a window.

        Returns:
            A pytree; on lanes that start anew the initial state. None where no lane carries a state and none is given.

        Raises:
            ContinuityError: The window does not follow the one before on some lane.
            ValueError: The lane axis cannot be told; pass `lane_axis`. Or a lane stops before the end of the window and
                goes on in the next one, and the model does not say that it gives the state of that timestep.
        """
        check_follows(token, self._token)
        if not self._own_stops:
            _check_stops(token)
        lanes = len(token.lane)
        anew = token.starts_anew
        if self._state is None or anew.all():
            return None if self._initial is None else self._initial(lanes)
        if not anew.any():
            return self._state
        initial = None if self._initial is None else self._initial(lanes)
        axes = states.lane_axes(self._state, lanes, self._lane_axis)
        return states.replace_lanes(self._state, anew, initial, axes)

    def leave(self, token: StateToken, state: Any) -> None:
        """Keep the state after a window, detached; of lanes that hold nothing in it, a part, the one before it.

        Raises:
            ContinuityError: The window does not follow the one before on some lane.
            ValueError: A tensor of the state has no lane axis.
        """
        check_follows(token, self._token)
        if state is not None and self._lane_axis is not None:
            states.lane_axes(state, len(token.lane), self._lane_axis)
        holding = ~token.idle & (token.lengths == 0)
        if holding.any() and state is not None and self._state is not None:
            axes = states.lane_axes(state, len(token.lane), self._lane_axis)
            state = states.replace_lanes(state, holding, self._state, axes)
        self._token = token
        self._state = states.detach(state)

    def state_dict(self) -> dict[str, Any]:
        """The carried state and the token it belongs to, for `torch.load(weights_only=True)`."""
        lanes = 0 if self._token is None else len(self._token.lane)
        axes = states.known_lane_axes(self._state, lanes, self._lane_axis)
        return {"token": pack_token(self._token), "state": states.pack(self._state, axes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` returned.

        Raises:
            ResumeError: It is something else.
        """
        if not isinstance(state, Mapping) or set(state) != {"token", "state"}:
            raise ResumeError("a carry's state holds token and state: pass what state_dict() of a Carry returned")
        self._token = unpack_token(state["token"])
        self._state = states.unpack(state["state"])


def pack_token(token: StateToken | None) -> dict[str, Any] | None:
    """A token as tensors and plain values, for `torch.load(weights_only=True)`; segments are int64 [S, 6]."""
    if token is None:
        return None
    values: dict[str, Any] = {name: getattr(token, name) for name in TOKEN_NAMES}
    if token.segments is not None:
        values["segments"] = to_table(token.segments)
    return {
        name: torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
        for name, value in values.items()
    }


def unpack_token(packed: Mapping[str, Any] | None) -> StateToken | None:
    """The token that `pack_token` packed."""
    if packed is None:
        return None
    values: dict[str, Any] = {k: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in packed.items()}
    if values["segments"] is not None:
        values["segments"] = from_table(values["segments"])
    return StateToken(**values)
