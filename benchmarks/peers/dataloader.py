"""torch's DataLoader over a memory map: an item is the window of all lanes, so workers cannot break the lanes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from workloads import LANES, Workload

KEEPS_LANES = True
VERSION_OF = "torch"


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    """The format is the raw data."""
    for path in (workload.values_path(raw_folder), raw_folder / f"{workload.name}.npy"):
        shutil.copy(path, out_folder)


class _Windows(Dataset):
    def __init__(self, workload: Workload, folder: Path) -> None:
        self.workload = workload
        self.values = workload.values(folder)
        self.starts, self.stops = workload.spans(folder)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        workload, values = self.workload, self.values
        batch = torch.zeros(LANES, workload.window, *workload.step, dtype=getattr(torch, workload.dtype))
        out = batch.numpy()
        spans = zip(self.starts[index].tolist(), self.stops[index].tolist(), strict=True)
        for lane, (low, high) in enumerate(spans):
            out[lane, : high - low] = values[low:high]
        return batch


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    dataset = _Windows(workload, folder)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader
