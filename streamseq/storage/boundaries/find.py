"""The boundaries that a domain split describes, found in a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import PlanError
from streamseq.core.fields import Field
from streamseq.core.scan import MissingTimeError, Scanned, Scanner, make_scanner
from streamseq.core.selection import Selection
from streamseq.core.splits import At, Domain, Stored, Where
from streamseq.storage.interface import Parts, Reader, Store

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]
Places = tuple[Int64, Bool]
"""Timesteps of a timeline that begin a window, ascending, and whether they are breaks."""

# Of the pieces in which fields are looked through.
_PIECE_BYTES = 4 << 20
_PIECE_TIMESTEPS = 1 << 20
# Chunks of each field that are kept, and decoded while the piece before them is looked through.
_CACHE_CHUNKS = 2
_AHEAD = 4


def find_boundaries(
    store: Store, split: Domain, selection: Selection, progress: Callable[[int, int], None] | None = None
) -> Boundaries:
    """Find the boundaries of the chosen sequences.

    Of each sequence the timesteps up to the end of the last chosen span are looked through: all rules that look at
    fields in one pass over the fields that they need, in pieces of a few MiB; then functions, sequence by sequence.
    Of boundaries that are stored no field is read.

    Args:
        store: Which is read.
        split: The rules.
        selection: The spans that were chosen.
        progress: Called with the timesteps that rules looked through, at the start 0, and all that they have to.

    Raises:
        KeyError: A field, the id of a sequence or a name of boundaries is not in the store.
        PlanError: Boundaries that are stored do not cover what was chosen.
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
    scanners = [(rule, _scanner(store.fields, rule)) for rule in split.rules if isinstance(rule, Scanned)]
    found = [_stored(store, timeline, rule) for rule in split.rules if isinstance(rule, Stored)]
    found += _scan(store, timeline, scanners, progress)
    for rule in split.rules:
        if isinstance(rule, At):
            found.append(_all(_given(store, timeline, rule), rule.reset))
        elif isinstance(rule, Where):
            found.append(_all(_called(store, timeline, rule), rule.reset))
    return timeline.boundaries(found)


def check_rules(fields: Mapping[str, Field], split: Domain) -> None:
    """Check that rules go with fields, before anything is read.

    Raises:
        KeyError: There is no such field.
        ValueError: A rule does not go with its field.
    """
    for rule in split.rules:
        if isinstance(rule, Scanned):
            _scanner(fields, rule)
        elif isinstance(rule, Where):
            for name in rule.fields or ():
                _check_field(fields, name)


def _all(places: Int64, reset: bool) -> Places:
    return places, np.full(len(places), reset)


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

    @property
    def num_timesteps(self) -> int:
        """Timesteps of all."""
        return int(self.stop.sum())

    def spans(self, low: int, high: int) -> tuple[Int64, Int64, Int64]:
        """Timesteps `[low, high)` as spans: place of the sequence, start and stop in it, int64 [P] each, none empty."""
        first = int(np.searchsorted(self.begin, low, "right")) - 1
        place = np.arange(first, np.searchsorted(self.begin, high, "left"))
        begin = self.begin[place]
        start = np.maximum(low - begin, 0)
        stop = np.minimum(high - begin, self.stop[place])
        held = stop > start
        return place[held], start[held], stop[held]

    def index(self, place: int) -> int:
        """The index in the store of a sequence."""
        return place if self.sequence is None else int(self.sequence[place])

    def indices(self, places: Int64) -> Int64:
        """The indices in the store of sequences."""
        return places if self.sequence is None else self.sequence[places]

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

    def boundaries(self, found: list[Places]) -> Boundaries:
        """The boundaries at some timesteps."""
        at = np.concatenate([np.zeros(0, np.int64), *(places for places, _ in found)])
        breaks = np.concatenate([np.zeros(0, np.bool_), *(resets for _, resets in found)])
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


def _scanner(fields: Mapping[str, Field], rule: Scanned) -> Scanner:
    return make_scanner(rule, fields[_check_field(fields, rule.field)])


def _check_field(fields: Mapping[str, Field], name: str) -> str:
    if name not in fields:
        raise KeyError(f"the store has fields {', '.join(fields)}, not {name!r}")
    return name


def _stored(store: Store, timeline: _Timeline, rule: Stored) -> Places:
    """Boundaries that were found before.

    Raises:
        PlanError: They do not cover the timeline.
    """
    stored = store.boundaries(rule.name)
    indices = timeline.indices(np.arange(len(timeline)))
    covered = np.zeros(len(timeline), np.int64)
    known = indices < len(stored.lengths)
    covered[known] = stored.lengths[indices[known]]
    if np.any(short := timeline.stop > covered):
        first = int(np.argmax(short))
        raise PlanError(stored.not_covered(int(indices[first]), int(covered[first]), int(timeline.stop[first])))
    held = stored.boundaries
    place = np.repeat(timeline.place(held.sequence), np.diff(held.first))
    inside = (place >= 0) & (held.position < timeline.stop[place])
    return timeline.begin[place[inside]] + held.position[inside], held.breaks[inside]


def _scan(
    store: Store,
    timeline: _Timeline,
    scanners: list[tuple[Scanned, Scanner]],
    progress: Callable[[int, int], None] | None,
) -> Iterator[Places]:
    """Where each of some rules sees boundaries on the timeline."""
    found: list[list[Int64]] = [[] for _ in scanners]
    total = timeline.num_timesteps
    if scanners and total:
        if progress is not None:
            progress(0, total)
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
            if progress is not None:
                progress(first + len(arrays[scanners[0][0].field]), total)
    for (rule, _), places in zip(scanners, found, strict=True):
        yield _all(np.concatenate([np.zeros(0, np.int64), *places]), rule.reset)


def _read_through(
    store: Store, timeline: _Timeline, names: list[str]
) -> Iterator[tuple[int, dict[str, NDArray[Any]], Int64]]:
    """The timeline piece by piece: where a piece begins, its arrays, and where in it sequences begin."""
    names = list(dict.fromkeys(names))
    step_bytes = sum(store.fields[name].step_bytes for name in names)
    most = max(1, min(_PIECE_TIMESTEPS, _PIECE_BYTES // step_bytes))
    with store.reader(names, _CACHE_CHUNKS, _AHEAD) as reader:
        coming = (_piece(reader, timeline, names, first, most) for first in range(0, timeline.num_timesteps, most))
        piece = next(coming, None)
        while piece is not None:
            following = next(coming, None)
            begins, length, parts = piece
            arrays = {name: _read(reader, parts[name], length) for name in names}
            if following is not None:
                for name in names:
                    reader.prefetch(name, list(dict.fromkeys(following[2][name].chunk.tolist())))
            yield begins[0], arrays, begins[1]
            piece = following


_Piece = tuple[tuple[int, Int64], int, dict[str, Parts]]


def _piece(reader: Reader, timeline: _Timeline, names: list[str], first: int, most: int) -> _Piece:
    """Where a piece and the sequences in it begin, its length, and where it lies."""
    last = min(first + most, timeline.num_timesteps)
    place, start, stop = timeline.spans(first, last)
    spans = timeline.indices(place), start, stop
    begins = timeline.begin[place[start == 0]] - first
    return (first, begins), last - first, {name: _joined(reader.locate(name, spans)) for name in names}


def _joined(parts: Parts) -> Parts:
    """The parts, those that touch in a chunk as one: short sequences are many, and lie side by side."""
    touches = (parts.chunk[1:] == parts.chunk[:-1]) & (parts.low[1:] == parts.low[:-1] + parts.count[:-1])
    first = np.flatnonzero(np.concatenate([[True], ~touches]))
    return Parts(
        field=parts.field,
        chunk=parts.chunk[first],
        low=parts.low[first],
        count=np.add.reduceat(parts.count, first),
        span=parts.span[first],
        offset=parts.offset[first],
    )


def _read(reader: Reader, parts: Parts, length: int) -> NDArray[Any]:
    """The values of parts end to end, `[length, *D]`."""
    field, slices = reader.fields[parts.field], reader.arrays(parts)
    # Finding the first chunk checks the sizes that the metadata claims, before memory is asked for.
    part = next(slices)
    values = np.empty((length, *field.shape), field.dtype)
    position = 0
    for each in chain([part], slices):
        values[position : position + len(each)] = each
        position += len(each)
    return values


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
    names = [_check_field(store.fields, name) for name in (store.fields if rule.fields is None else rule.fields)]
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
