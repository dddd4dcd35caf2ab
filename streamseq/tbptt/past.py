"""The past: windows that back-propagation needs again, kept while they are few and read again where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch.utils.data

from streamseq.core.tokens import StateToken
from streamseq.data.curriculum import Curriculum
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window
from streamseq.tbptt.rewind import Rewind
from streamseq.tbptt.stretches import Marks, marks_of

# Of the windows that came last; where k2 is n, most are read again whatever is kept.
KEPT_BYTES = 64 << 20
KEPT_BYTES_OF_ALL = 2 << 20
# Of the windows that were read again last.
_AGAIN_BYTES = 2 << 20

RandomAccess = Callable[[int], Window]


def stream_of(source: Iterable[Window]) -> StreamDataset | None:
    """The stream behind a source; None where there is none."""
    if isinstance(source, Curriculum):
        return source.stream
    if isinstance(source, StreamLoader):
        return source.stream
    if isinstance(source, torch.utils.data.DataLoader) and isinstance(source.dataset, StreamDataset):
        return source.dataset
    return source if isinstance(source, StreamDataset) else None


def random_access(source: Iterable[Window]) -> RandomAccess | None:
    """What reads window `step` of a source again, or None where it cannot."""
    if isinstance(source, Curriculum):
        source = source.source
    if isinstance(source, StreamLoader):
        return source.__getitem__
    stream = stream_of(source)
    if stream is not None:
        return stream.__getitem__
    if isinstance(source, list | tuple) and source:
        first = source[0].token.step
        return lambda step: source[step - first]
    return None


def longest_sequence(source: Iterable[Window]) -> int | None:
    """Timesteps of the longest sequence, or part of one, that a source emits; None where it cannot be told."""
    stream = stream_of(source)
    if stream is not None:
        return stream.plan.longest
    if isinstance(source, list | tuple) and source:
        return _longest_of([window.token for window in source])
    return None


def _longest_of(tokens: Sequence[StateToken]) -> int:
    if tokens[0].segments is not None:
        return _longest_packed(tokens)
    length = tokens[0].stop - tokens[0].start
    longest = int(length.max())
    for token in tokens[1:]:
        length = (token.stop - token.start) + length * ~token.starts_anew
        longest = max(longest, int(length.max()))
    return longest


def _longest_packed(tokens: Sequence[StateToken]) -> int:
    longest, lengths = 0, dict.fromkeys(range(len(tokens[0].lane)), 0)
    for token in tokens:
        assert token.segments is not None
        for lane, _, _, start, stop, reset in token.segments.tolist():
            lengths[lane] = (0 if reset else lengths[lane]) + stop - start
            longest = max(longest, lengths[lane])
    return longest


class Past:
    """Windows by step: those added last, up to a number of bytes where others can be read again, and any other.

    Args:
        read: Reads a window again; None where the source cannot.
        kept_bytes: Bytes of windows that are kept where they can be read again.
        resets: Whether sequences that start inside a window are borders of it.
    """

    def __init__(self, read: RandomAccess | None, kept_bytes: int = KEPT_BYTES, *, resets: bool = True) -> None:
        self._read = read
        self._kept_bytes = kept_bytes
        self._resets = resets
        self._kept: dict[int, Window] = {}
        self._bytes = 0
        self._again: dict[int, Window] = {}
        self._again_bytes = 0
        self._marks: dict[int, Marks] = {}
        self._rewind: Rewind | None = None
        # No window before it is kept.
        self._oldest = 0

    def add(self, window: Window) -> None:
        """Keep a window; the oldest ones go where there is no room and they can be read again."""
        step = window.token.step
        self._kept[step] = window
        self._bytes += _nbytes(window)
        self._marks[step] = marks_of(window, resets=self._resets)
        while self._bytes > self._kept_bytes and self._read is not None and len(self._kept) > 1:
            self._forget(next(iter(self._kept)))

    def leave_source(self) -> None:
        """From now on windows come one by one: none can be read again."""
        self._read = None

    def forget_before(self, step: int) -> None:
        """Let go of windows before `step`."""
        if self._oldest >= step:
            return
        self._oldest = step
        for old in [old for old in self._kept if old < step]:
            self._forget(old)
        for old in [old for old in self._marks if old < step]:
            del self._marks[old]
        self._clear_again()

    def clear(self) -> None:
        """Let go of everything."""
        self._kept.clear()
        self._bytes = 0
        self._marks.clear()
        self._oldest = 0
        self._clear_again()

    def _clear_again(self) -> None:
        self._again.clear()
        self._again_bytes = 0

    def _forget(self, step: int) -> None:
        self._bytes -= _nbytes(self._kept.pop(step))

    def marks(self, step: int) -> Marks:
        """Where the states of some lanes of window `step` are not those of the timestep before."""
        marks = self._marks.get(step)
        if marks is None:
            marks = self._marks[step] = marks_of(self[step], resets=self._resets)
        return marks

    def rewind(self, steps: Iterable[int]) -> None:
        """Say which windows are wanted next, and in which order: they are read ahead by a thread."""
        self.stop_rewinding()
        wanted = [step for step in steps if step not in self._kept]
        if self._read is not None and len(wanted) > 1:
            self._rewind = Rewind(self._read, wanted)

    def stop_rewinding(self) -> None:
        """End the thread that reads ahead."""
        if self._rewind is not None:
            self._rewind.close()
            self._rewind = None

    def __getitem__(self, step: int) -> Window:
        """The window `step`.

        Raises:
            ValueError: It is not kept, and the source cannot read it again.
        """
        for kept in (self._kept, self._again):
            if step in kept:
                return kept[step]
        # Segments shorter than a window need the same one several times in a row, joined ones several together.
        window = self._read_again(step)
        self._again[step] = window
        self._again_bytes += _nbytes(window)
        while self._again_bytes > _AGAIN_BYTES and len(self._again) > 1:
            self._again_bytes -= _nbytes(self._again.pop(next(iter(self._again))))
        return window

    def _read_again(self, step: int) -> Window:
        if self._read is None:
            raise ValueError(
                f"window {step} is needed again, and its source has no random access: pass a StreamDataset, a "
                "StreamLoader or a list of windows to updates(), or a smaller k2"
            )
        if self._rewind is not None:
            window = self._rewind.take(step)
            if window is not None:
                return window
            # Reading is not for two threads at once.
            self.stop_rewinding()
        return self._read(step)


def _nbytes(window: Window) -> int:
    return sum(window[name].nbytes for name in window)
