"""Reading ahead: threads fill blocks before they are asked for, and hand them over in order."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from streamseq.data.blocks import BlockReader
from streamseq.data.stats import LoaderStats
from streamseq.data.window import Window

Outcome = list[Window] | Exception | None
"""The windows of a block, what went wrong, or that there are no more."""


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
        self._pool = ThreadPoolExecutor(min(reader.threads, blocks), "streamseq-reader")
        self._coming: deque[Future[tuple[int, Outcome]]] = deque()
        self._early: dict[int, Outcome] = {}
        self._next = 0
        self._first = steps.start
        self._begin = time.perf_counter()
        self._end: float | None = None
        self._waited = 0.0
        self._num_bytes = 0
        for _ in range(blocks):
            self._coming.append(self._pool.submit(self._read))

    def _read(self) -> tuple[int, Outcome]:
        """The number of the block whose turn it is, and what came of it."""
        with self._turn:
            number = self._taken
            self._taken += 1
            try:
                request = next(self._requests, None)
            except Exception as error:
                return number, error
        try:
            return number, None if request is None else self._reader.read(request)
        except Exception as error:
            return number, error

    def take(self) -> list[Window] | None:
        """The next block; None after the last one.

        Raises:
            Exception: What went wrong when it was read.
        """
        begin = time.perf_counter()
        # Two threads may have taken their turns in another order than they were called.
        while self._next not in self._early:
            number, outcome = self._coming.popleft().result()
            self._early[number] = outcome
            self._coming.append(self._pool.submit(self._read))
        self._waited += time.perf_counter() - begin
        outcome = self._early.pop(self._next)
        self._next += 1
        if isinstance(outcome, Exception):
            raise outcome
        if outcome:
            self._num_bytes += len(outcome) * sum(outcome[0][name].nbytes for name in outcome[0])
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
            seconds=(self._end or time.perf_counter()) - self._begin,
            waited=self._waited,
            chunks=counts.loaded,
            decoded=counts.decoded,
            decoded_bytes=counts.decoded_bytes,
            decoding=counts.decoding,
            memory_bytes=reader.memory_bytes,
        )

    def close(self) -> None:
        """End the threads, and let go of what they read."""
        self._end = self._end or time.perf_counter()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._coming.clear()
        self._early.clear()
        self._reader.close()
