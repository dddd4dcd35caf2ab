"""Measures every peer on every workload, one process after the other; prints a line of JSON for each row.

    python benchmarks/peers/environments.py                     # once
    python benchmarks/peers/compare.py --raw FOLDER --work FOLDER [--scale FACTOR] [--peers PEER ...]

`measure_peers` says what a row holds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    # This file's own folder, which Python puts first, has modules named like the packages they measure.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import workloads

from peers import environments

_OWN = (("own", 0), ("own", 2))
_LANES = (*_OWN, ("lanes", 0))
# Variant and workers. Some peers lay out lanes themselves, or cannot; TensorStore has threads of its own.
RUNS: dict[str, tuple[tuple[str, int], ...]] = {
    "dataloader": _OWN,
    "stream_dataloader": _OWN,
    "litdata_temporal": _OWN,
    "litdata": _LANES,
    "mosaicml": _LANES,
    "hf_datasets": _LANES,
    "lance": _LANES,
    "grain": _LANES,
    "xbatcher": _LANES,
    "webdataset": _OWN,
    "tensorstore": (("own", 0), ("lanes", 0)),
}
TIMEOUT = 300.0
INGEST_TIMEOUT = 1800.0


def measure_peers(
    raw_folder: Path,
    work_folder: Path,
    environments_folder: Path,
    scale: float,
    rounds: int,
    seconds: float,
    peers: Sequence[str] = tuple(RUNS),
) -> Iterator[dict[str, Any]]:
    """A row for each peer, workload, variant and number of workers.

    Args:
        raw_folder: Where the data of the workloads is, or is made.
        work_folder: Where each peer writes its format, which is removed when its workload is done.
        environments_folder: What `environments.py` made; a peer without one gives a single row with an error.
        scale: Of the workloads; 1 is full size.
        rounds: How often the peer and the bare loop take turns.
        seconds: Of a turn.
        peers: Which, of `RUNS`.

    Yields:
        Rows with these keys:

        - `peer`, `workload`, `variant`, `workers`: what was measured. The variant "own" is the way its guide recommends
          without shuffling, "lanes" is contiguous lanes by hand on its random access.
        - `error`: why there is no measurement; then none of the following need be there.
        - `version` of the package.
        - `keeps_lanes`: whether lane i of a batch goes on in lane i of the next one.
        - `windows_per_second`: batches of 32 x K timesteps, the median of the rounds.
        - `ratio_to_bare_loop`: the median of the ratios to `workloads.bare_loop`, which took turns with it in the same
          process. What a peer read ahead during the loop's turn is not counted, and the loop does not begin before the
          peer's threads and workers are done with reading ahead.
        - `bytes_per_second`: of data as it is in the workload, padding of ragged windows left out.
        - `ingest_seconds`, `bytes_on_disk`: of writing its format from the raw data, in a process of its own.
        - `first_window_seconds`: from opening the dataset to the first batch, imports left out.
        - `peak_memory_bytes`, `anonymous_memory_bytes`: of the process after it handed out batches for `seconds` and
          before the bare loop ran; `worker_memory_bytes`: of the processes it started, shared pages counted in parts.
    """
    for workload in workloads.scaled(scale):
        workloads.make(workload, raw_folder)
    for peer in peers:
        if problem := environments.problem(environments_folder, peer):
            yield {"peer": peer, "error": problem}
            continue
        for workload in workloads.FULL:
            command = [
                str(environments.python(environments_folder, peer)),
                str(Path(__file__).with_name("run_peer.py")),
                *(peer, workload.name, str(raw_folder), str(work_folder)),
                *("--scale", str(scale), "--rounds", str(rounds), "--seconds", str(seconds)),
            ]
            written: dict[str, dict[str, Any]] = {}
            for variant, workers in RUNS[peer]:
                run = [*command, "--variant", variant, "--workers", str(workers)]
                if variant not in written:
                    written[variant] = _answer([*run, "--ingest"], INGEST_TIMEOUT)
                answer = written[variant] if "error" in written[variant] else _answer(run, TIMEOUT)
                yield {"peer": peer, "workload": workload.name, "variant": variant} | answer | {"workers": workers}
            shutil.rmtree(work_folder / peer / workload.name, ignore_errors=True)


def _answer(command: list[str], timeout: float) -> dict[str, Any]:
    """The line that a run prints, or an error that says what became of it."""
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            # It may have workers, which are in its session.
            os.killpg(process.pid, signal.SIGKILL)
            output, errors = process.communicate()
            if not output.strip():
                return {"error": f"not done after {timeout:g} s"}
    try:
        answer: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = [line for line in errors.splitlines() if line.strip()][-1:]
        return {"error": " ".join([f"ended with {process.returncode}", *last])}
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="where the data of the workloads is, or is made")
    parser.add_argument("--work", type=Path, required=True, help="where the peers write")
    parser.add_argument("--environments", type=Path, default=environments.FOLDER)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--peers", nargs="+", choices=list(RUNS), default=list(RUNS), metavar="PEER")
    options = parser.parse_args()
    rows = measure_peers(
        options.raw.resolve(),
        options.work.resolve(),
        options.environments.resolve(),
        options.scale,
        options.rounds,
        options.seconds,
        options.peers,
    )
    for row in rows:
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
