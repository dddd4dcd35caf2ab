"""xbatcher over zarr: samples of K timesteps, 32 a batch; its torch MapDataset in a DataLoader.

By hand: the values of the one sequence as [lane, time], where a batch is K timesteps of every lane. Ragged sequences
have no such array.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import xarray
import xbatcher
import zarr
from torch.utils.data import DataLoader
from workloads import LANES, Workload
from xbatcher.loaders.torch import MapDataset

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "xbatcher"
_CHUNK_BYTES = 1 << 20


def _create(
    workload: Workload, out_folder: Path, shape: tuple[int, int], chunk: tuple[int, int], dims: list[str]
) -> zarr.Array:
    group = zarr.open_group(out_folder / "store.zarr", mode="w")
    names = [*dims, "channel"][: 2 + len(workload.step)]
    shape, chunk = (*shape, *workload.step), (*chunk, *workload.step)
    return group.create_array("x", shape=shape, chunks=chunk, dtype=workload.dtype, dimension_names=names)


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    values = workload.values(raw_folder)
    count = pieces.sample_count(workload, len(values))
    chunk = max(1, _CHUNK_BYTES // workload.window_bytes) * LANES
    array = _create(workload, out_folder, (count, workload.window), (chunk, workload.window), ["sample", "time"])
    for first in range(0, count, chunk):
        part = values[first * workload.window : (first + chunk) * workload.window]
        samples = np.zeros((min(chunk, count - first), *array.shape[1:]), workload.dtype)
        samples.reshape(-1, *workload.step)[: len(part)] = part
        array[first : first + len(samples)] = samples


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    if workload.sequences > 1:
        raise ValueError("ragged sequences have no [lane, time] array")
    values = workload.values(raw_folder)
    share = len(values) // LANES
    chunk = max(1, _CHUNK_BYTES // workload.window_bytes) * workload.window
    array = _create(workload, out_folder, (LANES, share), (LANES, chunk), ["lane", "time"])
    lanes = values[: LANES * share].reshape(LANES, share, *workload.step)
    for first in range(0, share, chunk):
        array[:, first : first + chunk] = lanes[:, first : first + chunk]


def _batches(folder: Path, dimensions: dict[str, int], workers: int) -> Iterator[torch.Tensor]:
    data = xarray.open_zarr(folder / "store.zarr", chunks=None, consolidated=False)["x"]
    dataset = MapDataset(xbatcher.BatchGenerator(data, input_dims=dimensions))
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=workers > 0)
    while True:
        yield from loader


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    return _batches(folder, {"sample": LANES, "time": workload.window}, workers)


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[torch.Tensor]:
    return _batches(folder, {"lane": LANES, "time": workload.window}, 0)
