"""The stores that benchmarks make of the workloads, and the options that they share."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from workloads import Workload, make, scaled

EVERY = [
    (name, backend, codec)
    for name in ("w1", "w2", "w3")
    for backend in ("arrow", "zarr")
    for codec in ("none", "lz4", "zstd")
]
# Timesteps that are written at a time.
_PIECE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A store of a workload.

    Args:
        workload: What it holds.
        uri: Where it is.
        backend, codec: How.
        seconds: That writing it took.
    """

    workload: Workload
    uri: Path
    backend: str
    codec: str
    seconds: float

    @property
    def columns(self) -> dict[str, str]:
        """What a row of a table begins with."""
        return {"workload": self.workload.name, "backend": self.backend, "codec": self.codec}


def made(raw: Path, stores: Path, scale: float, wanted: Sequence[tuple[str, str, str]]) -> Iterator[Made]:
    """Stores of workload, backend and codec, one after the other; each is removed when the next one is asked for."""
    workloads = {each.name: each for each in scaled(scale)}
    for name, backend, codec in wanted:
        workload = workloads[name]
        make(workload, raw)
        uri = stores / f"{name}-{codec}.{backend}"
        shutil.rmtree(uri, ignore_errors=True)
        used = _codec_of(workload, backend, codec)
        seconds = ingest(workload, raw, uri, used)
        try:
            yield Made(workload=workload, uri=uri, backend=backend, codec=used, seconds=seconds)
        finally:
            shutil.rmtree(uri, ignore_errors=True)


def of_workload(name: str | None) -> list[tuple[str, str, str]]:
    """Those of `EVERY` of one workload, or all."""
    return [each for each in EVERY if name in (None, each[0])]


def _codec_of(workload: Workload, backend: str, codec: str) -> str:
    """Floats compress with their bits shuffled, where the backend can."""
    return "bitshuffle" if workload.dtype == "float32" and (backend, codec) == ("zarr", "lz4") else codec


def ingest(workload: Workload, raw: Path, uri: Path, codec: str) -> float:
    """Write a store; the seconds that it took."""
    import streamseq as ss

    values, lengths = workload.values(raw), workload.lengths(raw)
    begin = time.perf_counter()
    with ss.create(uri, {"x": ss.Field(workload.dtype, workload.step, codec=codec)}) as writer:
        if len(lengths) == 1:
            for start in range(0, len(values), _PIECE):
                writer.append("0", x=values[start : start + _PIECE])
        else:
            at = 0
            for number, length in enumerate(lengths.tolist()):
                writer.write(str(number), x=values[at : at + length])
                at += length
    return time.perf_counter() - begin


def read_once(folder: Path) -> None:
    """Bring files into the operating system's cache."""
    for path in folder.rglob("*") if folder.is_dir() else [folder]:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(1 << 24):
                    pass


def options_of(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark of stores has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, required=True, help="where the raw data is made; kept")
    parser.add_argument("--stores", type=Path, help="where stores are made; removed after they were measured")
    parser.add_argument("--scale", type=float, default=1.0, help="of the data's size")
    return parser
