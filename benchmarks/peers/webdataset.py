"""WebDataset: samples of K timesteps as .npy files in tar shards, read one after the other.

Shards are read from end to end only, so there is nothing to write lanes by hand on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import webdataset
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "webdataset"
_SHARD_BYTES = 64 << 20
# Each worker needs a shard of its own.
_SHARDS = 8


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    total = workload.values_path(raw_folder).stat().st_size
    samples = pieces.sample_count(workload, total // workload.step_bytes)
    shards = max(_SHARDS, -(-total // _SHARD_BYTES))
    count = -(-samples // (shards * LANES)) * LANES
    with webdataset.ShardWriter(str(out_folder / "%06d.tar"), maxcount=count, maxsize=1 << 40, verbose=0) as writer:
        for number, sample in enumerate(pieces.samples(workload, raw_folder)):
            writer.write({"__key__": f"{number:09d}", "x.npy": sample})


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    dataset = webdataset.WebDataset(shards, shardshuffle=False).decode().to_tuple("x.npy")
    dataset = dataset.map_tuple(torch.from_numpy).batched(LANES, partial=False)
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for (batch,) in loader:
            yield batch
