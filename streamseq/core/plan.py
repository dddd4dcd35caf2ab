"""The plan: pure arithmetic that says what each lane of each window holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from streamseq.core.balance import Classes
from streamseq.core.boundaries import Boundaries
from streamseq.core.domain import DomainPieces
from streamseq.core.errors import PlanError, ResumeError
from streamseq.core.laying import Laying
from streamseq.core.layout import BLOCK, Layout, Numbers, Occupancy, cut_evenly, number_dtype
from streamseq.core.mixing import Mix
from streamseq.core.runs import Cells, Runs
from streamseq.core.selection import Pieces, Selection
from streamseq.core.settings import PlanSettings, at_least
from streamseq.core.splits import AsIs, Domain
from streamseq.core.uses import Uses, count_uses

if TYPE_CHECKING:
    from streamseq.core.tokens import StateToken

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Plan:
    """The layout of chosen spans on lanes and the cut into windows, for one epoch, or for what is left of it.

    A lane holds *pieces* one after the other: whole spans, or with the even layout and with `longest` also parts of
    them. A piece is cut into windows from its own start on, so that no window spans two pieces; with tail="pack" the
    lane as a whole is cut, wherever pieces end. Finding a window takes one binary search a lane; memory is at most 16
    bytes a piece beside the lengths.

    With the domain split pieces lie between boundaries, and the state goes on from one to the next within a *group*,
    what lies between breaks. Lanes get whole groups (or parts of them, in the even layout).

    With a mix each part of the selection has lanes of its own; with classes sequences are drawn by class, so that some
    come several times and some not at all. `uses` says which.

    With `switches` the plan is of what is left of the epoch after them, and its windows are numbered from 0 again: a
    lane that was within a piece goes on in it, with the state that it has.

    Args:
        selection: What to lay out.
        settings: How.
        contents: The fingerprint of the store that the lengths come from.
        epoch: Decides the order when shuffling.
        boundaries: Of the chosen sequences, with the domain split.
        mix: The parts of the selection that have lanes of their own.
        classes: Of the chosen spans, which are drawn by class.

    Raises:
        ValueError: Boundaries without the domain split, or the other way round.
        PlanError: No timestep was chosen, not one whole window with tail="drop", or a switch after the epoch's end.

    Example:
        >>> from streamseq.core.selection import select_all
        >>> plan = Plan(select_all(np.array([5, 4])), PlanSettings(lanes=2, window=4), contents="", epoch=0)
        >>> plan.num_windows
        2
        >>> plan.cells(1, 2, 0, 2).sequence.tolist()
        [[0, -1]]
        >>> plan.occupancy.busy, plan.occupancy.filled
        (0.75, 0.75)
        >>> rest = plan.rewindowed(3, step=1)
        >>> rest.cells(0, 1, 0, 2).start.tolist(), rest.settings.switches
        ([[4, 0]], ((4, 1),))
    """

    #: Windows of the epoch, or of what is left of it.
    num_windows: int
    #: Timesteps that these windows emit.
    num_timesteps: int
    #: Timesteps of the longest piece, or group, that the epoch emits, from its reset on.
    longest: int
    #: What lanes get as a whole: spans that are not empty, the parts that `longest` makes of them, or groups.
    num_groups: int
    _layout: Layout
    _keys: Numbers  # [pieces]: lane and first window of a piece, or first timestep if packed, ascending
    _stride: int  # from the key of one lane's begin to the next one's
    _held: Int64  # [B]: windows of each lane, or timesteps if packed

    def __init__(
        self,
        selection: Selection,
        settings: PlanSettings,
        *,
        contents: str,
        epoch: int,
        boundaries: Boundaries | None = None,
        mix: Mix | None = None,
        classes: Classes | None = None,
    ) -> None:
        if (boundaries is not None) != isinstance(settings.split, Domain):
            raise ValueError(
                f"the domain split, and no other, has boundaries, got boundaries={boundaries} for {settings.split}"
            )
        self.selection = selection
        self.settings = settings
        self.contents = contents
        self.epoch = epoch
        if not selection.lengths.any():
            raise PlanError(f"a plan needs at least one timestep, got {len(selection)} sequences of length 0")
        self.boundaries = boundaries
        self.mix = mix
        self.classes = classes
        self._pieces = (
            Pieces(selection.lengths, settings.longest) if boundaries is None else DomainPieces(selection, boundaries)
        )
        lengths = self._pieces.lengths()
        longest = None
        if isinstance(self._pieces, DomainPieces):
            longest = self._lay_out_groups(self._pieces, lengths)
        else:
            self._layout = self._lay_out(lengths, self._pieces.first_of)
            self.num_groups = int(np.count_nonzero(lengths))
        self._packed = settings.tail == "pack"
        windows = [*(window for window, _ in settings.switches), settings.window]
        longest_piece = self._cut_into_windows(lengths, windows[0])
        # Of the whole epoch, whatever is left of it.
        self._all_of_it = self._layout
        self.longest = longest_piece if longest is None else longest
        if not self.num_windows:
            raise PlanError(
                f'tail="drop" emits whole windows only, and no sequence has window={windows[0]} timesteps: '
                'take a shorter window or tail="pad"'
            )
        for (window, step), following in zip(settings.switches, windows[1:], strict=True):
            self._layout = self._rest(step, window)
            self._cut_into_windows(lengths, following)

    def _lay_out(self, lengths: Numbers, first_of: Callable[[Int64], Int64]) -> Layout:
        return Laying(
            lengths=lengths,
            settings=self.settings,
            epoch=self.epoch,
            mix=self.mix,
            classes=self.classes,
            spans=self.selection.lengths,
            first_of=first_of,
        ).layout()

    def _lay_out_groups(self, pieces: DomainPieces, lengths: Numbers) -> int:
        """Lay out what lies between breaks. Returns the timesteps of the longest of these that a lane holds."""
        first = pieces.group_first()
        groups = np.add.reduceat(lengths, first, dtype=np.int64)
        self.num_groups = int(np.count_nonzero(groups))
        layout = self._lay_out(groups, lambda spans: np.searchsorted(first, pieces.first_of(spans)))
        self._layout = layout.expanded(np.append(first, len(lengths)), lengths)
        return int(layout.lengths_of(groups, 0, len(layout.pieces)).max())

    def _cut_into_windows(self, lengths: Numbers, window: int | None) -> int:
        """Number the windows of each lane, or its timesteps if packed. Returns those of the longest emitted piece.

        Args:
            lengths: int [P], timesteps of the pieces.
            window: Timesteps of a window.
        """
        drop = window is not None and self.settings.tail == "drop"
        count = len(self._layout.pieces)
        unit = 1 if self._packed else window
        counts = np.empty(count, number_dtype(int(lengths.max()) // (unit or 1) + 1))
        longest = timesteps = 0
        for start in range(0, count, BLOCK):
            part = self._layout.lengths_of(lengths, start, min(start + BLOCK, count))
            timesteps += int(part.sum())
            if unit is None:
                longest = max(longest, int(part.max()))
                part.fill(1)
            else:
                longest = max(longest, int(part.max()) // unit * unit if drop else int(part.max()))
                part += 0 if drop else unit - 1
                part //= unit
            counts[start : start + BLOCK] = part
        if not counts.all():
            self._layout = self._layout.without(counts == 0)
            counts = counts[counts > 0]
        borders = list(pairwise(self._layout.first.tolist()))
        self._held = np.array([counts[low:high].sum(dtype=np.int64) for low, high in borders], np.int64)
        self.num_windows = -(-int(self._held.max()) // (window if self._packed and window is not None else 1))
        self.num_timesteps = int(self._held.sum()) * window if drop and window is not None else timesteps
        # Lane and begin of each piece in one ascending number, so that one search finds a piece on any lane.
        self._stride = int(self._held.max()) + 1
        self._keys = counts.astype(number_dtype(len(borders) * self._stride), copy=False)
        for lane, (low, high) in enumerate(borders):
            before = lane * self._stride
            for start in range(low, high, BLOCK):
                each = self._keys[start : min(start + BLOCK, high)]
                ends = np.cumsum(each, dtype=np.int64)
                np.subtract(ends + before, each, out=each, casting="same_kind")
                before += int(ends[-1])
        return longest

    def _rest(self, step: int, window: int) -> Layout:
        """What is left of the layout after `step` windows of `window` timesteps."""
        if step > self.num_windows:
            raise PlanError(
                f"the windows change within the epoch, which has {self.num_windows} of {window} timesteps, got a "
                f"change after {step}: pass a position of this epoch"
            )
        begin = step * window if self._packed else step
        ongoing = self._held > begin
        key = np.arange(len(ongoing)) * self._stride + begin
        piece = np.searchsorted(self._keys, key.astype(self._keys.dtype), "right") - 1
        begun = (key - self._keys[piece]) * (1 if self._packed else window) if len(self._keys) else key
        goes_on = np.zeros(len(ongoing), np.bool_)
        if isinstance(self._pieces, DomainPieces) and ongoing.any():
            number = self._layout.pieces[piece[ongoing]].astype(np.int64)
            goes_on[ongoing] = ~self._pieces.reach(number).opens
        return self._layout.after(
            np.where(ongoing, piece, self._layout.first[1:]), np.where(ongoing, begun, 0), goes_on
        )

    def rewindowed(self, window: int, *, step: int) -> Plan:
        """The plan of what is left of the epoch after `step` windows, in windows of another length.

        Every lane goes on where it stopped. The fingerprint stays; the new plan's settings have one of `switches` more,
        which makes it again from nothing.

        Args:
            window: Timesteps of a window from here on.
            step: Windows of this plan that were consumed, all of them at most; `step_after` finds it from a token.

        Raises:
            PlanError: The plan has fewer windows.
            TypeError, ValueError: An argument is of a wrong type or out of range, or the split or the tail does not
                allow for another window length.
        """
        at_least("step", step, 0)
        if self.settings.window is None:
            raise ValueError("AsIs() makes each sequence one window, whose length cannot change: use Naive()")
        switches = self.settings.switches
        if step:
            switches = (*switches, (int(self.settings.window), int(step)))
        settings = replace(self.settings, window=window, switches=switches)
        rest = copy(self)
        for cached in ("occupancy", "reach"):
            rest.__dict__.pop(cached, None)
        rest.settings = settings
        rest._layout = self._rest(int(step), int(self.settings.window))
        rest._cut_into_windows(self._pieces.lengths(), int(window))
        return rest

    def step_after(self, token: StateToken) -> int:
        """The window at which this plan goes on after a token of its own, of any of its lanes.

        Raises:
            ResumeError: The token is of another plan, epoch or window length, or of no whole window of this plan.
        """
        here = (self.fingerprint, self.epoch, self.settings.window, self.settings.switches)
        there = (token.fingerprint, token.epoch, token.window, tuple(token.switches))
        for name, mine, its in zip(("fingerprint", "epoch", "window", "switches"), here, there, strict=True):
            if mine != its:
                raise ResumeError(
                    f"a token goes on in the plan that made it: its {name} is {its!r}, the plan's is {mine!r}: "
                    "pass a token of this stream"
                )
        if not 0 <= token.step < self.num_windows:
            raise ResumeError(f"the plan has windows 0 to {self.num_windows - 1}, got the token of window {token.step}")
        cells = self.cells(token.step, token.step + 1, 0, int(self.settings.lanes))
        for name in ("sequence", "start", "stop", "final"):
            expected, got = getattr(cells, name)[0, token.lane], getattr(token, name)
            wrong = np.flatnonzero(expected != got)
            if len(wrong):
                at = wrong[0]
                raise ResumeError(
                    f"window {token.step} of lane {token.lane[at]} has {name} {expected[at]} in the plan, "
                    f"got {got[at]} in the token: pass the token of a whole window, as the stream made it"
                )
        return token.step + 1

    @cached_property
    def uses(self) -> Uses:
        """How much the whole epoch emits of each chosen span, and what of it more than once."""
        layout, lengths = self._all_of_it, self._pieces.lengths()
        held = layout.lengths_of(lengths, 0, len(layout.pieces))
        begin = np.zeros(len(held), np.int64)
        begin[layout.first[:-1][layout.held]] = layout.skip[layout.held]
        if self.settings.tail == "drop" and self.settings.window is not None:
            held -= held % int(self.settings.window)
        rows, offset, _ = self._pieces.locate(layout.pieces.astype(np.int64))
        every = np.arange(len(self.selection))
        begin += offset
        return count_uses(self.selection.sequences_of(every), self.selection.lengths, rows, begin, begin + held)

    @property
    def left_out(self) -> int:
        """Timesteps that were chosen and that the epoch does not emit: tails that are dropped, what comes after
        until="first", and what balance does not draw."""
        if self.mix is None and self.classes is None:
            # With other tails nothing is, whatever is left of the epoch.
            dropped = int(self.selection.lengths.sum()) - self.num_timesteps
            return dropped if self.settings.tail == "drop" else 0
        return self.uses.left_out

    @property
    def repeated(self) -> int:
        """Timesteps that the epoch emits and has emitted before: by until="repeat", or drawn again by balance."""
        return 0 if self.mix is None and self.classes is None else self.uses.repeated

    @cached_property
    def reach(self) -> int:
        """The most timesteps of a window grid that lie between a reset and a final timestep: as `longest`, but with
        the padding in the middle of groups, which are there with the domain split."""
        window = self.settings.window
        if not isinstance(self._pieces, DomainPieces) or window is None or not len(self._keys):
            return self.longest
        lanes, first = int(self.settings.lanes), self._layout.first
        # The windows of each piece, from where the next one begins; the last one of a lane ends with the lane.
        lane = np.repeat(np.arange(lanes), np.diff(first))
        begins = self._keys - lane * self._stride
        held = self._layout.held
        ends = np.append(begins[1:], 0)
        ends[first[1:][held] - 1] = self._held[held]
        opens = np.zeros(len(self._pieces), np.bool_)
        opens[self._pieces.group_first()] = True
        opens = opens[self._layout.pieces]
        opens[first[:-1][held]] = True
        return int(np.add.reduceat(ends - begins, np.flatnonzero(opens)).max()) * int(window)

    @cached_property
    def occupancy(self) -> Occupancy:
        """How full the lanes are, over all windows and lanes."""
        lanes = int(self.settings.lanes)
        windows = -(-self._held // int(self.settings.window or 1)) if self._packed else self._held
        used = int(windows.sum())
        if self.settings.window is not None:
            emitted = used * int(self.settings.window)
        else:
            # Every window is as long as the longest sequence in it.
            longest = np.zeros(self.num_windows, np.int64)
            lengths = self._pieces.lengths()
            for low, high in pairwise(self._layout.first.tolist()):
                held = longest[: high - low]
                np.maximum(held, self._layout.lengths_of(lengths, low, high), out=held)
            ended = np.bincount(windows, minlength=self.num_windows + 1)
            emitted = int((longest * (lanes - np.cumsum(ended)[:-1])).sum())
        return Occupancy(
            lane_windows=lanes * self.num_windows,
            idle_lane_windows=lanes * self.num_windows - used,
            timesteps=self.num_timesteps,
            padding_timesteps=emitted - self.num_timesteps,
        )

    def runs(self, first: int, stop: int, lane_start: int, lane_stop: int) -> Runs:
        """What the lanes `[lane_start, lane_stop)` hold in the windows `[first, stop)`; with `AsIs` in one window.

        Args:
            first, stop: Windows, `0 <= first < stop <= num_windows`.
            lane_start, lane_stop: A run of lanes.
        """
        windows, window = stop - first, self.settings.window
        # What lanes count: timesteps if packed, else windows, and how many timesteps that is.
        unit = window
        if self._packed and window is not None:
            first, stop, unit = first * int(window), stop * int(window), 1
        lanes = np.arange(lane_start, lane_stop)
        base = lanes * self._stride
        held = self._held[lane_start:lane_stop]
        end = np.minimum(held, stop)
        # Of the same dtype as the keys, which are searched as they are then.
        dtype = self._keys.dtype
        low_piece = np.searchsorted(self._keys, (base + first).astype(dtype), "right") - 1
        counts = np.searchsorted(self._keys, (base + end - 1).astype(dtype), "right") - low_piece
        counts[end <= first] = 0
        lane = np.repeat(np.arange(len(lanes)), counts)
        piece = np.arange(len(lane)) + np.repeat(low_piece - (np.cumsum(counts) - counts), counts)
        begins = self._keys[piece] - base[lane]
        layout = self._layout
        is_first = piece == layout.first[lanes][lane]
        is_last = piece == layout.first[lanes + 1][lane] - 1
        next_begins = self._keys[np.minimum(piece + 1, len(self._keys) - 1)] - base[lane]
        run_first = np.maximum(begins, first)
        run_last = np.minimum(end[lane], np.where(is_last, held[lane], next_begins))
        numbers = layout.pieces[piece].astype(np.int64)
        rows, offset, length = self._pieces.locate(numbers)
        low = self.selection.starts_of(rows)
        begin = low + offset + np.where(is_first, layout.skip[lanes][lane], 0)
        finish = low + offset + length - np.where(is_last, layout.cut[lanes][lane], 0)
        opens: Bool | np.bool_ = np.True_
        closes: Bool | np.bool_ = np.True_
        if isinstance(self._pieces, DomainPieces):
            reach = self._pieces.reach(numbers)
            opens, closes = reach.opens, reach.closes
            low, high = low + reach.low, low + reach.high
        else:
            high = low + self.selection.lengths[rows]
        run_start, run_stop = begin, finish
        if unit is not None:
            if self.settings.tail == "drop":
                finish = finish - (finish - begin) % unit
            run_start = begin + (run_first - begins) * int(unit)
            run_stop = np.minimum(begin + (run_last - begins) * int(unit), finish)
        columns = [lane, run_first - first, run_last - first, self.selection.sequences_of(rows)]
        reset = (run_first == begins) & np.where(is_first, ~layout.goes_on[lanes][lane], opens)
        columns += [run_start, run_stop, low, high, reset, (run_stop == finish) & (is_last | closes)]
        idle = np.flatnonzero(held < stop)
        if len(idle):
            zeros = np.zeros(len(idle), np.int64)
            filler = [idle, np.maximum(held[idle] - first, 0), zeros + (stop - first), zeros - 1]
            filler += [zeros] * 4 + [zeros.astype(np.bool_)] * 2
            columns = [np.concatenate(pair) for pair in zip(columns, filler, strict=True)]
        names = ("lane", "first", "last", "sequence", "start", "stop", "low", "high", "reset", "final")
        return Runs(
            windows=windows,
            lanes=len(lanes),
            window=None if window is None else int(window),
            packed=self._packed,
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
        if settings.longest is not None:
            parts["longest"] = int(settings.longest)
        if self.boundaries is not None:
            parts["boundaries"] = self.boundaries.fingerprint
        if isinstance(settings.split, AsIs) and settings.split.buckets is not None:
            parts["buckets"] = int(settings.split.buckets)
        if self.mix is not None:
            parts["mix"] = [self.mix.rows.tolist(), list(self.mix.lanes), self.mix.until]
        if self.classes is not None:
            parts["balance"] = [self.classes.fingerprint, int(settings.seed), settings.run]
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
    at_least("world_size", world_size, 1)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is one of 0 to world_size - 1 = {world_size - 1}, got {rank}")
    if lanes < world_size:
        raise PlanError(f"every rank owns a lane, got lanes={lanes} for world_size={world_size}: use more lanes")
    borders = cut_evenly(lanes, world_size)
    return int(borders[rank]), int(borders[rank + 1])
