"""Lance: rows of K timesteps, read in order by its torch dataset; with workers by started, not forked, processes.

By hand: a row for each timestep, read in long ranges.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import lance
import lance.torch.data
import numpy as np
import pyarrow as pa
import torch
from lance.file import LanceFileReader, LanceFileWriter
from torch.utils.data import DataLoader
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "pylance"
_ROWS = 8192
_TIMESTEPS = 1 << 20


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    length = workload.window * (workload.channels or 1)
    kind = pa.list_(pa.from_numpy_dtype(workload.dtype), length)
    schema = pa.schema([("x", kind)])

    def batches() -> Iterator[pa.RecordBatch]:
        values = workload.values(raw_folder)
        count = pieces.sample_count(workload, len(values))
        for first in range(0, count, _ROWS):
            part = values[first * workload.window : (first + _ROWS) * workload.window].reshape(-1)
            rows = min(_ROWS, count - first)
            part = np.concatenate([part, np.zeros(rows * length - len(part), part.dtype)])
            yield pa.record_batch([pa.FixedSizeListArray.from_arrays(pa.array(part), type=kind)], schema=schema)

    lance.write_dataset(pa.RecordBatchReader.from_batches(schema, batches()), str(out_folder / "rows.lance"))


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    values = workload.values(raw_folder)
    kind = pa.from_numpy_dtype(workload.dtype)
    if workload.channels is not None:
        kind = pa.list_(kind, workload.channels)
    schema = pa.schema([("x", kind)])
    with LanceFileWriter(str(out_folder / "timesteps.lance"), schema) as writer:
        for start in range(0, len(values), _TIMESTEPS):
            column = pa.array(values[start : start + _TIMESTEPS].reshape(-1))
            if workload.channels is not None:
                column = pa.FixedSizeListArray.from_arrays(column, type=kind)
            writer.write_batch(pa.record_batch([column], schema=schema))


class _ToTensor:
    """Without it the torch dataset gives floats or copies; a class, because processes get it pickled."""

    def __init__(self, workload: Workload) -> None:
        self.shape = (-1, workload.window, *workload.step)

    def __call__(self, batch: pa.RecordBatch, **_: object) -> torch.Tensor:
        return torch.from_numpy(batch["x"].flatten().to_numpy(zero_copy_only=True).reshape(self.shape))


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    to_tensor = _ToTensor(workload)
    uri = str(folder / "rows.lance")
    if not workers:
        dataset = lance.torch.data.LanceDataset(uri, LANES, to_tensor_fn=to_tensor)
        while True:
            yield from dataset
    dataset = lance.torch.data.LanceDataset(uri, LANES, to_tensor_fn=to_tensor, shard_granularity="batch")
    loader = DataLoader(
        dataset, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context="spawn"
    )
    while True:
        yield from loader


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    reader = LanceFileReader(str(folder / "timesteps.lance"))
    edges = pieces.bounds(workload, raw_folder).tolist()

    def read(number: int) -> np.ndarray:
        count = edges[number + 1] - edges[number]
        column = reader.read_range(edges[number], count, batch_size=count).to_table()["x"].combine_chunks()
        if workload.channels is not None:
            column = column.flatten()
        return column.to_numpy().reshape(-1, *workload.step)

    return pieces.lanes(workload, raw_folder, read)
