"""What jobs of `streamseq ingest` reach of what the machine can do, what a second worker brings, and their memory.

    python benchmarks/ingest.py --folder linux-source-6.1 [--rounds 5] [--workers 2]

Bare loops (bare_ingest.py, threads and processes) and `streamseq ingest text` take turns, each in a process of its own,
on all files of a folder, which the operating system has in memory. Rates are those from the first file that is read to
the end; what comes before (imports, listing the files, starting workers) is reported apart.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measure import memory_bytes, ratio

BARE = Path(__file__).with_name("bare_ingest.py")
STREAMSEQ = Path(sys.executable).with_name("streamseq")
BACKENDS = ("zarr", "arrow")
# Of the compute-bound job.
STEPS, CHANNELS = 8_000_000, 4
# Hard links to every file, so that there is more to read.
COPIES = 4


def timed(command: list[str]) -> tuple[dict[str, Any], float]:
    """What a command prints as JSON, and its seconds."""
    began = time.perf_counter()
    printed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return json.loads(printed), time.perf_counter() - began


def text_rows(folder: Path, scratch: Path, workers: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each bare loop, and for each backend."""
    out = scratch / "out"
    commands: dict[str, list[str]] = {
        kind: [sys.executable, str(BARE), str(folder), str(out), "--workers", str(workers), "--kind", kind]
        for kind in ("threads", "processes")
    }
    for backend in BACKENDS:
        ingest = [str(STREAMSEQ), "ingest", "text", str(folder), "--to", str(out), "--backend", backend]
        commands[backend] = [*ingest, "--workers", str(workers), "--on-error", "skip", "--json", "--quiet"]
    rates: dict[str, list[float]] = {name: [] for name in commands}
    apart: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            printed, whole = timed(command)
            shutil.rmtree(out)
            num_bytes = printed["bytes_in"] if name in BACKENDS else printed["bytes"]
            seconds = printed["seconds"] - printed.get("startup_seconds", 0.0)
            if number:  # the first round fills the operating system's cache
                rates[name].append(num_bytes / seconds)
                apart[name].append(whole - seconds)
    best = max(("threads", "processes"), key=lambda kind: statistics.median(rates[kind]))
    for name in commands:
        yield {
            "what": name,
            "bytes_per_second": statistics.median(rates[name]),
            "of_best_bare": ratio(rates[name], rates[best]),
            "startup_seconds": statistics.median(apart[name]),
        }


def in_python(arrays: dict[str, Any]) -> dict[str, Any]:
    """A function of each timestep, which holds the interpreter lock."""
    return {"x": np.array([[math.sin(value) for value in step] for step in arrays["x"].tolist()], np.float32)}


def in_numpy(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same few functions again and again, which let go of the interpreter lock."""
    x = arrays["x"]
    for _ in range(150):
        x = np.tanh(np.sin(x) + 1)
    return {"x": x}


def compute(name: str, source: Path, store: Path, workers: int) -> dict[str, Any]:
    """What one compute-bound job reports."""
    from streamseq_pipelines.array import ArraySource

    import streamseq as ss
    from streamseq.etl.transforms import Function

    function = Function(in_python) if name == "python" else Function(in_numpy, threads=True)
    paths = sorted(str(path) for path in source.iterdir())
    return json.loads(ss.ingest(ArraySource(paths), store, [function], workers=workers).to_json())


def compute_rows(scratch: Path, rounds: int, steps: int) -> Iterator[dict[str, Any]]:
    """A row for each transform: two workers against one."""
    source, store = scratch / "arrays", scratch / "store.arrow"
    source.mkdir()
    random = np.random.default_rng(0)
    for number in range(16):
        np.save(source / f"{number:02d}.npy", random.standard_normal((steps // 16, CHANNELS), np.float32))
    for name in ("python", "numpy"):
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(rounds):
            for workers in seconds:
                command = [sys.executable, __file__, "--compute", name, str(source), str(store), str(workers)]
                printed, _ = timed(command)
                seconds[workers].append(printed["seconds"] - printed["startup_seconds"])
                shutil.rmtree(store)
        speedup = ratio([1 / each for each in seconds[2]], [1 / each for each in seconds[1]])
        yield {"what": name, "one_worker_seconds": statistics.median(seconds[1]), "speedup": speedup}
    shutil.rmtree(source)


def watched(folder: Path, store: Path, workers: int) -> dict[str, Any]:
    """The resident memory of a job at each quarter of its input, its peak, and what it had when it began, in bytes."""
    from streamseq_pipelines.text import TextSource

    import streamseq as ss

    seen: list[tuple[float, int]] = []

    def watch(done: int, total: int) -> None:
        seen.append((done / total, sum(memory_bytes()[kind] for kind in ("anonymous", "mapped"))))

    ss.ingest(TextSource([folder], on_error="skip"), store, workers=workers, progress=watch)
    quarters = [min(seen, key=lambda each: abs(each[0] - share))[1] for share in (0, 0.25, 0.5, 0.75, 1)]
    return {"quarters": quarters, "peak": memory_bytes()["peak"]}


def memory_rows(folder: Path, scratch: Path, workers: int) -> Iterator[dict[str, Any]]:
    """A row for the folder once, and one for several of it."""
    several = scratch / "several"
    several.mkdir()
    for number in range(COPIES):
        subprocess.run(["cp", "-al", str(folder), str(several / str(number))], check=True)
    for copies, source in ((1, folder), (COPIES, several)):
        store = scratch / "watched.zarr"
        command = [sys.executable, __file__, "--watch", str(source), str(store), str(workers)]
        printed, _ = timed(command)
        shutil.rmtree(store)
        yield {"copies": copies, **printed}
    shutil.rmtree(several)


def section(folder: Path, workers: int, rounds: int, scratch: Path, *, quick: bool = False) -> str:
    """The section of docs/benchmarks.md."""
    steps = STEPS // 100 if quick else STEPS
    count = sum(len(names) for _, _, names in os.walk(folder))
    lines = [
        "## Jobs",
        "",
        f"`python benchmarks/ingest.py --folder {folder.name} --workers {workers} --rounds {rounds}`: {count:,} files. "
        f"A bare loop on {workers} threads, and one on {workers} processes, read the same files, compress their bytes "
        f"in chunks of 1 MiB with the same codec (zstd, level 3) and write them, nothing else; `streamseq ingest text` "
        "in turn with them, each in a process of its own. Rates from the first file to the end, start-up apart; "
        "medians, files in the page cache.",
        "",
        "| | MB/s | of the better bare loop | start-up, s |",
        "|---|---:|---:|---:|",
    ]
    for row in text_rows(folder, scratch, workers, rounds):
        lines.append(
            f"| {row['what']} | {row['bytes_per_second'] / 1e6:,.0f} | {row['of_best_bare']:.2f} "
            f"| {row['startup_seconds']:.1f} |"
        )
    lines += [
        "",
        f"Transforms that compute, {steps:,} timesteps of {CHANNELS} float32 in 16 files: a Python loop over values "
        "(its workers are processes), and numpy (threads).",
        "",
        "| | one worker, s | two are faster by |",
        "|---|---:|---:|",
    ]
    for row in compute_rows(scratch, rounds, steps):
        lines.append(f"| {row['what']} | {row['one_worker_seconds']:.1f} | {row['speedup']:.2f} |")
    lines += [
        "",
        f"Resident memory of the job (Zarr, {workers} threads), MiB; of the folder, and of a folder with {COPIES} hard "
        "links to each file:",
        "",
        "| | first partition | 25 % | 50 % | 75 % | 100 % | peak |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in memory_rows(folder, scratch, workers):
        cells = [f"{each / 2**20:,.0f}" for each in (*row["quarters"], row["peak"])]
        lines.append(f"| {row['copies']} x | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path(sysconfig.get_path("stdlib")),
        help="files; the standard library unless said",
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scratch", type=Path, help="where to write, on the same disk as the folder")
    parser.add_argument("--compute", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--watch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compute:
        name, source, store, workers = options.compute
        print(json.dumps(compute(name, Path(source), Path(store), int(workers))))
    elif options.watch:
        source, store, workers = options.watch
        print(json.dumps(watched(Path(source), Path(store), int(workers))))
    else:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            print(section(options.folder, options.workers, options.rounds, Path(scratch)))


if __name__ == "__main__":
    main()
