"""The memory of an update, predicted from a probe: pure arithmetic, and the segment that keeps within a budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from streamseq.core.grid import Grid
from streamseq.core.plan import Plan
from streamseq.core.sizes import format_bytes
from streamseq.tbptt.boundaries import MEMORY_BYTES
from streamseq.tbptt.past import KEPT_BYTES, KEPT_BYTES_OF_ALL
from streamseq.tbptt.probe import Cost, Probe
from streamseq.tbptt.rewind import AHEAD
from streamseq.tbptt.sweep import SHORT


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What an update needs at its peak, in bytes, and how long it takes beside one that needs no second run.

    Parameters, their gradients and the optimizer's state are not in it, nor is the stream's own memory.

    Args:
        activations: What autograd holds of one segment.
        graph: What its graph takes beside that: about 1 kB for each operation, much where a cell is written by hand.
        workspace: What a forward and backward pass uses for a moment beside that: outputs, gradients.
        boundary_states: The state, random generators and changed buffers before each segment, as far as in memory.
        inputs: Windows that are kept or read again.
        spilled: Boundary states that lie on disk.
        segment: Timesteps whose activations live at once, at most.
        segments: How many an update has.
        reach: Timesteps that an update runs through, at most.
        bytes_per_timestep: Activations of one timestep whose loss counts.
        time_factor: Expected time for each new timestep, in forward and backward passes through it: 1 for
            TBPTT(k, k) in one graph, about 2 for TBPTT(k, 2k), about 1.3 for full BPTT in segments.

    Example:
        >>> memory = Memory(
        ...     activations=6_000_000, graph=90_000, workspace=1_000_000, boundary_states=50_000, inputs=20_000,
        ...     spilled=0, segment=64, segments=4, reach=256, bytes_per_timestep=93_750, time_factor=1.33,
        ... )
        >>> memory.total
        7160000
        >>> str(memory).split("; ")[1]
        'segments of 64 timesteps, time x 1.33'
    """

    activations: int
    graph: int
    workspace: int
    boundary_states: int
    inputs: int
    spilled: int
    segment: int
    segments: int
    reach: int
    bytes_per_timestep: int
    time_factor: float

    @property
    def total(self) -> int:
        """Bytes of memory at the peak."""
        return self.activations + self.graph + self.workspace + self.boundary_states + self.inputs

    def as_dict(self) -> dict[str, Any]:
        """The figures by name, the total among them."""
        return asdict(self) | {"total": self.total}

    def as_table(self) -> str:
        """The figures for people, one a line."""
        spilled = f", {format_bytes(self.spilled)} more on disk" if self.spilled else ""
        rows = [
            ("activations", format_bytes(self.activations), f"{format_bytes(self.bytes_per_timestep)} a timestep"),
            ("graph", format_bytes(self.graph), "operations of a segment"),
            ("workspace", format_bytes(self.workspace), "outputs and gradients on their way"),
            ("boundary states", format_bytes(self.boundary_states), f"{self.segments:,} segments{spilled}"),
            ("inputs", format_bytes(self.inputs), "windows kept, or read again"),
            ("total", format_bytes(self.total), ""),
            ("segment", f"{self.segment:,}", f"timesteps, of {self.reach:,} that an update runs through"),
            ("time", f"x {self.time_factor:.2f}", "of one forward and backward pass through each timestep"),
        ]
        return "\n".join(f"{name:<16}{value:>12}  {note}".rstrip() for name, value, note in rows)

    def __str__(self) -> str:
        parts = [f"{name.replace('_', ' ')} {format_bytes(getattr(self, name))}" for name in _PARTS]
        return (
            f"{format_bytes(self.total)}: {', '.join(parts)}; segments of {self.segment:,} timesteps, "
            f"time x {self.time_factor:.2f}"
        )


_PARTS = ("activations", "graph", "workspace", "boundary_states", "inputs")


def predict(
    probe: Probe,
    *,
    k1: int | None,
    k2: int | None,
    n: int | None,
    window: int | None,
    segment: int | None = None,
    spill_threshold: int = MEMORY_BYTES,
    reads_again: bool = True,
    every_loss: bool = False,
) -> Memory:
    """The memory of the largest update of TBPTT(k1, k2), and its expected time.

    Args:
        probe: Of the model.
        k1: Timesteps between updates; None: n.
        k2: Timesteps that back-propagation reaches; None: n.
        n: Timesteps of the longest sequence; where `k1` is None, of the longest cohort (`longest_cohort`). None where
            it is not known.
        window: Timesteps of a window; None: each sequence is one.
        segment: Timesteps whose activations live at once; None: k2, or where k2 is n a window, or k1 if that is more.
        spill_threshold: Bytes of boundary states that stay in memory.
        reads_again: Whether the source can read windows again, so that few are kept.
        every_loss: Whether all losses that an update runs through count, not the new ones alone.

    Raises:
        ValueError: `n` is needed and not known, `k1` is None and `k2` is not, or a number is less than 1.
    """
    update = _Update.of(
        probe,
        k1=k1,
        k2=k2,
        n=n,
        window=window,
        spill=spill_threshold,
        reads_again=reads_again,
        every_loss=every_loss,
    )
    return update.memory(update.default_segment if segment is None else _at_least_1("segment", segment))


def choose_segment(
    probe: Probe,
    budget_bytes: int,
    *,
    k1: int | None,
    k2: int | None,
    n: int | None,
    window: int | None,
    spill_threshold: int = MEMORY_BYTES,
    reads_again: bool = True,
    every_loss: bool = False,
) -> int:
    """The segment with which an update is fastest among those that keep it within a budget.

    Args:
        probe: Of the model.
        budget_bytes: For activations, workspace, boundary states and inputs together.
        k1, k2, n, window, spill_threshold, reads_again, every_loss: See `predict`.

    Raises:
        ValueError: No segment keeps within the budget; it names the least that one does. Or as `predict`.
    """
    update = _Update.of(
        probe,
        k1=k1,
        k2=k2,
        n=n,
        window=window,
        spill=spill_threshold,
        reads_again=reads_again,
        every_loss=every_loss,
    )
    segments = [-(-update.reach // count) for count in _counts(update.reach)]
    totals = []
    for segment in segments:
        totals.append(update.total_bytes(segment))
        if totals[-1] <= budget_bytes:
            # More segments only mean that more is run twice.
            return segment
    least = update.memory(segments[totals.index(min(totals))])
    raise ValueError(
        f"memory={format_bytes(budget_bytes)} is too little: the least is {least.total:,} bytes, in segments of "
        f"{least.segment:,}: pass memory={least.total}, fewer lanes, or a smaller k2 or model"
    )


def _counts(reach: int) -> Iterator[int]:
    """Numbers of equal segments, ascending: one for each length that such a segment can have."""
    count = 1
    while True:
        yield count
        length = -(-reach // count)
        if length == 1:
            return
        # The fewest that are shorter.
        count = -(-reach // (length - 1))


def longest_cohort(plan: Plan) -> int:
    """Timesteps from one window at which every lane starts anew to the next: what an update with k1 = n runs through.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> store = ss.from_arrays({name: {"x": np.zeros(n)} for name, n in (("a", 7), ("b", 4), ("c", 6))})
        >>> longest_cohort(ss.StreamDataset(store, lanes=1, window=2).plan)
        8
    """
    window = plan.settings.window
    if window is None:
        return plan.longest
    starts = [step for first in range(0, plan.num_windows, 4096) for step in _starts(plan, first)]
    return window * max(stop - start for start, stop in pairwise([*starts, plan.num_windows]))


def _starts(plan: Plan, first: int) -> list[int]:
    cells = plan.cells(first, min(first + 4096, plan.num_windows), 0, int(plan.settings.lanes))
    anew = (cells.reset | (cells.sequence < 0)).all(1)
    return [first + int(index) for index in np.flatnonzero(anew)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _SegmentBytes:
    activations: int
    graph: int
    workspace: int

    @property
    def total(self) -> int:
        return self.activations + self.graph + self.workspace


@dataclass(frozen=True, kw_only=True)
class _Update:
    """The largest update: `reach` timesteps, the last `new` of which are new to it.

    Args:
        probe: What timesteps cost.
        reach: Timesteps that are run.
        new: Those of them that no update had before.
        every_loss: Whether the losses of the others count too.
        keep: After how many of them a state is kept for the next update; None: none is.
        grows: Whether updates of one sequence run through more and more, up to `reach`.
        whole: Whether k2 is n.
        window: Timesteps of a window.
        spill, reads_again: See `predict`.
    """

    probe: Probe
    reach: int
    new: int
    every_loss: bool
    keep: int | None
    grows: bool
    whole: bool
    window: int
    spill: int
    reads_again: bool

    @classmethod
    def of(
        cls,
        probe: Probe,
        *,
        k1: int | None,
        k2: int | None,
        n: int | None,
        window: int | None,
        spill: int,
        reads_again: bool,
        every_loss: bool,
    ) -> _Update:
        Grid(k1=k1, k2=k2)
        for name, value in (("n", n), ("window", window)):
            if value is not None:
                _at_least_1(name, value)
        if k1 is None and k2 is not None:
            raise ValueError(f"k1=n needs k2=n, got k2={k2}: pass k2=None, or a k1 of at most k2")
        whole = k2 is None or (n is not None and k2 >= n)
        if n is None and (whole or window is None):
            raise ValueError("the memory of k2=n, or of windows that are whole sequences, depends on n: pass n")
        window = window or n
        assert window is not None
        new, keep = k1, None
        if not whole:
            assert k1 is not None
            assert k2 is not None
            reach, keep = k2, k1
        else:
            assert n is not None
            new = n if k1 is None else min(k1, n)
            reach = -(-n // new) * new
        assert new is not None
        return cls(
            probe=probe,
            reach=reach,
            new=new,
            every_loss=every_loss,
            keep=keep,
            grows=whole and new < reach,
            whole=whole,
            window=window,
            spill=spill,
            reads_again=reads_again,
        )

    @property
    def default_segment(self) -> int:
        if not self.whole:
            return self.reach
        return min(max(self.window, self.new if self.grows else 0), self.reach)

    def memory(self, segment: int) -> Memory:
        count = -(-self.reach // segment)
        largest = self._largest(segment)
        boundaries = self._boundaries(count)
        return Memory(
            activations=largest.activations,
            graph=largest.graph,
            workspace=largest.workspace,
            boundary_states=min(boundaries, self.spill) + self._states,
            inputs=self._inputs(segment),
            spilled=max(0, boundaries - self.spill),
            segment=min(segment, self.reach),
            segments=count,
            reach=self.reach,
            bytes_per_timestep=round(self.probe.new.held.per_timestep),
            time_factor=self._time_factor(segment),
        )

    def total_bytes(self, segment: int) -> int:
        """The same as `memory(segment).total`."""
        states = min(self._boundaries(-(-self.reach // segment)), self.spill) + self._states
        return self._largest(segment).total + states + self._inputs(segment)

    def _boundaries(self, count: int) -> int:
        return (count - 1) * (self.probe.state_bytes + self.probe.moment_bytes)

    @property
    def _states(self) -> int:
        """What the last segment starts from, and where there is a next update, what that does."""
        return (1 if self.keep is None else 2) * self.probe.state_bytes

    def _largest(self, segment: int) -> _SegmentBytes:
        """The most that a segment needs, of each kind."""
        reaches = {self.reach}
        if self.grows:
            # Segments are as equal as they can be, so an update that runs through less may have longer ones.
            reaches |= {max(1, segment // self.new) * self.new, *range(self.new, 16 * self.new, self.new)}
        spans = {span for reach in reaches if reach <= self.reach for span in self._spans(reach, segment)}
        segments = [self._segment(*span, after) for span in spans for after in self._ends]
        return _SegmentBytes(
            activations=max(each.activations for each in segments),
            graph=max(each.graph for each in segments),
            workspace=max(each.workspace for each in segments),
        )

    def _spans(self, reach: int, segment: int) -> set[tuple[int, int]]:
        """The first and last segment of an update, and those around its first new timestep, from its end."""
        count = -(-reach // segment)
        first_new = (reach - self.new) * count // reach
        numbers = {0, first_new - 1, first_new, first_new + 1, count - 1} & set(range(count))
        return {(reach * i // count - reach, reach * (i + 1) // count - reach) for i in numbers}

    @cached_property
    def _ends(self) -> list[int]:
        """Where in a window updates end, timesteps after its start; a few stand for many."""
        if self.new >= self.window or self.window % self.new:
            return [0]
        number = self.window // self.new
        return [self.new * each for each in range(0, number, -(-number // 16))]

    def _segment(self, start: int, stop: int, after: int) -> _SegmentBytes:
        """What the timesteps `[start, stop)` need, counted from the end of an update: negative.

        The update ends `after` timesteps after a window's start.
        """
        borders = {start, stop, -self.new, *(() if self.keep is None else (self.keep - self.reach,))}
        before = most = graph = workspace = 0
        for low, high in pairwise(sorted(border for border in borders if start <= border <= stop)):
            cost: Cost = self.probe.new if self.every_loss or low >= -self.new else self.probe.past
            for length, times in self._calls(low, high, after):
                kept = cost.kept.at(length)
                most = max(most, before + (times - 1) * kept + cost.held.at(length))
                before += times * kept
                graph += times * cost.graph.at(length)
                workspace = max(workspace, cost.workspace.at(length))
        return _SegmentBytes(activations=most, graph=graph, workspace=workspace)

    def _calls(self, low: int, high: int, after: int) -> Iterable[tuple[int, int]]:
        """Lengths of the model's calls on `[low, high)`, and how many have them. Windows that are short are joined."""
        if self.window < SHORT:
            return [(high - low, 1)]
        first = min(high - low, (-after - low) % self.window)
        whole, rest = divmod(high - low - first, self.window)
        return [(length, times) for length, times in ((first, 1), (self.window, whole), (rest, 1)) if length * times]

    def _inputs(self, segment: int) -> int:
        window = self.probe.input_bytes * self.window
        spanned = self.probe.input_bytes * self.reach + window
        joined = self.probe.input_bytes * min(segment, self.reach) if self.window < SHORT else 0
        if not self.reads_again:
            return round(spanned + joined)
        limit = max(window, KEPT_BYTES_OF_ALL if self.whole else KEPT_BYTES)
        # Windows that were read again are kept too, and some are read ahead.
        again = max(window, KEPT_BYTES_OF_ALL) + AHEAD * window
        return round(min(spanned, limit + again) + joined)

    def _time_factor(self, segment: int) -> float:
        one = self.new * self.probe.new.gradient
        if not one:
            return 1.0
        if not self.grows:
            return self._seconds(self.reach, segment) / one
        # Updates run through new, 2 new, … timesteps; a few of them stand for all.
        number = self.reach // self.new
        chosen = range(1, number + 1, -(-number // 256))
        return sum(self._seconds(self.new * each, segment) for each in chosen) / (one * len(chosen))

    def _seconds(self, reach: int, segment: int) -> float:
        new, past = self.probe.new, self.probe.new if self.every_loss else self.probe.past
        count = -(-reach // segment)
        # All segments but the last are run without a graph first.
        twice = reach * (count - 1) // count
        twice_past = min(twice, reach - self.new)
        without = twice_past * past.forward + (twice - twice_past) * new.forward
        return without + (reach - self.new) * past.gradient + self.new * new.gradient


def _at_least_1(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is at least 1, got {value}")
    return value
