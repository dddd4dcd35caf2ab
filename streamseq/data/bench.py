"""How fast a store streams on this machine, beside how fast the machine copies and decodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from streamseq.core.errors import StoreError
from streamseq.core.sizes import format_bytes
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.stats import LoaderStats
from streamseq.storage.interface import Store

_COPIED_BYTES = 1 << 20
# Chunks that the loop that only decodes goes round.
_CHUNKS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured.

    Args:
        first_window: Seconds until the first window.
        first_pass, second_pass: The loader's figures; what is touched for the first time is checked.
        copy_bytes_per_second: One thread copying a megabyte over and over.
        decode_bytes_per_second: One thread decoding chunks of the fields, decoded bytes; None where none is decoded.
    """

    first_window: float
    first_pass: LoaderStats
    second_pass: LoaderStats
    copy_bytes_per_second: float
    decode_bytes_per_second: float | None

    def as_dict(self) -> dict[str, Any]:
        """The figures by name."""
        passes = {}
        for name, stats in (("first_pass", self.first_pass), ("second_pass", self.second_pass)):
            rates = ("windows_per_second", "bytes_per_second", "wait_fraction", "cache_hits")
            passes[name] = asdict(stats) | {rate: getattr(stats, rate) for rate in rates}
        return {
            "first_window_seconds": self.first_window,
            **passes,
            "copy_bytes_per_second": self.copy_bytes_per_second,
            "decode_bytes_per_second": self.decode_bytes_per_second,
        }

    def as_table(self) -> str:
        """The figures for people."""
        shown: dict[str, Callable[[LoaderStats], str]] = {
            "windows/s": lambda stats: f"{stats.windows_per_second:,.0f}",
            "bytes/s": lambda stats: format_bytes(stats.bytes_per_second),
            "of copying": lambda stats: f"{stats.bytes_per_second / self.copy_bytes_per_second:.2f}",
            "waited": lambda stats: f"{100 * stats.wait_fraction:.0f} %",
            "decoding": lambda stats: f"{stats.decoding:.2f} s",
            "chunks decoded": lambda stats: f"{stats.decoded:,}",
            "cache hits": lambda stats: f"{100 * stats.cache_hits:.0f} %",
            "memory": lambda stats: format_bytes(stats.memory_bytes),
        }
        rows = [("", "first pass", "second pass")]
        rows += [(name, show(self.first_pass), show(self.second_pass)) for name, show in shown.items()]
        decode = self.decode_bytes_per_second
        lines = [f"{name:<16}{one:>12}{two:>14}".rstrip() for name, one, two in rows]
        return "\n".join(
            [
                *lines,
                f"first window after {self.first_window:.3f} s",
                f"this machine copies {format_bytes(self.copy_bytes_per_second)}/s on one thread"
                + (", and nothing is decoded" if decode is None else f" and decodes {format_bytes(decode)}/s"),
            ]
        )


def bench(store: Store, stream: StreamDataset, seconds: float = 2.0) -> BenchResult:
    """Measure a stream.

    Args:
        store: What it reads.
        stream: The stream.
        seconds: How long each pass may take at most.

    Raises:
        StoreError: The store has no timesteps.
        ValueError: `seconds` is not positive.
    """
    if seconds <= 0:
        raise ValueError(f"seconds is positive, got {seconds}")
    if not store.num_timesteps:
        raise StoreError(f"{store.uri} has no timesteps")
    loader = StreamLoader(stream)
    begin = time.perf_counter()
    next(iter(loader))
    first = time.perf_counter() - begin
    passes = [_one_pass(loader, seconds) for _ in range(2)]
    return BenchResult(
        first_window=first,
        first_pass=passes[0],
        second_pass=passes[1],
        copy_bytes_per_second=_copy_rate(seconds / 4),
        decode_bytes_per_second=_decode_rate(store, stream, seconds / 2),
    )


def _one_pass(loader: StreamLoader, seconds: float) -> LoaderStats:
    end = time.perf_counter() + seconds
    for number, window in enumerate(loader):
        _ = window.mask, window.token
        if number % 64 == 63 and time.perf_counter() > end:
            break
    return loader.stats


def _copy_rate(seconds: float) -> float:
    source = np.ones(64 * _COPIED_BYTES, np.uint8)
    place = np.empty(_COPIED_BYTES, np.uint8)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        at = count % 64 * _COPIED_BYTES
        np.copyto(place, source[at : at + _COPIED_BYTES])
        count += 1
    return count * _COPIED_BYTES / (time.perf_counter() - begin)


def _decode_rate(store: Store, stream: StreamDataset, seconds: float) -> float | None:
    """Chunks from the start of the store, one field after the other."""
    fields = [name for name in stream.fields if store.decoded_chunk_bytes[name]]
    if not fields:
        return None
    with store.reader(fields, 1) as reader:
        longest = int(np.argmax(store.lengths))
        span = (np.array([longest]), np.array([0]), store.lengths[[longest]])
        chunks = {name: reader.locate(name, span).chunk[:_CHUNKS].tolist() for name in fields}
        begin, count = time.perf_counter(), 0
        while time.perf_counter() < begin + seconds:
            for name in fields:
                reader.load(name, [chunks[name][count % len(chunks[name])]], [0])
            count += 1
        counts = reader.counts
    return counts.decoded_bytes / counts.decoding
