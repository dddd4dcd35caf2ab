"""Curricula: a stream whose windows change their length during a run, at positions that a schedule names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from streamseq.core.errors import ResumeError
from streamseq.core.settings import at_least
from streamseq.core.tokens import Position
from streamseq.data.dataset import StreamDataset
from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window

When = int | tuple[int, int]


class Curriculum:
    """Iterates a stream whose windows become longer, or shorter, on the way: each lane goes on where it stopped.

    The length of a window depends on its place alone, the epoch and the number of windows of the epoch before it. So
    a run that is resumed anywhere gets the same windows. Within an epoch the change is a `stream.rewindow`: state that
    is carried goes on, tokens count from 0 again and know of the change. Back-propagation of `TBPTT` does not reach
    across a change.

    Args:
        source: A `StreamDataset`, or a `StreamLoader` over one; its own window is not looked at.
        windows: From when on which timesteps a window has: `(epoch, window)`, or a number of windows of epoch 0. The
            first one is 0.

    Raises:
        TypeError: `source` is neither, or a number is no integer.
        ValueError: A number is out of range, there is none from the beginning on, or the stream's windows cannot change
            within an epoch: with the as-is split, or tail="drop".

    Example:
        >>> import numpy as np, streamseq as ss
        >>> stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(9)}}), lanes=1, window=2)
        >>> growing = ss.Curriculum(stream, {0: 2, 2: 4, (1, 0): 5})
        >>> for epoch in range(2):
        ...     growing.set_epoch(epoch)
        ...     [window["x"].tolist()[0] for window in growing]
        [[0, 1], [2, 3], [4, 5, 6, 7], [8, 0, 0, 0]]
        [[0, 1, 2, 3, 4], [5, 6, 7, 8, 0]]
    """

    def __init__(self, source: StreamDataset | StreamLoader, windows: Mapping[When, int]) -> None:
        if not isinstance(source, StreamDataset | StreamLoader):
            raise TypeError(f"a curriculum iterates a StreamDataset or a StreamLoader, got a {type(source).__name__}")
        #: What is iterated.
        self.source = source
        self.stream = source.stream if isinstance(source, StreamLoader) else source
        schedule: dict[tuple[int, int], int] = {}
        for when, window in windows.items():
            place = when if isinstance(when, tuple) else (0, when)
            if len(place) != 2:
                raise ValueError(f"windows change at (epoch, window), or at a number of windows, got {when!r}")
            at_least("the epoch of a change", place[0], 0)
            at_least("the window of a change", place[1], 0)
            at_least("the window", window, 1)
            schedule[int(place[0]), int(place[1])] = int(window)
        if (0, 0) not in schedule:
            raise ValueError(f"a curriculum says the window from the beginning on, got {dict(windows)}: give it for 0")
        if self.stream.window is None or self.stream.plan.settings.tail == "drop":
            raise ValueError(
                'the windows of a curriculum change within an epoch, which those of the as-is split and of tail="drop" '
                'cannot: use Naive() or Domain(), and tail="pad" or "pack"'
            )
        places = sorted(schedule)
        # Only real changes: a length that stays is none.
        self._schedule = {
            place: schedule[place]
            for before, place in zip([None, *places], places, strict=False)
            if before is None or schedule[before] != schedule[place]
        }
        self._loaded = False

    def window_at(self, epoch: int, window: int) -> int:
        """Timesteps of window number `window` of an epoch, all windows of the epoch counted."""
        return [length for place, length in self._schedule.items() if place <= (epoch, window)][-1]

    @property
    def _done(self) -> int:
        """Windows of the epoch before those that the stream counts."""
        return sum(step for _, step in self.stream.plan.settings.switches)

    def __iter__(self) -> Iterator[Window]:
        stream = self.stream
        if not self._loaded:
            stream.set_window(self.window_at(stream.epoch, 0))
        self._loaded = False
        epoch, done = stream.epoch, self._done + stream.position
        if stream.window != self.window_at(epoch, done):
            # Saved after the last window before a change.
            stream.rewindow(self.window_at(epoch, done), after=stream[stream.position - 1].token)
        while True:
            changes = [place[1] for place in self._schedule if place > (epoch, done) and place[0] == epoch]
            for window in self.source:
                done += 1
                yield window
                if done in changes[:1]:
                    stream.rewindow(self.window_at(epoch, done), after=window.token)
                    break
            else:
                return

    def set_epoch(self, epoch: int) -> None:
        """Move the stream to an epoch."""
        if epoch != self.stream.epoch:
            self._loaded = False
        self.stream.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position after the last window that was handed out."""
        return self.stream.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a position: the next iteration, and only that one, starts there.

        Raises:
            ResumeError: It is of another store version, plan or schedule.
        """
        saved = Position.from_state_dict(state)
        before, wanted = [], 0
        for window, step in (*saved.switches, (saved.window, saved.step)):
            before += [(place, window) for place in {wanted, max(wanted, wanted + step - 1)}]
            wanted += step
        wrong = [place for place, window in before if window != self.window_at(saved.epoch, place)]
        if wrong:
            raise ResumeError(
                f"the position was saved under another schedule: window {wrong[0]} of epoch {saved.epoch} has "
                f"{dict(before)[wrong[0]]} timesteps there and {self.window_at(saved.epoch, wrong[0])} here: pass the "
                "same schedule"
            )
        if saved.window is not None and saved.window != self.stream.window:
            self.stream.set_window(saved.window)
        self.stream.load_state_dict(state)
        self._loaded = True
