"""The plan: pure arithmetic that says what each lane of each window holds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import PlanError
from streamseq.core.layout import cut_evenly, fill_lanes, lane_dtype
from streamseq.core.selection import Selection
from streamseq.core.shuffle import shuffled_order
from streamseq.core.splits import AsIs, Naive, Split

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

LAYOUTS = ("sequences", "even")
TAILS = ("pad", "drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanSettings:
    """What decides a plan, beside the lengths of the sequences.

    Args:
        lanes: Number of lanes B, over all ranks.
        window: Timesteps K of a window; None with `AsIs`, whose windows are as long as their longest sequence.
        split: `Naive()` or `AsIs()`.
        layout: "sequences" gives whole sequences to lanes; "even" cuts the data, end to end, into B equal runs.
        tail: "pad" emits what is left of a sequence after its last whole window with padding; "drop" leaves it out.
        shuffle: Whether the order of the sequences is random, another one in each epoch.
        seed: Of the shuffling.
        run: Timesteps of neighbouring sequences that shuffling keeps together, about those of a few chunks of storage.

    Raises:
        TypeError: A number is not an integer.
        ValueError: An argument is out of range, or does not go with the split.
    """

    lanes: int
    window: int | None
    split: Split = field(default_factory=Naive)
    layout: str = "sequences"
    tail: str = "pad"
    shuffle: bool = False
    seed: int = 0
    run: int = 1 << 20

    def __post_init__(self) -> None:
        if not isinstance(self.split, AsIs | Naive):
            raise TypeError(f"split is ss.splits.Naive() or ss.splits.AsIs(), got {self.split!r}")
        if isinstance(self.split, AsIs):
            if self.window is not None:
                raise ValueError(f"AsIs() makes each sequence one window, got window={self.window}: pass window=None")
        elif self.window is None:
            raise ValueError("Naive() cuts windows of a given length, got window=None: pass window=256 or the like")
        else:
            _at_least_one("window", self.window)
        _at_least_one("lanes", self.lanes)
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout is one of {', '.join(LAYOUTS)}, got {self.layout!r}")
        if self.tail not in TAILS:
            raise ValueError(f"tail is one of {', '.join(TAILS)}, got {self.tail!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int | np.integer):
            raise TypeError(f"seed is an integer, got {self.seed!r}")


def _at_least_one(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} is an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} is at least 1, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """What some lanes hold in some windows: W windows by B lanes.

    Args:
        sequence: int64 [W, B], index of the sequence, -1 where the lane is idle.
        start, stop: int64 [W, B], positions in the sequence; both 0 where the lane is idle.
        reset: bool [W, B], whether the state before the window is the initial one.
        final: bool [W, B], whether the lane's state ends with the window.
    """

    sequence: Int64
    start: Int64
    stop: Int64
    reset: Bool
    final: Bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Runs:
    """What B lanes hold in W consecutive windows, as R runs: windows of a lane with consecutive timesteps, or idle.

    Args:
        windows, lanes: W and B.
        window: Timesteps K of a window; None where each sequence is one, and then W is 1.
        lane: int64 [R], from 0.
        first, last: int64 [R], the windows `[first, last)`, from 0.
        sequence: int64 [R], index of the sequence, -1 where the lane is idle.
        start, stop: int64 [R], positions in the sequence; both 0 where the lane is idle.
        low, high: int64 [R], the span that was chosen of the sequence: no datum outside it may be shown.
        reset: bool [R], whether the state before the run is the initial one.
        final: bool [R], whether the lane's state ends with the run.
    """

    windows: int
    lanes: int
    window: int | None
    lane: Int64
    first: Int64
    last: Int64
    sequence: Int64
    start: Int64
    stop: Int64
    low: Int64
    high: Int64
    reset: Bool
    final: Bool

    def __len__(self) -> int:
        return len(self.lane)

    def cells(self) -> Cells:
        """The same, window by window."""
        shape = (self.lanes, self.windows)
        counts = self.last - self.first
        # Where each cell lies in its run; the cells of a lane are consecutive once the runs are sorted.
        order = np.argsort(self.lane * self.windows + self.first)
        run = np.repeat(order, counts[order]).reshape(shape).T
        index = np.arange(self.windows)[:, None] - self.first[run]
        start, stop = self.start[run], self.stop[run]
        if self.window is not None:
            start = np.minimum(start + index * self.window, stop)
            np.minimum(start + self.window, stop, out=stop)
        return Cells(
            sequence=self.sequence[run],
            start=start,
            stop=stop,
            reset=self.reset[run] & (index == 0),
            final=self.final[run] & (index == counts[run] - 1),
        )


class Plan:
    """The layout of chosen spans on lanes and the cut into windows, for one epoch.

    A lane holds *pieces* one after the other: whole spans, or with the even layout also parts of them. A piece is
    cut into windows from its own start on, so that no window spans two pieces. Finding a window takes one binary
    search a lane; memory is at most 16 bytes a piece beside the lengths.

    Args:
        selection: What to lay out.
        settings: How.
        contents: The fingerprint of the store that the lengths come from.
        epoch: Decides the order when shuffling.

    Raises:
        PlanError: No timestep was chosen, or not one whole window with tail="drop".

    Example:
        >>> from streamseq.core.selection import select_all
        >>> plan = Plan(select_all(np.array([5, 4])), PlanSettings(lanes=2, window=4), contents="", epoch=0)
        >>> plan.num_windows
        2
        >>> plan.cells(1, 2, 0, 2).sequence.tolist()
        [[0, -1]]
    """

    _rows: NDArray[np.int32] | Int64  # [pieces], in lane order: the span that a piece is of
    _keys: Int64  # [pieces]: lane and first window of a piece, ascending
    _first: Int64  # [B + 1]: the first piece of each lane
    _skip: Int64  # [B]: timesteps of a lane's first span that lie in the lane before
    _cut: Int64  # [B]: timesteps of a lane's last span that lie in the lane after

    def __init__(self, selection: Selection, settings: PlanSettings, *, contents: str, epoch: int) -> None:
        self.selection = selection
        self.settings = settings
        self.contents = contents
        self.epoch = epoch
        self._total = int(selection.lengths.sum())
        if not self._total:
            raise PlanError(f"a plan needs at least one timestep, got {len(selection)} sequences of length 0")
        if settings.layout == "even":
            self._lay_out_evenly()
        else:
            self._lay_out_whole()
        self._cut_into_windows()

    def _order(self) -> Int64 | None:
        """The spans in the order in which they are taken; None for as they are."""
        if not self.settings.shuffle:
            return None
        return shuffled_order(self.selection.lengths, self.settings.run, int(self.settings.seed), self.epoch)

    def _lay_out_whole(self) -> None:
        lengths, lanes = self.selection.lengths, int(self.settings.lanes)
        rows = self._order()
        if isinstance(self.settings.split, AsIs):
            rows = np.flatnonzero(lengths) if rows is None else rows[lengths[rows] > 0]
            lane = (np.arange(len(rows)) % lanes).astype(lane_dtype(lanes))
        else:
            lane = fill_lanes(lengths if rows is None else lengths[rows], lanes)
        self._first = np.concatenate([[0], np.cumsum(np.bincount(lane, minlength=lanes))])
        order = np.argsort(lane, kind="stable")
        self._rows = order if rows is None else rows[order]
        self._skip = np.zeros(lanes, np.int64)
        self._cut = np.zeros(lanes, np.int64)

    def _lay_out_evenly(self) -> None:
        """Lane b holds timesteps `[borders[b], borders[b+1])` of the sequences laid end to end."""
        lanes = int(self.settings.lanes)
        rows = self._order()
        lengths = self.selection.lengths
        rows = np.flatnonzero(lengths) if rows is None else rows[lengths[rows] > 0]
        ends = np.cumsum(self.selection.lengths[rows])
        borders = cut_evenly(self._total, lanes)
        low = np.searchsorted(ends, borders[:-1], "right")
        high = np.where(borders[1:] > borders[:-1], np.searchsorted(ends, borders[1:], "left") + 1, low)
        self._first = np.concatenate([[0], np.cumsum(high - low)])
        at = np.arange(self._first[-1]) - np.repeat(self._first[:-1] - low, high - low)
        self._rows = rows[at]
        # How much of a lane's first span lies in the lane before it, and of its last span in the lane after it.
        begins = ends - self.selection.lengths[rows]
        held = high > low
        self._skip = np.where(held, borders[:-1] - begins[np.minimum(low, len(rows) - 1)], 0)
        self._cut = np.where(held, ends[np.maximum(high, 1) - 1] - borders[1:], 0)

    def _piece_lengths(self) -> Int64:
        lengths = self.selection.lengths[self._rows]
        held = self._first[1:] > self._first[:-1]
        lengths[self._first[:-1][held]] -= self._skip[held]
        lengths[self._first[1:][held] - 1] -= self._cut[held]
        return lengths

    def _cut_into_windows(self) -> None:
        """Number the windows of each lane. Ten million pieces fit because little is copied and much is overwritten."""
        lengths = self._piece_lengths()
        window = self.settings.window
        drop = window is not None and self.settings.tail == "drop"
        #: Timesteps of the longest piece that is emitted.
        self.longest = int(lengths.max(initial=0))
        #: Timesteps that the epoch emits.
        self.num_timesteps = self._total
        windows = lengths
        if window is None:
            windows.fill(1)
        else:
            windows += 0 if drop else window - 1
            windows //= window
        if drop and window is not None:
            self.longest = int(windows.max(initial=0)) * window
            self.num_timesteps = int(windows.sum()) * window
        #: Timesteps that were chosen and are not emitted (tail="drop").
        self.left_out = self._total - self.num_timesteps
        if not windows.all():
            windows = self._without_empty(windows)
        if len(self.selection) < 2**31:
            self._rows = self._rows.astype(np.int32)
        pieces = [windows[low:high] for low, high in pairwise(self._first.tolist())]
        self._lane_windows = np.array([each.sum() for each in pieces], np.int64)
        #: Windows of the epoch.
        self.num_windows = int(self._lane_windows.max())
        if not self.num_windows:
            raise PlanError(
                f'tail="drop" emits whole windows only, and no sequence has window={window} timesteps: '
                'take a shorter window or tail="pad"'
            )
        # Lane and first window of each piece in one ascending number, so that one search finds a piece on any lane.
        stride = self.num_windows + 1
        for lane, each in enumerate(pieces):
            np.cumsum(each, out=each)
            each[1:] = each[:-1]
            each[:1] = 0
            each += lane * stride
        self._keys = windows

    def _without_empty(self, windows: Int64) -> Int64:
        """Leave out pieces that emit nothing; a border cuts the lane's first or last piece only if that one is kept."""
        kept = windows > 0
        first, last = self._first[:-1], self._first[1:] - 1
        held = last >= first
        self._skip = np.where(held & kept[np.minimum(first, len(kept) - 1)], self._skip, 0)
        self._cut = np.where(held & kept[np.maximum(last, 0)], self._cut, 0)
        self._rows = self._rows[kept]
        before = np.concatenate([[0], np.cumsum(kept)])
        self._first = before[self._first]
        return windows[kept]

    def runs(self, first: int, stop: int, lane_start: int, lane_stop: int) -> Runs:
        """What the lanes `[lane_start, lane_stop)` hold in the windows `[first, stop)`; with `AsIs` in one window.

        Args:
            first, stop: Windows, `0 <= first < stop <= num_windows`.
            lane_start, lane_stop: A run of lanes.
        """
        lanes = np.arange(lane_start, lane_stop, dtype=np.int64)
        base = lanes * (self.num_windows + 1)
        held = self._lane_windows[lane_start:lane_stop]
        end = np.minimum(held, stop)
        low_piece = np.searchsorted(self._keys, base + first, "right") - 1
        counts = np.searchsorted(self._keys, base + end - 1, "right") - low_piece
        counts[end <= first] = 0
        lane = np.repeat(np.arange(len(lanes)), counts)
        piece = np.arange(len(lane)) + np.repeat(low_piece - (np.cumsum(counts) - counts), counts)
        begins = self._keys[piece] - base[lane]
        is_last = piece == self._first[lanes + 1][lane] - 1
        next_begins = self._keys[np.minimum(piece + 1, len(self._keys) - 1)] - base[lane]
        run_first = np.maximum(begins, first)
        run_last = np.minimum(end[lane], np.where(is_last, held[lane], next_begins))
        rows = self._rows[piece].astype(np.int64)
        low = self.selection.starts_of(rows)
        high = low + self.selection.lengths[rows]
        begin = low + np.where(piece == self._first[lanes][lane], self._skip[lanes][lane], 0)
        finish = high - np.where(is_last, self._cut[lanes][lane], 0)
        window = self.settings.window
        run_start, run_stop = begin, finish
        if window is not None:
            if self.settings.tail == "drop":
                finish = finish - (finish - begin) % window
            run_start = begin + (run_first - begins) * int(window)
            run_stop = np.minimum(begin + (run_last - begins) * int(window), finish)
        columns = [lane, run_first - first, run_last - first, self.selection.sequences_of(rows)]
        columns += [run_start, run_stop, low, high, run_first == begins, run_stop == finish]
        idle = np.flatnonzero(held < stop)
        if len(idle):
            zeros = np.zeros(len(idle), np.int64)
            filler = [idle, np.maximum(held[idle] - first, 0), zeros + (stop - first), zeros - 1]
            filler += [zeros] * 4 + [zeros.astype(np.bool_)] * 2
            columns = [np.concatenate(pair) for pair in zip(columns, filler, strict=True)]
        names = ("lane", "first", "last", "sequence", "start", "stop", "low", "high", "reset", "final")
        return Runs(
            windows=stop - first,
            lanes=len(lanes),
            window=None if window is None else int(window),
            **dict(zip(names, columns, strict=True)),
        )

    def cells(self, first: int, stop: int, lane_start: int, lane_stop: int) -> Cells:
        """What the lanes `[lane_start, lane_stop)` hold in the windows `[first, stop)`, window by window."""
        if self.settings.window is not None:
            return self.runs(first, stop, lane_start, lane_stop).cells()
        each = [self.runs(step, step + 1, lane_start, lane_stop).cells() for step in range(first, stop)]
        names = ("sequence", "start", "stop", "reset", "final")
        return Cells(**{name: np.concatenate([getattr(cells, name) for cells in each]) for name in names})

    def window_length(self, step: int) -> int:
        """Timesteps of window `step`, padding included; with `AsIs` those of its longest sequence over all lanes."""
        if self.settings.window is not None:
            return int(self.settings.window)
        runs = self.runs(step, step + 1, 0, int(self.settings.lanes))
        return int((runs.stop - runs.start).max())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what decides the data and its order; rank, workers, epoch and window length stay out."""
        settings = self.settings
        parts = {
            "contents": self.contents,
            "chosen": self.selection.fingerprint,
            "lanes": int(settings.lanes),
            "layout": settings.layout,
            "split": type(settings.split).__name__,
            "tail": settings.tail,
            "shuffle": [int(settings.seed), settings.run] if settings.shuffle else None,
        }
        return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=16).hexdigest()


def lanes_of_rank(lanes: int, rank: int, world_size: int) -> tuple[int, int]:
    """The lanes `[start, stop)` that a rank owns; where the number does not divide, the first ranks own one more.

    Raises:
        PlanError: There are fewer lanes than ranks.
        ValueError: The rank is not one of `world_size`.

    Example:
        >>> [lanes_of_rank(5, rank, 2) for rank in range(2)]
        [(0, 3), (3, 5)]
    """
    _at_least_one("world_size", world_size)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is one of 0 to world_size - 1 = {world_size - 1}, got {rank}")
    if lanes < world_size:
        raise PlanError(f"every rank owns a lane, got lanes={lanes} for world_size={world_size}: use more lanes")
    borders = cut_evenly(lanes, world_size)
    return int(borders[rank]), int(borders[rank + 1])
