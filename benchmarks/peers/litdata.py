"""LitData: token blocks of K from a TokensLoader where timesteps are tokens, else samples of K timesteps.

By hand: long pieces as items, read by their number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import litdata
import numpy as np
import torch
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = False
VERSION_OF = "litdata"
# Items given to a call of the function that `optimize` asks for; and tokens, which are cut into blocks when read.
_ITEMS = 4096


class _Part:
    """Gives items from one of the runs of items; functions given to `optimize` must pickle."""

    def __init__(
        self, parts: Callable[[Workload, Path], Iterator[np.ndarray]], workload: Workload, folder: Path
    ) -> None:
        self.parts, self.workload, self.folder = parts, workload, folder

    def __call__(self, _: int) -> Iterator[torch.Tensor]:
        for part in self.parts(self.workload, self.folder):
            yield torch.from_numpy(part.copy())


def _tokens(workload: Workload, raw_folder: Path) -> Iterator[np.ndarray]:
    """A whole number of blocks each, so that no chunk ends within one."""
    values = workload.values(raw_folder)
    step = _ITEMS * workload.window
    for start in range(0, len(values), step):
        part = values[start : start + step]
        yield np.concatenate([part, np.zeros(-len(part) % (workload.window * LANES), workload.dtype)])


def _write(
    parts: Callable[[Workload, Path], Iterator[np.ndarray]],
    loader: litdata.TokensLoader | None,
    workload: Workload,
    raw_folder: Path,
    out_folder: Path,
) -> None:
    litdata.optimize(
        fn=_Part(parts, workload, raw_folder),
        inputs=[0],
        output_dir=str(out_folder / "chunks"),
        num_workers=1,
        item_loader=loader,
        keep_data_ordered=True,
        reorder_files=False,
        verbose=False,
        **({"chunk_size": 16 * _ITEMS * workload.window} if loader else {"chunk_bytes": "64MB"}),
    )


def _loader(workload: Workload) -> litdata.TokensLoader | None:
    return litdata.TokensLoader(block_size=workload.window) if workload.channels is None else None


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    loader = _loader(workload)
    _write(_tokens if loader else pieces.samples, loader, workload, raw_folder, out_folder)


def ingest_lanes(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    _write(pieces.pieces, None, workload, raw_folder, out_folder)


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[torch.Tensor]:
    """Endless batches [B, K, *D]."""
    dataset = litdata.StreamingDataset(str(folder / "chunks"), item_loader=_loader(workload), drop_last=True)
    loader = litdata.StreamingDataLoader(
        dataset, batch_size=LANES, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    dataset = litdata.StreamingDataset(str(folder / "chunks"))
    return pieces.lanes(workload, raw_folder, lambda number: dataset[number].numpy())
