"""Streams whose files are not in the operating system's cache, against the loop over a memory map, likewise.

    python benchmarks/cold.py --raw FOLDER [--stores FOLDER] [--workload w1] [--scale 1] [--rounds 5] [--seconds 2]

Before each turn the files are dropped from the cache (`posix_fadvise`), so that both read what they hand out from the
disk, or from what a virtual machine's host keeps of it. A stream checks what it touches. Needs Linux.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from measure import ratio
from stores import made, of_workload, options_of
from workloads import LANES, Workload, bare_loop


def drop(path: Path) -> None:
    """Take files out of the operating system's cache; they must not be mapped."""
    for each in path.rglob("*") if path.is_dir() else [path]:
        if each.is_file():
            descriptor = os.open(each, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def rate(windows: Iterator[object], seconds: float) -> float:
    """Windows a second until so many have passed, or there are no more."""
    begin, count = time.perf_counter(), 0
    for count, _ in enumerate(windows, 1):
        if not count % 16 and time.perf_counter() - begin >= seconds:
            break
    return count / (time.perf_counter() - begin)


def streamed(workload: Workload, uri: Path) -> Iterator[None]:
    """One pass over a store that is opened for it, with what a training loop looks at."""
    import streamseq as ss

    layout = "even" if workload.sequences == 1 else "sequences"
    stream = ss.StreamDataset(ss.open(uri), lanes=LANES, window=workload.window, layout=layout)
    for window in ss.StreamLoader(stream):
        window["x"], window.mask, window.token
        yield


def measure(workload: Workload, raw: Path, uri: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The figures of one store."""
    count = len(workload.spans(raw)[0])
    rates: dict[str, list[float]] = {"streamseq": [], "bare": []}
    for _ in range(rounds):
        for name in rates:
            drop(uri if name == "streamseq" else workload.values_path(raw))
            # The loop goes on for ever: one pass of it, and its memory map is closed behind it.
            windows = streamed(workload, uri) if name == "streamseq" else islice(bare_loop(workload, raw), count)
            rates[name].append(rate(windows, seconds))
            del windows
    return {
        "windows_per_second": statistics.median(rates["streamseq"]),
        "bare_windows_per_second": statistics.median(rates["bare"]),
        "of_bare_loop": ratio(rates["streamseq"], rates["bare"]),
    }


def rows(
    raw: Path, stores: Path, scale: float, rounds: int, seconds: float, only: str | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each workload, backend and codec."""
    for each in made(raw, stores, scale, of_workload(only)):
        yield {**each.columns, **measure(each.workload, raw, each.uri, rounds, seconds)}


def section(found: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""
    lines = [
        "## Cold cache",
        "",
        f"`{command}`. Files dropped from the operating system's cache before each turn, each turn a stream that is "
        "opened anew, everything that is touched for the first time checked; medians of turns with the bare loop over "
        "a memory map of raw data. The disk is a virtual machine's, whose host may have kept what was dropped.",
        "",
        "| workload | store | windows/s | bare loop, windows/s | of the bare loop |",
        "|---|---|---|---|---|",
    ]
    for row in found:
        cells = [
            row["workload"],
            f"{row['backend']} {row['codec']}",
            f"{row['windows_per_second']:,.0f}",
            f"{row['bare_windows_per_second']:,.0f}",
            f"**{row['of_bare_loop']:.2f}**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--workload", help="w1, w2 or w3; all without")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    options = parser.parse_args()
    stores = options.stores or options.raw / "stores"
    for row in rows(options.raw, stores, options.scale, options.rounds, options.seconds, options.workload):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
