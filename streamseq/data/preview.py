"""`preview`: what lanes and windows of a stream hold, as a picture and in numbers."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.plan import Plan
from streamseq.data.dataset import StreamDataset
from streamseq.data.preview_picture import Picture, Strips, Values, draw_preview, new_figure

Int64 = NDArray[np.int64]

# Of what is drawn: it has to be seen, and to be drawn in a moment.
_WINDOWS = 16
_MOST_WINDOWS = 256
_MOST_LANES = 32
_MOST_PIECES = 20_000
_MOST_VALUES = 1 << 20
_MOST_CHANNELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a stream is like: of the epoch, and of the part that was drawn.

    Args:
        out: The picture.
        lanes, window: Of the stream; window is None with the as-is split.
        windows: Windows of the epoch.
        sequences: Sequences, or spans of them, that the stream emits.
        timesteps: That the epoch emits.
        busy: The share of lane-windows that are not idle.
        filled: The share of their timesteps that are not padding.
        idle_lane_windows: How many are idle.
        padding_timesteps: How many are padding.
        boundaries, breaks: Boundaries of the chosen sequences, and those of them that are breaks.
        first_window, windows_drawn, lanes_drawn: What was drawn.
        sequences_drawn, resets_drawn, boundaries_drawn, breaks_drawn, padding_timesteps_drawn: What there is in it.
    """

    out: str
    lanes: int
    window: int | None
    windows: int
    sequences: int
    timesteps: int
    busy: float
    filled: float
    idle_lane_windows: int
    padding_timesteps: int
    boundaries: int
    breaks: int
    first_window: int
    windows_drawn: int
    lanes_drawn: int
    sequences_drawn: int
    resets_drawn: int
    boundaries_drawn: int
    breaks_drawn: int
    padding_timesteps_drawn: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, as JSON holds them."""
        return asdict(self)

    def __str__(self) -> str:
        marked = f", {self.boundaries:,} boundaries ({self.breaks:,} breaks)" if self.boundaries else ""
        return (
            f"{self.windows:,} windows of {self.lanes:,} lanes x {self.window or 'whole sequences'}: "
            f"{self.sequences:,} sequences, {self.timesteps:,} timesteps{marked}\n"
            f"{self.busy:.1%} of the lane-windows are busy, {self.filled:.1%} of their timesteps are data "
            f"({self.padding_timesteps:,} are padding)\n"
            f"windows {self.first_window:,} to {self.first_window + self.windows_drawn - 1:,} of lanes 0 to "
            f"{self.lanes_drawn - 1:,} are in {self.out}"
        )


def preview(
    stream: StreamDataset,
    path: str | os.PathLike[str],
    *,
    first: int = 0,
    windows: int | None = None,
    field: str | None = None,
    lane: int = 0,
) -> Preview:
    """Draw some windows of a stream's epoch into a PNG: sequences, boundaries, resets, padding, lane by lane.

    Lanes are rows over emitted time, sequences coloured runs, and vertical lines the borders of windows. Above them are
    values of a field in one lane, up to three channels. Of the store no more is read than these values, and ids
    that there is room for; an id that the font cannot write is the number of its sequence, #3. At most 32 lanes are
    drawn.

    Args:
        stream: What is drawn, in its current epoch.
        path: Of the PNG, which appears at once.
        first: The first window that is drawn.
        windows: How many are, at most 256; None: up to 16, fewer where they hold very many sequences.
        field: Whose values are drawn; None: the first field of floats, or the first one.
        lane: In which lane.

    Returns:
        What the stream is like, in numbers.

    Raises:
        ImportError: matplotlib is not installed: `pip install streamseq[plot]`.
        IndexError: There is no such window or lane.
        KeyError: The stream does not emit the field.
        ValueError: Too much would have to be drawn.
        CorruptionError: Stored bytes are not what was written.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": np.sin(np.arange(50))}, "b": {"x": np.cos(np.arange(30))}})
        >>> stream = ss.StreamDataset(store, lanes=2, window=8, split=ss.splits.Domain({"a": [20]}))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     seen = ss.preview(stream, folder + "/stream.png")
        >>> seen.windows, seen.resets_drawn, seen.boundaries_drawn, seen.padding_timesteps
        (7, 2, 1, 8)
    """
    figure = new_figure()
    plan = stream.plan
    if not 0 <= first < plan.num_windows:
        raise IndexError(f"the epoch has windows 0 to {plan.num_windows - 1}, got {first}")
    if not 0 <= lane < stream.lanes:
        raise IndexError(f"the stream has lanes 0 to {stream.lanes - 1}, got {lane}")
    if windows is not None and not 1 <= windows <= _MOST_WINDOWS:
        raise ValueError(f"a picture shows 1 to {_MOST_WINDOWS} windows, got {windows}")
    lanes = min(stream.lanes, _MOST_LANES)
    stop = min(plan.num_windows, first + (_WINDOWS if windows is None else windows))
    strips = _strips(plan, first, stop, 0, lanes)
    while len(strips.lane) > _MOST_PIECES:
        if windows is not None or (stop - first == 1 and lanes == 1):
            raise ValueError(
                f"a picture shows at most {_MOST_PIECES:,} pieces of sequences, {stop - first} windows of {lanes} "
                f"lanes have {len(strips.lane):,}: draw fewer windows, or shorter ones"
            )
        if stop - first > 1:
            stop = first + (stop - first) // 2
        else:
            lanes //= 2
        strips = _strips(plan, first, stop, 0, lanes)
    at = _boundary_at(plan, strips)
    breaks = at & strips.reset
    picture = Picture(
        strips=strips,
        boundary=at,
        borders=_borders(plan, first, stop),
        first_window=first,
        lanes=lanes,
        ids=stream.store.id_of,
        values=_values(stream, field, _strips(plan, first, stop, lane, lane + 1), lane),
        title=_title(stream, first, stop, lanes),
    )
    draw_preview(figure, Path(path), picture)
    occupancy, held = plan.occupancy, strips.sequence >= 0
    boundaries = plan.boundaries
    return Preview(
        out=os.fspath(path),
        lanes=stream.lanes,
        window=stream.window,
        windows=plan.num_windows,
        sequences=int(np.count_nonzero(plan.selection.lengths)),
        timesteps=plan.num_timesteps,
        busy=occupancy.busy,
        filled=occupancy.filled,
        idle_lane_windows=occupancy.idle_lane_windows,
        padding_timesteps=occupancy.padding_timesteps,
        boundaries=0 if boundaries is None else len(boundaries),
        breaks=0 if boundaries is None else int(boundaries.breaks.sum()),
        first_window=first,
        windows_drawn=stop - first,
        lanes_drawn=lanes,
        sequences_drawn=len(np.unique(strips.sequence[held])),
        resets_drawn=int(strips.reset.sum()),
        boundaries_drawn=int(at.sum()),
        breaks_drawn=int(breaks.sum()),
        padding_timesteps_drawn=int((strips.end - strips.begin - strips.stop + strips.start)[held].sum()),
    )


def _strips(plan: Plan, first: int, stop: int, lane_start: int, lane_stop: int) -> Strips:
    """What some lanes hold in some windows."""
    names = ("lane", "sequence", "start", "stop", "reset")
    if plan.settings.window is not None:
        runs = plan.runs(first, stop, lane_start, lane_stop)
        begin, end = runs.ends(int(plan.settings.window))
        columns = {name: getattr(runs, name) for name in names}
    else:
        each = [plan.runs(step, step + 1, lane_start, lane_stop) for step in range(first, stop)]
        borders = _borders(plan, first, stop)
        begin = np.repeat(borders[:-1], [len(runs) for runs in each])
        end = np.repeat(borders[1:], [len(runs) for runs in each])
        columns = {name: np.concatenate([getattr(runs, name) for runs in each]) for name in names}
    order = np.lexsort((begin, columns["lane"]))
    columns["lane"] = columns["lane"] + lane_start
    return Strips(begin=begin[order], end=end[order], **{name: values[order] for name, values in columns.items()})


def _borders(plan: Plan, first: int, stop: int) -> Int64:
    """int64 [W + 1], where windows begin and end, in timesteps from the first one that is drawn."""
    lengths = [plan.window_length(step) for step in range(first, stop)]
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _boundary_at(plan: Plan, strips: Strips) -> NDArray[np.bool_]:
    """bool [R], the strips that begin at a boundary."""
    if plan.boundaries is None:
        return np.zeros(len(strips.lane), np.bool_)
    low, high = plan.boundaries.inside(strips.sequence, strips.start - 1, strips.start + 1)
    return (high > low) & (strips.start > 0) & (strips.sequence >= 0)


def _values(stream: StreamDataset, name: str | None, strips: Strips, lane: int) -> Values | None:
    """The values of a field in a lane; None where there are too many, or none."""
    fields = {each: stream.store.fields[each] for each in stream.fields}
    if name is None:
        floats = [each for each, field in fields.items() if field.dtype.kind == "f"]
        name = (floats or list(fields))[0]
    elif name not in fields:
        raise KeyError(f"the stream emits fields {', '.join(fields)}, not {name!r}")
    channels = min(_MOST_CHANNELS, int(np.prod(fields[name].shape, dtype=np.int64)))
    held = np.flatnonzero(strips.sequence >= 0)
    total = int((strips.stop - strips.start)[held].sum())
    if not 0 < total <= _MOST_VALUES or total * fields[name].step_bytes > _MOST_VALUES * 64:
        return None
    times, values = [], []
    for row in held.tolist():
        start, stop, begin = (int(column[row]) for column in (strips.start, strips.stop, strips.begin))
        array = stream.store.read(int(strips.sequence[row]), start, stop, [name])[name]
        # What is not a number ends a line: between two pieces there is none.
        times.append(np.arange(begin, begin + stop - start + 1))
        part = np.full((stop - start + 1, channels), np.nan)
        part[:-1] = array.reshape(stop - start, -1)[:, :channels]
        values.append(part)
    labels = [name]
    if fields[name].shape:
        places = np.stack(np.unravel_index(np.arange(channels), fields[name].shape), 1)
        labels = [f"{name}{place.tolist()}" for place in places]
    return Values(times=np.concatenate(times), values=np.concatenate(values), labels=labels, lane=lane)


def _title(stream: StreamDataset, first: int, stop: int, lanes: int) -> str:
    occupancy = stream.occupancy
    plural = "s" if stream.lanes > 1 else ""
    shown = "" if lanes == stream.lanes else f" (0 to {lanes - 1} are drawn)"
    return (
        f"{stream.lanes:,} lane{plural}{shown} × {stream.window or 'whole sequences'}, windows {first:,} to "
        f"{stop - 1:,} of {len(stream):,}, epoch {stream.epoch}\n"
        f"{occupancy.busy:.1%} of the lane-windows busy, {occupancy.filled:.1%} of their timesteps data"
    )
