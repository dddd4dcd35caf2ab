"""TBPTT(k1, k2): windows in, gradients out, with memory that does not grow with the length of the sequences."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamseq.core.errors import ResumeError
from streamseq.core.grid import Grid
from streamseq.core.settings import at_least
from streamseq.core.sizes import parse_bytes
from streamseq.core.truncation import Fixed, Truncation
from streamseq.data.carry import pack_token, unpack_token
from streamseq.data.curriculum import Curriculum
from streamseq.data.dataset import StreamDataset
from streamseq.data.window import Window
from streamseq.tbptt.adaptive import AdaptiveHistory
from streamseq.tbptt.boundaries import MEMORY_BYTES, Boundaries
from streamseq.tbptt.budget import Budget
from streamseq.tbptt.burn_in import BurnIn
from streamseq.tbptt.cohorts import sweep_cohorts
from streamseq.tbptt.counts import Counts
from streamseq.tbptt.gradients import Gradients, check_scaler, parameters_of
from streamseq.tbptt.history import GridHistory, Moment, Start
from streamseq.tbptt.influence import Influence
from streamseq.tbptt.memory import Memory
from streamseq.tbptt.model import Inputs, StatefulModel
from streamseq.tbptt.moments import make_moment
from streamseq.tbptt.past import KEPT_BYTES, KEPT_BYTES_OF_ALL, Past, longest_sequence, random_access, stream_of
from streamseq.tbptt.policies import fit_grid, make_history, measurer
from streamseq.tbptt.ranks import Ranks, ranks_of, unwrapped
from streamseq.tbptt.records import begin_records
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.spill import Spill
from streamseq.tbptt.stretches import Segment, cut_stretches
from streamseq.tbptt.sweep import Course, Sweep
from streamseq.tbptt.timeline import Timeline
from streamseq.tbptt.update import Update

_LOSSES = ("new", "window")
_RESETS = ("cut", "model")


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
            model that starts from something else than zeros has `initial_state(B)`. Where the model has
            `advance(inputs, state) -> state`, timesteps that only carry the state take that way. Of one that is
            wrapped in `DistributedDataParallel` the module inside is run: gradients are added up here, once an update.
        loss: `loss(outputs, window) -> [B, K]` (or [K, B]), one loss per timestep, or [B, K, ...], summed over the
            rest. The window is cut to the timesteps of the outputs. What it gives for padding may be anything, as
            long as its derivative is finite.
        k1: Timesteps between updates: divides the window, is a multiple of it, or is n (None). With the as-is split
            any k1 fits, and counts from the start of each sequence.
        k2: Timesteps that back-propagation reaches; None: n.
        inputs: A field's name, several (the model gets a tuple), or a function of the window.
        segment: Timesteps whose activations live at once; None: k2, or a window where k2 is n.
        memory: A budget for activations, boundary states and inputs in bytes, or as text such as "500MB", which
            chooses the segment by a short probe of the model on the first window. What it chose is in `segment` and
            in the log "streamseq.tbptt".
        losses: "new": each loss counts in the update to which it is new. "window": every loss since the start of
            back-propagation counts in each update, divided by their number; with k2 of n since each lane's reset.
        truncation: `ss.truncation.Fixed()`, by k2; `Random(mean)`, without bias, by cuts at random places in each lane
            instead of k2, which is n then; `Adaptive(bias)`, by the smallest multiple of k1, up to k2, with which the
            estimated bias is below a wish. What it measures is in `influence` and in the log "streamseq.tbptt".
        lane_axis: The axis of the state's tensors that counts lanes, an int or a pytree like the state's; None: found.
            What has none is the same for all lanes, and is initial again only where all of them start anew.
        resets: What happens where a sequence starts inside a window (tail="pack"): "cut": the window is cut there and
            the states of these lanes begin anew; "model": the model does that itself, by `token.resets` or
            `token.cu_seqlens`.
        accumulate: So many updates are put together to one, whose gradient is that of the mean over all of them.
        autocast: The dtype for `torch.autocast` of model and loss, such as `torch.bfloat16`; None: none.
        scaler: A `torch.amp.GradScaler`; its one scale covers all segments of an update. You call its `step` and
            `update`.
        parameters: The tensors that are trained, where the model is a function and gradients of several ranks or
            updates are put together; None: those of the module.
        process_group: The ranks whose counts and gradients are added up; None: that of `DistributedDataParallel`, or
            the default group where there is one and the stream is one of several ranks (`backward` does not know);
            False: none.
        burn_in: Where a lane starts in the middle of a sequence (layout="even", `longest`, spans), its state is found
            by running so many timesteps before it, without a loss or a gradient; 0: it starts from the initial state.
        boundary_memory: Bytes of the states before segments that are kept in memory, or text such as "256MB"; what is
            beyond lies in files until it is used.
        spill_to: A folder for these files, with which an update of k1=n that was killed is taken up again: with model,
            optimizer, engine and stream as they were before it, the same call goes on from what was saved, about
            twice a minute. Removed after the update. None: a temporary folder.

    Raises:
        TypeError: A number is not an integer, `scaler` is no GradScaler, or parameters are sharded over ranks.
        ValueError: Not `1 <= k1 <= k2`, `segment` or `accumulate` is less than 1, or an option is not one of those
            named.

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
        memory: int | str | None = None,
        losses: str = "new",
        truncation: Truncation | None = None,
        lane_axis: Any = None,
        resets: str = "cut",
        accumulate: int = 1,
        autocast: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        parameters: Iterable[Tensor] | None = None,
        process_group: Any = None,
        burn_in: int = 0,
        boundary_memory: int | str = MEMORY_BYTES,
        spill_to: str | os.PathLike[str] | None = None,
    ) -> None:
        self._grid = Grid(k1=k1, k2=k2)
        if segment is not None:
            at_least("segment", segment, 1)
        at_least("accumulate", accumulate, 1)
        at_least("burn_in", burn_in, 0)
        self._burn_in_timesteps = burn_in
        self._burn_in: BurnIn | None = None
        self._boundary_memory = parse_bytes(boundary_memory)
        self._spill = Spill(None)
        self._spill_to = None if spill_to is None else Path(spill_to)
        self._lasting: Spill | None = None
        for name, value, known in (("losses", losses, _LOSSES), ("resets", resets, _RESETS)):
            if value not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {value!r}")
        if memory is not None and segment is not None:
            raise ValueError(f"a budget chooses the segment, got memory={memory!r} and segment={segment}: pass one")
        self._segment = segment
        limit = None if memory is None else parse_bytes(memory)
        self._all_losses = losses == "window"
        self._cuts_at_resets = resets == "cut"
        #: Updates whose gradients are put together.
        self.accumulate = accumulate
        #: Scales losses before the backward pass; None: nothing does.
        self.scaler = check_scaler(scaler)
        self._autocast = autocast
        self._wrapped = model
        self._process_group = process_group
        inner = unwrapped(model)
        self._parameters = parameters_of(inner, parameters)
        self._model = StatefulModel(inner, loss, inputs, lane_axis, autocast)
        self._replay = Replay(inner)
        self._budget = Budget(
            self._model,
            self._replay,
            limit=limit,
            boundary_memory=self._boundary_memory,
            all_losses=self._all_losses,
        )
        self._ranks = Ranks()
        self._gradients = Gradients(None, self._ranks)
        self._past = Past(None)
        self._timeline = Timeline()
        #: How back-propagation is truncated.
        self.truncation: Truncation = Fixed() if truncation is None else truncation
        measure = measurer(self.truncation, inner, loss, inputs, lane_axis, autocast)
        self._history = make_history(
            self.truncation, self._grid, all_losses=self._all_losses, model=self._model, measure=measure
        )
        # The grid for the windows that there are.
        self._fitted = self._grid
        # The k2 of the update that was made last.
        self._reached: int | None = None
        self._counts = Counts(self._past, self._ranks)
        self._loaded_axes: list[int | None] | None = None

    @property
    def segment(self) -> int | None:
        """Timesteps whose activations live at once, as given or as a budget chose it; None: as the docs say."""
        return self._segment

    @property
    def influence(self) -> Influence | None:
        """What adaptive truncation measured last; None: nothing yet."""
        return self._history.influence if isinstance(self._history, AdaptiveHistory) else None

    def grid_of(self, window: int | None, longest: int | None) -> Grid:
        """The grid of updates for windows of a length.

        Args:
            window: Timesteps of a window; None where each sequence is one.
            longest: Timesteps of the longest sequence; None where it is not known.

        Raises:
            ValueError: `k1` does not fit the windows.
        """
        return fit_grid(self.truncation, self._grid, window, longest)

    def ranks_of(self, *, several: bool) -> Ranks:
        """The processes that train together; `several`: whether windows have only some of the stream's lanes."""
        return ranks_of(self._wrapped, several=several, group=self._process_group)

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
        grid = self.grid_of(first.token.window, longest)
        # Random cuts let go of windows sooner or later, and until then they are kept.
        fixed = isinstance(self.truncation, Fixed)
        if fixed and grid.k2 is None and access is None and first.token.window is not None:
            raise ValueError(
                f"k2=n reads windows again, and a {type(source).__name__} has no random access: pass a StreamDataset, "
                "a StreamLoader or a list of windows, or a smaller k2"
            )
        stream = stream_of(source)
        self._use_burn_in(stream)
        self._begin(grid, access, several=stream is not None and len(first.token.lane) < stream.lanes)
        self._segment = self._budget.choose(source, first, grid, self._segment)
        if isinstance(self._history, GridHistory):
            self._history.keep_ends = isinstance(source, Curriculum)
        every = itertools.chain([first], windows)
        try:
            yield from self._update_by_cohorts(every) if grid.k1 is None else self._update_on_grid(grid, every)
            rest = self._gradients.finish()
            if rest is not None:
                yield self._update(rest, at_window_end=True)
            if isinstance(self._history, AdaptiveHistory):
                self._history.end()
        finally:
            self._past.stop_rewinding()
            self._spill.clear()
            self._gradients.restore()

    def memory(self, source: Iterable[Window]) -> Memory:
        """The bytes that an update is going to need, and its expected time, before anything runs.

        The model runs forward and backward on a few timesteps of the first window, which leaves no trace.

        Args:
            source: A `StreamDataset`, `StreamLoader`, a DataLoader over a stream, or a list of windows.

        Returns:
            Activations, boundary states and inputs in bytes, the segment, and the time beside that of TBPTT(k1, k1).

        Raises:
            ValueError: The source cannot read its first window without being iterated, or has none; or the budget is
                too little.
        """
        read = random_access(source)
        if read is None or not len(source):  # type: ignore[arg-type]
            raise ValueError(
                f"the memory of an update is found from the first window, which a {type(source).__name__} does not "
                "show: pass a StreamDataset, a StreamLoader or a list of windows"
            )
        first = source[0] if isinstance(source, list | tuple) else read(0)
        grid = self.grid_of(first.token.window, longest_sequence(source))
        return self._budget.memory(source, first, grid, self._segment)

    def backward(self, window: Window) -> Update | None:
        """The update of one window, for a loop that gets its windows itself; `k1` is the window's length.

        Args:
            window: The next one in stream order.

        Returns:
            The update, its gradient added to the parameters' `.grad`; None where no timestep of the window is valid.

        Raises:
            ContinuityError: The window does not follow the one before on some lane.
            ValueError: `k1` is not the window's length, `k2` is n and the window does not hold its sequences whole, or
                updates are accumulated.
        """
        token = window.token
        whole = token.segments is None and bool(token.starts_anew.all() and (token.final | token.idle).all())
        k1 = window.num_steps if self._grid.k1 is None and whole else self._grid.k1
        if k1 != window.num_steps or (self._grid.k2 is None and not whole) or self.accumulate > 1:
            raise ValueError(
                f"backward(window) makes one update of a window, got k1={self._grid.k1}, k2={self._grid.k2}, "
                f"accumulate={self.accumulate} for {window.num_steps} timesteps: pass k1={window.num_steps}, a number "
                "for k2 and accumulate=1, or use updates()"
            )
        grid = Grid(k1=k1, k2=self._grid.k2)
        if self._burn_in_timesteps and self._burn_in is None:
            self._use_burn_in(None)
        self._begin(grid, None, several=False, clear=False)
        # Windows of another source are not these.
        self._past.leave_source()
        try:
            return next(self._update_on_grid(grid, [window]), None)
        finally:
            self._spill.clear()

    def _use_burn_in(self, stream: StreamDataset | None) -> None:
        if not self._burn_in_timesteps:
            return
        if stream is None:
            raise ValueError(
                f"burn_in={self._burn_in_timesteps} reads what lies before windows, for which a stream is needed: pass "
                "a StreamDataset or a loader over one to updates()"
            )
        self._burn_in = BurnIn(self._model, self._replay, stream, self._burn_in_timesteps)
        self._model.begin = self._burn_in.state

    def _begin(self, grid: Grid, access: Callable[[int], Window] | None, *, several: bool, clear: bool = True) -> None:
        self._ranks = self.ranks_of(several=several)
        self._gradients = Gradients(self._parameters, self._ranks, self.accumulate)
        self._counts.ranks = self._ranks
        self._fitted = grid
        if isinstance(self._history, AdaptiveHistory):
            self._history.fit(grid, anew=clear)
        elif isinstance(self._history, GridHistory):
            self._history.grid = grid
        if clear:
            kept_bytes = KEPT_BYTES_OF_ALL if grid.k2 is None else KEPT_BYTES
            self._past = Past(access, kept_bytes, resets=self._cuts_at_resets)
            self._counts = Counts(self._past, self._ranks)

    def _arrive(self, window: Window, *, first: bool) -> int:
        """Take a window up, the first of an update or another: check that it follows, return the time of its start."""
        time, anew, next_one = self._timeline.arrive(window)
        if self._timeline.changed_at is not None:
            self._go_on_in_other_windows(window, self._timeline.changed_at, whole=first)
        elif not time or (first and anew and not (next_one and self._history.looks_past_resets)):
            self._past.clear()
            self._history.clear(time)
            self._counts.clear()
        self._past.add(window)
        self._counts.add(window)
        return time

    def _go_on_in_other_windows(self, window: Window, time: int, *, whole: bool) -> None:
        """Go on where windows have changed their length within an epoch, `time` timesteps after the change before.

        The grid begins anew there, and back-propagation goes no further back; `whole`: no update is half done.
        """
        k1, history = self._grid.k1, self._history
        if not (whole and isinstance(history, GridHistory) and history.go_on_from(time)):
            raise ValueError(
                f"windows changed to {window.num_steps} timesteps within an epoch, which goes on where an update ends, "
                f"with a number for k2, fixed truncation and losses='new', and over an ss.Curriculum; got k1={k1}, "
                f"k2={self._grid.k2}, a change after {time} timesteps: change it there, or at the start of an epoch"
            )
        self._fitted.fit(window.token.window, None)
        self._past.clear()
        self._counts.clear()

    def _update_on_grid(self, grid: Grid, windows: Iterable[Window]) -> Iterator[Update]:
        assert grid.k1 is not None
        group: _Group | None = None
        for window in windows:
            time = self._arrive(window, first=group is None)
            length = window.num_steps
            if window.token.window is None or grid.k1 <= length:
                yield from self._updates_within(grid.k1, window, time)
                continue
            if group is None:
                group = _Group(time=time, window=window, began=self._timeline.began)
            if (time + length) % grid.k1 == 0:
                yield from self._update_of_group(group, time + length)
                group = None
        token = self._timeline.token
        if group is not None and token is not None:
            steps = token.step + 1 - self._timeline.origin
            yield from self._update_of_group(group, steps * group.window.num_steps)

    def _update_of_group(self, group: _Group, stop: int) -> Iterator[Update]:
        """The update of several whole windows."""
        moment = make_moment(self._timeline, self._past, group.window, 0, group.time, stop, group.began)
        done = self._make(group.window, moment, self._num_losses(group.window, moment))
        if done is not None:
            yield self._update(done, at_window_end=True)

    def _updates_within(self, k1: int, window: Window, time: int) -> Iterator[Update]:
        """The updates of one window, `k1` timesteps each."""
        lows = range(0, window.num_steps, k1)
        moments = [
            make_moment(
                self._timeline,
                self._past,
                window,
                low,
                time + low,
                time + min(low + k1, window.num_steps),
                self._timeline.began,
            )
            for low in lows
        ]
        losses = [self._num_losses(window, moment) for moment in moments]
        last = max((index for index, number in enumerate(losses) if number), default=-1)
        update = None
        for index, (moment, number) in enumerate(zip(moments, losses, strict=True)):
            if update is not None and index <= last:
                yield update
                update = None
            done = self._make(window, moment, number)
            if done is not None:
                update = self._update(done, at_window_end=index == last)
        # The last one waits until the state has been taken on to the window's end.
        if update is not None:
            yield update

    def _update(self, done: tuple[Tensor, int], *, at_window_end: bool) -> Update:
        loss, count = done
        assert self._timeline.token is not None
        return Update(
            loss=loss, num_timesteps=count, token=self._timeline.token, at_window_end=at_window_end, k2=self._reached
        )

    def _num_losses(self, window: Window, moment: Moment) -> int:
        """How many losses an update has, over all lanes and ranks."""
        since, where = self._since(moment), {"length": window.num_steps, "origin": self._timeline.origin}
        if since is not None:
            return self._counts.since(since, moment.stop, **where)
        start = moment.time
        if self._all_losses and isinstance(self._history, GridHistory):
            start = self._history.losses_since(moment)
        return self._counts.between(start, moment.stop, **where)

    def _since(self, moment: Moment) -> NDArray[np.int64] | None:
        """int64 [B], when the losses of each lane begin to count, where that is not the same for all of them."""
        if not self._all_losses or self._fitted.k2 is not None:
            return None
        return np.where(moment.holding, moment.began, moment.time)

    def _make(self, window: Window, moment: Moment, number: int) -> tuple[Tensor, int] | None:
        """Make an update of `number` losses; its mean loss and number of timesteps, where it is a whole one."""
        if self._burn_in is not None:
            self._burn_in.forget()
        start = self._history.start(moment)
        self._reached = self._history.grid.k2 if isinstance(self._history, GridHistory) else None
        borders = self._borders(window, start, moment.stop)
        new = start.time if self._all_losses else moment.time
        course = Course(
            edits=start.edits,
            keep=start.keep,
            since=self._since(moment),
            resets=self._cuts_at_resets,
            full=self._ranks.alone and number == window.num_lanes * (moment.stop - new),
        )
        scale = None if self.scaler is None else self.scaler.scale
        done = Boundaries(self._spill, self._boundary_memory)
        sweep = Sweep(self._model, self._replay, self._past, start.state, course, scale, done)
        cut = partial(cut_stretches, window=window.num_steps, origin=self._timeline.origin, borders=borders)
        made = None
        if number:
            divisor = self._gradients.divisor(number)
            segment = self._segment or self._reached or max(window.num_steps, moment.stop - moment.time)
            *earlier, last = cut(start.time, new, moment.stop, segment=segment)
            for each in earlier:
                sweep.advance(each)
            made = self._gradients.add(sweep.finish(last, divisor), number)
        else:
            # Take the state on where there is no loss.
            stop = max(start.keep, default=start.time)
            if stop > start.time:
                sweep.carry_on(cut(start.time, moment.time, stop, segment=window.num_steps))
        needed = self._history.learn(moment, sweep.kept, lambda state: self._model.lane_axes(window, state))
        if number and isinstance(self._history, AdaptiveHistory) and self._history.due(moment):
            self._history.adapt(moment, self._past, self._timeline.origin, window.num_steps, self._ranks)
        oldest = self._timeline.origin + needed // window.num_steps
        self._past.forget_before(oldest)
        self._counts.forget_before(oldest)
        return made

    def _borders(self, window: Window, start: Start, stop: int) -> set[int]:
        """The times at which stretches end besides."""
        length, origin = window.num_steps, self._timeline.origin
        borders = {*start.edits, *start.keep}
        for step in range(start.time // length, -(-stop // length)):
            borders.update(step * length + offset for offset in self._past.marks(origin + step).borders)
        return borders

    def _update_by_cohorts(self, windows: Iterable[Window]) -> Iterator[Update]:
        """One update from a step at which every lane starts anew to the next such step: full BPTT."""
        for sweep, last, valid in sweep_cohorts(
            windows,
            arrive=lambda window, first: self._arrive(window, first=first),
            begin=self._begin_cohort,
            timeline=self._timeline,
            past=self._past,
            counts=self._counts,
            segment=self._segment,
        ):
            yield from self._update_of_cohort(sweep, last, valid)

    def _begin_cohort(self, window: Window) -> Sweep:
        """The sweep of an update that begins with a window; one that an earlier process began is taken up again."""
        spill, records = self._spill, None
        if self._burn_in is not None:
            self._burn_in.forget()
        if self._spill_to is not None:
            settings = {
                **self._settings(),
                "segment": self._segment,
                "accumulate": self.accumulate,
                "burn_in": self._burn_in_timesteps,
                "autocast": str(self._autocast),
                "scale": None if self.scaler is None else self.scaler.get_scale(),
            }
            records = begin_records(self._spill_to, window.token, settings, self._parameters, self._replay)
            spill = self._lasting = records.spill
        scale = None if self.scaler is None else self.scaler.scale
        done = Boundaries(spill, self._boundary_memory)
        course = Course(resets=self._cuts_at_resets)
        return Sweep(self._model, self._replay, self._past, None, course, scale, done, records)

    def _update_of_cohort(self, sweep: Sweep, last: Segment, valid: int) -> Iterator[Update]:
        if not valid:
            self._spill.clear()
            return
        done = self._gradients.add(sweep.finish(last, self._gradients.divisor(valid)), valid)
        try:
            if done is not None:
                yield self._update(done, at_window_end=True)
        finally:
            # Not before the next one is asked for, or nobody asks: the optimizer may not have made its step yet.
            if self._lasting is not None:
                self._lasting.clear()

    def state_dict(self) -> dict[str, Any]:
        """What the next update goes on from, for `torch.load(weights_only=True)`; whole at `at_window_end`.

        It holds the kept states and where the timesteps before the next window lie, not the timesteps. Each rank
        has its own lanes' part; for another number of ranks see `streamseq.training.redistribute`.
        """
        return {
            **self._settings(),
            "token": pack_token(self._timeline.token),
            "began": torch.from_numpy(self._timeline.began.copy()),
            "history": self._history.state_dict(self._lane_axes_of, len(self._timeline.began)),
        }

    def _settings(self) -> dict[str, Any]:
        losses = "window" if self._all_losses else "new"
        return {"k1": self._grid.k1, "k2": self._grid.k2, "losses": losses, "truncation": repr(self.truncation)}

    def _lane_axes_of(self, state: Any) -> list[int | None] | None:
        """The lane axis of each leaf of a state, None where they cannot be told."""
        window = self._timeline.window
        if window is None:
            return self._loaded_axes
        random = torch.get_rng_state()
        try:
            return self._model.lane_axes(window, state)
        except Exception:
            # A probe may fail in a model for one number of lanes only, and such a model is saved too.
            torch.set_rng_state(random)
            return None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; load the stream's position with it.

        Raises:
            ResumeError: It is something else, or of another k1, k2, losses or truncation.
        """
        names = {"token", "began", "history", *self._settings()}
        if not isinstance(state, Mapping) or set(state) != names:
            raise ResumeError(
                f"the engine's state holds {', '.join(sorted(names))}: pass what TBPTT.state_dict() returned"
            )
        saved = {name: state[name] for name in self._settings()}
        if saved != self._settings():
            raise ResumeError(
                f"the state was saved with {_listed(saved)}, this engine has {_listed(self._settings())}: take the same"
            )
        timeline = self._timeline = Timeline()
        timeline.token = unpack_token(state["token"])
        timeline.began = state["began"].cpu().numpy()
        self._history.load_state_dict(state["history"])
        if timeline.token is not None and timeline.token.switches and isinstance(self._history, GridHistory):
            self._history.stop_at_0()
        self._loaded_axes = next(
            (each["state"]["axes"] for each in state["history"]["kept"] if each["state"] is not None), None
        )
        self._past.clear()
        self._counts.clear()


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in settings.items())


@dataclass(slots=True)
class _Group:
    """The windows of one update so far: where they start, the first one, the lanes' resets then."""

    time: int
    window: Window
    began: NDArray[np.int64]
