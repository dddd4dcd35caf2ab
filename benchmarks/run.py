"""Runs every benchmark and writes what came out, with the commands, to docs/benchmarks.md.

python benchmarks/run.py [--quick]
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
from pathlib import Path

import memory

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"


def machine() -> str:
    import numpy
    import pyarrow
    import torch
    import zarr

    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    versions = ", ".join(f"{each.__name__} {each.__version__}" for each in (torch, zarr, pyarrow, numpy))
    return f"{len(os.sched_getaffinity(0))} cores, {gib:.0f} GiB, Python {platform.python_version()}, {versions}"


def memory_section(folder: Path, *, quick: bool) -> str:
    timesteps = 500_000 if quick else 5_000_000
    lines = [
        "## Memory of streaming",
        "",
        f"`python benchmarks/memory.py --timesteps {timesteps}`: a store of {timesteps:,} timesteps of 16 float32 and "
        f"one four times larger, each streamed whole through a `StreamLoader` (32 lanes, windows of 256) in a process "
        f"of its own, medians of {memory.RUNS} runs in turn.",
        "",
        "| backend | peak MiB, N | peak MiB, 4N | ratio | anonymous MiB, N | anonymous MiB, 4N | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in memory.measure(folder, timesteps):
        cells = [row["backend"]]
        for name in ("peak_mib", "anonymous_mib"):
            cells += [*row[name], f"**{row[name + '_ratio']}**"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data, to see that it runs; writes nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sections = [memory_section(Path(folder), quick=options.quick)]
    page = "\n\n".join(
        [
            "# Benchmarks",
            "Written by `make bench`. Figures compare things that ran side by side in one run; absolute figures are "
            f"this machine's.\n\nMachine: {machine()}.",
            *sections,
        ]
    )
    print(page)
    if not options.quick:
        PAGE.write_text(page + "\n")


if __name__ == "__main__":
    main()
