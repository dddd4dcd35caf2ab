"""Grain over array-record files: samples of K timesteps, a MapDataset in batches, read ahead by threads or processes.

By hand: long pieces as records, read by their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import grain
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "grain"


def _write(parts: Iterable[np.ndarray], out_folder: Path) -> None:
    # One record a group is what its guide says for random access.
    writer = ArrayRecordWriter(str(out_folder / "records.array_record"), "group_size:1")
    for part in parts:
        writer.write(part.tobytes())
    writer.close()


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    _write(pieces.samples(workload, raw_folder), out_folder)


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    _write(pieces.pieces(workload, raw_folder), out_folder)


class _Decode(grain.transforms.Map):
    """Bytes to an array; a class, because processes get it pickled."""

    def __init__(self, workload: Workload) -> None:
        self.dtype, self.shape = workload.dtype, (-1, *workload.step)

    def map(self, element: bytes) -> np.ndarray:
        return np.frombuffer(element, self.dtype).reshape(self.shape)


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[np.ndarray]:
    """Endless batches [B, K, *D]."""
    source = grain.sources.ArrayRecordDataSource(str(folder / "records.array_record"))
    samples = grain.MapDataset.source(source).repeat().map(_Decode(workload))
    batches = samples.batch(LANES, drop_remainder=True).to_iter_dataset()
    if workers:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(batches)


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    source = grain.sources.ArrayRecordDataSource(str(folder / "records.array_record"))
    decode = _Decode(workload)
    return pieces.lanes(workload, raw_folder, lambda number: decode.map(source[number]))
