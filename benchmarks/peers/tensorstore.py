"""TensorStore by hand over zarr v3: 32 reads at a time, one a lane; or long pieces, read one after the other.

It has threads of its own and is not made for worker processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorstore
from workloads import LANES, Workload

from peers import pieces

KEEPS_LANES = True
VERSION_OF = "tensorstore"
_CHUNK_BYTES = 1 << 20
_CACHE_BYTES = 256 << 20


def _spec(folder: Path) -> dict[str, object]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / "x.zarr")}}


def ingest(workload: Workload, raw_folder: Path, out_folder: Path) -> None:
    values = workload.values(raw_folder)
    np.save(out_folder / f"{workload.name}.npy", workload.lengths(raw_folder))
    chunk = _CHUNK_BYTES // workload.step_bytes
    # What suits each: zstd for tokens, shuffled bits for a converter's floats.
    codec: dict[str, object] = {"name": "zstd", "configuration": {"level": 3}}
    if workload.channels is not None:
        blosc = {"cname": "lz4", "clevel": 5, "shuffle": "bitshuffle", "typesize": 4, "blocksize": 0}
        codec = {"name": "blosc", "configuration": blosc}
    store = tensorstore.open(
        _spec(out_folder),
        create=True,
        delete_existing=True,
        dtype=getattr(tensorstore, workload.dtype),
        shape=values.shape,
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=(min(chunk, len(values)), *workload.step)),
        codec=tensorstore.CodecSpec({"driver": "zarr3", "codecs": [{"name": "bytes"}, codec]}),
    ).result()
    step = 16 * chunk
    for start in range(0, len(values), step):
        stop = min(start + step, len(values))
        store[start:stop].write(values[start:stop]).result()


def _open(folder: Path) -> tensorstore.TensorStore:
    context = tensorstore.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}})
    # The store does not change: without this every read asks the file system about the chunk.
    spec = _spec(folder) | {"recheck_cached_data": "open", "recheck_cached_metadata": "open"}
    return tensorstore.open(spec, open=True, read=True, context=context).result()


def windows(workload: Workload, folder: Path, workers: int) -> Iterator[np.ndarray]:
    """Endless batches [B, K, *D]."""
    if workers:
        raise ValueError("TensorStore reads with its own threads: it is measured without workers")
    store = _open(folder)
    starts, stops = workload.spans(folder)
    out = np.zeros((LANES, workload.window, *workload.step), workload.dtype)
    while True:
        for begin, end in zip(starts, stops, strict=True):
            spans = list(zip(begin.tolist(), end.tolist(), strict=True))
            futures = [store[low:high].read() if high > low else None for low, high in spans]
            for lane, ((low, high), future) in enumerate(zip(spans, futures, strict=True)):
                if future is not None:
                    out[lane, : high - low] = future.result()
            yield out


def lanes(workload: Workload, folder: Path, raw_folder: Path) -> Iterator[np.ndarray]:
    store = _open(folder)
    edges = pieces.bounds(workload, raw_folder).tolist()

    def read(number: int) -> np.ndarray:
        return store[edges[number] : edges[number + 1]].read().result()

    return pieces.lanes(workload, raw_folder, read)
