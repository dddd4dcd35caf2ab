"""Epochs: a stream's windows without an end, one epoch after the other."""

from __future__ import annotations

from collections.abc import Iterator

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

    def __iter__(self) -> Iterator[Window]:
        # A generator: nothing happens before the first window is taken.
        while True:
            if not len(self.stream):
                return
            yield from super().__iter__()
            self.set_epoch(self.stream.epoch + 1)
