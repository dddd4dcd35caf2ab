"""Curves over a run: thinned out to what can be seen, with gaps where a number is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from streamseq.report.parts import Plot

#: Points of a curve at most: more cannot be told apart.
MOST_POINTS = 1200


def thinned(x: Sequence[float], y: Sequence[float | None], most: int = MOST_POINTS) -> tuple[list[float], list[Any]]:
    """The points of a curve, of many the least and the greatest of each stretch, so that no peak is lost.

    Args:
        x, y: As many of each; what is no finite number in y is a gap.
        most: Points at most.

    Returns:
        The points that are left, with None for gaps.

    Example:
        >>> thinned([1, 2, 3, 4, 5, 6, 7, 8], [1, 5, 2, 1, 1, 0, 1, 1], most=4)
        ([1, 2, 6, 8], [1, 5, 0, 1])
    """
    points = [
        (at, value if value is not None and math.isfinite(value) else None) for at, value in zip(x, y, strict=True)
    ]
    if len(points) > most:
        length = -(-len(points) // (most // 2))
        kept: list[tuple[float, float | None]] = []
        for low in range(0, len(points), length):
            part = points[low : low + length]
            there = [(value, place) for place, (_, value) in enumerate(part) if value is not None]
            if not there:
                kept.append((part[0][0], None))
                continue
            places = sorted({min(there)[1], max(there)[1]})
            kept += [part[place] for place in places]
        points = kept
    return [at for at, _ in points], [value for _, value in points]


def line(
    name: str,
    x: Sequence[float],
    y: Sequence[float | None],
    colour: str,
    *,
    width: float = 1.5,
    dots: bool = False,
    **more: Any,
) -> Plot:
    """The trace of a curve, thinned out.

    Args:
        name: In the legend.
        x, y: Its points.
        colour: As the style sheet names it, such as "series-1".
        width: Of the line.
        dots: Whether its points are marked.
        more: What else plotly.js takes.
    """
    at, values = thinned(x, y)
    # A single point is no line.
    marked = dots or sum(value is not None for value in values) == 1
    made: Plot = {
        "type": "scatter",
        "mode": "lines+markers" if marked else "lines",
        "name": name,
        "x": at,
        "y": values,
        "line": {"width": width, "color": f"var(--{colour})"},
    }
    if marked:
        made["marker"] = {"size": 6, "color": f"var(--{colour})"}
    return made | more
