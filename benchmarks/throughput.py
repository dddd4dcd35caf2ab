"""How fast a StreamLoader hands out windows, against bare loops in the same process, in turn.

    python benchmarks/throughput.py --raw FOLDER [--stores FOLDER] [--workload w1] [--scale 1] [--rounds 7]

Each workload (see `workloads.py`) in each backend and codec: windows a second through the public API, the fields, the
mask and the token of each window looked at, checksums on, after one whole pass that is reported beside. Compared with
the bare loop of slices over a memory map, and for compressed stores with a loop that only decodes the same chunks. Each
store is measured in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from measure import in_turn, memory_bytes, ratio
from stores import made, of_workload, options_of, read_once
from workloads import LANES, Workload, bare_loop, scaled

# Chunks that are decoded between two looks at the clock.
_BATCH = 32


def windows_of(loader: Any) -> Iterator[None]:
    """Every window, pass after pass, with what a training loop looks at."""
    while True:
        for window in loader:
            window["x"], window.mask, window.token
            yield


def decode_loop(store: Any, window_bytes: int, threads: int) -> Iterator[None]:
    """Decodes chunk after chunk into memory that is used again; as many items as windows fit into the chunks.

    Each thread takes the next chunk of a batch when it is done with one, and no thread runs between two items.
    """
    import numpy as np

    steps = store.chunk_timesteps["x"]
    numbers = itertools.cycle(range(store.num_timesteps // steps))
    batch: deque[int] = deque()

    def decode(reader: Any) -> int:
        done = 0
        while batch:
            with suppress(IndexError):
                (values,) = reader.load("x", [batch.popleft()], [steps])
                done += np.asarray(values).nbytes
                del values
        return done

    with ExitStack() as stack:
        readers = [stack.enter_context(store.reader(["x"], 1)) for _ in range(threads)]
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        left = 0.0
        while True:
            batch.extend(itertools.islice(numbers, _BATCH))
            others = [pool.submit(decode, reader) for reader in readers[1:]]
            left += (decode(readers[0]) + sum(other.result() for other in others)) / window_bytes
            while left >= 1:
                left -= 1
                yield


def measure(workload: Workload, raw: Path, uri: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The figures of one store, in this process."""
    import streamseq as ss

    # torch and pyarrow are imported before the clock runs.
    _ = ss.StreamLoader, ss.open
    begin = time.perf_counter()
    store = ss.open(uri)
    layout = "even" if workload.sequences == 1 else "sequences"
    stream = ss.StreamDataset(store, lanes=LANES, window=workload.window, layout=layout)
    loader = ss.StreamLoader(stream)
    first = next(iter(loader))
    first_window = time.perf_counter() - begin
    del first
    read_once(uri)
    begin = time.perf_counter()
    count = 0
    for window in loader:
        window["x"], window.mask, window.token
        count += 1
    first_pass = count / (time.perf_counter() - begin)
    memory = memory_bytes()
    stats = loader.stats
    read_once(workload.values_path(raw))
    loops = {"streamseq": windows_of(loader), "bare": bare_loop(workload, raw)}
    compressed = store.decoded_chunk_bytes["x"] > 0
    chunks = sum(-(-shard.num_timesteps // store.chunk_timesteps["x"]) for shard in store.snapshot.shards)
    if compressed:
        loops["decode"] = decode_loop(store, workload.window_bytes, 1)
        loops["decode2"] = decode_loop(store, workload.window_bytes, 2)
    rates = in_turn(loops, rounds, seconds)
    for loop in loops.values():
        loop.close()
    rate = statistics.median(rates["streamseq"])
    return {
        "windows_per_second": rate,
        "bytes_per_second": rate * workload.window_bytes,
        "of_bare_loop": ratio(rates["streamseq"], rates["bare"]),
        "of_decode_loop": ratio(rates["streamseq"], rates["decode"]) if compressed else None,
        "of_decode_loop_two_threads": ratio(rates["streamseq"], rates["decode2"]) if compressed else None,
        "first_pass_windows_per_second": first_pass,
        "first_window_seconds": first_window,
        "decoded_per_chunk": stats.decoded / chunks,
        "peak_memory_bytes": memory["peak"],
        "anonymous_memory_bytes": memory["anonymous"],
    }


def rows(
    raw: Path, stores: Path, scale: float, rounds: int, seconds: float, only: str | None = None
) -> Iterator[dict[str, Any]]:
    """A row for each workload, backend and codec."""
    for each in made(raw, stores, scale, of_workload(only)):
        size = sum(path.stat().st_size for path in each.uri.rglob("*") if path.is_file())
        command = [sys.executable, __file__, "--one", each.workload.name, str(each.uri), "--raw", str(raw)]
        command += ["--scale", str(scale), "--rounds", str(rounds), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        yield {
            **each.columns,
            **json.loads(done.stdout),
            "bytes_on_disk": size,
            "ingest_bytes_per_second": each.workload.values_path(raw).stat().st_size / each.seconds,
        }


def section(found: list[dict[str, Any]], command: str) -> str:
    """The rows as a page's section."""
    lines = [
        "## Throughput of streaming",
        "",
        f"`{command}`. Windows a second through `StreamLoader` with field, mask and token of each window looked at, "
        "checksums on, second and later passes, medians of turns with the bare loop (`out[lane] = values[a:b]` over a "
        "memory map) and, for compressed stores, with loops that only decode the same chunks into memory that is used "
        "again, on one thread and on two; a stream decodes on two, of which one runs the training loop. Warm cache.",
        "",
        "| workload | store | windows/s | MB/s | of the bare loop | of decoding alone, 1 thread | 2 threads "
        "| first pass, windows/s | first window, s | decodes a chunk | peak MiB | on disk MB | ingest MB/s |",
        f"|{'---|' * 13}",
    ]
    for row in found:
        decode = [row[name] for name in ("of_decode_loop", "of_decode_loop_two_threads")]
        cells = [
            row["workload"],
            f"{row['backend']} {row['codec']}",
            f"{row['windows_per_second']:,.0f}",
            f"{row['bytes_per_second'] / 1e6:,.0f}",
            f"**{row['of_bare_loop']:.2f}**",
            *("" if each is None else f"**{each:.2f}**" for each in decode),
            f"{row['first_pass_windows_per_second']:,.0f}",
            f"{row['first_window_seconds']:.2f}",
            f"{row['decoded_per_chunk']:.2f}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            f"{row['bytes_on_disk'] / 1e6:,.0f}",
            f"{row['ingest_bytes_per_second'] / 1e6:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--workload", help="w1, w2 or w3; all without")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--one", nargs=2, metavar=("WORKLOAD", "STORE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        (workload,) = (each for each in scaled(options.scale) if each.name == options.one[0])
        found = measure(workload, options.raw, Path(options.one[1]), options.rounds, options.seconds)
        print(json.dumps(found))
        return
    stores = options.stores or options.raw / "stores"
    for row in rows(options.raw, stores, options.scale, options.rounds, options.seconds, options.workload):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
