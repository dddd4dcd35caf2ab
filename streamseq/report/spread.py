"""How numbers are spread: bins, and the chart of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.report.figures import number
from streamseq.report.parts import Cell, Plot, Row, Table, View
from streamseq.storage.statistics.channels import Statistics

Float64 = NDArray[np.float64]

#: Bins at most.
BINS = 60
_LEAST_BINS = 16
# From this ratio of the greatest to the least on, bins are of equal ratio.
_WIDE = 50
# The part of the values that decides where bins lie, and how much farther all may lie for all to be shown.
_CENTRE, _FAR = (0.001, 0.999), 4.0
# Of a logarithmic axis: decades with several labels each, and labels of more.
_FEW_DECADES, _LABELS = 3.0, 6
# Each of so many whole numbers has a bin of its own.
_MOST_VALUES = 256
_SHARES = (
    ("least", 0.0), ("1 %", 0.01), ("5 %", 0.05), ("25 %", 0.25), ("median", 0.5), ("75 %", 0.75), ("95 %", 0.95),
    ("99 %", 0.99), ("greatest", 1.0),
)  # fmt: skip


def edges_of(values: NDArray[Any]) -> Float64:
    """The borders of bins for whole numbers above 0, float64 [E]; of equal ratio where they are far apart.

    Example:
        >>> edges_of(np.array([2, 4, 3])).tolist()
        [1.5, 2.5, 3.5, 4.5]
    """
    low, high = float(values.min()), float(values.max())
    # Few values in many bins are gaps and needles (Rice's rule).
    bins = int(min(BINS, max(_LEAST_BINS, 2 * len(values) ** (1 / 3))))
    if high - low < bins:
        return np.arange(low - 0.5, high + 1)
    if high / low < _WIDE:
        return np.linspace(low - 0.5, high + 0.5, bins + 1)
    found = np.geomspace(low, high + 1, bins + 1)
    # A bin without a whole number in it would be a gap that says nothing.
    return np.unique(np.append(np.ceil(found[:-1]), high + 1) - 0.5)


def lengths_views(values: NDArray[Any], what: str) -> list[View]:
    """Views of how lengths are spread: how many there are, and how many timesteps they have together.

    Args:
        values: int64 [N], N at least 1, each above 0.
        what: What there are so many of.
    """
    edges = edges_of(values)
    log = bool(edges[-1] / edges[0] >= _WIDE)
    # A logarithm makes much of the half before a 1.
    shift = 0.5 if log else 0.0
    numbers, _ = np.histogram(values, edges)
    # Exact: float64 holds whole numbers to 2^53.
    timesteps, _ = np.histogram(values, edges, weights=values.astype(np.float64))

    def view(label: str, count: NDArray[Any], x: str, y: str) -> View:
        return View(
            label=label,
            traces=[steps(edges, count, whole=True, shift=shift)],
            layout=spread_layout(x, y, edges if log else None),
        )

    return [
        view(what, numbers, "timesteps", what),
        view("their timesteps", timesteps, "timesteps of one", "timesteps in all"),
    ]


def lengths_table(values: NDArray[Any], caption: str) -> Table:
    """The quantiles of lengths.

    Args:
        values: int64 [N], at least 1.
        caption: Of the table.
    """
    found = np.quantile(values, [at for _, at in _SHARES], method="inverted_cdf").tolist()
    rows = [Row([Cell(name, at), Cell(number(value), value)]) for (name, at), value in zip(_SHARES, found, strict=True)]
    mean = float(values.mean())
    rows.append(Row([Cell("mean", 2.0), Cell(number(mean), mean)]))
    return Table(caption=caption, columns=["share", "timesteps"], numeric=["timesteps"], rows=rows)


def values_view(statistics: Statistics, channel: int, label: str) -> tuple[View, float] | None:
    """How the values of a channel are spread, and the share of them that lies beside the picture.

    Args:
        statistics: With counted values.
        channel: Its number.
        label: Of the view.

    Returns:
        None where there are no values.
    """
    histogram = statistics.histogram(channel)
    if not len(histogram.count):
        return None
    least, most = (float(bound.reshape(-1)[channel]) for bound in (statistics.min, statistics.max))
    total = np.cumsum(histogram.count)
    at = np.searchsorted(total, np.multiply(_CENTRE, total[-1]))
    inner_low, inner_high = float(histogram.low[at[0]]), float(histogram.high[min(at[1], len(total) - 1)])
    reach = _FAR * (inner_high - inner_low)
    near = (histogram.low >= inner_low - reach) & (histogram.high <= inner_high + reach)
    low = max(least, float(histogram.low[near].min()))
    high = min(most, float(histogram.high[near].max()))
    whole = statistics.field.dtype.kind in "biu"
    if whole and high - low < _MOST_VALUES:
        edges = np.arange(low - 0.5, high + 1)
    elif high > low:
        edges = np.linspace(low, np.nextafter(high, np.inf), BINS + 1)
    else:
        edges = np.array([low - 0.5, low + 0.5])
    # The values of a cell lie anywhere in it; of cells with one value all lie there.
    ends = np.maximum(np.minimum(histogram.high, most), np.nextafter(np.maximum(histogram.low, least), np.inf))
    begins = np.maximum(histogram.low, least)
    x = np.stack([begins, ends], 1).reshape(-1)
    y = np.stack([total - histogram.count, total], 1).reshape(-1).astype(np.float64)
    ascending = np.maximum.accumulate(x)
    count = np.diff(np.interp(edges, ascending, y, left=0.0, right=float(total[-1])))
    beside = max(0.0, 1.0 - float(count.sum()) / float(total[-1]))
    layout = spread_layout("value", "values", log=None)
    trace = steps(edges, count, whole=whole and len(edges) <= _MOST_VALUES + 1)
    return View(label=label, traces=[trace], layout=layout), beside


def steps(edges: Float64, count: NDArray[Any], *, whole: bool, shift: float = 0.0) -> Plot:
    """The trace of a histogram.

    Args:
        edges: float64 [E].
        count: [E - 1], how much there is between them.
        whole: Whether what is counted are whole numbers, which lie between the edges.
        shift: Added to the edges where they are drawn.
    """
    count = np.round(np.asarray(count, np.float64)).tolist()
    borders = zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    said = [_bin(math.ceil(low), math.floor(high)) if whole else _bin(low, high) for low, high in borders]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": (edges + shift).tolist(),
        "y": [*count, count[-1]],
        "line": {"shape": "hv", "width": 1.5, "color": "var(--series-1)"},
        "fill": "tozeroy",
        "fillcolor": "var(--fill)",
        "text": [f"{each}: {value:,.0f}" for each, value in zip(said, count, strict=True)] + [""],
        "hoverinfo": "text",
        "showlegend": False,
    }


def _bin(low: float, high: float) -> str:
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def spread_layout(x: str, y: str, log: Float64 | None) -> Plot:
    """The axes of a histogram, whose first one is logarithmic where its values are given."""
    return {
        "xaxis": {"title": {"text": x}, "showgrid": False, **({} if log is None else log_axis(log.tolist(), "~s"))},
        "yaxis": {"title": {"text": y}, "rangemode": "tozero", "tickformat": "~s"},
        "hovermode": "x",
    }


def log_axis(values: Iterable[float | None], form: str = "~g") -> Plot:
    """What makes an axis logarithmic, with labels at 1, 2 and 5, or where there are many decades at some of these.

    Args:
        values: Along the axis; those above 0 count.
        form: How labels are written, as d3 has it.
    """
    there = [value for value in values if value is not None and 0 < value < math.inf]
    decades = math.log10(max(there) / min(there)) if there else 0.0
    dtick = "D2" if decades <= _FEW_DECADES else math.ceil(decades / _LABELS)
    return {"type": "log", "dtick": dtick, "tickformat": form}
