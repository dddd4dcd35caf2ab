"""What a run uses: peak memory, and time spent waiting for data."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from streamseq.data.loader import StreamLoader
from streamseq.data.window import Window


def peak_rss_bytes() -> int:
    """The most memory that this process has held, in bytes."""
    # ru_maxrss survives exec: a process started by a large one would report the size of that one.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class TimedLoader(StreamLoader):
    """A loader that adds up how long its user waits for windows.

    `waited` is in seconds, of all iterations.
    """

    waited = 0.0

    def __iter__(self) -> Iterator[Window]:
        windows = super().__iter__()
        while True:
            begin = time.perf_counter()
            window = next(windows, None)
            self.waited += time.perf_counter() - begin
            if window is None:
                return
            yield window
