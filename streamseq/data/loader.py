"""The loader: a stream read ahead by background threads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch

from streamseq.data.dataset import StreamDataset
from streamseq.data.device import copied_ahead
from streamseq.data.readahead import ReadAhead
from streamseq.data.stats import LoaderStats
from streamseq.data.window import Window


class StreamLoader:
    """Iterates a stream while threads read ahead; the same windows in the same order, faster.

    Positions count what was handed out, not what was read ahead.

    Args:
        stream: What to iterate.
        prefetch: Blocks that are read ahead at most; a block is about 8 MiB, or one window where that is more.
        device: Where fields and masks go, in the dtype that they are stored in; None leaves them where they are. For a
            CUDA device they pass through pinned memory, one window ahead, on a stream of their own. (Written for CUDA
            with care, and not run on one.)

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
        self._ahead: ReadAhead | None = None

    def __len__(self) -> int:
        return len(self.stream)

    def __getitem__(self, step: int) -> Window:
        return self._to_device(self.stream[step])

    def __iter__(self) -> Iterator[Window]:
        return self._iterate(range(self.stream.take_start(), len(self.stream)))

    def _iterate(self, steps: range) -> Iterator[Window]:
        step, stream, device = steps.start, self.stream, self.device
        ahead = self._ahead = ReadAhead(stream.open_reader(ahead=self.prefetch), steps, self.prefetch)
        blocks: Iterator[Iterable[Window]] = (block.windows() for block in iter(ahead.take, None))
        if device is not None and device.type == "cuda":
            blocks = iter([copied_ahead(chain.from_iterable(blocks), device)])
        elif device is not None:
            blocks = (map(self._to_device, block) for block in blocks)
        try:
            for block in blocks:
                # Nothing is called for a window that need not be: hundreds of thousands a second pass here.
                for window in block:
                    step += 1
                    stream.position = step
                    yield window
        finally:
            ahead.close()

    @property
    def stats(self) -> LoaderStats:
        """What the iteration that runs, or ran last, did and waited for."""
        return LoaderStats() if self._ahead is None else self._ahead.stats(self.stream.position)

    def _to_device(self, window: Window) -> Window:
        if self.device is None:
            return window
        return window.to(self.device)

    def set_epoch(self, epoch: int) -> None:
        """Move the stream to an epoch."""
        self.stream.set_epoch(epoch)

    def refresh(self, version: int | None = None) -> bool:
        """Move the stream to the newest version of its store; see `StreamDataset.refresh`."""
        return self.stream.refresh(version)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window that was handed out."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; see `StreamDataset.load_state_dict`."""
        self.stream.load_state_dict(state)
