"""Mixing: parts of a selection, such as several stores, that have lanes of their own in one plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import PlanError

Int64 = NDArray[np.int64]

UNTIL = ("all", "first", "repeat")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mix:
    """S parts of a selection, each on lanes of its own.

    Lanes count emitted timesteps of data, not padding, or with the as-is split sequences; a part's end is that of its
    fullest lane.

    Args:
        rows: int64 [S + 1], where the spans of each part begin in the selection.
        lanes: How many lanes each part has; they follow each other.
        until: What happens where a part ends before another one. "all": its lanes are idle until the last part ends.
            "first": the epoch ends where the first part ends; the rest of the others is left out. "repeat": it is gone
            through again, in another order if shuffled, until the last part ends.

    Raises:
        ValueError: `until` is something else.
    """

    rows: Int64
    lanes: tuple[int, ...]
    until: str = "all"

    def __post_init__(self) -> None:
        if self.until not in UNTIL:
            raise ValueError(f"until is one of {', '.join(UNTIL)}, got {self.until!r}")


def allot_lanes(weights: Sequence[float], lanes: int) -> tuple[int, ...]:
    """Share lanes out by weight: by largest remainder, each part at least one; the earlier part wins a tie.

    Args:
        weights: Of each part, above 0; only their ratios matter.
        lanes: How many there are.

    Raises:
        PlanError: There are fewer lanes than parts.
        TypeError, ValueError: A weight is not a finite number above 0.

    Example:
        >>> allot_lanes([0.5, 0.3, 0.2], 32), allot_lanes([100, 1, 1], 4)
        ((16, 10, 6), (2, 1, 1))
    """
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float | np.integer | np.floating):
            raise TypeError(f"a weight is a number, got {weight!r}")
        if not isfinite(weight) or weight <= 0:
            raise ValueError(f"a weight is a finite number above 0, got {weight}: leave out what has none")
    if lanes < len(weights):
        raise PlanError(f"every store of a mix has a lane, got lanes={lanes} for {len(weights)} stores: use more lanes")
    # Exact, so that ties are the same everywhere.
    shares = [Fraction(weight) for weight in weights]
    allotted = dict.fromkeys(range(len(shares)), 0)
    open_parts, left = list(allotted), lanes
    while True:
        total = sum(shares[part] for part in open_parts)
        small = [part for part in open_parts if shares[part] * left < total]
        if not small:
            break
        for part in small:
            allotted[part] = 1
            open_parts.remove(part)
        left -= len(small)
    quotas = {part: shares[part] * left / total for part in open_parts}
    for part, quota in quotas.items():
        allotted[part] = int(quota)
    rest = left - sum(int(quota) for quota in quotas.values())
    for part in sorted(open_parts, key=lambda part: (-(quotas[part] % 1), part))[:rest]:
        allotted[part] += 1
    return tuple(allotted.values())
