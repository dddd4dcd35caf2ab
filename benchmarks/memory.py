"""Does the memory of streaming grow with the store? Peak memory when the store is four times larger.

    python benchmarks/memory.py [--folder FOLDER] [--timesteps N]

Writes two stores for each backend, N and 4N timesteps of one float32 field with 16 channels, and streams each whole
through a StreamLoader in a process of its own, the small and the large one in turn. Peak memory is what the operating
system says of the process (resident set, mapped pages included); anonymous memory leaves out mapped files.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RUNS = 3
CHANNELS = 16


def write(uri: Path, timesteps: int) -> None:
    import streamseq as ss

    rng = np.random.default_rng(0)
    # Like a 12-bit converter's output, so that it compresses.
    piece = (rng.integers(0, 4096, (1 << 16, CHANNELS)) / 4096).astype(np.float32)
    with ss.create(uri, {"x": ss.Field("float32", (CHANNELS,))}) as writer:
        for start in range(0, timesteps, len(piece)):
            writer.append("long", x=piece[: timesteps - start])


def stream(uri: Path) -> dict[str, float]:
    """Stream a store once, in this process."""
    import streamseq as ss

    loader = ss.StreamLoader(ss.StreamDataset(ss.open(uri), lanes=32, window=256, layout="even"))
    total = 0.0
    anonymous = 0
    for number, window in enumerate(loader):
        total += float(window["x"][0, 0, 0])
        if number % 64 == 0:
            anonymous = max(anonymous, _anonymous_kib())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_mib": peak / 1024, "anonymous_mib": anonymous / 1024, "windows": len(loader)}


def _anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, timesteps: int) -> list[dict[str, Any]]:
    """A row for each backend: medians of peak memory, and their growth."""
    rows = []
    for backend in ("zarr", "arrow"):
        uris = [folder / f"{name}.{backend}" for name in ("small", "large")]
        for uri, size in zip(uris, (timesteps, 4 * timesteps), strict=True):
            if not uri.exists():
                write(uri, size)
        runs: list[list[dict[str, float]]] = [[], []]
        for _ in range(RUNS):
            for place, uri in zip(runs, uris, strict=True):
                done = subprocess.run([sys.executable, __file__, "--stream", uri], capture_output=True, check=True)
                place.append(json.loads(done.stdout))
        row: dict[str, Any] = {"backend": backend, "timesteps": [timesteps, 4 * timesteps]}
        for name in ("peak_mib", "anonymous_mib"):
            small, large = (statistics.median(run[name] for run in place) for place in runs)
            row[name] = [round(small, 1), round(large, 1)]
            row[f"{name}_ratio"] = round(large / small, 3)
        rows.append(row)
    return rows


def section(found: list[dict[str, Any]], timesteps: int) -> str:
    """The rows as a page's section."""
    lines = [
        "## Memory of streaming",
        "",
        f"`python benchmarks/memory.py --timesteps {timesteps}`: a store of {timesteps:,} timesteps of 16 float32 and "
        f"one four times larger, each streamed whole through a `StreamLoader` (32 lanes, windows of 256) in a process "
        f"of its own, medians of {RUNS} runs in turn.",
        "",
        "| backend | peak MiB, N | peak MiB, 4N | ratio | anonymous MiB, N | anonymous MiB, 4N | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        cells = [row["backend"]]
        for name in ("peak_mib", "anonymous_mib"):
            cells += [*row[name], f"**{row[name + '_ratio']}**"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the stores are made; kept if given")
    parser.add_argument("--timesteps", type=int, default=5_000_000, help="of the small store")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stream is not None:
        print(json.dumps(stream(options.stream)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for row in measure(folder, options.timesteps):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
