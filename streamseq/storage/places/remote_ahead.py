"""Downloads that are begun before they are needed: a few threads, and a list of bounded length."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue

_THREADS = 4
_MOST_WAITING = 16
_LONGEST_END = 3.0

Job = tuple[str, Callable[[], None]]


class Ahead:
    """Does things in the background, each once at a time; what went wrong shows when the thing is needed."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._under_way: set[str] = set()
        self._failed: set[str] = set()
        self._threads: list[threading.Thread] = []
        # Also at exit, but nobody waits for a server that does not answer.
        weakref.finalize(self, _end, self._queue, self._threads)

    def begin(self, key: str, action: Callable[[], None]) -> bool:
        """Have something done soon; False where it failed before or too much waits."""
        with self._lock:
            if key in self._under_way:
                return True
            if key in self._failed or len(self._under_way) >= _MOST_WAITING:
                return False
            self._under_way.add(key)
            if len(self._threads) < _THREADS:
                arguments = (self._queue, self._lock, self._under_way, self._failed)
                thread = threading.Thread(target=_work, args=arguments, name="streamseq-fetcher", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put((key, action))
        return True


def _work(queue: SimpleQueue[Job | None], lock: threading.Lock, under_way: set[str], failed: set[str]) -> None:
    while (job := queue.get()) is not None:
        key, action = job
        del job
        well = False
        # Who needs it hears what is wrong.
        with suppress(Exception):
            action()
            well = True
        del action
        with lock:
            under_way.discard(key)
            if not well:
                failed.add(key)


def _end(queue: SimpleQueue[Job | None], threads: list[threading.Thread]) -> None:
    with suppress(Empty):
        while True:
            queue.get_nowait()
    for _ in threads:
        queue.put(None)
    until = time.monotonic() + _LONGEST_END
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(max(0.0, until - time.monotonic()))
