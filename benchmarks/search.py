"""What a second Dask worker brings to a search of four candidates.

    python benchmarks/search.py [--rounds 3] [--timesteps 300000]

Bytes of the standard library's source; each worker is a process with one thread, and its start does not count.
"""

from __future__ import annotations

import argparse
import statistics
import sysconfig
import tempfile
import time
from importlib import import_module
from pathlib import Path

from measure import ratio

SPACE = {"k1": [32, 64], "k2": ["k1", "2*k1"]}


def start() -> None:
    """What a worker does once: it imports what trains, which torch does in part where the first optimizer is made."""
    import torch

    import_module("streamseq.search.trial")
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def seconds(store: Path, folder: Path, workers: int, timesteps: int) -> float:
    """What a search takes on so many workers that are there."""
    from distributed import Client, LocalCluster

    import streamseq as ss
    from streamseq.training import TrainingSettings

    settings = TrainingSettings(hidden=128, threads=1, held_out_timesteps=1 << 14)
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        client.run(start)
        began = time.perf_counter()
        result = ss.search(store, folder, SPACE, settings=settings, timesteps=timesteps, client=client)
        assert len(result.ranking) == 4
        return time.perf_counter() - began


def section(rounds: int, timesteps: int) -> str:
    """The section of docs/benchmarks.md."""
    from streamseq_pipelines.text import TextSource

    import streamseq as ss

    took: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch) / "text.arrow"
        ss.ingest(TextSource([Path(sysconfig.get_path("stdlib")) / "asyncio"], patterns=["*.py"]), store)
        for number in range(rounds):
            for workers in took:
                folder = Path(scratch) / f"{number}-{workers}"
                took[workers].append(seconds(store, folder, workers, timesteps))
    return (
        "## Searches\n\n"
        f"`python benchmarks/search.py --rounds {rounds} --timesteps {timesteps}`: four candidates of {timesteps:,} "
        f"timesteps each, Dask workers of one thread. Two workers take {ratio(took[2], took[1]):.2f} of the time of "
        f"one ({statistics.median(took[1]):.0f} s; medians of {rounds} turns).\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timesteps", type=int, default=300_000)
    options = parser.parse_args()
    print(section(options.rounds, options.timesteps))


if __name__ == "__main__":
    main()
