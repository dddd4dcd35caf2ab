"""The three workloads that everything is measured on, made from a seed, and the bare loop they are compared with.

W1 is one stream of text, uint8, windows of 32 x 512. W2 is one recording of 16 float32 channels from a 12-bit
converter, windows of 32 x 256. W3 is 200,000 sequences of uint16 tokens, log-normal lengths with mean 2,000, windows of
32 x 512. Only numpy is needed, so that peers with other environments import this too.
"""

from __future__ import annotations

import json
import mmap
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapreplace
from pathlib import Path

import numpy as np

LANES = 32
# Parts of a workload are written together, so that making it needs little memory.
_PART = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Raw data in a folder: the values of all sequences end to end in `NAME.bin`, their lengths in `NAME.npy`.

    Args:
        name: "w1", "w2" or "w3".
        window: Timesteps K of a window.
        dtype: Of the values.
        channels: Values of a timestep; None where a timestep is one number.
        timesteps: Of all sequences together, about.
        sequences: How many.
    """

    name: str
    window: int
    dtype: str
    channels: int | None
    timesteps: int
    sequences: int

    @property
    def step(self) -> tuple[int, ...]:
        """The shape of a timestep."""
        return () if self.channels is None else (self.channels,)

    @property
    def step_bytes(self) -> int:
        """Bytes of a timestep."""
        return np.dtype(self.dtype).itemsize * (self.channels or 1)

    @property
    def window_bytes(self) -> int:
        """Bytes of a window, all lanes."""
        return LANES * self.window * self.step_bytes

    def values_path(self, folder: Path) -> Path:
        """The file of the values."""
        return folder / f"{self.name}.bin"

    def lengths(self, folder: Path) -> np.ndarray:
        """int64 [N], timesteps of each sequence."""
        return np.load(folder / f"{self.name}.npy")

    def values(self, folder: Path) -> np.ndarray:
        """[n, *D], a plain array over a memory map (the `np.memmap` subclass is three times slower to slice)."""
        with self.values_path(folder).open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return np.frombuffer(data, self.dtype).reshape(-1, *self.step)

    def spans(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """The windows of lanes laid out by hand: where each lane starts and stops in the values, int64 [W, B] each."""
        lengths = self.lengths(folder)
        if len(lengths) == 1:
            share = int(lengths[0]) // LANES
            lane = np.arange(LANES) * share
            start = lane + np.arange(0, share - self.window + 1, self.window)[:, None]
            return start, start + self.window
        return _lay_out(lengths, self.window)


FULL = (
    Workload(name="w1", window=512, dtype="uint8", channels=None, timesteps=10**9, sequences=1),
    Workload(name="w2", window=256, dtype="float32", channels=16, timesteps=2 * 10**7, sequences=1),
    Workload(name="w3", window=512, dtype="uint16", channels=None, timesteps=4 * 10**8, sequences=200_000),
)


def scaled(factor: float) -> tuple[Workload, ...]:
    """The workloads with more or less data."""
    return tuple(
        Workload(
            name=each.name,
            window=each.window,
            dtype=each.dtype,
            channels=each.channels,
            timesteps=int(each.timesteps * factor),
            sequences=max(1, int(each.sequences * factor)) if each.sequences > 1 else 1,
        )
        for each in FULL
    )


def make(workload: Workload, folder: Path) -> None:
    """Write the data of a workload where it is not there already."""
    note = folder / f"{workload.name}.json"
    wanted = {"timesteps": workload.timesteps, "sequences": workload.sequences}
    if note.exists() and json.loads(note.read_text()) == wanted:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(7)
    lengths = np.array([workload.timesteps])
    if workload.sequences > 1:
        lengths = np.maximum(1, rng.lognormal(np.log(2000) - 0.5, 1, workload.sequences).astype(np.int64))
    total = int(lengths.sum())
    parts = {"w1": _text, "w2": _recording, "w3": _tokens}[workload.name](rng)
    with workload.values_path(folder).open("wb") as file:
        done = 0
        while done < total:
            part = next(parts)[: total - done]
            file.write(part.tobytes())
            done += len(part)
    np.save(folder / f"{workload.name}.npy", lengths)
    note.write_text(json.dumps(wanted))


def _text(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The source of the standard library, its files in one random order after the other."""
    paths = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    files = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths if path.stat().st_size]
    while True:
        yield np.concatenate([files[index] for index in rng.permutation(len(files))])


def _recording(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Slow waves with noise, as whole steps of a 12-bit converter."""
    time = 0
    while True:
        steps = np.arange(time, time + _PART // 16)[:, None]
        wave = np.sin(steps / (50 + 13 * np.arange(16)))
        code = np.round(2048 + 1500 * wave + 20 * rng.standard_normal(wave.shape)).clip(0, 4095)
        yield (code / 4096).astype(np.float32)
        time += len(steps)


def _tokens(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Tokens with the frequencies of words."""
    while True:
        yield (rng.zipf(1.3, _PART) % 50_000).astype(np.uint16)


def _lay_out(lengths: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Whole sequences to the emptiest lane, each from a window of its own on; idle lanes have empty spans."""
    starts = np.concatenate([[0], np.cumsum(lengths)])
    lanes: list[list[int]] = [[] for _ in range(LANES)]
    heap = [(0, lane) for lane in range(LANES)]
    for sequence, length in enumerate(lengths.tolist()):
        load, lane = heap[0]
        lanes[lane].append(sequence)
        heapreplace(heap, (load + length, lane))
    columns = []
    for held in lanes:
        sequence = np.array(held)
        count = -(-lengths[sequence] // window)
        first = np.cumsum(count) - count
        index = np.arange(count.sum()) - np.repeat(first, count)
        start = np.repeat(starts[sequence], count) + index * window
        stop = np.minimum(start + window, np.repeat(starts[sequence + 1], count))
        columns.append((start, stop))
    windows = max(len(start) for start, _ in columns)
    spans = np.zeros((2, windows, LANES), np.int64)
    for lane, column in enumerate(columns):
        for each, values in zip(spans, column, strict=True):
            each[: len(values), lane] = values
    return spans[0], spans[1]


def bare_loop(workload: Workload, folder: Path) -> Iterator[None]:
    """F_np: lane after lane copied into one batch that is made once; one window an item, pass after pass."""
    values = workload.values(folder)
    starts, stops = workload.spans(folder)
    out = np.zeros((LANES, workload.window, *workload.step), workload.dtype)
    while True:
        for first in range(0, len(starts), 256):
            rows = zip(starts[first : first + 256].tolist(), stops[first : first + 256].tolist(), strict=True)
            for start, stop in rows:
                for lane in range(LANES):
                    low, high = start[lane], stop[lane]
                    out[lane, : high - low] = values[low:high]
                yield
