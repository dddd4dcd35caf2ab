"""pytorch-stream-dataloader: 32 iterators side by side, each over a sequence, or over its share of a single one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from pytorch_stream_dataloader.stream_dataloader import StreamDataLoader
from pytorch_stream_dataloader.stream_dataset import StreamDataset
from workloads import LANES, Workload

KEEPS_LANES = True
VERSION_OF = "pytorch-stream-dataloader"


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    """It brings no format: the streams read a memory map of the raw data."""
    for path in (workload.values_path(raw_folder), raw_folder / f"{workload.name}.npy"):
        shutil.copy(path, out_folder)


def _streams(workload: Workload, folder: Path) -> list[tuple[int, int]]:
    lengths = workload.lengths(folder)
    if len(lengths) == 1:
        share = int(lengths[0]) // LANES
        share -= share % workload.window
        starts = np.arange(LANES) * (int(lengths[0]) // LANES)
        return [(start, start + share) for start in starts.tolist()]
    edges = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    return list(itertools.pairwise(edges))


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]; the last window of a sequence ends in zeros."""
    values = workload.values(folder)
    window, dtype = workload.window, getattr(torch, workload.dtype)

    def streamer(stream: tuple[int, int]) -> Iterator[torch.Tensor]:
        low, high = stream
        for start in range(low, high, window):
            part = torch.zeros(window, *workload.step, dtype=dtype)
            stop = min(start + window, high)
            part.numpy()[: stop - start] = values[start:stop]
            yield part

    def collate(parts: Iterable[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(parts))

    idle = torch.zeros(window, *workload.step, dtype=dtype)
    dataset = StreamDataset(_streams(workload, folder), streamer, LANES, "zeros", idle)
    while True:
        yield from StreamDataLoader(dataset, workers, collate)
