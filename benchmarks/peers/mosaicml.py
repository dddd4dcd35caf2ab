"""MosaicML Streaming: samples of K timesteps in MDS shards, a StreamingDataset without shuffling in a DataLoader.

By hand: long pieces in MDS, read by their number.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from workloads import LANES, Workload

from peers import pieces

try:
    import torchvision
except RuntimeError:
    # A torchvision built for CUDA misses operators of its own beside a CPU build of torch. MosaicML imports it for
    # images only, so names without code do.
    _LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for _name in [each for each in sys.modules if each.partition(".")[0] == "torchvision"]:
        del sys.modules[_name]
    import torchvision  # noqa: F401
from streaming import MDSWriter, StreamingDataset
from streaming.base.util import clean_stale_shared_memory

KEEPS_LANES = False
VERSION_OF = "mosaicml-streaming"


def _write(parts: Iterable[np.ndarray], encoding: str, out_folder: Path) -> None:
    with MDSWriter(out=str(out_folder / "mds"), columns={"x": encoding}) as writer:
        for part in parts:
            writer.write({"x": part})


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    shape = ",".join(str(size) for size in (workload.window, *workload.step))
    _write(pieces.samples(workload, raw_folder), f"ndarray:{workload.dtype}:{shape}", out_folder)


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    _write(pieces.pieces(workload, raw_folder), f"ndarray:{workload.dtype}", out_folder)


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=LANES)
    loader = DataLoader(dataset, batch_size=LANES, num_workers=workers, persistent_workers=workers > 0)
    while True:
        for batch in loader:
            yield batch["x"]


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(folder / "mds"), shuffle=False, batch_size=LANES)
    return pieces.lanes(workload, raw_folder, lambda number: dataset[number]["x"])
