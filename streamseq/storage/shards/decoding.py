"""Chunks that are being decoded: by a thread ahead of those who need them, or by them where it has not begun."""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamseq.storage.interface import InFile


class Chunks(Protocol):
    """The chunks of one field of one shard. Its file is closed when nobody holds it any more."""

    def takes_long(self, chunk: int) -> bool:
        """Whether `decode` reads, checks or decodes; waking another thread costs more than what else it does."""

    def extent(self, chunk: int) -> InFile | None:
        """Where a chunk's bytes lie; None where that cannot be said."""

    def decode(self, chunk: int, spare: NDArray[Any] | None) -> NDArray[Any] | InFile:
        """Return a chunk `[m, *D]`, in the memory of `spare` where that helps, or where it is stored as it is.

        Several threads may do so.
        """


class Decoding:
    """The decoding of one chunk, which whoever comes first does.

    Args:
        file: Where it lies.
        chunk: Its number there.
        spare: Memory to decode it into.
    """

    __slots__ = ("_chunk", "_claimed", "_done", "_error", "_file", "_spare", "_values", "seconds")

    def __init__(self, file: Chunks, chunk: int, spare: NDArray[np.generic] | None) -> None:
        self._file: Chunks | None = file
        self._chunk = chunk
        self._spare = spare
        self._claimed = threading.Lock()
        self._done = threading.Lock()
        self._done.acquire()
        self._values: NDArray[Any] | InFile | None = None
        self._error: BaseException | None = None
        #: What it took.
        self.seconds = 0.0

    def run(self) -> bool:
        """Decode the chunk in this thread; False where another one did or does."""
        if not self._claimed.acquire(blocking=False):
            return False
        begin = time.perf_counter()
        file, spare = self._file, self._spare
        self._file = self._spare = None
        try:
            assert file is not None
            self._values = file.decode(self._chunk, spare)
        except BaseException as error:
            # Whoever waits for it must hear of a KeyboardInterrupt as well.
            self._error = error
            if not isinstance(error, Exception):
                raise
        finally:
            self.seconds = time.perf_counter() - begin
            self._done.release()
        return True

    def wait(self, seconds: float = -1) -> bool:
        """Wait until it is done; False where it is not after so many seconds."""
        if not self._done.acquire(timeout=seconds):
            return False
        self._done.release()
        return True

    def give_up(self) -> None:
        """Let those who wait for it know that nobody is going to do it."""
        if self._claimed.acquire(blocking=False):
            self._file = self._spare = None
            self._error = RuntimeError("the reader was closed")
            self._done.release()

    def result(self) -> NDArray[Any] | InFile:
        """The chunk, once it is done.

        Raises:
            BaseException: What went wrong.
        """
        if self._error is not None:
            raise self._error
        assert self._values is not None
        return self._values


class Decoder:
    """A thread that decodes ahead; whoever waits for one chunk decodes the next ones meanwhile."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Decoding | None] = SimpleQueue()
        thread = threading.Thread(target=_decode_all, args=(self._queue,), name="streamseq-decoder", daemon=True)
        # Also at exit: a thread that goes on while the interpreter ends can abort it.
        self._end = weakref.finalize(self, _end, self._queue, thread)
        thread.start()

    def submit(self, decoding: Decoding) -> None:
        """Have it done, after those that were submitted before."""
        self._queue.put(decoding)

    def wait(self, decoding: Decoding) -> None:
        """Return when it is done."""
        while not decoding.wait(0):
            try:
                other = self._queue.get_nowait()
            except Empty:
                other = None
            if other is None:
                decoding.wait()
            else:
                other.run()

    def close(self) -> None:
        """End the thread, after the chunk that it decodes."""
        self._end()


def _decode_all(queue: SimpleQueue[Decoding | None]) -> None:
    while (decoding := queue.get()) is not None:
        # Whoever needs the chunk hears what went wrong.
        with suppress(BaseException):
            decoding.run()
        # The memory of a chunk is used again only when nobody holds it.
        del decoding


def _end(queue: SimpleQueue[Decoding | None], thread: threading.Thread) -> None:
    with suppress(Empty):
        while (decoding := queue.get_nowait()) is not None:
            decoding.give_up()
    queue.put(None)
    thread.join()
