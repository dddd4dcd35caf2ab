"""What comparing chunks with their checksums costs a stream: first touch, always, never, in turn.

    python benchmarks/checksums.py --raw FOLDER [--stores FOLDER] [--workload w1] [--scale 1] [--rounds 7]

In each turn a store is opened anew and streamed twice, its files in the operating system's cache: the first pass
touches every chunk for the first time. Rates are those of whole passes, as ratios to "never" in the same round.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measure import ratio
from stores import made, of_workload, options_of, read_once
from workloads import LANES, Workload

SETTINGS = ("never", "first", "always")
PASSES = ("first", "later")


def passes(workload: Workload, uri: Path, checksums: str) -> list[float]:
    """Windows a second of the first and of a later pass over a store that is opened for it."""
    import streamseq as ss

    layout = "even" if workload.sequences == 1 else "sequences"
    stream = ss.StreamDataset(ss.open(uri, checksums=checksums), lanes=LANES, window=workload.window, layout=layout)
    loader = ss.StreamLoader(stream)
    rates = []
    for _ in PASSES:
        begin, count = time.perf_counter(), 0
        for window in loader:
            window["x"], window.mask, window.token
            count += 1
        rates.append(count / (time.perf_counter() - begin))
    return rates


def measure(workload: Workload, uri: Path, rounds: int) -> dict[str, Any]:
    """The figures of one store."""
    read_once(uri)
    passes(workload, uri, "first")  # so that nothing is imported or compiled while the clock runs
    rates: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds):
        # None is always the one that comes after the same other one.
        for setting in SETTINGS[number % 3 :] + SETTINGS[: number % 3]:
            for name, rate in zip(PASSES, passes(workload, uri, setting), strict=True):
                rates.setdefault((setting, name), []).append(rate)
    never = {name: statistics.median(rates["never", name]) for name in PASSES}
    return {
        **{f"never_{name}_windows_per_second": rate for name, rate in never.items()},
        **{
            f"{setting}_{name}_of_never": ratio(rates[setting, name], rates["never", name])
            for setting in SETTINGS[1:]
            for name in PASSES
        },
    }


def rows(raw: Path, stores: Path, scale: float, rounds: int, only: str | None = None) -> Iterator[dict[str, Any]]:
    """A row for each workload, backend and codec."""
    for each in made(raw, stores, scale, of_workload(only)):
        yield {**each.columns, **measure(each.workload, each.uri, rounds)}


def section(found: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""
    lines = [
        "## Checksums",
        "",
        f"`{command}`. Rates of whole passes over stores in the operating system's cache, as ratios to those with "
        '`checksums="never"`, medians of rounds in which the settings take turns. "first" (the default) compares each '
        "chunk in the first pass over a store that was opened, and none later.",
        "",
        "| workload | store | first, first pass | first, later | always, first pass | always, later |",
        "|---|---|---|---|---|---|",
    ]
    for row in found:
        ratios = [f"{row[f'{setting}_{name}_of_never']:.2f}" for setting in SETTINGS[1:] for name in PASSES]
        lines.append(f"| {' | '.join([row['workload'], row['backend'] + ' ' + row['codec'], *ratios])} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--workload", help="w1, w2 or w3; all without")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    stores = options.stores or options.raw / "stores"
    for row in rows(options.raw, stores, options.scale, options.rounds, options.workload):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
