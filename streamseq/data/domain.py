"""The boundaries that a domain split describes, found in a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.boundaries import Boundaries
from streamseq.core.plan import Plan
from streamseq.core.scan import MissingTimeError, Scanned, Scanner, make_scanner
from streamseq.core.selection import Selection
from streamseq.core.settings import PlanSettings
from streamseq.core.splits import At, Domain, Where
from streamseq.data.blocks import BlockReader
from streamseq.data.buffers import Buffers
from streamseq.data.limits import Needs, usual_limits
from streamseq.data.readahead import ReadAhead
from streamseq.data.requests import Emitted, View
from streamseq.storage.interface import Store

Int64 = NDArray[np.int64]

# Of the pieces in which fields are looked through.
_PIECE_BYTES = 4 << 20
_PIECE_TIMESTEPS = 1 << 20
_PREFETCH = 2


def find_boundaries(store: Store, split: Domain, selection: Selection) -> Boundaries:
    """Find the boundaries of the chosen sequences.

    Of each sequence the timesteps up to the end of the last chosen span are looked through: all rules that look at
    fields in one pass over the fields that they need, in pieces of a few MiB; then functions, sequence by sequence.

    Args:
        store: Which is read.
        split: The rules.
        selection: The spans that were chosen.

    Raises:
        KeyError: A field, or the id of a sequence, is not in the store.
        ValueError: A rule does not go with its field, a position does not lie in its sequence, or a timestamp is
            missing.
        TypeError: Positions are no whole numbers.
        CorruptionError: Stored bytes are not what was written.

    Example:
        >>> import streamseq as ss
        >>> from streamseq.core.selection import select_all
        >>> store = ss.from_arrays({"a": {"time": np.array([0, 1, 5, 6])}, "b": {"time": np.array([7, 8, 9])}})
        >>> split = ss.splits.Domain([ss.splits.Gap("time", longer_than=1), {"b": [1]}])
        >>> found = find_boundaries(store, split, select_all(store.lengths))
        >>> found.sequence.tolist(), found.position.tolist(), found.breaks.tolist()
        ([0, 1], [2, 1], [True, False])
    """
    timeline = _Timeline(selection)
    scanners = [(rule, _scanner(store, rule)) for rule in split.rules if isinstance(rule, Scanned)]
    found = [*_scan(store, timeline, scanners)]
    for rule in split.rules:
        if isinstance(rule, At):
            found.append((_given(store, timeline, rule), rule.reset))
        elif isinstance(rule, Where):
            found.append((_called(store, timeline, rule), rule.reset))
    return timeline.boundaries(found)


class _Timeline:
    """The chosen sequences end to end, each from its start to where the last chosen span of it ends."""

    def __init__(self, selection: Selection) -> None:
        self.sequence: Int64 | None = None
        self.stop = selection.lengths
        if selection.sequence is not None:
            rows = np.arange(len(selection))
            self.sequence, place = np.unique(selection.sequence, return_inverse=True)
            self.stop = np.zeros(len(self.sequence), np.int64)
            np.maximum.at(self.stop, place, selection.starts_of(rows) + selection.lengths)
        ends = np.cumsum(self.stop)
        self.begin: Int64 = ends - self.stop

    def __len__(self) -> int:
        return len(self.stop)

    def selection(self) -> Selection:
        """What is read."""
        start = None if self.sequence is None else np.zeros(len(self), np.int64)
        return Selection(lengths=self.stop, sequence=self.sequence, start=start)

    def index(self, place: int) -> int:
        """The index in the store of a sequence."""
        return place if self.sequence is None else int(self.sequence[place])

    def place(self, indices: Int64) -> Int64:
        """The places of sequences of the store, int64; -1 where one was not chosen."""
        if self.sequence is None:
            return indices
        place = np.minimum(np.searchsorted(self.sequence, indices), len(self.sequence) - 1)
        return np.where(self.sequence[place] == indices, place, -1)

    def locate(self, at: int) -> tuple[int, int]:
        """The index of the sequence that a timestep of the timeline is of, and its position in it."""
        place = int(np.searchsorted(self.begin, at, "right")) - 1
        return self.index(place), at - int(self.begin[place])

    def boundaries(self, found: list[tuple[Int64, bool]]) -> Boundaries:
        """The boundaries at some timesteps.

        Args:
            found: Timesteps of the timeline, ascending, and whether these are breaks.
        """
        at = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in found)])
        breaks = np.repeat([reset for _, reset in found], [len(places) for places, _ in found]).astype(np.bool_)
        if len(found) > 1 and len(at):
            order = np.argsort(at, kind="stable")
            at, breaks = at[order], breaks[order]
            first = np.flatnonzero(np.diff(at, prepend=at[0] - 1))
            at, breaks = at[first], np.logical_or.reduceat(breaks, first)
        counts = np.diff(np.searchsorted(at, self.begin), append=len(at))
        held = np.flatnonzero(counts)
        position = at - np.repeat(self.begin[held], counts[held])
        sequence = held if self.sequence is None else self.sequence[held]
        return Boundaries(sequence, counts[held], position, breaks)


def _scanner(store: Store, rule: Scanned) -> Scanner:
    return make_scanner(rule, store.fields[_check_field(store, rule.field)])


def _check_field(store: Store, name: str) -> str:
    if name not in store.fields:
        raise KeyError(f"the store has fields {', '.join(store.fields)}, not {name!r}")
    return name


def _scan(store: Store, timeline: _Timeline, scanners: list[tuple[Scanned, Scanner]]) -> Iterator[tuple[Int64, bool]]:
    """Where each of some rules sees boundaries on the timeline, and whether they are breaks."""
    found: list[list[Int64]] = [[] for _ in scanners]
    if scanners and timeline.stop.any():
        for first, arrays, begins in _read_through(store, timeline, [rule.field for rule, _ in scanners]):
            for (rule, scanner), places in zip(scanners, found, strict=True):
                try:
                    places.append(first + scanner.feed(arrays[rule.field], begins))
                except MissingTimeError as error:
                    sequence, position = timeline.locate(first + error.place)
                    raise ValueError(
                        f"{type(rule).__name__} takes a timestamp at every timestep, and {rule.field!r} has none at "
                        f"{position} of {store.id_of(sequence)!r}: fill it, or choose sequences without"
                    ) from None
    for (rule, _), places in zip(scanners, found, strict=True):
        yield np.concatenate([np.zeros(0, np.int64), *places]), rule.reset


def _read_through(
    store: Store, timeline: _Timeline, names: list[str]
) -> Iterator[tuple[int, dict[str, NDArray[Any]], Int64]]:
    """The timeline piece by piece: where a piece begins, its arrays, and where in it sequences begin."""
    emitted = {name: Emitted(field=name) for name in names}
    step_bytes = 1 + sum(store.fields[name].step_bytes for name in emitted)
    window = max(1, min(_PIECE_TIMESTEPS, _PIECE_BYTES // step_bytes))
    plan = Plan(
        timeline.selection(),
        PlanSettings(lanes=1, window=window, tail="pack"),
        contents="",
        epoch=0,
    )
    needs = Needs(
        lanes=1,
        window_bytes=window * step_bytes,
        single=False,
        chunk_bytes=sum(store.decoded_chunk_bytes[name] for name in emitted),
        shuffle=False,
        blocks=_PREFETCH + 2,
    )
    view = View(emitted=emitted, lane_start=0, lane_stop=1, batch_first=True)
    buffers = Buffers(needs.blocks * len(emitted)), Buffers(needs.blocks)
    reader = BlockReader(store, plan, view, usual_limits(needs), *buffers, ahead=True)
    ahead = ReadAhead(reader, range(plan.num_windows), _PREFETCH)
    try:
        first = 0
        for block in iter(ahead.take, None):
            for each in block.windows():
                segments, length = each.token.segments, int(each.lengths[0])
                assert segments is not None
                arrays = {name: each[name][0, :length].numpy() for name in emitted}
                yield first, arrays, segments["offset"][segments["start"] == 0]
                first += length
    finally:
        ahead.close()


def _given(store: Store, timeline: _Timeline, rule: At) -> Int64:
    """The timesteps of the timeline at which positions by id lie."""
    places = timeline.place(store.indices(list(rule.positions)))
    found = {
        place: _inside(store, timeline, place, positions, "the positions given")
        for place, positions in zip(places.tolist(), rule.positions.values(), strict=True)
        if place >= 0
    }
    return np.concatenate([np.zeros(0, np.int64), *(found[place] for place in sorted(found))])


def _called(store: Store, timeline: _Timeline, rule: Where) -> Int64:
    """The timesteps of the timeline at which a function sees boundaries."""
    names = [_check_field(store, name) for name in (store.fields if rule.fields is None else rule.fields)]
    found = [np.zeros(0, np.int64)]
    for place in np.flatnonzero(timeline.stop).tolist():
        index = timeline.index(place)
        arrays: Any = _pieces(store, index, names) if rule.pieces else store.read(index, fields=names)
        found.append(_inside(store, timeline, place, rule.function(arrays), f"{rule.function!r} of"))
    return np.concatenate(found)


def _pieces(store: Store, sequence: int, names: list[str]) -> Iterator[Mapping[str, NDArray[Any]]]:
    step_bytes = sum(store.fields[name].step_bytes for name in names)
    length, piece = store.length(sequence), max(1, min(_PIECE_TIMESTEPS, _PIECE_BYTES // max(1, step_bytes)))
    for start in range(0, length, piece):
        yield store.read(sequence, start, min(start + piece, length), names)


def _inside(store: Store, timeline: _Timeline, place: int, given: Iterable[int], what: str) -> Int64:
    """Positions in a sequence as timesteps of the timeline, ascending, those at its ends left out."""
    index = timeline.index(place)
    positions = np.asarray(given if hasattr(given, "__len__") else list(given))
    if positions.size and (positions.dtype.kind not in "iu" or positions.ndim != 1):
        raise TypeError(
            f"boundaries are a list of whole numbers, {what} {store.id_of(index)!r} are {positions.dtype} of shape "
            f"{list(positions.shape)}: return np.flatnonzero(...) or the like"
        )
    positions = np.unique(positions.astype(np.int64))
    length = store.length(index)
    if positions.size and not 0 <= positions[0] <= positions[-1] <= length:
        wrong = positions[0] if positions[0] < 0 else positions[-1]
        raise ValueError(
            f"a boundary lies in its sequence, from 0 to {length}, {what} {store.id_of(index)!r} have {wrong}: give "
            "positions in the sequence, in timesteps"
        )
    stop = int(timeline.stop[place])
    inside: Int64 = positions[(positions > 0) & (positions < stop)] + timeline.begin[place]
    return inside
