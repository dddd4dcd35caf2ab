"""Runs every benchmark and writes what came out, with the commands, to docs/benchmarks.md.

python benchmarks/run.py [--quick] [--peers]
"""

from __future__ import annotations

import argparse
import os
import platform
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import checksums
import cold
import ingest
import latency
import memory
import opening
import plans
import search
import tbptt
import tbptt_exact
import throughput
import workloads
from peers import compare, environments

PEERS = Path(__file__).parent / ".peers"
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
    timesteps = 500_000 if quick else 20_000_000
    return memory.section(memory.measure(folder, timesteps), timesteps)


def throughput_section(folder: Path, raw: Path, scale: float, *, quick: bool) -> tuple[str, list[dict[str, Any]]]:
    rounds, seconds = (2, 0.1) if quick else (7, 0.5)
    command = f"python benchmarks/throughput.py --raw FOLDER --scale {scale:g} --rounds {rounds} --seconds {seconds}"
    rows = list(throughput.rows(raw, folder / "stores", scale, rounds, seconds))
    return throughput.section(rows, command), rows


def latency_section(raw: Path, stores: Path, scale: float, *, quick: bool) -> str:
    runs = 1 if quick else 5
    command = f"python benchmarks/latency.py --raw FOLDER --scale {scale:g} --runs {runs}"
    return latency.section(list(latency.rows(raw, stores, scale, runs)), command)


def cold_section(raw: Path, stores: Path, scale: float, *, quick: bool) -> str:
    rounds, seconds = (1, 0.1) if quick else (5, 2.0)
    command = f"python benchmarks/cold.py --raw FOLDER --scale {scale:g} --rounds {rounds} --seconds {seconds:g}"
    return cold.section(list(cold.rows(raw, stores, scale, rounds, seconds)), command)


def checksums_section(raw: Path, stores: Path, scale: float, *, quick: bool) -> str:
    rounds = 1 if quick else 7
    command = f"python benchmarks/checksums.py --raw FOLDER --scale {scale:g} --rounds {rounds}"
    return checksums.section(list(checksums.rows(raw, stores, scale, rounds)), command)


def ingest_section(files: Path | None, folder: Path, *, quick: bool) -> str:
    if files is None:
        files = Path(sysconfig.get_path("stdlib")) / ("asyncio" if quick else "")
    return ingest.section(files, workers=2, rounds=1 if quick else 5, scratch=folder, quick=quick)


def tbptt_section(*, quick: bool, peers: bool) -> str:
    rounds, scale = (2, 0.15) if quick else (15, 1.0)
    command = f"python benchmarks/tbptt.py --rounds {rounds} --scale {scale:g}{' --peers' * peers}"
    rows = tbptt.rows([1] if quick else [1, 2], rounds, scale, PEERS if peers else None)
    return tbptt.section(list(rows), command)


def tbptt_exact_section(folder: Path, *, quick: bool) -> str:
    in_memory, in_time = (
        ((1_000, 4_000), (400, 800)) if quick else (tbptt_exact.MEMORY_TIMESTEPS, tbptt_exact.TIMESTEPS)
    )
    rounds, threads = (1, [1]) if quick else (5, [1, 2])
    memory_rows = tbptt_exact.memory_rows(folder, "arrow", 1, in_memory, tbptt_exact.SEGMENT)
    time_rows = tbptt_exact.time_rows(folder, 16, in_time, tbptt_exact.SEGMENT, threads, rounds)
    return tbptt_exact.section(memory_rows, list(time_rows), "python benchmarks/tbptt_exact.py")


def peers_section(rows: list[dict[str, Any]], raw: Path, scale: float, ours: list[dict[str, Any]]) -> str:
    """Every peer in its own recommended way, and with lanes laid out by hand where it has random access.

    Args:
        rows: From `compare.measure_peers`.
        raw: The data that was measured.
        scale: Its size.
        ours: From `throughput.rows`, of the same data.
    """
    best: dict[str, float] = {}
    for row in ours:
        best[row["workload"]] = max(best.get(row["workload"], 0.0), row["of_bare_loop"])
    lines = [
        "## Peers",
        "",
        f"`python benchmarks/run.py --peers --peers-scale {scale:g}` ({', '.join(sorted(best))}). Each peer in an "
        "environment of its own, without shuffling, in the way that its guide recommends (own), or with contiguous "
        "lanes by hand on its random access (lanes); every rate as a ratio to the bare loop that took turns with it in "
        "its process. The last column: streamseq's fastest store against the same loop, divided by the peer's ratio.",
        "",
        "| workload | peer | variant, workers | keeps lanes | windows/s | MB/s | of the bare loop | first window, s "
        "| peak MiB | on disk MB | ingest MB/s | streamseq is faster by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    sizes = {each.name: each for each in workloads.scaled(scale)}
    for row in sorted(rows, key=lambda row: (str(row.get("workload")), -row.get("ratio_to_bare_loop", 0.0))):
        name = f"{row['peer']} {row.get('version', '')}".strip()
        if "error" in row:
            lines.append(f"| {row.get('workload', '')} | {name} | {row.get('variant', '')} | | {row['error']} |||||||")
            continue
        raw_bytes = sizes[row["workload"]].values_path(raw).stat().st_size
        cells = [
            row["workload"],
            name,
            f"{row['variant']}, {row['workers']}",
            "yes" if row["keeps_lanes"] else "no",
            f"{row['windows_per_second']:,.0f}",
            f"{row['bytes_per_second'] / 1e6:,.0f}",
            f"{row['ratio_to_bare_loop']:.3f}",
            f"{row['first_window_seconds']:.2f}",
            f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            f"{row['bytes_on_disk'] / 1e6:,.0f}",
            f"{raw_bytes / row['ingest_seconds'] / 1e6:,.0f}" if row["ingest_seconds"] else "",
            f"**{best[row['workload']] / row['ratio_to_bare_loop']:.1f}**",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data, to see that it runs; writes nothing")
    parser.add_argument("--scale", type=float, default=1.0, help="of the workloads of the throughput benchmark")
    parser.add_argument("--peers", action="store_true", help="install the peers (11 GB) and measure them too")
    parser.add_argument("--peers-scale", type=float, default=0.1, help="of the workloads that peers are measured on")
    parser.add_argument("--raw", type=Path, help="where the raw data is kept; a folder for the run if not given")
    parser.add_argument("--files", type=Path, help="the folder that is ingested; the standard library's unless said")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        raw = options.raw or folder / "raw"
        scale = 0.01 if options.quick else options.scale
        section, _ = throughput_section(folder, raw, scale, quick=options.quick)
        sections = [section]
        sections.append(latency_section(raw, folder / "stores", scale, quick=options.quick))
        sections.append(cold_section(raw, folder / "stores", scale, quick=options.quick))
        sections.append(checksums_section(raw, folder / "stores", scale, quick=options.quick))
        sections.append(memory_section(folder, quick=options.quick))
        sections.append(plans.section(10**5 if options.quick else 10**8))
        sections.append(opening.section(10**5 if options.quick else 10**7))
        sections.append(ingest_section(options.files, folder, quick=options.quick))
        sections.append(search.section(1 if options.quick else 3, 5_000 if options.quick else 60_000))
        trainers = options.peers and environments.create(PEERS, "tbptt") is None
        sections.append(tbptt_section(quick=options.quick, peers=trainers))
        sections.append(tbptt_exact_section(folder, quick=options.quick))
        if options.peers:
            for peer in compare.RUNS:
                environments.create(PEERS, peer)
            small = folder / "small"
            _, ours = throughput_section(folder, small, options.peers_scale, quick=options.quick)
            found = compare.measure_peers(small, folder / "peers", PEERS, options.peers_scale, rounds=3, seconds=0.5)
            sections.append(peers_section(list(found), small, options.peers_scale, ours))
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
