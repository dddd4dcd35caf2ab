"""TBPTT(k1, k2): windows in, gradients out, with memory that does not grow with the length of the sequences."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core.errors import ResumeError
from streamseq.core.grid import Grid
from streamseq.core.tokens import StateToken
from streamseq.data import state as states
from streamseq.data.carry import check_follows, pack_token, unpack_token
from streamseq.data.window import Window
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.past import Past, longest_sequence, random_access
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.sweep import Segment, Sweep, cut_stretches


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Update:
    """One update, whose gradient is in the parameters' `.grad`.

    Args:
        loss: The mean over the update's valid timesteps, 0-dim, detached.
        num_timesteps: How many those are, over all lanes.
        token: Of the window that the update ends in.
        at_window_end: Whether nothing of that window is left for another update: the time to save a checkpoint.
    """

    loss: Tensor
    num_timesteps: int
    token: StateToken
    at_window_end: bool


class TBPTT:
    """Truncated back-propagation through time for any `1 <= k1 <= k2 <= n`.

    An update every `k1` timesteps, back-propagated through the last `k2`: the loss of each timestep counts once, in
    the update to which it is new (Williams & Peng 1990, BPTT(h; h') with h = k2, h' = k1). `k1=k, k2=k` is the loop
    with `detach` that is usually written by hand; `k1=None, k2=None` is full BPTT, exact, with activations that do not
    grow with n.

    For each update the last k2 timesteps are run again under the current parameters, from the one state that the
    update before kept; they are back-propagated `segment` timesteps at a time.

    Args:
        model: `model(inputs, state) -> (outputs, state)`; the state is any pytree of tensors, None at the start. A
            model that starts from something else than zeros has `initial_state(B)`.
        loss: `loss(outputs, window) -> [B, K]` (or [K, B]), one loss per timestep, or [B, K, ...], summed over the
            rest. The window is cut to the timesteps of the outputs.
        k1: Timesteps between updates: divides the window, is a multiple of it, or is n (None). With the as-is split
            any k1 fits, and counts from the start of each sequence.
        k2: Timesteps that back-propagation reaches; None: n.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        segment: Timesteps whose activations live at once; None: k2, or a window where k2 is n.
        lane_axis: The axis of the state's tensors that counts lanes, an int or a pytree like the state's; None: found.

    Raises:
        TypeError: A number is not an integer.
        ValueError: Not `1 <= k1 <= k2`, or `segment` is less than 1.

    Example:
        >>> import numpy as np, torch, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.ones((10, 3), np.float32)}})
        >>> stream = ss.StreamDataset(store, lanes=1, window=4)
        >>> model = torch.nn.GRU(3, 2, batch_first=True)
        >>> tbptt = ss.TBPTT(lambda x, s: model(x, s), lambda y, w: y.square(), k1=4, k2=8, inputs="x")
        >>> [update.num_timesteps for update in tbptt.updates(stream)]
        [4, 4, 2]
    """

    def __init__(
        self,
        model: Callable[..., Any],
        loss: Callable[[Any, Window], Tensor],
        *,
        k1: int | None,
        k2: int | None,
        inputs: Inputs = "x",
        segment: int | None = None,
        lane_axis: Any = None,
    ) -> None:
        self._grid = Grid(k1=k1, k2=k2)
        if segment is not None and (isinstance(segment, bool) or not isinstance(segment, int)):
            raise TypeError(f"segment is an integer, got {segment!r}")
        if segment is not None and segment < 1:
            raise ValueError(f"segment is at least 1, got {segment}")
        self._segment = segment
        self._model = StatefulModel(model, loss, inputs, lane_axis)
        self._replay = Replay(model)
        self._past = Past(None)
        self._token: StateToken | None = None
        self._newest: Window | None = None
        # Times are emitted timesteps; time 0 is the start of window `_origin`.
        self._origin = 0
        self._began: NDArray[np.int64] = np.zeros(0, np.int64)
        self._kept: tuple[int, Any] | None = None
        self._loaded_axes: list[int | None] | None = None

    def updates(self, source: Iterable[Window]) -> Iterator[Update]:
        """The updates of an epoch, each with its gradient added to the parameters' `.grad`.

        After `load_state_dict`, of this and of the stream, they go on after the last one of which the state was saved.

        Args:
            source: A `StreamDataset`, `StreamLoader`, a DataLoader over a stream, or any iterable of windows in
                stream order. Where k2 is n it must be able to read a window again.

        Yields:
            `Update`. Step the optimizer and clear the gradients before taking the next one. An update without a
            valid timestep is not emitted.

        Raises:
            ContinuityError: A window does not follow the one before on some lane.
            ValueError: `k1` does not fit the windows, `k2` reaches further than the source can be read again, or the
                loss is not one per timestep.
        """
        access = random_access(source)
        longest = longest_sequence(source)
        windows = iter(source)
        first = next(windows, None)
        if first is None:
            return
        grid = self._grid.fit(first.token.window, longest)
        if grid.k2 is None and access is None and first.token.window is not None:
            raise ValueError(
                f"k2=n reads windows again, and a {type(source).__name__} has no random access: pass a StreamDataset, "
                "a StreamLoader or a list of windows, or a smaller k2"
            )
        self._past = Past(access)
        every = itertools.chain([first], windows)
        if grid.k1 is None:
            yield from self._update_by_cohorts(every)
        else:
            yield from self._update_on_grid(grid, every)

    def backward(self, window: Window) -> Update | None:
        """The update of one window, for a loop that gets its windows itself; `k1` is the window's length.

        Args:
            window: The next one in stream order.

        Returns:
            The update, its gradient added to the parameters' `.grad`; None where no timestep of the window is valid.

        Raises:
            ContinuityError: The window does not follow the one before on some lane.
            ValueError: `k1` is not the window's length, or `k2` is n and the window does not hold its sequences whole.
        """
        token = window.token
        whole = bool(token.starts_anew.all() and (token.final | token.idle).all())
        k1 = window.num_steps if self._grid.k1 is None and whole else self._grid.k1
        if k1 != window.num_steps or (self._grid.k2 is None and not whole):
            raise ValueError(
                f"backward(window) makes one update of a window, got k1={self._grid.k1}, k2={self._grid.k2} for "
                f"{window.num_steps} timesteps: pass k1={window.num_steps} and a number for k2, or use updates()"
            )
        grid = Grid(k1=k1, k2=None if whole else self._grid.k2)
        return next(self._update_on_grid(grid, [window]), None)

    def _arrive(self, window: Window, *, first: bool) -> int:
        """Take a window up, the first of an update or another: check that it follows, return the time of its start."""
        token = window.token
        anew = token.starts_anew
        check_follows(token, None if anew.all() else self._token)
        if self._token is not None and token.switches != self._token.switches and not anew.all():
            raise ValueError(
                f"the stream was rewindowed: the windows before have {self._token.window} timesteps and other numbers, "
                "and the grid of updates cannot go on across that: change the window at the start of an epoch "
                "(set_epoch), or carry the state by hand with Carry"
            )
        self._origin = token.step if token.window is None else 0
        time = (token.step - self._origin) * window.num_steps
        if first and anew.all():
            # Nothing before can matter again.
            self._past.clear()
            self._kept = None
        self._began = np.full(len(anew), time) if anew.all() else np.where(anew, time, self._began)
        self._token = token
        self._newest = window
        self._past.add(window)
        return time

    def _update_on_grid(self, grid: Grid, windows: Iterable[Window]) -> Iterator[Update]:
        assert grid.k1 is not None
        group: _Group | None = None
        for window in windows:
            time = self._arrive(window, first=group is None)
            length = window.num_steps
            if window.token.window is None or grid.k1 <= length:
                yield from self._updates_within(grid, window, time)
                continue
            if group is None:
                group = _Group(time=time, window=window, began=self._began)
            group.valid += int(window.mask.sum())
            if (time + length) % grid.k1 == 0:
                yield from self._update_of_group(grid, group, time + length)
                group = None
        if group is not None and self._token is not None:
            steps = self._token.step + 1 - self._origin
            yield from self._update_of_group(grid, group, steps * group.window.num_steps)

    def _update_of_group(self, grid: Grid, group: _Group, stop: int) -> Iterator[Update]:
        """The update of several whole windows."""
        start, state = self._start(grid, group.time, group.window, 0, group.began)
        if not group.valid:
            self._skip(grid, group.window, start, state, group.time, stop)
            return
        loss = self._sweep(grid, group.window, start, state, group.time, stop, group.valid)
        yield self._update(loss, group.valid, at_window_end=True)

    def _updates_within(self, grid: Grid, window: Window, time: int) -> Iterator[Update]:
        """The updates of one window, `k1` timesteps each."""
        assert grid.k1 is not None
        lows = range(0, window.num_steps, grid.k1)
        highs = [min(low + grid.k1, window.num_steps) for low in lows]
        if len(lows) == 1:
            valid = [int(window.mask.sum())]
        else:
            count = window.mask.sum(1 - window.time_axis).cpu().numpy()
            valid = [int(count[low:high].sum()) for low, high in zip(lows, highs, strict=True)]
        last = max((index for index, number in enumerate(valid) if number), default=-1)
        update = None
        for index, (low, high) in enumerate(zip(lows, highs, strict=True)):
            if update is not None and index <= last:
                yield update
            start, state = self._start(grid, time + low, window, low, self._began)
            if valid[index]:
                loss = self._sweep(grid, window, start, state, time + low, time + high, valid[index])
                update = self._update(loss, valid[index], at_window_end=index == last)
            else:
                self._skip(grid, window, start, state, time + low, time + high)
                if index <= last:
                    update = None
        # The last one waits until the state has been taken on to the window's end.
        if update is not None:
            yield update

    def _update(self, loss: Tensor, valid: int, *, at_window_end: bool) -> Update:
        assert self._token is not None
        return Update(loss=loss, num_timesteps=valid, token=self._token, at_window_end=at_window_end)

    def _start(self, grid: Grid, time: int, window: Window, offset: int, began: NDArray[np.int64]) -> tuple[int, Any]:
        """Where back-propagation starts in the update of what follows `time`, and the state there."""
        holding = window.lengths.numpy() > offset
        reset = min(time, int(began.min(initial=time, where=holding)))
        start = grid.start(time) if grid.k2 is not None else reset
        if start <= reset:
            # Every lane whose loss counts starts at its reset.
            return reset, None
        assert self._kept is not None
        assert self._kept[0] == start
        return start, self._kept[1]

    def _sweep(
        self, grid: Grid, window: Window, start: int, state: Any, time: int, stop: int, num_timesteps: int
    ) -> Tensor:
        segment = self._segment or grid.k2 or window.num_steps
        keep = self._keep(grid, window, stop)
        segments = cut_stretches(
            start, time, stop, window=window.num_steps, origin=self._origin, segment=segment, keep=keep
        )
        sweep = Sweep(self._model, self._replay, self._past, state)
        for each in segments[:-1]:
            sweep.advance(each)
        loss = sweep.finish(segments[-1], num_timesteps)
        self._keep_state(sweep, window, start, keep)
        return loss

    def _skip(self, grid: Grid, window: Window, start: int, state: Any, time: int, stop: int) -> None:
        """Take the state on where there is no loss."""
        keep = self._keep(grid, window, stop)
        if keep > start:
            length = window.num_steps
            sweep = Sweep(self._model, self._replay, self._past, state)
            sweep.carry_on(
                cut_stretches(start, time, keep, window=length, origin=self._origin, segment=length, keep=keep)
            )
            self._keep_state(sweep, window, start, keep)
        else:
            self._kept = None

    @staticmethod
    def _keep(grid: Grid, window: Window, stop: int) -> int:
        """The time at which the next update's back-propagation may start, of which the state is to be kept."""
        # In the as-is split nothing goes on after the window.
        ends = window.token.window is None and stop == window.num_steps
        return -1 if ends else grid.start(stop)

    def _keep_state(self, sweep: Sweep, window: Window, start: int, keep: int) -> None:
        self._kept = (keep, sweep.kept) if keep > start else None
        if keep >= 0:
            self._past.forget_before(self._origin + max(keep, 0) // window.num_steps)

    def _update_by_cohorts(self, windows: Iterable[Window]) -> Iterator[Update]:
        """One update from a step at which every lane starts anew to the next such step: full BPTT."""
        sweep: Sweep | None = None
        pending: Segment = []
        begin = valid = cohorts = 0
        uneven = False
        for window in windows:
            if sweep is not None and window.token.starts_anew.all():
                yield from self._update_of_cohort(sweep, pending, valid)
                sweep = None
            time = self._arrive(window, first=sweep is None)
            if sweep is None:
                sweep = Sweep(self._model, self._replay, self._past, None)
                pending, begin, valid, cohorts = [], time, 0, cohorts + 1
            else:
                uneven = uneven or bool(window.token.reset.any())
            valid += int(window.mask.sum())
            length = window.num_steps
            most = self._segment or length
            # What comes last is run with its graph; whether a window is the last one shows when the next one comes.
            for segment in cut_stretches(
                time, begin, time + length, window=length, origin=self._origin, segment=min(most, length), keep=-1
            ):
                if pending and _num_steps(pending) + _num_steps(segment) > most:
                    sweep.advance(pending)
                    pending = []
                pending = pending + segment
        if sweep is not None:
            if cohorts == 1 and uneven:
                warnings.warn(
                    "k1=n makes one update of sequences that start together; here no later window resets every lane, "
                    "so the whole epoch is one update: sequences of one length, or a lane for each, give more",
                    stacklevel=3,
                )
            yield from self._update_of_cohort(sweep, pending, valid)

    def _update_of_cohort(self, sweep: Sweep, last: Segment, valid: int) -> Iterator[Update]:
        if valid:
            yield self._update(sweep.finish(last, valid), valid, at_window_end=True)

    def state_dict(self) -> dict[str, Any]:
        """What the next update goes on from, for `torch.load(weights_only=True)`; whole at `at_window_end`.

        It holds the one kept state and where the timesteps before the next window lie, not the timesteps. Each rank
        has its own lanes' part; for another number of ranks see `streamseq.training.redistribute`.
        """
        kept = None
        if self._kept is not None:
            time, state = self._kept
            kept = {"time": time, "state": states.pack(state, self._lane_axes_of(state))}
        return {
            "k1": self._grid.k1,
            "k2": self._grid.k2,
            "token": pack_token(self._token),
            "began": torch.from_numpy(self._began.copy()),
            "kept": kept,
        }

    def _lane_axes_of(self, state: Any) -> list[int | None] | None:
        """The lane axis of each leaf of a state, None where they cannot be told."""
        if self._newest is None:
            return self._loaded_axes
        random = torch.get_rng_state()
        try:
            return self._model._lane_axes(self._newest, state)
        except Exception:
            # A probe may fail in a model for one number of lanes only, and such a model is saved too.
            torch.set_rng_state(random)
            return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; load the stream's position with it.

        Raises:
            ResumeError: It is something else, or of another k1 or k2.
        """
        names = {"k1", "k2", "token", "began", "kept"}
        if not isinstance(state, Mapping) or set(state) != names:
            raise ResumeError(
                f"the engine's state holds {', '.join(sorted(names))}: pass what TBPTT.state_dict() returned"
            )
        if (state["k1"], state["k2"]) != (self._grid.k1, self._grid.k2):
            raise ResumeError(
                f"the state was saved with k1={state['k1']}, k2={state['k2']}, this engine has k1={self._grid.k1}, "
                f"k2={self._grid.k2}: take the same"
            )
        kept = state["kept"]
        self._token = unpack_token(state["token"])
        self._began = state["began"].cpu().numpy()
        self._kept = None if kept is None else (kept["time"], states.unpack(kept["state"]))
        self._newest = None
        self._loaded_axes = None if kept is None else kept["state"]["axes"]
        self._past.clear()


@dataclass(slots=True)
class _Group:
    """The windows of one update so far: where they start, the first one, the lanes' resets then, valid timesteps."""

    time: int
    window: Window
    began: NDArray[np.int64]
    valid: int = 0


def _num_steps(segment: Segment) -> int:
    return sum(stretch.high - stretch.low for stretch in segment)
