"""The sweep: one update's forward and backward passes, segment by segment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from streamseq.data import state as states
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.past import Past
from streamseq.tbptt.replay import Moment, Replay


@dataclass(frozen=True, slots=True)
class Stretch:
    """Timesteps `[low, high)` of the window `step`, which the model takes in one call.

    `counts`: whether their losses are the update's. `kept`: whether the state after them is to be kept.
    """

    step: int
    low: int
    high: int
    counts: bool
    kept: bool


Segment = list[Stretch]


def cut_stretches(
    start: int, new: int, stop: int, *, window: int, origin: int, segment: int, keep: int
) -> list[Segment]:
    """Cut the times `[start, stop)` into segments of stretches.

    Args:
        start: Where back-propagation starts.
        new: Losses count from here.
        stop: Where the update ends.
        window: Timesteps of a window.
        origin: The step of the window that begins at time 0.
        segment: Timesteps of a segment, at most.
        keep: The time after which the state is to be kept; before `start` for none.
    """
    borders = {start, new, stop, *range(start, stop, segment), *range(start // window * window, stop, window)}
    if start < keep:
        borders.add(keep)
    times = sorted(time for time in borders if start <= time <= stop)
    segments: list[Segment] = []
    for low, high in pairwise(times):
        step, offset = divmod(low, window)
        stretch = Stretch(origin + step, offset, offset + high - low, low >= new, high == keep)
        if (low - start) % segment == 0:
            segments.append([])
        segments[-1].append(stretch)
    return segments


class Sweep:
    """Runs segments forward, the last one with its graph, and then all of them backward.

    Every segment but the last is first run without a graph; only the state, the random generators and the buffers
    before it are kept. Backward, each is run again from there and back-propagated from the losses in it and the
    gradient of the state after it.

    Args:
        model: What to run.
        replay: Of the same model.
        past: Where the windows are.
        state: The state before the first segment, a constant; None for the initial one.
    """

    def __init__(self, model: StatefulModel, replay: Replay, past: Past, state: Any) -> None:
        self._model = model
        self._replay = replay
        self._past = past
        self._state = states.detach(state)
        self._done: list[tuple[Segment, Any, Moment]] = []
        #: The state after the stretch that is to be kept.
        self.kept: Any = None

    def advance(self, segment: Segment) -> None:
        """Run a segment that is not the last one."""
        moment = self._replay.moment(self._done[-1][2] if self._done else None)
        self._done.append((segment, self._state, moment))
        with torch.no_grad():
            self._state, _ = self._run(segment, self._state, first_time=True)

    def finish(self, segment: Segment, num_timesteps: int) -> Tensor:
        """Run the last segment and everything backward; gradients are added to the parameters' `.grad`.

        Args:
            segment: The last one.
            num_timesteps: By which the sum of the losses is divided.

        Returns:
            The mean loss, detached, 0-dim.
        """
        start = self._leaves(self._state) if self._done else self._state
        end, loss = self._run(segment, start, first_time=True)
        total = self._backward(loss, end, None, num_timesteps)
        after = self._replay.moment(self._done[-1][2]) if self._done else None
        while self._done:
            gradient = [leaf.grad if isinstance(leaf, Tensor) else None for leaf in states.leaves(start)]
            segment, state, moment = self._done.pop()
            counts = any(stretch.counts for stretch in segment)
            if not counts and all(each is None for each in gradient):
                break
            self._replay.set_noise(moment)
            start = self._leaves(state) if self._done else state
            with self._replay.without_effect(moment):
                end, loss = self._run(segment, start, first_time=False)
            total = total + self._backward(loss, end, gradient, num_timesteps)
        if after is not None:
            self._replay.set_noise(after)
        return total

    def _run(self, segment: Segment, state: Any, *, first_time: bool) -> tuple[Any, Tensor | None]:
        """The state after a segment, and the sum of the losses that count."""
        loss = None
        for stretch in segment:
            if first_time and not stretch.counts:
                # Buffers see these timesteps in the update to which they are new.
                with self._replay.without_effect():
                    state, part = self._run_stretch(stretch, state)
            else:
                state, part = self._run_stretch(stretch, state)
            if part is not None:
                loss = part if loss is None else loss + part
            if stretch.kept and first_time:
                self.kept = states.detach(state)
        return state, loss

    def _run_stretch(self, stretch: Stretch, state: Any) -> tuple[Any, Tensor | None]:
        window = self._past[stretch.step]
        if stretch.low == 0:
            state = self._model.enter(window, state)
        # Where all lanes have ended nothing is computed: only resets follow.
        high = min(stretch.high, int(window.lengths.max()))
        if high <= stretch.low:
            return state, None
        part = window.cut(stretch.low, high)
        outputs, state = self._model.forward(part, state)
        return state, self._model.loss_sum(outputs, part) if stretch.counts else None

    def _backward(self, loss: Tensor | None, end: Any, gradient: Iterable[Tensor | None] | None, count: int) -> Tensor:
        roots: list[Tensor] = []
        seeds: list[Tensor | None] = []
        mean = torch.zeros(()) if loss is None else loss / count
        if mean.requires_grad:
            roots.append(mean)
            seeds.append(None)
        for leaf, seed in zip(states.leaves(end), gradient or (), strict=False):
            if seed is not None and isinstance(leaf, Tensor) and leaf.requires_grad:
                roots.append(leaf)
                seeds.append(seed)
        if roots:
            torch.autograd.backward(roots, seeds)
        return mean.detach()

    @staticmethod
    def _leaves(state: Any) -> Any:
        """The state as leaves of a new graph, whose `.grad` the backward pass fills."""

        def leaf(value: Tensor) -> Tensor:
            alone = value.detach()
            return alone.requires_grad_() if alone.is_floating_point() or alone.is_complex() else alone

        return pytree.tree_map(lambda value: leaf(value) if isinstance(value, Tensor) else value, state)

    def carry_on(self, segments: Iterable[Segment]) -> None:
        """Run segments without a graph, only to keep the state after the stretch that asks for it."""
        with torch.no_grad():
            for segment in segments:
                self._state, _ = self._run(segment, self._state, first_time=True)
