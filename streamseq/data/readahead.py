"""Reading ahead: a thread fills blocks before they are asked for; who would wait for it fills the next one instead."""

from __future__ import annotations

import threading
import time
import weakref
from contextlib import suppress
from queue import Empty, SimpleQueue

from streamseq.data.blocks import BlockReader
from streamseq.data.stats import LoaderStats
from streamseq.data.window import Block

Outcome = Block | BaseException | None
"""A block, what went wrong, or that there are no more."""


class ReadAhead:
    """Blocks of windows, in order, of which some are being read. Iterate once, then `close`.

    Args:
        reader: Reads them; closed with this.
        steps: The windows.
        blocks: Blocks that are read ahead at most.
    """

    def __init__(self, reader: BlockReader, steps: range, blocks: int) -> None:
        self._reader = reader
        self._requests = reader.requests(steps)
        self._turn = threading.Lock()
        self._taken = 0
        #: True for each block that may be read now, False for each thread that is to end.
        self._room: SimpleQueue[bool] = SimpleQueue()
        #: What was read, each in a list of its own: who takes it out leaves nothing that a thread, which may have lost
        #: its turn just then, holds on to.
        self._done: SimpleQueue[list[tuple[int, Outcome]]] = SimpleQueue()
        self._early: dict[int, Outcome] = {}
        self._next = 0
        self._first = steps.start
        self._begin = time.perf_counter()
        self._ended: float | None = None
        self._waited = 0.0
        self._num_bytes = 0
        self._helps = reader.threads > 1
        for _ in range(blocks):
            self._room.put(True)
        threads = [
            threading.Thread(target=self._work, name="streamseq-reader", daemon=True)
            for _ in range(min(max(1, reader.threads - 1), blocks))
        ]
        # Also at exit: a thread that goes on while the interpreter ends can abort it.
        self._end = weakref.finalize(self, _end, self._room, threads)
        for thread in threads:
            thread.start()

    def _work(self) -> None:
        while self._room.get():
            self._done.put([self._read()])

    def _read(self) -> tuple[int, Outcome]:
        """The number of the block whose turn it is, and what came of it."""
        with self._turn:
            number = self._taken
            self._taken += 1
            try:
                request = next(self._requests, None)
            except BaseException as error:
                return number, error
        try:
            return number, None if request is None else self._reader.read(request)
        except BaseException as error:
            return number, error

    def _help(self) -> tuple[int, Outcome] | None:
        """What `_read` returns, where there is room for another block."""
        if not self._helps:
            return None
        try:
            self._room.get_nowait()
        except Empty:
            return None
        return self._read()

    def take(self) -> Block | None:
        """The next block; None after the last one.

        Raises:
            Exception: What went wrong when it was read.
        """
        begin = time.perf_counter()
        # Two threads may have taken their turns in another order than they were called.
        while self._next not in self._early:
            done = None
            with suppress(Empty):
                done = self._done.get_nowait().pop()
            # On a machine of few cores waking a thread takes longer than what it would do meanwhile. Not where an
            # exception is handled: a generator that is begun there keeps it, and with it the first block.
            number, outcome = done or self._help() or self._done.get().pop()
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                # Ctrl-C does not wait for its turn.
                raise outcome
            self._early[number] = outcome
        self._waited += time.perf_counter() - begin
        outcome = self._early.pop(self._next)
        self._next += 1
        if isinstance(outcome, BaseException):
            raise outcome
        if outcome is not None:
            self._num_bytes += outcome.num_bytes
            self._room.put(True)
        return outcome

    def stats(self, position: int) -> LoaderStats:
        """What was done so far.

        Args:
            position: The window after the last one that was handed out.
        """
        reader, counts = self._reader, self._reader.counts
        windows = max(0, position - self._first)
        return LoaderStats(
            windows=windows,
            num_bytes=self._num_bytes,
            seconds=(self._ended or time.perf_counter()) - self._begin,
            waited=self._waited,
            chunks=counts.loaded,
            decoded=counts.decoded,
            decoded_bytes=counts.decoded_bytes,
            decoding=counts.decoding,
            memory_bytes=reader.memory_bytes,
        )

    def close(self) -> None:
        """End the threads, and let go of what they read."""
        self._ended = self._ended or time.perf_counter()
        self._end()
        self._early.clear()
        self._reader.close()


def _end(room: SimpleQueue[bool], threads: list[threading.Thread]) -> None:
    with suppress(Empty):
        while True:
            room.get_nowait()
    for _ in threads:
        room.put(False)
    for thread in threads:
        thread.join()
