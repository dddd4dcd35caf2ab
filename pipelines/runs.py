"""Cutting a list of weights into runs, such that a change of one item moves few borders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from zlib import crc32


def steady_runs(weights: Sequence[int], name: Callable[[int], str | None], target: int) -> list[tuple[int, int]]:
    """Cut items into runs `[start, stop)` of `target` weight or less; a heavier item is alone.

    A run ends between half of `target` and all of it, before the item whose name has the smallest hash. So behind an
    item that is new, gone or heavier the borders are soon the same again.

    Args:
        weights: Of each item.
        name: Of item i what it is known by; None where no run should end before it unless it is full.
        target: The weight of a run.

    Example:
        >>> steady_runs([3, 3, 3, 9, 1], lambda number: str(number), 8)
        [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    runs: list[tuple[int, int]] = []
    begin = 0
    while begin < len(weights):
        filled = weights[begin]
        end = len(weights)
        best: int | None = None
        least = 1 << 32
        for number in range(begin + 1, len(weights)):
            if 2 * filled >= target and (known := name(number)) is not None:
                hashed = crc32(known.encode())
                if hashed < least:
                    best, least = number, hashed
            filled += weights[number]
            if filled > target:
                end = number if best is None else best
                break
        runs.append((begin, end))
        begin = end
    return runs
