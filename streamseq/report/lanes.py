"""How a store lies on lanes: how full they are, over an epoch and for other numbers of lanes, and a picture."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from streamseq.core.errors import PlanError
from streamseq.core.plan import Plan
from streamseq.data.dataset import StreamDataset
from streamseq.report.figures import count, number, plural, share
from streamseq.report.markup import label
from streamseq.report.parts import Cell, Chart, Facts, Note, Part, Plot, Row, Section, Table, View
from streamseq.storage.interface import Store

USUAL_LANES, USUAL_WINDOW = 32, 256
# Of a store with more sequences fewer schedules are compared: a plan takes a second for each ten million.
_MANY = 1_000_000
# Of the picture: it has to be seen.
_MOST_WINDOWS, _MOST_LANES, _MOST_RUNS = 24, 16, 600
# From this share on it is worth a remark.
_MUCH_IDLE, _MUCH_PADDING = 0.2, 0.3
# Places of an epoch that are looked at.
_PLACES = 160


def lanes_section(store: Store, lanes: int | None, window: int | None, layout: str = "sequences") -> Section:
    """What lanes hold of all sequences of a store. Of their values nothing is read.

    Args:
        store: The store.
        lanes: How many lanes; None: 32, or as many as there are sequences.
        window: Timesteps of a window; None: 256.
        layout: See `StreamDataset`.
    """
    title = "On lanes"
    window = window or USUAL_WINDOW
    lanes = lanes or max(1, min(USUAL_LANES, int(np.count_nonzero(store.lengths))))
    try:
        stream = _stream(store, lanes, window, layout)
    except PlanError as error:
        return Section(title=title, parts=[Note(f"Nothing can be laid on lanes: {error}.")])
    section = stream_section(stream)
    return Section(title=title, parts=[*section.parts, _others(store, lanes, window, layout)], lead=section.lead)


def stream_section(stream: StreamDataset) -> Section:
    """What the lanes of a stream hold.

    Args:
        stream: Of which nothing is read.
    """
    plan, occupancy = stream.plan, stream.occupancy
    idle = 1 - occupancy.busy
    facts = Facts(
        rows=[
            (
                "lanes × window",
                f"{stream.lanes:,} × {'whole sequences' if stream.window is None else count(stream.window)}",
            ),
            ("layout", plan.settings.layout),
            ("windows of an epoch", count(plan.num_windows)),
            ("timesteps", count(plan.num_timesteps)),
            ("idle lane-windows", share(idle)),
            ("padding in the others", share(1 - occupancy.filled)),
        ]
    )
    parts: list[Part] = [facts]
    if idle > _MUCH_IDLE:
        parts.append(
            Note(
                f'{share(idle)} of the lane-windows are idle: fewer lanes, or layout="even", would fill them.',
                warning=True,
            )
        )
    if 1 - occupancy.filled > _MUCH_PADDING and stream.window is not None:
        how = 'tail="pack", or shorter windows,' if plan.settings.tail != "pack" else "shorter windows"
        parts.append(
            Note(f"{share(1 - occupancy.filled)} of the others is padding: {how} would have less.", warning=True)
        )
    if stream.window is not None:
        parts.append(_picture(stream))
    parts.append(_epoch(plan))
    lead = (
        "Lanes are the rows of a batch; each goes on with its sequence from window to window. A lane with none left "
        "is idle, and what lies after the end of a sequence in its last window is padding."
    )
    return Section(title="On lanes", parts=parts, lead=lead)


def _stream(store: Store, lanes: int, window: int, layout: str) -> StreamDataset:
    with warnings.catch_warnings():
        # The report shows them.
        warnings.filterwarnings("ignore", "fewer sequences than lanes")
        return StreamDataset(store, lanes, window, layout=layout)


def _others(store: Store, lanes: int, window: int, layout: str) -> Table:
    many = len(store) > _MANY
    every_lanes = [lanes] if many else sorted({max(1, lanes // 4), lanes, lanes * 4})
    rows = []
    for other in every_lanes:
        for length in sorted({max(1, window // 4), window, window * 4}):
            found = _stream(store, other, length, layout)
            occupancy = found.occupancy
            figures = (
                (other, count(other)),
                (length, count(length)),
                (len(found), count(len(found))),
                (1 - occupancy.busy, share(1 - occupancy.busy)),
                (1 - occupancy.filled, share(1 - occupancy.filled)),
                (occupancy.busy * occupancy.filled, share(occupancy.busy * occupancy.filled)),
            )
            same = other == lanes and length == window
            rows.append(Row([Cell(text, float(value)) for value, text in figures], mark="best" if same else ""))
    columns = ["lanes", "window", "windows of an epoch", "idle", "padding", "data in all"]
    return Table(
        caption="Other numbers of lanes, other windows",
        columns=columns,
        numeric=columns,
        rows=rows,
        note='The marked row is the one above. tail="pack" leaves almost no padding, layout="even" no idle lanes.',
    )


def _epoch(plan: Plan) -> Chart:
    """How many lanes hold data, at places of the epoch."""
    lanes = int(plan.settings.lanes)
    at = np.unique(np.linspace(0, plan.num_windows - 1, min(_PLACES, plan.num_windows)).round().astype(np.int64))
    busy, filled = [], []
    for step in at.tolist():
        cells = plan.cells(step, step + 1, 0, lanes)
        busy.append(100 * float((cells.sequence >= 0).mean()))
        filled.append(100 * float((cells.stop - cells.start).sum()) / (lanes * plan.window_length(step)))
    traces: list[Plot] = [
        {"type": "scatter", "mode": "lines", "name": name, "x": at.tolist(), "y": values, "line": line}
        for name, values, line in (
            ("lanes that hold a sequence", busy, {"width": 2, "color": "var(--series-1)"}),
            ("timesteps that are data", filled, {"width": 1.5, "color": "var(--series-2)"}),
        )
    ]
    layout = {
        "xaxis": {"title": {"text": "window of the epoch"}, "tickformat": "~s"},
        "yaxis": {"title": {"text": "%"}, "range": [0, 104]},
        "hovermode": "x unified",
    }
    last = f"from {number(busy[0], 3)} % of the lanes at the start to {number(busy[-1], 3)} % at the end"
    places = (
        ""
        if len(at) == plan.num_windows
        else f"{len(at):,} of {plan.num_windows:,} windows, evenly spaced, are looked at."
    )
    return Chart(
        title="How full the lanes are over an epoch",
        summary=f"Sequences are held {last}.",
        views=[View(label="", traces=traces, layout=layout)],
        caption=places,
        height=260,
    )


def _picture(stream: StreamDataset) -> Chart:
    """Lanes as rows, sequences as bars."""
    plan, window = stream.plan, int(stream.window or 1)
    lanes, windows = min(stream.lanes, _MOST_LANES), min(plan.num_windows, _MOST_WINDOWS)
    runs = plan.runs(0, windows, 0, lanes)
    while len(runs) > _MOST_RUNS and windows > 1:
        windows = max(1, windows // 2)
        runs = plan.runs(0, windows, 0, lanes)
    while len(runs) > _MOST_RUNS and lanes > 1:
        lanes = max(1, lanes // 2)
        runs = plan.runs(0, windows, 0, lanes)
    begin, end = runs.ends(window)
    data_end = np.where(runs.sequence >= 0, begin + runs.stop - runs.start, begin)
    order = np.lexsort((begin, runs.lane))
    # Sequences of a lane that follow each other have two tones in turn.
    turn = np.zeros(len(runs), np.int64)
    for lane in range(lanes):
        held = [row for row in order.tolist() if runs.lane[row] == lane and runs.sequence[row] >= 0]
        turn[held] = np.arange(len(held)) % 2
    ids = {index: label(stream.store.id_of(index), 60) for index in np.unique(runs.sequence).tolist() if index >= 0}
    traces: list[Plot] = []
    for tone in (0, 1):
        rows = [row for row in order.tolist() if runs.sequence[row] >= 0 and turn[row] == tone]
        traces.append(
            _bars(
                "a sequence" if not tone else "the next one",
                f"var(--tone-{tone + 1})",
                [(int(runs.lane[row]), int(begin[row]), int(data_end[row])) for row in rows],
                [
                    f"{ids[int(runs.sequence[row])]}<br>timesteps {int(runs.start[row]):,} to {int(runs.stop[row]):,}"
                    + ("<br>its state begins anew" if runs.reset[row] else "")
                    for row in rows
                ],
            )
        )
    for name, colour, there in (
        ("padding", "var(--padding)", (runs.sequence >= 0) & (end > data_end)),
        ("idle", "var(--idle)", runs.sequence < 0),
    ):
        held = np.flatnonzero(there).tolist()
        spans = [(int(runs.lane[row]), int(data_end[row]), int(end[row])) for row in held]
        traces.append(_bars(name, colour, spans, [f"{name}: {high - low:,} timesteps" for _, low, high in spans]))
    borders = [
        {
            "type": "line", "x0": place * window, "x1": place * window, "y0": 0, "y1": 1, "yref": "paper",
            "line": {"width": 0.6, "color": "var(--border)"},
        }
        for place in range(windows + 1)
    ]  # fmt: skip
    layout = {
        "barmode": "overlay",
        "bargap": 0.25,
        "xaxis": {
            "title": {"text": "timesteps that a lane has emitted"}, "showgrid": False, "range": [0, windows * window],
        },
        "yaxis": {
            "title": {"text": "lane"}, "range": [lanes - 0.5, -0.5], "showgrid": False, "zeroline": False,
            "dtick": 1 if lanes <= 8 else 4,
        },
        "shapes": borders,
    }  # fmt: skip
    shown = f"The first {plural(windows, 'window')} of {lanes:,} of {plural(stream.lanes, 'lane')}"
    drawn = len([index for index in np.unique(runs.sequence).tolist() if index >= 0])
    return Chart(
        title="What the first lanes hold",
        summary=f"{shown}, with {plural(drawn, 'sequence')}.",
        views=[View(label="", traces=traces, layout=layout)],
        caption=f"{shown}; thin lines are the borders of windows. Where the tone changes another sequence begins.",
        height=max(190, 110 + 20 * lanes),
    )


def _bars(name: str, colour: str, spans: list[tuple[int, int, int]], text: list[str]) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": [lane for lane, _, _ in spans],
        "base": [low for _, low, _ in spans],
        "x": [high - low for _, low, high in spans],
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertext": text,
        "hoverinfo": "text",
        "textposition": "none",
        "showlegend": bool(spans),
    }
