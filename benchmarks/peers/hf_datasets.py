"""Hugging Face datasets: rows of K timesteps in Arrow, read in batches in the torch format.

With workers a DataLoader asks for the rows of a batch at once. By hand: long pieces, a row each,
sliced from the Arrow table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, List, Value, concatenate_datasets
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "datasets"
_BATCH_BYTES = 16 << 20


def _feature(workload: Workload, length: int) -> object:
    if workload.channels is not None and length > 0:
        return Array2D((length, workload.channels), workload.dtype)
    return List(Value(workload.dtype), length=length)


def _write(parts: Iterable[np.ndarray], feature: object, row_bytes: int, out_folder: Path) -> None:
    def rows() -> Iterator[dict[str, np.ndarray]]:
        for part in parts:
            yield {"x": part if isinstance(feature, Array2D) else part.reshape(-1)}

    made = Dataset.from_generator(
        rows,
        features=Features({"x": feature}),
        cache_dir=str(out_folder / "rows"),
        writer_batch_size=max(1, _BATCH_BYTES // row_bytes),
        # A name of its own instead of one made from what the function closes over, which would pickle the data.
        fingerprint="rows",
    )
    # Stays where it is written first: `save_to_disk` would be the same file once more.
    (out_folder / "files.txt").write_text("\n".join(each["filename"] for each in made.cache_files))


def _open(folder: Path) -> Dataset:
    names = (folder / "files.txt").read_text().splitlines()
    return concatenate_datasets([Dataset.from_file(name) for name in names])


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    feature = _feature(workload, workload.window)
    _write(pieces.samples(workload, raw_folder), feature, workload.window * workload.step_bytes, out_folder)


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    edges = pieces.bounds(workload, raw_folder)
    row_bytes = int(edges[-1]) * workload.step_bytes // (len(edges) - 1)
    _write(pieces.pieces(workload, raw_folder), _feature(workload, -1), row_bytes, out_folder)


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    dataset = _open(folder).with_format("torch", dtype=getattr(torch, workload.dtype))
    if not workers:
        while True:
            for batch in dataset.iter(batch_size=LANES):
                yield batch["x"]
    batches = BatchSampler(SequentialSampler(dataset), LANES, drop_last=True)
    loader = DataLoader(dataset, batch_size=None, sampler=batches, num_workers=workers, persistent_workers=True)
    while True:
        for batch in loader:
            yield batch["x"]


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    column = _open(folder).data.column("x")

    def read(number: int) -> np.ndarray:
        return column[number].values.to_numpy(zero_copy_only=True).reshape(-1, *workload.step)

    return pieces.lanes(workload, raw_folder, read)
