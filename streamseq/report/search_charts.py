"""The charts of a search: losses over time, over two settings, and against what they cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from streamseq.report.curves import line
from streamseq.report.figures import number, plural
from streamseq.report.markup import label
from streamseq.report.parts import Chart, Plot, View
from streamseq.report.spread import log_axis
from streamseq.report.trials import Curve, SearchFiles

if TYPE_CHECKING:
    from streamseq.search.result import Trial
    from streamseq.search.space import Value

# Curves that can be told apart, if only by pointing at them.
_MOST_CURVES = 60
# Places of a heat map a side; more are drawn as dots.
_MOST_PLACES = 12
# Up to here a heat map's colours are strong, and what stands on them is of the other kind.
_STRONG = 0.4
_SCALE = [[place / 4, f"var(--scale-{place})"] for place in range(5)]
_TIMES = (
    ("timesteps", "timesteps", "timesteps trained on"),
    ("seconds", "training time", "seconds of training"),
    ("evaluation", "evaluation", "evaluation"),
)


def curves_chart(found: SearchFiles, name_of: Callable[[Trial], str]) -> Chart | None:
    """The held-out loss of each candidate over time; None where nothing was evaluated.

    Args:
        found: The search.
        name_of: What a trial is called.
    """
    drawn = [trial for trial in found.trials if found.curves[trial.number].loss]
    if not drawn:
        return None
    ranked = sorted(drawn, key=lambda trial: (trial.state != "complete", trial.loss is None, trial.loss or 0.0))
    shown = ranked[:_MOST_CURVES]
    views = []
    for key, title, axis in _TIMES:
        known = [trial for trial in shown if getattr(found.curves[trial.number], key)]
        if len(known) < len(shown) and key != "evaluation":
            continue
        layout = {
            "xaxis": {"title": {"text": axis}, "tickformat": "~s", "rangemode": "tozero"},
            "yaxis": {"title": {"text": "held-out loss"}},
        }
        views.append(View(label=title, traces=_curve_traces(shown, found.curves, key, name_of), layout=layout))
    best = ranked[0]
    summary = f"{plural(len(drawn), 'candidate')}; the best one, trial {best.number}, comes to {number(best.loss)}."
    said = [f"The best is {name_of(best)}."] if best.state == "complete" else []
    if len(drawn) > len(shown):
        said.append(f"The {len(shown):,} best of {len(drawn):,} are drawn.")
    if any(trial.state != "complete" for trial in shown):
        said.append("Dotted lines are of candidates that did not come to the end.")
    return Chart(
        title="Held-out loss of each candidate",
        summary=summary,
        views=views,
        caption=" ".join(said),
        height=380,
    )


def _curve_traces(
    trials: Sequence[Trial], curves: Mapping[int, Curve], key: str, name_of: Callable[[Trial], str]
) -> list[Plot]:
    traces: list[Plot] = []
    told: set[str] = set()
    # The best are drawn last, above the others.
    for rank, trial in reversed(list(enumerate(trials))):
        curve = curves[trial.number]
        complete = trial.state == "complete"
        kind = ("the best", "the second")[rank] if complete and rank < 2 else trial.state
        kind = {"complete": "others", "failed": "failed or running", "running": "failed or running"}.get(kind, kind)
        colour = {"the best": "series-1", "the second": "series-2"}.get(kind, "faint")
        made = line(
            kind if kind not in ("the best", "the second") else f"{kind}, trial {trial.number}",
            getattr(curve, key),
            curve.loss,
            colour,
            width=2.5 if rank == 0 and complete else 1.5,
            dots=True,
            meta=label(name_of(trial), 120),
            hovertemplate="%{meta}<br>%{y:.5~g}<extra></extra>",
            legendgroup=kind,
            showlegend=kind not in told,
            legendrank=rank,
        )
        made["marker"]["size"] = 4 if colour == "faint" else 6
        if not complete:
            made["line"]["dash"] = "dot"
        told.add(kind)
        traces.append(made)
    return traces


def heat_map(found: SearchFiles) -> Chart | None:
    """The loss over two settings: k1 and k2 where one varies, else the first two that do; None where none does."""
    done = [*found.complete, *found.pruned]
    varying = [name for name in found.settings if len({trial.values.get(name) for trial in done}) > 1]
    if not done or not varying:
        return None
    pair = ["k1", "k2"] if {"k1", "k2"} <= set(found.settings) and {"k1", "k2"} & set(varying) else varying[:2]
    if len(pair) == 1 or not _is_map(done, pair):
        return _dots(found, pair)
    x, y = pair
    columns, rows = (_sorted({trial.values.get(name) for trial in done}) for name in (x, y))
    at: dict[tuple[Value, Value], Trial] = {}
    for trial in done:  # the best first
        at.setdefault((trial.values.get(x), trial.values.get(y)), trial)
    places = [[at.get((column, row)) for column in columns] for row in rows]
    trace: Plot = {
        "type": "heatmap",
        "x": [_tick(value) for value in columns],
        "y": [_tick(value) for value in rows],
        "z": [[None if trial is None else trial.loss for trial in row] for row in places],
        "colorscale": _SCALE,
        "xgap": 2,
        "ygap": 2,
        "meta": [label(x), label(y)],
        "hovertemplate": "%{meta[0]}=%{x}, %{meta[1]}=%{y}: %{z:.5~g}<extra></extra>",
        "hoverongaps": False,
        "colorbar": _bar(),
    }
    layout = {
        "xaxis": {"title": {"text": label(x)}, "type": "category", "showgrid": False},
        "yaxis": {"title": {"text": label(y)}, "type": "category", "showgrid": False},
    }
    best = done[0]
    said = f"The lowest loss, {number(best.loss)}, is at {_place_name(x, best)}, {_place_name(y, best)}."
    more = ["Stronger is better. " + said]
    if set(varying) - set(pair):
        more.append("Each place shows the best of the candidates that share it.")
    if any(trial is not None and trial.state != "complete" for row in places for trial in row):
        more.append("In brackets: the last loss of candidates that were stopped before the end.")
    return Chart(
        title=f"Loss over {x} and {y}",
        summary=said,
        views=[View(label="", traces=[trace, _figures(trace, places)], layout=layout)],
        caption=" ".join(more),
        height=max(240, 110 + 42 * len(rows)),
    )


def _figures(trace: Plot, places: Sequence[Sequence[Trial | None]]) -> Plot:
    """The losses in a heat map, readable on whatever colour is behind them."""
    there = [
        (x, y, trial)
        for y, row in zip(trace["y"], places, strict=True)
        for x, trial in zip(trace["x"], row, strict=True)
        if trial is not None and trial.loss is not None
    ]
    losses = [trial.loss or 0.0 for _, _, trial in there]
    edge = min(losses) + _STRONG * (max(losses) - min(losses))
    return {
        "type": "scatter",
        "mode": "text",
        "x": [x for x, _, _ in there],
        "y": [y for _, y, _ in there],
        "text": [_place_text(trial) for _, _, trial in there],
        "textfont": {"size": 13, "color": [f"var(--on-{'strong' if loss <= edge else 'weak'})" for loss in losses]},
        "hoverinfo": "skip",
        "showlegend": False,
    }


def _bar() -> Plot:
    """The scale of colours."""
    return {
        "title": {"text": "loss", "font": {"size": 12}},
        "thickness": 10,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        "nticks": 5,
    }


def _place_text(trial: Trial) -> str:
    return number(trial.loss) if trial.state == "complete" else f"({number(trial.loss)})"


def _place_name(name: str, trial: Trial) -> str:
    """A setting and its value, as text."""
    return f"{name}={_tick(trial.values.get(name))}"


def _is_map(done: Sequence[Trial], pair: Sequence[str]) -> bool:
    """Whether two settings take few values each."""
    return all(len({trial.values.get(name) for trial in done}) <= _MOST_PLACES for name in pair)


def _dots(found: SearchFiles, names: Sequence[str]) -> Chart:
    """The loss over one setting; with two their places, with the loss as colour."""
    done = [trial for trial in found.complete if trial.loss is not None]
    x = [trial.values.get(names[0]) for trial in done]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in x)
    marker: Plot = {"size": 9, "color": "var(--series-1)"}
    y: list[Value] = [trial.loss for trial in done]
    title = "held-out loss"
    if len(names) == 2:
        y, title = [trial.values.get(names[1]) for trial in done], label(names[1])
        marker = {
            "size": 11, "color": [trial.loss for trial in done], "colorscale": _SCALE,
            "colorbar": _bar(),
            "line": {"width": 1, "color": "var(--border)"},
        }  # fmt: skip
    trace: Plot = {
        "type": "scatter",
        "mode": "markers",
        "x": [_axis_value(value, numeric) for value in x],
        "y": y if len(names) == 1 else [_axis_value(value, _is_wide(y)) for value in y],
        "marker": marker,
        "hovertext": [f"trial {trial.number}: {number(trial.loss, 5)}" for trial in done],
        "hoverinfo": "text",
        "showlegend": False,
    }
    x_axis: Plot = {"title": {"text": label(names[0])}}
    y_axis: Plot = {"title": {"text": title}}
    if not numeric:
        x_axis |= {"type": "category", "categoryorder": "array", "categoryarray": list(map(_tick, _sorted(set(x))))}
    elif _is_wide(x):
        x_axis |= log_axis(_numbers(x))
    if len(names) == 2 and _is_wide(y):
        y_axis |= log_axis(_numbers(y))
    axes: Plot = {"xaxis": x_axis, "yaxis": y_axis}
    what = " and ".join(names)
    summary = (
        f"The lowest loss, {number(done[0].loss)}, is at {', '.join(_place_name(name, done[0]) for name in names)}."
    )
    return Chart(title=f"Loss over {what}", summary=summary, views=[View(label="", traces=[trace], layout=axes)],
                 caption=summary)  # fmt: skip


def _axis_value(value: Value, numeric: bool) -> Value:
    return value if numeric else _tick(value)


def _numbers(values: Sequence[Value]) -> list[float]:
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]


def _is_wide(values: Sequence[Value]) -> bool:
    numbers = _numbers(values)
    return len(numbers) == len(values) and min(numbers) > 0 and max(numbers) / min(numbers) >= 8


def _sorted(values: set[Value]) -> list[Value]:
    """Numbers first, n last of them, then text."""

    def place(value: Value) -> tuple[bool, bool, float, str]:
        return isinstance(value, str), value is None, value if isinstance(value, int | float) else 0.0, str(value)

    return sorted(values, key=place)


def _tick(value: Value) -> str:
    return "n" if value is None else label(value, 30) if isinstance(value, str) else number(value)


def costs_chart(found: SearchFiles, what: str, title: str, axis: str, name_of: Callable[[Trial], str]) -> Chart | None:
    """The loss of the trials that came to the end against a cost, with the Pareto front; None without costs.

    Args:
        found: The search.
        what: The name of the cost of a trial.
        title: Of the chart.
        axis: What is said at the axis of the cost.
        name_of: What a trial is called.
    """
    scale = 1e6 if what.endswith("bytes") else 1.0
    done = [
        (getattr(trial, what) / scale, trial.loss, trial)
        for trial in found.complete
        if getattr(trial, what) and trial.loss is not None
    ]
    if not done:
        return None
    front = pareto_front([(cost, loss) for cost, loss, _ in done])
    names = [f"{label(name_of(trial), 120)}<br>{number(cost)}, loss {number(loss, 5)}" for cost, loss, trial in done]

    def dots(places: Sequence[int], name: str, more: Plot) -> Plot:
        return {
            "type": "scatter", "name": name, "x": [done[place][0] for place in places],
            "y": [done[place][1] for place in places], "hovertext": [names[place] for place in places],
            "hoverinfo": "text",
        } | more  # fmt: skip

    others = [place for place in range(len(done)) if place not in set(front)]
    on_front: Plot = {
        "mode": "lines+markers",
        "line": {"shape": "hv", "width": 1.5, "color": "var(--series-1)"},
        "marker": {"size": 10, "color": "var(--series-1)"},
    }
    traces = [
        dots(others, "other candidates", {"mode": "markers", "marker": {"size": 8, "color": "var(--faint)"}}),
        dots(front, "Pareto front", on_front),
    ]
    layout = {"xaxis": {"title": {"text": axis}}, "yaxis": {"title": {"text": "held-out loss"}}, "showlegend": True}
    least = done[front[0]]
    summary = (
        f"{plural(len(front), 'candidate')} of {len(done):,} on the front. The cheapest, trial {least[2].number}, has "
        f"a loss of {number(least[1])}."
    )
    return Chart(title=title, summary=summary, views=[View(label="", traces=traces, layout=layout)], caption=summary)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of points that no other one is as good as in both and better in one, the cheapest first.

    Args:
        points: Cost and loss; less is better.

    Example:
        >>> pareto_front([(1, 5), (2, 3), (3, 4), (4, 3), (5, 1)])
        [0, 1, 4]
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda place: (*points[place], place)):
        if not front or points[place][1] < points[front[-1]][1]:
            front.append(place)
    return front
