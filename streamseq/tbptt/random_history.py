"""Random truncation: back-propagation starts at each lane's last cut, with weights that make up for the cuts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import FunctionCtx

from streamseq.core.truncation import Random
from streamseq.data import state as states
from streamseq.data.window import Window
from streamseq.tbptt.history import Axes, History, Moment, Start
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.sweep import Edit

Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]
Bool = NDArray[np.bool_]


@dataclass(slots=True)
class _Draw:
    """What was drawn for an update: where it cuts which lanes, and since when each lane then runs."""

    cuts: dict[int, Bool]
    since: Int64
    by_cut: Bool


class RandomHistory(History):
    """ARTBP (Tallec & Ollivier 2017), per lane.

    Between two units of `every` timesteps the state passes through an identity whose backward pass multiplies by
    1 / (1 - c), or by 0 where the lane is cut. A lane starts at its last cut, from the state that the update in which
    it was cut computed.

    Args:
        policy: Where to cut, with its unit.
        model: Finds the lane axes of its states.
    """

    def __init__(self, policy: Random, model: StatefulModel) -> None:
        self._policy = policy
        assert policy.every is not None
        self._every = policy.every
        self._model = model
        #: int64 [B], the time of each lane's last cut; -1: none.
        self._cut: Int64 | None = None
        #: The state of each lane at its last cut.
        self._base: Any = None
        self._draw: _Draw | None = None

    def start(self, moment: Moment) -> Start:
        """See `History`."""
        cut = np.full(len(moment.lane), -1) if self._cut is None else self._cut
        # At a reset the state is replaced anyway.
        by_cut = cut > moment.began
        since = np.where(by_cut, cut, moment.began)
        first = min(moment.time, int(since.min(initial=moment.time, where=moment.holding)))
        edits: dict[int, Edit] = {}
        for time in self._places(first, moment.time + 1):
            run = moment.holding & (since < time)
            weight = np.where(run, 1 / (1 - self._policy.probability(self._age(time, since, run))), 1.0)
            edits[time] = partial(self._edit, weight, moment.holding & by_cut & (since == time), self._base)
        self._draw = self._draw_cuts(moment, since, by_cut, edits)
        edits.pop(moment.stop, None)
        base = self._base if (moment.holding & by_cut & (since == first)).any() else None
        return Start(time=first, state=base, edits=edits, keep=list(self._draw.cuts))

    def _draw_cuts(self, moment: Moment, since: Int64, by_cut: Bool, edits: dict[int, Edit]) -> _Draw:
        """Draw the cuts after the new timesteps, with what they do to the state."""
        draw = _Draw({}, since.copy(), by_cut.copy())
        resets = moment.resets()
        for time in self._places(moment.time, moment.stop + 1):
            for at in [at for at in resets if at <= time]:
                lanes = resets.pop(at)
                draw.since[lanes], draw.by_cut[lanes] = at, False
            run = draw.since < time
            age = self._age(time, draw.since, run)
            cut, weight = self._policy.cuts(moment.epoch, moment.lane, moment.index + time // self._every, age)
            cut &= run
            if cut.any():
                draw.cuts[time] = cut
                draw.since[cut], draw.by_cut[cut] = time, True
            edits[time] = partial(self._edit, np.where(run, weight, 1.0), np.zeros_like(cut), None)
        return draw

    def _places(self, after: int, before: int) -> range:
        """The times in (after, before) at which there may be a cut."""
        return range((after // self._every + 1) * self._every, before, self._every)

    def _age(self, time: int, since: Int64, run: Bool) -> Int64:
        """int64 [B], units since each lane's last cut or reset; 1 where the lane does not run."""
        return np.where(run, -(-(time - since) // self._every), 1)

    def _edit(self, weight: Float64, lanes: Bool, base: Any, window: Window, state: Any) -> Any:
        """Weigh the backward signal of each lane, and put the state at its cut into the lanes that start here."""
        if state is None:
            return base if lanes.any() else None
        if (weight != 1).any():
            state = _weigh(state, weight, self._model.lane_axes(window, state))
        return self._model.replace(window, state, lanes, base) if lanes.any() else state

    def learn(self, moment: Moment, kept: Mapping[int, Any], axes: Axes) -> int:
        """See `History`."""
        draw, self._draw = self._draw, None
        assert draw is not None
        for time, lanes in draw.cuts.items():
            if time in kept:
                base = kept[time] if self._base is None else self._base
                self._base = states.replace_lanes(base, lanes, kept[time], axes(base))
        self._cut = np.where(draw.by_cut, draw.since, -1)
        return min(moment.stop, int(draw.since.min(initial=moment.stop, where=moment.goes_on())))

    def clear(self, time: int) -> None:
        """See `History`."""
        self._cut = self._base = None

    def state_dict(self, axes: Callable[[Any], Any], lanes: int) -> dict[str, Any]:
        """See `History`."""
        kept = [] if self._base is None else [{"time": -1, "state": states.pack(self._base, axes(self._base))}]
        cut = np.full(lanes, -1) if self._cut is None else self._cut
        return {"kept": kept, "cut": torch.from_numpy(cut.copy())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See `History`."""
        self._cut = state["cut"].cpu().numpy()
        self._base = states.unpack(state["kept"][0]["state"]) if state["kept"] else None


class _Weigh(torch.autograd.Function):
    """The identity; backward, multiplies by a weight."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        # Where a lane is cut nothing passes, whatever comes.
        return torch.where(weight == 0, gradient.new_zeros(()), gradient * weight), None


def _weigh(state: Any, weight: Float64, axes: list[int | None]) -> Any:
    flat, spec = states.flatten(state)
    weighed = []
    for leaf, axis in zip(flat, axes, strict=True):
        if axis is None or not (leaf.is_floating_point() or leaf.is_complex()):
            weighed.append(leaf)
            continue
        shape = [1] * leaf.ndim
        shape[axis] = -1
        real = leaf.real.dtype if leaf.is_complex() else leaf.dtype
        weighed.append(_Weigh.apply(leaf, torch.from_numpy(weight).to(leaf.device, real).view(shape)))  # type: ignore[no-untyped-call]
    return states.unflatten(weighed, spec)
