"""The loader: a stream read ahead by a background thread."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from streamseq.data.dataset import StreamDataset
from streamseq.data.window import Window

_END = None
_RUNNING: set[tuple[threading.Event, threading.Thread]] = set()


class StreamLoader:
    """Iterates a stream while a thread reads ahead; the same windows in the same order, faster.

    Positions count what was handed out, not what was read ahead.

    Args:
        stream: What to iterate.
        prefetch: Blocks that are read ahead at most; a block is about 2 MiB, or one window where that is more.
        device: Where fields and masks go; None leaves them where they are. For a CUDA device they pass through
            pinned memory. (Written for CUDA with care, and not run on one.)

    Raises:
        TypeError: `stream` is not a `StreamDataset`.
        ValueError: `prefetch` is less than 1.

    Example:
        >>> import numpy as np, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(4)}}), lanes=1, window=2)
        >>> [window["x"].tolist() for window in ss.StreamLoader(stream)]
        [[[0, 1]], [[2, 3]]]
    """

    def __init__(self, stream: StreamDataset, prefetch: int = 4, device: torch.device | str | None = None) -> None:
        if not isinstance(stream, StreamDataset):
            raise TypeError(f"a StreamLoader iterates a StreamDataset, got a {type(stream).__name__}")
        if isinstance(prefetch, bool) or not isinstance(prefetch, int):
            raise TypeError(f"prefetch is an integer, got {prefetch!r}")
        if prefetch < 1:
            raise ValueError(f"prefetch is at least 1, got {prefetch}: to read without a thread iterate the stream")
        self.stream = stream
        self.prefetch = prefetch
        self.device = None if device is None else torch.device(device)

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, step: int) -> Window:
        return self._to_device(self.stream[step])

    def __iter__(self) -> Iterator[Window]:
        return self._iterate(range(self.stream.take_start(), len(self.stream)))

    def _iterate(self, steps: range) -> Iterator[Window]:
        blocks: queue.Queue[list[Window] | BaseException | None] = queue.Queue(self.prefetch)
        stopped = threading.Event()
        reader = threading.Thread(
            target=_read_ahead, args=(self.stream, steps, blocks, stopped), name="streamseq-reader", daemon=True
        )
        running = (stopped, reader)
        _RUNNING.add(running)
        reader.start()
        step, stream, device = steps.start, self.stream, self.device
        try:
            while (block := blocks.get()) is not _END:
                if isinstance(block, BaseException):
                    raise block
                # Nothing is called for a window that need not be: hundreds of thousands a second pass here.
                for window in block if device is None else map(self._to_device, block):
                    step += 1
                    stream.position = step
                    yield window
        finally:
            stopped.set()
            _drain(blocks)
            reader.join()
            _RUNNING.discard(running)

    def _to_device(self, window: Window) -> Window:
        if self.device is None:
            return window
        if self.device.type == "cuda":
            return window.pin_memory().to(self.device, non_blocking=True)
        return window.to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Move the stream to an epoch."""
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window that was handed out."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; see `StreamDataset.load_state_dict`."""
        self.stream.load_state_dict(state)


def _read_ahead(
    stream: StreamDataset,
    steps: range,
    blocks: queue.Queue[list[Window] | BaseException | None],
    stopped: threading.Event,
) -> None:
    try:
        reader = stream.open_reader(ahead=True)
        try:
            for block in reader.blocks(steps):
                if not _put(blocks, block, stopped):
                    return
        finally:
            reader.close()
        _put(blocks, _END, stopped)
    except BaseException as error:
        # Raised where the windows are asked for.
        _put(blocks, error, stopped)


def _put(
    blocks: queue.Queue[list[Window] | BaseException | None],
    item: list[Window] | BaseException | None,
    stopped: threading.Event,
) -> bool:
    """Wait for room; False where nobody wants any more."""
    while not stopped.is_set():
        try:
            blocks.put(item, timeout=0.05)
        except queue.Full:
            continue
        return True
    return False


@atexit.register
def _stop_readers() -> None:
    """End the threads of loops that were left half way: one that outlives the interpreter aborts the process."""
    for stopped, reader in list(_RUNNING):
        stopped.set()
        reader.join()


def _drain(blocks: queue.Queue[Any]) -> None:
    while True:
        try:
            blocks.get_nowait()
        except queue.Empty:
            return
