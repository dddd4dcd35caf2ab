"""Rewinding: windows read again by a thread, in the order in which a backward sweep is going to want them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence

from streamseq.data.window import Window

# Windows that are read before they are wanted.
AHEAD = 4


class Rewind:
    """Reads windows in a given order, a few ahead of who takes them.

    Args:
        read: Reads window `step`; called in one thread only.
        steps: Which windows, in order.
    """

    def __init__(self, read: Callable[[int], Window], steps: Sequence[int]) -> None:
        self._read = read
        self._steps = steps
        self._next = 0
        self._results: queue.Queue[Window | BaseException] = queue.Queue(AHEAD)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="streamseq-rewind", daemon=True)
        self._thread.start()

    def take(self, step: int) -> Window | None:
        """The next window, if it is that of `step`; None otherwise.

        Raises:
            Exception: What reading it raised.
        """
        while self._next < len(self._steps) and self._steps[self._next] != step:
            # What was read meanwhile in another way is passed over; anything else is not the order that was said.
            if step not in self._steps[self._next : self._next + AHEAD]:
                return None
            self._take()
        if self._next == len(self._steps):
            return None
        return self._take()

    def _take(self) -> Window:
        result = self._results.get()
        self._next += 1
        if isinstance(result, BaseException):
            self._next = len(self._steps)
            raise result
        return result

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        while self._thread.is_alive():
            # It may be waiting for room.
            try:
                self._results.get(timeout=0.01)
            except queue.Empty:
                continue
        self._thread.join()

    def _run(self) -> None:
        for step in self._steps:
            if self._ended.is_set():
                return
            try:
                result: Window | BaseException = self._read(step)
            except BaseException as error:
                self._results.put(error)
                return
            self._results.put(result)
