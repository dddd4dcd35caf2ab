"""History: the states that earlier updates left, and where back-propagation of the next one starts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.grid import Grid
from streamseq.data import state as states
from streamseq.tbptt.sweep import Edit

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
# Gives the lane axis of each leaf of a state.
Axes = Callable[[Any], list[int | None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """An update that is about to be made.

    Args:
        time, stop: The times `[time, stop)` are new.
        began: int64 [B], the time at which what each lane holds at `time` began, its latest reset.
        holding: bool [B], lanes that hold something from `time` on, or hold a state for later.
        goes_on: Gives the lanes whose sequence goes on after `stop`, bool [B].
        resets: Gives the times in (time, stop) at which sequences start, and in which lanes, bool [B].
        lane: int64 [B], global lane numbers.
        index: Where the numbers of places in time begin, which are unlike in one epoch.
        epoch: The epoch.
        last: Whether nothing goes on after it.
    """

    time: int
    stop: int
    began: Int64
    holding: Bool
    goes_on: Callable[[], Bool]
    resets: Callable[[], dict[int, Bool]]
    lane: Int64
    index: int
    epoch: int
    last: bool = False

    @property
    def reset(self) -> int:
        """The earliest reset of a lane that holds something."""
        return min(self.time, int(self.began.min(initial=self.time, where=self.holding)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where back-propagation starts.

    Args:
        time: The first timestep that is run.
        state: The state before it, a constant; None for the initial one.
        edits: By time, what is done to the state before that timestep.
        keep: Times after which the state is to be kept.
    """

    time: int
    state: Any = None
    edits: Mapping[int, Edit] = field(default_factory=dict)
    keep: Collection[int] = ()


class History(ABC):
    """Says where back-propagation starts, and keeps the states that it may start from."""

    #: Whether what lies before a reset of all lanes may matter after it.
    looks_past_resets = False

    @abstractmethod
    def start(self, moment: Moment) -> Start:
        """Where back-propagation of an update starts."""

    @abstractmethod
    def learn(self, moment: Moment, kept: Mapping[int, Any], axes: Axes) -> int:
        """Take in the states that were asked for.

        Args:
            moment: Of the update that was made.
            kept: By time.
            axes: Gives the lane axis of each leaf of a state.

        Returns:
            The time from which on timesteps may be needed again.
        """

    @abstractmethod
    def clear(self, time: int) -> None:
        """Forget: every lane starts anew at a time, and nothing before it matters."""

    @abstractmethod
    def state_dict(self, axes: Callable[[Any], Any], lanes: int) -> dict[str, Any]:
        """What is kept of so many lanes, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` returned."""


class GridHistory(History):
    """Back-propagation starts where the grid says, the same for all lanes, or at their resets.

    Args:
        grid: Of the updates.
        to_grid: Whether what a lane held before its reset matters too: losses count from where the grid says.
    """

    def __init__(self, grid: Grid, *, to_grid: bool = False) -> None:
        self.grid = grid
        self._to_grid = to_grid
        # How far back states are kept, where k2 may change; None: only that from which the next update starts.
        self._reach: int | None = None
        self._kept: dict[int, Any] = {}
        # When every lane started anew with nothing before that matters: the start of the epoch.
        self._first = 0
        #: Whether windows may change their length after an update: the state at its end is kept for that.
        self.keep_ends = False
        # Back-propagation goes no further back: what lies before has windows of another length.
        self._floor: int | None = None

    @property
    def looks_past_resets(self) -> bool:  # type: ignore[override]
        """See `History`."""
        return self._reach is not None or (self._to_grid and self.grid.k2 is not None)

    def start(self, moment: Moment) -> Start:
        """See `History`."""
        reset = moment.reset
        if self.grid.k2 is None:
            return Start(time=reset)
        keep = self._keep(moment)
        time = self.losses_since(moment) if self._to_grid else self._grid_start(moment.time)
        if time <= (self._first if self._to_grid else reset):
            # Every lane whose loss counts starts at its reset.
            return Start(time=time if self._to_grid else reset, keep=keep)
        if time not in self._kept and self._reach is not None:
            # k2 has grown to before the states that are kept.
            time = min((each for each in self._kept if each > time), default=moment.time)
        return Start(time=time, state=self._kept[time], keep=[each for each in keep if each > time])

    def go_on_from(self, time: int) -> bool:
        """Make a time, at which an update has ended, time 0, where windows of another length begin; whether it is done.

        Back-propagation goes no further back than that.
        """
        if self.grid.k2 is None or self._to_grid or self._reach is not None or time not in self._kept:
            return False
        self._kept = {0: self._kept[time]}
        self.stop_at_0()
        return True

    def stop_at_0(self) -> None:
        """Back-propagation goes no further back than to time 0."""
        self._floor = 0

    def losses_since(self, moment: Moment) -> int:
        """From when on losses count, where all since the start of back-propagation do: the same for all lanes."""
        return max(self._first, self.grid.start(moment.time))

    def _grid_start(self, time: int) -> int:
        start = self.grid.start(time)
        return start if self._floor is None else max(start, self._floor)

    def _keep(self, moment: Moment) -> list[int]:
        # In the as-is split nothing goes on after the window.
        if moment.last or self.grid.k1 is None:
            return []
        if self._reach is None:
            return sorted({self._grid_start(moment.stop), *([moment.stop] if self.keep_ends else [])})
        first = Grid(k1=self.grid.k1, k2=self._reach).start(moment.stop)
        return list(range(max(first, 0), moment.stop + 1, self.grid.k1))

    def learn(self, moment: Moment, kept: Mapping[int, Any], axes: Axes) -> int:
        """See `History`."""
        if self.grid.k2 is None and self._reach is None:
            return moment.reset
        keep = self._keep(moment)
        self._kept = {time: state for time, state in {**self._kept, **kept}.items() if time in keep}
        return max(0, min(keep, default=moment.stop))

    def clear(self, time: int) -> None:
        """See `History`."""
        self._kept.clear()
        self._first = time
        self._floor = None

    def state_dict(self, axes: Callable[[Any], Any], lanes: int) -> dict[str, Any]:
        """See `History`."""
        return {"kept": [{"time": time, "state": states.pack(each, axes(each))} for time, each in self._kept.items()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `History`."""
        self._kept = {each["time"]: states.unpack(each["state"]) for each in state["kept"]}
        self._first = 0
        self._floor = None
