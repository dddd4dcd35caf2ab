"""Statistics of a field as plain figures, and as lines of text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.statistics.channels import Statistics

Figures = dict[str, list[int | float | None]]

# Channels that have a line each.
_MOST_LINES = 16
_QUARTILES = {"25%": 0.25, "median": 0.5, "75%": 0.75}


def figures(statistics: Statistics) -> Figures:
    """Figures by name, each a list with one number a channel; None where there is none.

    Args:
        statistics: Of a field.

    Example:
        >>> import streamseq as ss
        >>> found = figures(ss.statistics(ss.from_arrays({"a": {"x": [[1, 5], [3, 9]]}}))["x"])
        >>> found["mean"], found["max"]
        ([2.0, 7.0], [3, 9])
    """
    there = statistics.count.reshape(-1) > 0
    found: dict[str, NDArray[Any]] = {"min": statistics.min}
    if statistics.counted:
        found.update({name: statistics.quantile(q) for name, q in _QUARTILES.items()})
    found.update(max=statistics.max, mean=statistics.mean, std=statistics.std)
    counts: dict[str, NDArray[Any]] = {
        "count": statistics.count,
        "missing": statistics.missing,
        "infinite": statistics.infinite,
    }
    return {
        **{name: each.reshape(-1).tolist() for name, each in counts.items()},
        **{name: _plain(each.reshape(-1), there) for name, each in found.items()},
    }


def _plain(values: NDArray[Any], there: NDArray[np.bool_]) -> list[int | float | None]:
    return [
        value if known and math.isfinite(value) else None
        for value, known in zip(values.tolist(), there.tolist(), strict=True)
    ]


def figure_lines(found: Figures, shape: tuple[int, ...]) -> list[str]:
    """Figures as text: a line a channel, or where there are many one that says how far channels are apart.

    Args:
        found: From `figures`.
        shape: The step shape.
    """
    channels = len(found["count"])
    if channels <= _MOST_LINES:
        places = [f"[{', '.join(map(str, place))}] " if place else "" for place in np.ndindex(shape)]
        return [place + _line({name: [each[at]] for name, each in found.items()}) for at, place in enumerate(places)]
    return [f"{channels:,} channels: {_line(found)}"]


def _line(found: Figures) -> str:
    left_out = [f"{_range(found[name])} {name}" for name in ("missing", "infinite") if any(found[name])]
    rest = [f"{name} {_range(each)}" for name, each in found.items() if name not in ("count", "missing", "infinite")]
    values = [f"{_range(found['count'])} values", *left_out]
    return f"{', '.join(values)}; {', '.join(rest)}"


def _range(values: list[int | float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return _number(low) if low == high else f"{_number(low)} to {_number(high)}"


def _number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
