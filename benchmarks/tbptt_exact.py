"""Exact BPTT over a store: does its memory grow with n, and what does it cost beside one graph over everything?

    python benchmarks/tbptt_exact.py [--folder FOLDER] [--memory-timesteps 10000 1000000] [--timesteps 1000 2000 ...]

`TBPTT(k1=None, k2=None, segment=S)` with an LSTM-128 over a store on disk. Memory: one gradient of each n in a process
of its own. Time: three things take turns in one process: the forward pass without a graph (F), forward and backward
in one graph over all n timesteps in memory (F + B), and the exact gradient in segments, which reads the store
twice. Before the clock runs both gradients are seen to be the same.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measure import memory_bytes

CHANNELS = 16
HIDDEN = 128
SEGMENT = 200
MEMORY_TIMESTEPS = (10_000, 1_000_000)
TIMESTEPS = (1000, 2000, 4000, 8000, 16000)
MEMORY_BOUND = 1.1
TIME_BOUND = 1.1
# Of the stream, with which it is as fast: at 10,000 timesteps its usual buffers would not be full.
MEMORY = "8MB"
# Stretches that are run between two looks at anonymous memory.
_LOOK = 16
_PIECE = 1 << 16


def write(uri: Path, lanes: int, timesteps: int) -> None:
    """A store with a sequence for each lane, of smooth noise."""
    import streamseq as ss

    rng = np.random.default_rng(0)
    with ss.create(uri, {"x": ss.Field("float32", (CHANNELS,))}) as writer:
        for lane in range(lanes):
            for start in range(0, timesteps, _PIECE):
                shape = (min(_PIECE, timesteps - start), CHANNELS)
                writer.append(str(lane), x=rng.standard_normal(shape, np.float32))


def stream_of(uri: Path, lanes: int, timesteps: int, segment: int) -> Any:
    """The first timesteps of the store's first sequences, a lane each, in windows as long as a segment."""
    import streamseq as ss

    spans = [(str(lane), 0, timesteps) for lane in range(lanes)]
    return ss.StreamDataset(ss.open(uri), lanes=lanes, window=segment, sequences=spans, memory=MEMORY)


def model_of() -> Any:
    import torch
    from tbptt_loops import Model, Setting

    torch.manual_seed(0)
    return Model(Setting(hidden=HIDDEN, inputs=CHANNELS, lanes=1, k=1, windows=1))


def exact(model: Any, stream: Any, segment: int, look: Callable[[], None] = lambda: None) -> None:
    """The gradient of the mean squared output, in segments, added to the parameters' `.grad`.

    Args:
        model: What is trained.
        stream: All of it is one update.
        segment: Timesteps whose activations live at once.
        look: Called before each stretch of timesteps is run.
    """
    import streamseq as ss

    def inputs(window: Any) -> Any:
        look()
        return window["x"]

    tbptt = ss.TBPTT(
        model, lambda outputs, window: outputs.square().mean(-1), k1=None, k2=None, inputs=inputs, segment=segment
    )
    (update,) = tbptt.updates(stream)
    assert update.num_timesteps == stream.num_timesteps


def one_graph(model: Any, x: Any) -> None:
    """The same gradient, over all of `x` [B, n, CHANNELS] at once."""
    outputs, _ = model(x)
    outputs.square().mean().backward()


def whole(stream: Any) -> Any:
    """All inputs of a stream, [B, n, CHANNELS]."""
    import torch

    parts = [window["x"][:, : int(window.lengths.max())] for window in stream]
    return torch.cat(parts, 1)


def memory(uri: Path, lanes: int, timesteps: int, segment: int, way: str) -> dict[str, float]:
    """Memory of one gradient, in this process: before it, the peak, and the most that was anonymous, in MiB."""
    import torch

    torch.set_num_threads(1)
    model, stream = model_of(), stream_of(uri, lanes, timesteps, segment)
    # What is there once, whatever n: the libraries, and memory that the allocator keeps.
    exact(model, stream_of(uri, lanes, 16, 8), 8)
    model.zero_grad()
    before = memory_bytes()
    anonymous = [before["anonymous"]]
    calls = 0

    def look() -> None:
        nonlocal calls
        calls += 1
        if calls % _LOOK == 1:
            anonymous.append(memory_bytes()["anonymous"])

    begin = time.perf_counter()
    if way == "exact":
        exact(model, stream, segment, look)
    else:
        one_graph(model, whole(stream))
    seconds = time.perf_counter() - begin
    after = memory_bytes()
    return {
        "before_mib": (before["anonymous"] + before["mapped"]) / 2**20,
        "peak_mib": after["peak"] / 2**20,
        "anonymous_mib": max(*anonymous, after["anonymous"]) / 2**20,
        "seconds": seconds,
    }


def times(uri: Path, lanes: int, timesteps: int, segment: int, threads: int, rounds: int) -> dict[str, float]:
    """Medians of seconds of the three things, in turn, in this process."""
    import torch

    torch.set_num_threads(threads)
    model, stream = model_of(), stream_of(uri, lanes, timesteps, segment)
    x = whole(stream)

    def forward() -> None:
        with torch.no_grad():
            model(x)

    turns = {
        "forward": forward,
        "graph": lambda: one_graph(model, x),
        "exact": lambda: exact(model, stream, segment),
    }
    gradients = []
    for name in ("graph", "exact"):
        model.zero_grad()
        turns[name]()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))
    off = float((gradients[1] - gradients[0]).norm() / gradients[0].norm())
    # One that is cut at the borders of segments is off by about 0.002.
    if not off < 1e-4:
        raise ValueError(f"both gradients must be the same, the exact one is off by {off:.2g}")
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            begin = time.perf_counter()
            turn()
            seconds[name].append(time.perf_counter() - begin)
    found = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["exact"], seconds["graph"], strict=True))
    arithmetic = (found["forward"] + found["graph"]) / found["graph"]
    return {f"{name}_seconds": value for name, value in found.items()} | {
        "time_of_one_graph": ratio,
        "arithmetic": arithmetic,
        "bound": TIME_BOUND * arithmetic,
    }


def _in_process(what: str, *values: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", what, *map(str, values)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def memory_rows(folder: Path, backend: str, lanes: int, timesteps: Sequence[int], segment: int) -> list[dict[str, Any]]:
    """A row for each n, with its ratios to the first one."""
    uri = folder / f"memory-{lanes}.{backend}"
    if not uri.exists():
        write(uri, lanes, max(timesteps))
    rows: list[dict[str, Any]] = []
    for n in timesteps:
        row: dict[str, Any] = {"backend": backend, "lanes": lanes, "timesteps": n, "segment": segment}
        row |= _in_process("memory", uri, lanes, n, segment, "exact")
        for name in ("peak_mib", "anonymous_mib"):
            row[f"{name}_ratio"] = row[name] / (rows[0] if rows else row)[name]
        rows.append(row)
    return rows


def time_rows(
    folder: Path, lanes: int, timesteps: Sequence[int], segment: int, threads: Sequence[int], rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each number of threads and n, with the memory of both ways."""
    uri = folder / f"time-{lanes}.arrow"
    if not uri.exists():
        write(uri, lanes, max(timesteps))
    used = {}
    for n in timesteps:
        for way in ("graph", "exact"):
            found = _in_process("memory", uri, lanes, n, segment, way)
            used[n, way] = found["peak_mib"] - found["before_mib"]
    for number in threads:
        for n in timesteps:
            row: dict[str, Any] = {"threads": number, "lanes": lanes, "timesteps": n, "segment": segment}
            row |= _in_process("time", uri, lanes, n, segment, number, rounds)
            yield row | {"graph_mib": used[n, "graph"], "exact_mib": used[n, "exact"]}


def faster_from(rows: list[dict[str, Any]]) -> int | None:
    """The least n from which on the exact gradient takes less time than one graph; None where there is none."""
    least = None
    for row in sorted(rows, key=lambda row: -row["timesteps"]):
        if row["time_of_one_graph"] >= 1:
            break
        least = row["timesteps"]
    return least


def section(in_memory: list[dict[str, Any]], in_time: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""
    first = in_memory[0]
    lines = [
        "## Exact BPTT",
        "",
        f"`{command}`. `TBPTT(k1=None, k2=None)` with an LSTM-{HIDDEN} and a linear head over a store of {CHANNELS} "
        f"float32 on disk: one gradient through all n timesteps, lanes: {first['lanes']}, segments and windows of "
        f"{first['segment']}, each n in a process of its own. Peak is the resident set with mapped files; to grow by "
        f"at most {MEMORY_BOUND - 1:.0%} from the first row to the last.",
        "",
        "| backend | n | before, MiB | peak MiB | ratio | anonymous MiB | ratio | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in in_memory:
        cells = [row["backend"], f"{row['timesteps']:,}", f"{row['before_mib']:.0f}"]
        for name in ("peak_mib", "anonymous_mib"):
            cells += [f"{row[name]:.1f}", f"**{row[name + '_ratio']:.3f}**"]
        lines.append(f"| {' | '.join([*cells, format(row['seconds'], '.1f')])} |")
    first = in_time[0]
    lines += [
        "",
        f"Beside one graph over everything in memory: {first['lanes']} lanes, segments and windows of "
        f"{first['segment']}, an Arrow store in the operating system's cache, which the exact gradient reads twice. "
        "F is the forward pass without a graph, F + B one graph; the arithmetic of segments is (2F + B) / (F + B), and "
        f"the time is to be at most {TIME_BOUND:g} of that. Memory is what the peak of a process of its own is above "
        "what it had before, the inputs included.",
        "",
        "| threads | n | F, s | one graph, s | exact, s | exact of one graph | arithmetic | at most | one graph, MiB "
        "| exact, MiB |",
        f"|{'---|' * 10}",
    ]
    for row in in_time:
        cells = [
            str(row["threads"]),
            f"{row['timesteps']:,}",
            *(f"{row[name + '_seconds']:.3f}" for name in ("forward", "graph", "exact")),
            f"**{row['time_of_one_graph']:.2f}**",
            f"{row['arithmetic']:.2f}",
            f"{row['bound']:.2f}",
            f"{row['graph_mib']:,.0f}",
            f"{row['exact_mib']:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for threads in dict.fromkeys(row["threads"] for row in in_time):
        least = faster_from([row for row in in_time if row["threads"] == threads])
        where = "for none of these n" if least is None else f"from n = {least:,} on"
        lines.append(f"With {threads} thread{'s' * (threads > 1)} the exact gradient is faster {where}.")
    return "\n".join(lines)


def run_one(what: str, values: Sequence[str]) -> dict[str, float]:
    """One measurement, in this process."""
    uri, lanes, n, segment = Path(values[0]), *map(int, values[1:4])
    if what == "memory":
        return memory(uri, lanes, n, segment, values[4])
    return times(uri, lanes, n, segment, int(values[4]), int(values[5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the stores are made; kept if given")
    parser.add_argument("--backend", choices=["arrow", "zarr"], default="arrow", help="of the memory figures")
    parser.add_argument("--memory-lanes", type=int, default=1)
    parser.add_argument("--memory-timesteps", type=int, nargs="+", default=MEMORY_TIMESTEPS)
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--timesteps", type=int, nargs="+", default=TIMESTEPS)
    parser.add_argument("--segment", type=int, default=SEGMENT)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(run_one(options.one[0], options.one[1:])))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        lanes, each = options.memory_lanes, options.memory_timesteps
        for row in memory_rows(folder, options.backend, lanes, each, options.segment):
            print(json.dumps(row), flush=True)
        for row in time_rows(
            folder, options.lanes, options.timesteps, options.segment, options.threads, options.rounds
        ):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
