"""LitData's TemporalArrayLoader: whole sequences on disk, any range of timesteps read with `read_window`.

Which ranges to read is left to the caller, so the lanes are laid out by hand; workers come from a DataLoader whose item
is the window of all lanes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import litdata
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from workloads import LANES, Workload

KEEPS_LANES = True
VERSION_OF = "litdata"


class _Record:
    """Reads a sequence where it is written; functions given to `optimize` must pickle."""

    def __init__(self, workload: Workload, raw_folder: Path) -> None:
        self.workload = workload
        self.raw_folder = raw_folder
        self.values: np.ndarray | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"values": None}

    def __call__(self, span: tuple[int, int]) -> dict[str, np.ndarray]:
        if self.values is None:
            self.values = self.workload.values(self.raw_folder)
        return {"x": self.values[span[0] : span[1]]}


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    edges = np.concatenate([[0], np.cumsum(workload.lengths(raw_folder))]).tolist()
    np.save(out_folder / f"{workload.name}.npy", workload.lengths(raw_folder))
    litdata.optimize(
        fn=_Record(workload, raw_folder),
        inputs=list(itertools.pairwise(edges)),
        output_dir=str(out_folder / "records"),
        chunk_bytes="64MB",
        num_workers=1,
        item_loader=litdata.TemporalArrayLoader(),
        keep_data_ordered=True,
        reorder_files=False,
        verbose=False,
    )


class _Windows(Dataset):
    def __init__(self, workload: Workload, folder: Path) -> None:
        self.workload = workload
        self.folder = folder
        self.starts, self.stops = workload.spans(folder)
        edges = np.concatenate([[0], np.cumsum(workload.lengths(folder))])
        self.record = np.searchsorted(edges, self.starts, "right") - 1
        self.offset = self.starts - edges[self.record]
        self.source: litdata.StreamingDataset | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.source is None:
            loader = litdata.TemporalArrayLoader()
            self.source = litdata.StreamingDataset(str(self.folder / "records"), item_loader=loader)
        workload = self.workload
        batch = np.zeros((LANES, workload.window, *workload.step), workload.dtype)
        frames = (self.stops[index] - self.starts[index]).tolist()
        places = zip(self.record[index].tolist(), self.offset[index].tolist(), frames, strict=True)
        for lane, (record, start, count) in enumerate(places):
            if count:
                batch[lane, :count] = self.source.read_window(record, start, count)["x"]
        return torch.from_numpy(batch)


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    dataset = _Windows(workload, folder)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader
