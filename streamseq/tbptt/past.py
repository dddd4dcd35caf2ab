"""The past: windows that back-propagation needs again, kept while they are few and read again where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch.utils.data

from streamseq.core.tokens import StateToken
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window

KEPT_BYTES = 64 << 20

RandomAccess = Callable[[int], Window]


def random_access(source: Iterable[Window]) -> RandomAccess | None:
    """What reads window `step` of a source again, or None where it cannot."""
    if isinstance(source, StreamDataset | StreamLoader):
        return source.__getitem__
    if isinstance(source, torch.utils.data.DataLoader) and isinstance(source.dataset, StreamDataset):
        return source.dataset.__getitem__
    if isinstance(source, list | tuple) and source:
        first = source[0].token.step
        return lambda step: source[step - first]
    return None


def longest_sequence(source: Iterable[Window]) -> int | None:
    """Timesteps of the longest sequence, or part of one, that a source emits; None where it cannot be told."""
    if isinstance(source, StreamLoader):
        source = source.stream
    if isinstance(source, torch.utils.data.DataLoader) and isinstance(source.dataset, StreamDataset):
        source = source.dataset
    if isinstance(source, StreamDataset):
        return source.plan.longest
    if isinstance(source, list | tuple) and source:
        return _longest_of([window.token for window in source])
    return None


def _longest_of(tokens: Sequence[StateToken]) -> int:
    length = tokens[0].stop - tokens[0].start
    longest = int(length.max())
    for token in tokens[1:]:
        length = (token.stop - token.start) + length * ~token.starts_anew
        longest = max(longest, int(length.max()))
    return longest


class Past:
    """Windows by step: those added last, up to a number of bytes where others can be read again, and any other.

    Args:
        read: Reads a window again; None where the source cannot.
    """

    def __init__(self, read: RandomAccess | None) -> None:
        self._read = read
        self._kept: dict[int, Window] = {}
        self._bytes = 0
        self._again: tuple[int, Window] | None = None

    def add(self, window: Window) -> None:
        """Keep a window; the oldest ones go where there is no room and they can be read again."""
        step = window.token.step
        self._kept[step] = window
        self._bytes += _nbytes(window)
        while self._bytes > KEPT_BYTES and self._read is not None and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def forget_before(self, step: int) -> None:
        """Let go of windows before `step`."""
        for old in [old for old in self._kept if old < step]:
            self._forget(old)
        self._again = None

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._bytes = 0
        self._again = None

    def _forget(self, step: int) -> None:
        self._bytes -= _nbytes(self._kept.pop(step))

    def __getitem__(self, step: int) -> Window:
        """The window `step`.

        Raises:
            ValueError: It is not kept, and the source cannot read it again.
        """
        kept = self._kept.get(step)
        if kept is not None:
            return kept
        # Segments shorter than a window need the same one several times in a row.
        if self._again is None or self._again[0] != step:
            if self._read is None:
                raise ValueError(
                    f"window {step} is needed again, and its source has no random access: pass a StreamDataset, a "
                    "StreamLoader or a list of windows to updates(), or a smaller k2"
                )
            self._again = (step, self._read(step))
        return self._again[1]


def _nbytes(window: Window) -> int:
    return sum(window[name].nbytes for name in window)
