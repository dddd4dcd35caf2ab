"""The picture of a stream: lanes as rows, sequences as coloured runs, windows, resets and breaks, as a PNG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.places.commit import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

_DPI = 120
_WIDTH = 12.0
_ROW, _LEAST_ROWS = 0.36, 0.6
# Of a lane's row, what a run fills.
_FILL = 0.8
_FONT = 8
# Pixels between two marks of a lane, so that they are told apart.
_APART = 7
# Bins of a line that has more points than can be seen.
_BINS = 1500
# Left and right of an id: a mark of a reset, and a gap.
_MARGINS = 13
_RESET: dict[str, Any] = {"marker": 9, "markersize": 5, "linestyle": "none"}
# Light, so that marks and ids are seen on them.
_COLOURS = (
    "#a6cee3",
    "#b2df8a",
    "#fdbf6f",
    "#cab2d6",
    "#fb9a99",
    "#ffff99",
    "#9fd8cb",
    "#e5c494",
    "#d9d9d9",
    "#f4cae4",
)
_BREAK, _MARK, _BORDER = "#c00000", "#202020", "#606060"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strips:
    """What lanes hold, R runs sorted by lane and time; int64 or bool [R].

    Args:
        lane: The lane.
        begin, end: Where the run lies, in emitted timesteps; what is not data at its end is padding.
        sequence: The index of the sequence, -1 where the lane is idle.
        start, stop: Positions in it.
        reset: Whether the state begins anew.
    """

    lane: Int64
    begin: Int64
    end: Int64
    sequence: Int64
    start: Int64
    stop: Int64
    reset: Bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """Values of a field in one lane: `times` int64 [T], `values` float64 [T, C], NaN between lines, C labels."""

    times: Int64
    values: NDArray[np.float64]
    labels: Sequence[str]
    lane: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picture:
    """What is drawn.

    Args:
        strips: What the lanes hold.
        boundary: bool [R], the strips that begin at a boundary.
        borders: int64 [W + 1], where windows begin and end.
        first_window: The number of the first window.
        lanes: How many rows there are.
        ids: The id of a sequence.
        values: What is drawn above them; None: nothing.
        title: What stands above all.
    """

    strips: Strips
    boundary: Bool
    borders: Int64
    first_window: int
    lanes: int
    ids: Callable[[int], str]
    values: Values | None
    title: str


def new_figure() -> Figure:
    """An empty figure: before anything is planned it shows that it can be drawn.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a preview needs matplotlib: pip install streamseq[plot]") from error
    return Figure(layout="constrained")


def draw_preview(figure: Figure, path: Path, picture: Picture) -> None:
    """Draw into a PNG, which appears at once.

    Args:
        figure: From `new_figure`.
        path: Of the PNG; its folder exists.
        picture: What is drawn.
    """
    rows = max(_LEAST_ROWS, _ROW * picture.lanes)
    heights = [1.6, rows] if picture.values is not None else [rows]
    figure.set_size_inches(_WIDTH, sum(heights) + 1.9)
    every = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    if picture.values is not None:
        _draw_values(every[0], picture.values)
    lanes = every[-1]
    for axes in every:
        across = axes.get_xaxis_transform()
        axes.vlines(picture.borders, 0, 1, transform=across, color=_BORDER, linewidth=0.7, alpha=0.5, zorder=3)
        axes.set_xlim(0, int(picture.borders[-1]))
    handles = _draw_lanes(lanes, picture)
    _number_windows(every[0], picture)
    lanes.set_xlabel(_axis(picture))
    figure.suptitle(picture.title, fontsize=10, parse_math=False)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=_FONT, frameon=False)
    # What there is room for is known when everything has its place, where it then stays.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    if not _draw_marks(lanes, picture):
        lanes.set_xlabel(f"{_axis(picture)} (of marks too close to be told apart, some are left out)")
    _write_ids(lanes, picture)

    def write(file: IO[bytes]) -> None:
        figure.savefig(file, format="png", dpi=_DPI)

    replace_file(path, write)


def _axis(picture: Picture) -> str:
    return f"emitted timesteps{f' from window {picture.first_window:,} on' if picture.first_window else ''}"


def _draw_values(axes: Any, values: Values) -> None:
    for label, line in zip(values.labels, values.values.T, strict=True):
        # A single value is no line.
        style: dict[str, Any] = {"marker": ".", "markersize": 3, "clip_on": False} if len(line) <= _BINS // 4 else {}
        axes.plot(*_thinned(values.times, line), linewidth=0.9, label=label, **style)
    axes.set_ylabel(f"lane {values.lane}")
    axes.margins(x=0)
    axes.grid(axis="y", alpha=0.3)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=_FONT, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _thinned(times: Int64, values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A line that looks the same: of every bin of times its least and its largest value."""
    count = len(times)
    if count <= 4 * _BINS:
        return times, values
    first = np.arange(0, count, -(-count // _BINS))
    low, high = np.fmin.reduceat(values, first), np.fmax.reduceat(values, first)
    # A bin with a gap ends the line.
    end = np.where(np.isnan(np.maximum.reduceat(values, first)), np.nan, high)
    return np.repeat(times[first], 3), np.stack([low, high, end], 1).reshape(-1)


def _draw_lanes(axes: Any, picture: Picture) -> list[Any]:
    """Draw the rows; return what explains them."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    strips = picture.strips
    held = strips.sequence >= 0
    data_end = np.where(held, strips.begin + strips.stop - strips.start, strips.begin)
    runs = np.flatnonzero(data_end > strips.begin)
    handles: list[Any] = [Patch(facecolor=_COLOURS[0], label="sequence")]

    def add(rows: Int64, begin: Int64, end: Int64, **style: Any) -> None:
        low, high = strips.lane[rows] - _FILL / 2, strips.lane[rows] + _FILL / 2
        corners = np.stack([begin, low, begin, high, end, high, end, low], 1).reshape(-1, 4, 2)
        axes.add_collection(PolyCollection(list(corners), **style))

    add(runs, strips.begin[runs], data_end[runs], facecolors=_colours(strips, runs), linewidth=0, zorder=2)
    padding: dict[str, Any] = {"hatch": "////", "edgecolor": "#8a8a8a"}
    idle: dict[str, Any] = {"hatch": "....", "edgecolor": "#b8b8b8"}
    for rows, label, style in (
        (np.flatnonzero(held & (data_end < strips.end)), "padding", padding),
        (np.flatnonzero(~held), "idle", idle),
    ):
        if len(rows):
            add(rows, data_end[rows], strips.end[rows], facecolor="white", linewidth=0.3, zorder=2, **style)
            handles.append(Patch(facecolor="white", linewidth=0.3, label=label, **style))
    handles.append(Line2D([], [], color=_BORDER, linewidth=0.7, alpha=0.5, label="border of windows"))
    if strips.reset.any():
        handles.append(Line2D([], [], label="reset: the state begins anew", **_RESET, color=_MARK))
    if picture.boundary.any():
        handles.append(Line2D([], [], color=_MARK, linewidth=1.6, label="boundary: the state goes on"))
        handles.append(Line2D([], [], color=_BREAK, linewidth=1.6, label="break: a boundary with a reset"))
    axes.set_ylim(picture.lanes - 0.5, -0.5)
    axes.set_yticks(range(picture.lanes))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("lane")
    return handles


def _colours(strips: Strips, runs: Int64) -> list[str]:
    """The colour of each run: a sequence has one, another one than what it follows on its lane."""
    chosen: dict[int, int] = {}
    before = (-1, -1)
    for lane, sequence in zip(strips.lane[runs].tolist(), strips.sequence[runs].tolist(), strict=True):
        colour = sequence % len(_COLOURS)
        if sequence not in chosen and before == (lane, colour):
            colour = (colour + len(_COLOURS) // 2) % len(_COLOURS)
        before = lane, chosen.setdefault(sequence, colour)
    return [_COLOURS[chosen[sequence]] for sequence in strips.sequence[runs].tolist()]


def _draw_marks(axes: Any, picture: Picture) -> bool:
    """Mark boundaries and resets; return whether there was room for all."""
    strips, pixels = picture.strips, _pixels(axes, picture)
    marked = np.flatnonzero(picture.boundary | strips.reset)
    shown, last, before = [], -1, 0.0
    for row, lane, at in zip(marked.tolist(), strips.lane[marked].tolist(), strips.begin[marked].tolist(), strict=True):
        if lane != last or (at - before) * pixels >= _APART:
            shown.append(row)
            last, before = lane, at
    rows = np.array(shown, np.int64)
    for chosen, colour in ((~strips.reset[rows], _MARK), (strips.reset[rows], _BREAK)):
        these = rows[chosen & picture.boundary[rows]]
        low, high = strips.lane[these] - _FILL / 2, strips.lane[these] + _FILL / 2
        axes.vlines(strips.begin[these], low, high, color=colour, linewidth=1.6, zorder=4)
    for chosen, colour in ((~picture.boundary[rows], _MARK), (picture.boundary[rows], _BREAK)):
        these = rows[chosen & strips.reset[rows]]
        heights = strips.lane[these] - _FILL / 4
        axes.plot(strips.begin[these], heights, **_RESET, color=colour, zorder=5, clip_on=False)
    return len(shown) == len(marked)


def _pixels(axes: Any, picture: Picture) -> float:
    """How wide a timestep is."""
    return float(axes.get_window_extent().width / max(1, int(picture.borders[-1])))


def _number_windows(axes: Any, picture: Picture) -> None:
    """Number the windows above the picture, as many as can be read."""
    count = len(picture.borders) - 1
    step = -(-count // 24)
    shown = np.arange(0, count, step)
    above = axes.secondary_xaxis("top")
    above.set_xticks((picture.borders[shown] + picture.borders[shown + 1]) / 2)
    above.set_xticklabels([f"{picture.first_window + number:,}" for number in shown.tolist()], fontsize=_FONT)
    above.tick_params(length=0)
    above.set_xlabel("window", fontsize=_FONT)


def _write_ids(axes: Any, picture: Picture) -> None:
    """Write the id of a sequence, and where in it that is, into the longest run of it, if there is room."""
    strips = picture.strips
    held = np.flatnonzero(strips.sequence >= 0)
    if not len(held):
        return
    letters = _Letters()
    points = _pixels(axes, picture) * 72 / axes.figure.dpi
    other = (np.diff(strips.sequence[held]) != 0) | (np.diff(strips.lane[held]) != 0)
    first = np.flatnonzero(np.concatenate([[True], other]))
    lengths = (strips.stop - strips.start)[held]
    for low, high in zip(first.tolist(), [*first[1:].tolist(), len(held)], strict=True):
        row = int(held[low + int(np.argmax(lengths[low:high]))])
        room = float(strips.stop[row] - strips.start[row]) * points - _MARGINS
        sequence, start = int(strips.sequence[row]), int(strips.start[row])
        # Not every id is looked up: there is no room for those of many short sequences.
        text = letters.fitting(picture.ids(sequence), sequence, start, room) if room >= _FONT else ""
        if text:
            axes.annotate(
                text,
                (int(strips.begin[row]), int(strips.lane[row])),
                xytext=(9, 0),
                textcoords="offset points",
                va="center",
                fontsize=_FONT,
                zorder=6,
                parse_math=False,
            )


class _Letters:
    """What the font can write, and how wide that is."""

    def __init__(self) -> None:
        from matplotlib.font_manager import FontProperties, findfont, get_font
        from matplotlib.textpath import text_to_path

        self._properties = FontProperties(size=_FONT)
        self._font = get_font(findfont(self._properties))
        self._paths = text_to_path

    def fitting(self, id: str, sequence: int, start: int, room: float) -> str:
        """As much as goes into `room` points of an id and where in the sequence this is; or else the sequence's number.

        Returns:
            Nothing, where there is room for neither.
        """
        number = f"#{sequence}"
        if not (id.isprintable() and all(self._font.get_char_index(ord(character)) for character in id)):
            id = number
        # The middle of a long id is left out; no more of it is tried than could be seen at all.
        most = max(4, int(room / _FONT * 4))
        shorter = [f"{id[: (keep + 1) // 2]}…{id[-(keep // 2) :]}" for keep in range(min(len(id) - 1, most), 3, -1)]
        whole = [id] if len(id) <= most else []
        at = [f"{id} @ {start:,}"] if start and whole else []
        return next((text for text in (*at, *whole, *shorter, number) if self._width(text) <= room), "")

    def _width(self, text: str) -> float:
        return float(self._paths.get_text_width_height_descent(text, self._properties, False)[0])
