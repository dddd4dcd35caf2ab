"""Measures one peer on one workload, in the interpreter of its environment; prints one line of JSON.

    PYTHON run_peer.py PEER WORKLOAD RAW_FOLDER OUT_FOLDER [--variant own|lanes] [--workers N] [--scale FACTOR] ...

The raw data and the peer's format are written where they are missing, the latter by a process of its own. What a line
holds is said in compare.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# A peer must not go looking for newer versions or hubs, and its own threads are what is measured, not OpenMP's.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "LITDATA_DISABLE_VERSION_CHECK": "1",
    "OMP_NUM_THREADS": "1",
}
_SETTLE_SECONDS = 5.0
os.environ.update(_ENVIRONMENT)
# This file's own folder, which Python puts first, has modules named like the packages they measure.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

import measure  # noqa: E402
import workloads  # noqa: E402


def layout_folder(module: ModuleType, workload: workloads.Workload, out_folder: Path, variant: str) -> Path:
    """Where a format is written; lanes by hand may want another one."""
    layout = "lanes" if variant == "lanes" and hasattr(module, "ingest_lanes") else "own"
    return out_folder / module.__name__.removeprefix("peers.") / workload.name / layout


def ingest(module: ModuleType, workload: workloads.Workload, raw_folder: Path, folder: Path) -> None:
    """Write the format of a peer, with a note of how long that took and how large it is."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write: Callable[..., None] = module.ingest_lanes if folder.name == "lanes" else module.ingest
    begin = time.perf_counter()
    write(workload, raw_folder, folder)
    seconds = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    _note(folder).write_text(json.dumps({"timesteps": workload.timesteps, "seconds": seconds, "bytes": size}))


def _note(folder: Path) -> Path:
    return folder.with_suffix(".json")


def ingested(workload: workloads.Workload, folder: Path) -> dict[str, float] | None:
    """The note of the format that is there, if it is of this data."""
    note = json.loads(_note(folder).read_text()) if _note(folder).exists() else None
    return note if note and note["timesteps"] == workload.timesteps else None


def workers() -> list[Path]:
    """The processes below this one, as folders of /proc."""
    found, ahead = [], [Path("/proc/self")]
    while ahead:
        # A process may end while it is looked at.
        with contextlib.suppress(OSError):
            for children in ahead.pop().glob("task/*/children"):
                below = [Path("/proc", number) for number in children.read_text().split()]
                ahead += below
                found += below
    return found


def worker_bytes() -> int:
    """Memory of the worker processes, what they share with others counted in parts."""
    total = 0
    for process in workers():
        with contextlib.suppress(OSError):
            lines = (process / "smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def cpu_seconds() -> float:
    """Used by this process and its workers."""
    ticks = 0
    for process in workers():
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Wait until a peer has read ahead what it wants to: its threads would slow the bare loop down."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < deadline:
        before = cpu_seconds()
        time.sleep(0.1)
        if cpu_seconds() - before < 0.02:
            return


def in_turn(peer: Iterator[object], bare: Iterator[object], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Windows a second of both, like `measure.in_turn`, for a peer with threads or processes of its own."""
    rates: dict[str, list[float]] = {"peer": [], "bare": []}
    measure.take(bare, seconds / 2)
    for _ in range(rounds):
        # What was read ahead while the bare loop ran is not the peer's rate.
        measure.take(peer, seconds / 2)
        rates["peer"].append(measure.take(peer, seconds))
        settle()
        rates["bare"].append(measure.take(bare, seconds))
    return rates


def run(options: argparse.Namespace) -> dict[str, object]:
    workload = next(each for each in workloads.scaled(options.scale) if each.name == options.workload)
    workloads.make(workload, options.raw_folder)
    module = importlib.import_module(f"peers.{options.peer}")
    folder = layout_folder(module, workload, options.out_folder, options.variant)
    if ingested(workload, folder) is None and options.ingest:
        ingest(module, workload, options.raw_folder, folder)
    elif ingested(workload, folder) is None:
        again = [sys.executable, *sys.argv, "--ingest"]
        done = subprocess.run(again, stdout=subprocess.PIPE, text=True, check=True)
        answer = json.loads(done.stdout)
        if "error" in answer:
            return answer
    note = ingested(workload, folder)
    assert note is not None
    row: dict[str, object] = {
        "version": importlib.metadata.version(module.VERSION_OF),
        "ingest_seconds": note["seconds"],
        "bytes_on_disk": note["bytes"],
    }
    if options.ingest:
        return row
    lanes = options.variant == "lanes"
    begin = time.perf_counter()
    windows: Iterator[object] = (
        module.lanes(workload, folder, options.raw_folder)
        if lanes
        else module.windows(workload, folder, options.workers)
    )
    first = next(windows)
    row["first_window_seconds"] = time.perf_counter() - begin
    wanted = (workloads.LANES, workload.window, *workload.step)
    if tuple(first.shape) != wanted or not str(first.dtype).endswith(workload.dtype):
        raise ValueError(f"a batch must be {workload.dtype} {wanted}, not {first.dtype} {tuple(first.shape)}")
    measure.take(windows, options.seconds)
    # Before the bare loop maps the raw data into this process.
    memory = measure.memory_bytes()
    row["peak_memory_bytes"], row["anonymous_memory_bytes"] = memory["peak"], memory["anonymous"]
    row["worker_memory_bytes"] = worker_bytes()
    rates = in_turn(windows, workloads.bare_loop(workload, options.raw_folder), options.rounds, options.seconds)
    row["keeps_lanes"] = lanes or module.KEEPS_LANES
    size = workload.window_bytes
    if row["keeps_lanes"]:
        starts, stops = workload.spans(options.raw_folder)
        size = float((stops - starts).sum()) * workload.step_bytes / len(starts)
    row["windows_per_second"] = statistics.median(rates["peer"])
    row["ratio_to_bare_loop"] = measure.ratio(rates["peer"], rates["bare"])
    row["bytes_per_second"] = row["windows_per_second"] * size
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", help="a module of this folder")
    parser.add_argument("workload", choices=[each.name for each in workloads.FULL])
    parser.add_argument("raw_folder", type=Path)
    parser.add_argument("out_folder", type=Path)
    parser.add_argument("--variant", choices=["own", "lanes"], default="own")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--ingest", action="store_true", help="only write the peer's format, where it is missing")
    options = parser.parse_args()
    options.raw_folder, options.out_folder = options.raw_folder.resolve(), options.out_folder.resolve()
    # Some peers print while they work: standard output is for the one line.
    with os.fdopen(os.dup(1), "w") as answer:
        os.dup2(2, 1)
        row: dict[str, object] = {name: vars(options)[name] for name in ("peer", "workload", "variant", "workers")}
        try:
            row |= run(options)
        except Exception as error:
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(row), file=answer)


if __name__ == "__main__":
    main()
