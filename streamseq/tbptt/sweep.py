"""The sweep: one update's forward and backward passes, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.data import state as states
from streamseq.data.window import Window
from streamseq.tbptt.boundaries import Boundaries, Boundary
from streamseq.tbptt.join import join_windows
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.past import Past
from streamseq.tbptt.records import Progress, Records
from streamseq.tbptt.replay import Moment, Replay
from streamseq.tbptt.stretches import Segment, Stretch, steps_of, stopped

# Windows shorter than this are joined, so that a fused kernel gets more timesteps at once; longer ones gain nothing.
SHORT = 64

Edit = Callable[[Window, Any], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What happens to the state and the losses on the way of a sweep, beside the model.

    Args:
        edits: By time, what is done to the state before the timestep at that time.
        keep: Times after which the state is to be kept.
        since: int64 [B], the time from which each lane's losses count; None: as the stretches say.
        resets: Whether the state of lanes in which a sequence starts inside a window is replaced there; otherwise the
            model does that itself.
        full: Whether every timestep of every lane counts, so that no mask is needed.
    """

    edits: Mapping[int, Edit] = field(default_factory=dict)
    keep: Collection[int] = ()
    since: NDArray[np.int64] | None = None
    resets: bool = True
    full: bool = False


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
        course: What happens on the way.
        scale: Multiplies the loss before it is back-propagated; the same for all segments.
        done: Where the boundaries of segments are kept; None: in memory, and in a temporary folder past a budget.
        records: Saves how far the backward pass has come, and knows what an earlier process saved; None: nothing is.
    """

    def __init__(
        self,
        model: StatefulModel,
        replay: Replay,
        past: Past,
        state: Any,
        course: Course | None = None,
        scale: Callable[[Tensor], Tensor] | None = None,
        done: Boundaries | None = None,
        records: Records | None = None,
    ) -> None:
        self._model = model
        self._replay = replay
        self._past = past
        self._state = states.detach(state)
        self._course = course or Course()
        self._scale = scale
        self._done = Boundaries() if done is None else done
        self._records = records
        # Whether model and loss draw random numbers; None: not known yet.
        self._noisy: bool | None = None
        #: The states after the times that are to be kept.
        self.kept: dict[int, Any] = {}

    def advance(self, segment: Segment) -> None:
        """Run a segment that is not the last one."""
        done, records = self._done, self._records
        if records is not None and (records.progress is not None or len(done) + 1 < done.stored):
            done.skip(segment)
            return
        if records is not None and len(done) + 1 == done.stored:
            boundary = done.take_up(segment)
            self._replay.go_back(boundary.moment)
            self._state = boundary.state
        else:
            done.push(Boundary(segment, self._state, self._moment()))
        with torch.no_grad():
            self._state, _ = self._run(segment, self._state, first_time=True)
        if records is not None and records.due():
            done.flush()
            records.saved()

    def _moment(self) -> Moment:
        return self._replay.moment(self._done.last_moment)

    def finish(self, segment: Segment, num_timesteps: int) -> Tensor:
        """Run the last segment and everything backward; gradients are added to the parameters' `.grad`.

        Args:
            segment: The last one.
            num_timesteps: By which the sum of the losses is divided.

        Returns:
            The loss so divided, detached, 0-dim.
        """
        if self._records is not None and self._records.progress is not None:
            progress = self._records.restore()
            self._done.drop_after(progress.left)
        else:
            progress = self._turn(segment, num_timesteps)
        total, gradient = progress.total, progress.gradient
        self._past.rewind(step for each in reversed(self._done.segments) for step in steps_of(each))
        while len(self._done):
            boundary = self._done.pop()
            counts = any(stretch.counts for stretch in boundary.segment)
            if not counts and all(each is None for each in gradient):
                self._done.drop_after(0)
                break
            self._replay.set_noise(boundary.moment.noise)
            start = self._leaves(boundary.state) if len(self._done) else boundary.state
            with self._replay.without_effect(boundary.moment):
                end, loss = self._run(boundary.segment, start, first_time=False)
            total = total + self._backward(loss, end, gradient, num_timesteps)
            gradient = _gradient_of(start)
            # Or their graph lives while the next segment is run.
            del end, loss, boundary, start
            if self._records is not None and self._done.all_in_files and self._records.due():
                self._records.save(Progress(len(self._done), total, gradient, progress.after))
                self._done.drop_after(len(self._done))
        self._past.stop_rewinding()
        if progress.after is not None:
            self._replay.go_back(progress.after)
        return total

    def _turn(self, segment: Segment, num_timesteps: int) -> Progress:
        """Run the last segment, forward and backward."""
        several = len(self._done) > 0
        if self._records is not None:
            self._done.flush()
        start = self._leaves(self._state) if several else self._state
        end, loss = self._run(segment, start, first_time=True)
        total = self._backward(loss, end, None, num_timesteps)
        if not several:
            return Progress(0, total, (), None)
        return Progress(len(self._done), total, _gradient_of(start), self._moment())

    def _run(self, segment: Segment, state: Any, *, first_time: bool) -> tuple[Any, Tensor | None]:
        """The state after a segment, and the sum of the losses that count."""
        loss = None
        for stretches in self._calls(segment):
            if first_time and not stretches[0].counts:
                # Buffers see these timesteps in the update to which they are new.
                with self._replay.without_effect():
                    state, part = self._call(stretches, state)
            else:
                state, part = self._call(stretches, state)
            if part is not None:
                loss = part if loss is None else loss + part
            end = stretches[-1].end
            if first_time and end in self._course.keep:
                self.kept[end] = states.detach(state)
        return state, loss

    def _calls(self, segment: Segment) -> Iterator[list[Stretch]]:
        """The stretches that the model takes in one call: several of short windows, as long as nothing else happens."""
        call: list[Stretch] = []
        for stretch in segment:
            if call and not self._goes_on(call[-1], stretch):
                yield call
                call = []
            call.append(stretch)
        yield call

    def _goes_on(self, before: Stretch, stretch: Stretch) -> bool:
        if stretch.low or stretch.counts != before.counts or stretch.time in self._course.edits:
            return False
        if before.end in self._course.keep:
            return False
        window = self._past[stretch.step]
        if window.num_steps >= SHORT or window.token.segments is not None:
            return False
        # A lane that stops inside its sequence holds its state until its next window. An idle one changes nothing.
        stops = self._past.marks(before.step).stops or self._past.marks(stretch.step).stops
        return not (stops or window.token.reset.any())

    def _call(self, stretches: list[Stretch], state: Any) -> tuple[Any, Tensor | None]:
        stretch = stretches[0]
        window = self._past[stretch.step]
        edit = self._course.edits.get(stretch.time)
        if edit is not None:
            state = edit(window, state)
        marks = self._past.marks(stretch.step)
        if state is None or (
            marks.resets if stretch.low == 0 else self._course.resets and stretch.low in marks.borders
        ):
            state = self._model.enter(window, stretch.low, state)
        parts = []
        for each in stretches:
            window = self._past[each.step]
            # Where all lanes have ended nothing is computed: only resets follow.
            high = min(each.high, self._past.marks(each.step).longest)
            if high > each.low:
                parts.append(window.cut(each.low, high))
            if high < each.high:
                break
        if not parts:
            return state, None
        part = parts[0] if len(parts) == 1 else join_windows(parts)
        if stretch.counts:
            after, loss = self._count(part, stretch.time, state)
        else:
            after, loss = self._model.advance(part, state), None
        if marks.stops:
            held = stopped(self._past[stretch.step], stretch.low)
            after = self._model.replace(part, after, held, state) if held.any() else after
        return after, loss

    def _count(self, part: Window, time: int, state: Any) -> tuple[Any, Tensor | None]:
        """The state after timesteps whose losses count, and their sum; None where only the state is wanted."""
        before = None
        if not torch.is_grad_enabled():
            # What draws no random numbers and changes no buffer leaves no trace where it is left out.
            if self._noisy is False:
                quiet = self._model.advance if not self._replay.has_buffers else self._model.forward_state
                return quiet(part, state), None
            before = self._replay.noise()
        outputs, after = self._model.forward(part, state)
        losses = self._model.losses(outputs, part)
        loss = self._model.valid_sum(losses, None if self._course.full else self._mask(part, time))
        if before is not None:
            self._noisy = not self._replay.noise().same_as(before)
        return after, loss

    def _mask(self, part: Window, time: int) -> Tensor:
        """The timesteps of a part of a window that count."""
        if self._course.since is None:
            return part.mask
        late = torch.from_numpy(self._course.since - time)
        times = torch.arange(part.num_steps)
        counts = times >= late[:, None] if part.batch_first else times[:, None] >= late
        return part.mask & counts.to(part.mask.device)

    def _backward(self, loss: Tensor | None, end: Any, gradient: Sequence[Tensor | None] | None, count: int) -> Tensor:
        roots: list[Tensor] = []
        seeds: list[Tensor | None] = []
        mean = torch.zeros(()) if loss is None else loss / count
        if mean.requires_grad:
            roots.append(mean if self._scale is None else self._scale(mean))
            seeds.append(None)
        for leaf, seed in zip(states.leaves(end) if gradient else (), gradient or (), strict=True):
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

        return states.map_tensors(leaf, state)

    def carry_on(self, segments: Iterable[Segment]) -> None:
        """Run segments without a graph, only to keep the states after the times that are to be kept."""
        with torch.no_grad():
            for segment in segments:
                self._state, _ = self._run(segment, self._state, first_time=True)


def _gradient_of(state: Any) -> list[Tensor | None]:
    """What the backward pass left at each leaf of a state."""
    return [leaf.grad if isinstance(leaf, Tensor) and leaf.is_leaf else None for leaf in states.leaves(state)]
