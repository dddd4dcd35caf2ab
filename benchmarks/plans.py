"""What does a plan of very many sequences cost? Time and memory of planning, and the time to find a window.

    python benchmarks/plans.py [--most N]

Each row is planned in a process of its own, from a catalogue of lengths alone: log-normal with mean 2,000 (like W3 in
`workloads.py`), 32 lanes, windows of 512. Memory is how much the process grew at most while it planned, beside the
lengths; finding is `plan.runs` of one window, all lanes, at steps spread over the epoch. The largest row is not
measured: it is what a straight line through the two largest measured ones says, and its memory twice that, as numbers
of windows no longer fit 32 bits there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

LANES = 32
WINDOW = 512
RUN = 1 << 19
RUNS = 3
FINDS = 200
SIZES = (10**5, 10**6, 10**7, 10**8)
EXTRAPOLATED = 10**9
LONG = 10**12


def lengths_of(sequences: int) -> np.ndarray:
    """int64 [N], made in parts, which take no memory that planning could use again."""
    rng = np.random.default_rng(7)
    lengths = np.empty(sequences, np.int64)
    for start in range(0, sequences, 1 << 14):
        part = lengths[start : start + (1 << 14)]
        part[:] = np.maximum(1, rng.lognormal(np.log(2000) - 0.5, 1, len(part)))
    return lengths


def plan(lengths: np.ndarray, *, shuffle: bool, layout: str) -> dict[str, float]:
    """Plan once, in this process, which has planned nothing of that size before."""
    from streamseq.core.plan import Plan
    from streamseq.core.selection import select_all
    from streamseq.core.settings import PlanSettings

    settings = PlanSettings(lanes=LANES, window=WINDOW, shuffle=shuffle, run=RUN, layout=layout)
    Plan(select_all(lengths[:1000]), settings, contents="", epoch=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    made = Plan(select_all(lengths), settings, contents="", epoch=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    finds = []
    for step in np.linspace(0, made.num_windows - 1, FINDS).astype(int).tolist():
        start = time.perf_counter()
        made.runs(step, step + 1, 0, LANES)
        finds.append(time.perf_counter() - start)
    return {
        "seconds": seconds,
        "peak_mib": (peak - before) / 1024,
        "find_us": statistics.median(finds) * 1e6,
        "find_p99_us": float(np.quantile(finds, 0.99)) * 1e6,
        "busy": made.occupancy.busy,
        "filled": made.occupancy.filled,
    }


def _in_process(*arguments: str) -> list[dict[str, float]]:
    command = [sys.executable, __file__, "--plan", *arguments]
    return [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(RUNS)]


def measure(most: int) -> list[dict[str, Any]]:
    """A row for each size, unshuffled and shuffled: medians of `RUNS` processes."""
    rows: list[dict[str, Any]] = []
    for shuffle in (False, True):
        measured = []
        for size in (size for size in SIZES if size <= most):
            row = _row(size, shuffle, _in_process(str(size), *(["--shuffle"] if shuffle else [])))
            rows.append(row)
            measured.append(row)
        if len(measured) > 1:
            rows.append(_extrapolated(*measured[-2:]))
    rows.append({**_row(1, False, _in_process("1")), "timesteps": LONG})
    return rows


def _row(size: int, shuffle: bool, runs: list[dict[str, float]]) -> dict[str, Any]:
    median = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    return {
        "sequences": size,
        "shuffle": shuffle,
        "measured": True,
        "seconds": round(median["seconds"], 4),
        "peak_mib": round(median["peak_mib"], 1),
        "find_us": round(median["find_us"]),
        "find_p99_us": round(median["find_p99_us"]),
        "busy": round(median["busy"], 4),
        "filled": round(median["filled"], 4),
    }


def _extrapolated(small: dict[str, Any], large: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"sequences": EXTRAPOLATED, "shuffle": large["shuffle"], "measured": False}
    for name in ("seconds", "peak_mib"):
        slope = (large[name] - small[name]) / (large["sequences"] - small["sequences"])
        row[name] = round(large[name] + slope * (EXTRAPOLATED - large["sequences"]), 1)
    # 16 bytes a sequence at most while planning, not 8: see Plan._cut_into_windows.
    row["peak_mib"] = 2 * row["peak_mib"]
    return row


def section(most: int) -> str:
    """What was measured, as Markdown."""
    lines = [
        "## Planning",
        "",
        f"`python benchmarks/plans.py --most {most}`: lengths alone, log-normal with mean 2,000, {LANES} lanes, "
        f"windows of {WINDOW}; each row the median of {RUNS} processes. Memory is the growth of the peak beside the "
        "lengths; finding is `plan.runs` of one window anywhere. Rows in italics are not measured: a straight line "
        "through the two above, and twice that for memory, as window numbers take 8 bytes there. The last "
        f"row is one sequence of 10^{len(str(LONG)) - 1} timesteps, laid out evenly.",
        "",
        "| sequences | shuffled | seconds | peak MiB | finding a window, µs | 99 % within, µs | busy | filled |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in measure(most):
        cells = [f"{row['sequences']:,}", "yes" if row["shuffle"] else "no"]
        cells += [
            str(row.get(name, "")) for name in ("seconds", "peak_mib", "find_us", "find_p99_us", "busy", "filled")
        ]
        lines.append(f"| {' | '.join(cells if row['measured'] else [f'*{cell}*' if cell else '' for cell in cells])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=SIZES[-1], help="sequences of the largest row that is measured")
    parser.add_argument("--plan", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shuffle", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plan == 1:
        print(json.dumps(plan(np.array([LONG]), shuffle=False, layout="even")))
    elif options.plan is not None:
        print(json.dumps(plan(lengths_of(options.plan), shuffle=options.shuffle, layout="sequences")))
    else:
        for row in measure(options.most):
            print(json.dumps(row))


if __name__ == "__main__":
    main()
