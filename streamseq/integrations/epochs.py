"""Epochs: a stream's windows without an end, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window


class Epochs(StreamLoader):
    """A loader for loops that count windows: its iteration goes on from one epoch of the stream to the next.

    Shuffled epochs may have different numbers of windows, of which such a loop knows nothing. A position that was
    loaded holds until the first window is taken, however often iterations are begun before.

    Args:
        stream, prefetch, device: See `StreamLoader`.

    Example:
        >>> import itertools, numpy as np, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(4)}}), lanes=1, window=2)
        >>> [(window.token.epoch, window.token.step) for window in itertools.islice(Epochs(stream), 5)]
        [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    """

    def __init__(self, stream: StreamDataset, prefetch: int = 4, device: torch.device | str | None = None) -> None:
        super().__init__(stream, prefetch, device)
        self._loaded: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Window]:
        # A generator: nothing happens before the first window is taken.
        if self._loaded is not None:
            super().load_state_dict(self._loaded)
            self._loaded = None
        while True:
            if not len(self.stream):
                return
            yield from super().__iter__()
            self.set_epoch(self.stream.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window that was handed out."""
        return super().state_dict() if self._loaded is None else self._loaded

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position; see `StreamDataset.load_state_dict`."""
        # Refuses what does not fit now.
        super().load_state_dict(state)
        self._loaded = dict(state)
