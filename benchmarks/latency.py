"""What a training run waits for: its first window, windows while it computes, and the window that it goes on with.

    python benchmarks/latency.py --raw FOLDER [--stores FOLDER] [--scale 1] [--runs 5]

Files are in the operating system's cache, imports are done before a clock runs, and each store is measured in processes
of its own; medians of the runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stores import made, options_of, read_once
from throughput import decode_loop
from workloads import LANES, Workload, scaled

STORES = (
    ("w1", "arrow", "none"),
    ("w1", "zarr", "none"),
    ("w1", "arrow", "lz4"),
    ("w1", "zarr", "zstd"),
    ("w2", "arrow", "none"),
    ("w2", "zarr", "lz4"),
    ("w3", "zarr", "none"),
    ("w3", "arrow", "zstd"),
)
STEP_SECONDS = 0.005
STEPS = 1000
# Short windows, so that an epoch of W1 has more than a million.
RESUME_WINDOW = 16
RESUME_STEP = 1_000_000


def stream_of(workload: Workload, uri: Path, window: int) -> Any:
    """A stream of a store that is opened for it."""
    import streamseq as ss

    layout = "even" if workload.sequences == 1 else "sequences"
    return ss.StreamDataset(ss.open(uri), lanes=LANES, window=window, layout=layout)


def first_window(workload: Workload, uri: Path) -> float:
    """Seconds from opening the store to the first window."""
    import streamseq as ss

    # torch, pyarrow and zarr are imported before the clock runs.
    _ = ss.StreamLoader, ss.StreamDataset, ss.open(uri)
    begin = time.perf_counter()
    loader = ss.StreamLoader(stream_of(workload, uri, workload.window))
    window = next(iter(loader))
    window["x"], window.mask, window.token
    return time.perf_counter() - begin


def wait_fraction(workload: Workload, uri: Path) -> float:
    """The part of the time that a loop waits which computes for 5 ms on one core with each window."""
    import streamseq as ss

    loader = ss.StreamLoader(stream_of(workload, uri, workload.window))
    for step, window in enumerate(loader, 1):
        end = time.perf_counter() + STEP_SECONDS
        while time.perf_counter() < end:
            window["x"].sum(), window.mask.sum()
        if step == STEPS:
            break
    return float(loader.stats.wait_fraction)


def resume(workload: Workload, uri: Path, step: int) -> dict[str, float]:
    """Seconds from `load_state_dict` to the window after `step` windows, of a stream and of a loader."""
    import streamseq as ss

    whole = stream_of(workload, uri, RESUME_WINDOW)
    wanted, state = whole[step], whole[step - 1].token.state_dict()
    seconds = {}
    for name in ("stream", "loader"):
        again = stream_of(workload, uri, RESUME_WINDOW)
        windows = again if name == "stream" else ss.StreamLoader(again)
        # The plan is made.
        len(windows)
        begin = time.perf_counter()
        windows.load_state_dict(state)
        iterator = iter(windows)
        window = next(iterator)
        seconds[f"resume_{name}_seconds"] = time.perf_counter() - begin
        assert window.token.step == step
        assert bool((window["x"] == wanted["x"]).all())
        del window, iterator
    return seconds


def decode_seconds(uri: Path) -> float:
    """Seconds in which two threads that only decode do so with a chunk of each lane, into memory that is used again."""
    import streamseq as ss

    store = ss.open(uri)
    chunks = decode_loop(store, store.decoded_chunk_bytes["x"], threads=2)
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        for _ in range(LANES):
            next(chunks)
        times.append(time.perf_counter() - begin)
    chunks.close()
    # The first time checks them.
    return statistics.median(times[1:])


def measure(workload: Workload, uri: Path) -> dict[str, float]:
    """The figures of one store, in this process."""
    import streamseq as ss

    read_once(uri)
    found = {"first_window_seconds": first_window(workload, uri)}
    found["wait_fraction"] = wait_fraction(workload, uri)
    step = min(RESUME_STEP, workload.timesteps // LANES // RESUME_WINDOW // 2)
    if workload.sequences == 1:
        found |= resume(workload, uri, step)
    if any(ss.open(uri).decoded_chunk_bytes.values()):
        found["decode_lanes_seconds"] = decode_seconds(uri)
    return found


def rows(raw: Path, stores: Path, scale: float, runs: int) -> Iterator[dict[str, Any]]:
    """A row for each of `STORES`."""
    for each in made(raw, stores, scale, STORES):
        command = [sys.executable, __file__, "--one", each.workload.name, str(each.uri), "--raw", str(raw)]
        command += ["--scale", str(scale)]
        found = []
        for _ in range(runs):
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found.append(json.loads(done.stdout))
        yield {**each.columns, **{key: statistics.median(run[key] for run in found) for key in found[0]}}


def section(found: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""

    def milliseconds(row: dict[str, Any], name: str) -> str:
        return f"{1e3 * row[name]:.1f}" if name in row else ""

    lines = [
        "## Waiting",
        "",
        f"`{command}`. Warm cache, medians of processes. First window: from `ss.open` to field, mask and token of a "
        f"`StreamLoader`'s first one. Wait fraction: of `loader.stats`, over the first {STEPS:,} windows, the wait for "
        f"the first included, when a step computes for {1e3 * STEP_SECONDS:g} ms on one core. Resume: from "
        f"`load_state_dict` to window {RESUME_STEP:,} of windows of {RESUME_WINDOW} timesteps, compared with the same "
        "one of a run that was not interrupted; the plan is there, the store was opened anew and everything that is "
        f"touched is checked. Where chunks are compressed, one for each of the {LANES} lanes is decoded for that: the "
        "last column is what a loop on two threads takes that does nothing else.",
        "",
        "| workload | store | first window, ms | wait fraction, % | resume of a stream, ms | of a loader, ms "
        "| decoding a chunk a lane, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [
            row["workload"],
            f"{row['backend']} {row['codec']}",
            milliseconds(row, "first_window_seconds"),
            f"{100 * row['wait_fraction']:.2f}",
            milliseconds(row, "resume_stream_seconds"),
            milliseconds(row, "resume_loader_seconds"),
            milliseconds(row, "decode_lanes_seconds"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--runs", type=int, default=5, help="processes for each store")
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        (workload,) = (each for each in scaled(options.scale) if each.name == options.one[0])
        print(json.dumps(measure(workload, Path(options.one[1]))))
        return
    for row in rows(options.raw, options.stores or options.raw / "stores", options.scale, options.runs):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
