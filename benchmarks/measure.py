"""Rates of loops that take turns in one process, so that what else the machine does hits them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path


def take(windows: Iterator[object], seconds: float) -> float:
    """Windows a second over about `seconds`.

    Raises:
        StopIteration: There are no more.
    """
    count, turn, begin = 0, 1, time.perf_counter()
    while True:
        # Looking at the clock takes as long as handing out a view, but slow loops must not run far over.
        for _ in range(turn):
            next(windows)
        count += turn
        passed = time.perf_counter() - begin
        if passed >= seconds:
            return count / passed
        turn = min(2 * turn, 64)


def in_turn(loops: dict[str, Iterator[object]], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Windows a second of endless loops, each for `seconds` in each round, after one round that does not count."""
    for each in loops.values():
        take(each, seconds / 2)
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, each in loops.items():
            rates[name].append(take(each, seconds))
    return rates


def ratio(rates: list[float], reference: list[float]) -> float:
    """The median of the ratios of neighbours in time."""
    return statistics.median(rate / other for rate, other in zip(rates, reference, strict=True))


def memory_bytes() -> dict[str, int]:
    """Resident memory of this process now, anonymous and mapped, and its peak, in bytes."""
    names = {"RssAnon": "anonymous", "RssFile": "mapped", "VmHWM": "peak"}
    lines = Path("/proc/self/status").read_text().splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.split(":")[0] in names}
    return {names[name]: int(value) * 1024 for name, value in values.items()}
