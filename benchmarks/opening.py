"""What does a store of very many sequences cost? Opening it, and reading one of them by its id.

    python benchmarks/opening.py [--most N] [--folder PATH]

Each store has N sequences of 4 timesteps of one byte. It is opened in a process of its own, which has opened a small
store before; its files are in the page cache. "First" is the first read of all, of a sequence in the middle; "by id" is
the median and the 99th percentile of reads of sequences all over the store, each read once. Memory is how much the peak
of the process grew: with opening and these reads, and then with the lengths of all sequences, which a plan needs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

SIZES = (10**5, 10**6, 10**7)
STEPS = 4
READS = 500
RUNS = 3


def write(address: Path, sequences: int) -> None:
    """Write a store of many short sequences at once: a receipt that says so, of timesteps written as one sequence."""
    import streamseq as ss
    from streamseq.storage.layout import plan_layout
    from streamseq.storage.shards.shard_writer import ShardWriter
    from streamseq.storage.versions.receipts import commit_receipts

    layout = plan_layout({"x": ss.Field("uint8")}, "arrow")
    with ShardWriter(address, layout) as writer:
        writer.append("all", {"x": np.arange(sequences * STEPS).astype(np.uint8)})
        receipt = writer.finish()
    number = np.arange(sequences)
    pieces = np.stack([number, number * STEPS, np.full(sequences, STEPS)], axis=1)
    ids = tuple(f"recording-{n:09d}" for n in range(sequences))
    commit_receipts(address, layout, [replace(receipt, ids=ids, attrs=(None,) * sequences, pieces=pieces)])


def measure(address: str, sequences: int) -> dict[str, float]:
    """Open a store in this process, which has opened a small one before."""
    import streamseq as ss

    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "small.arrow"), 10)
        small = ss.open(folder + "/small.arrow")
        small.read("recording-000000003")
        assert len(small.lengths) == 10
    numbers = np.random.default_rng(5).choice(sequences, READS, replace=False).tolist()
    before = _peak()
    start = time.perf_counter()
    store = ss.open(address)
    opened = time.perf_counter() - start
    took = []
    for number in (sequences // 2, *numbers):
        id = f"recording-{number:09d}"
        start = time.perf_counter()
        values = store.read(id)["x"]
        took.append(time.perf_counter() - start)
        assert values.tolist() == [(number * STEPS + step) % 256 for step in range(STEPS)]
    read = _peak()
    start = time.perf_counter()
    assert int(store.lengths.sum()) == sequences * STEPS
    lengths = time.perf_counter() - start
    return {
        "open": opened * 1e3,
        "first": took[0] * 1e3,
        "by_id": statistics.median(took[1:]) * 1e3,
        "by_id_p99": float(np.quantile(took[1:], 0.99)) * 1e3,
        "read_mib": (read - before) / 1024,
        "lengths": lengths * 1e3,
        "lengths_mib": (_peak() - before) / 1024,
    }


def _peak() -> int:
    """KiB. Not from getrusage, which also counts the process that this one was started by."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def rows(most: int, folder: Path) -> list[dict[str, Any]]:
    """A row for each size: medians of `RUNS` processes."""
    found: list[dict[str, Any]] = []
    for sequences in (size for size in SIZES if size <= most):
        address = folder / f"{sequences}.arrow"
        if not address.exists():
            write(address, sequences)
        command = [sys.executable, __file__, "--measure", str(address), str(sequences)]
        runs = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(RUNS)]
        found.append({"sequences": sequences} | {key: statistics.median(run[key] for run in runs) for key in runs[0]})
    return found


def section(most: int, folder: Path | None = None) -> str:
    """The section of docs/benchmarks.md."""
    with tempfile.TemporaryDirectory() as own:
        table = rows(most, folder or Path(own))
    lines = [
        "## Stores of very many sequences",
        "",
        f"`python benchmarks/opening.py --most {most}`: sequences of {STEPS} timesteps of one byte, Arrow; each row "
        f"the median of {RUNS} processes, files in the page cache. Reads by id are of {READS} sequences all over the "
        "store, each read once; memory is the growth of the peak, with opening and those reads, and then with all "
        "lengths.",
        "",
        "| sequences | open | first read | read by id | 99th percentile | memory | all lengths | memory |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in table:
        lines.append(
            f"| {row['sequences']:,} | {row['open']:.1f} ms | {row['first']:.2f} ms | {row['by_id']:.3f} ms | "
            f"{row['by_id_p99']:.2f} ms | {row['read_mib']:.0f} MiB | {row['lengths']:.0f} ms | "
            f"{row['lengths_mib']:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="sequences of the largest store")
    parser.add_argument("--folder", type=Path, help="where to keep the stores; a temporary folder unless said")
    parser.add_argument("--measure", nargs=2, metavar=("STORE", "N"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], int(options.measure[1]))))
    else:
        print(section(options.most, options.folder))


if __name__ == "__main__":
    main()
