"""Progress on standard error: a bar on a terminal, otherwise a line every ten seconds, at the start and at the end."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from streamseq.etl.report import readable_bytes

_SECONDS_BETWEEN_LINES = 10.0
# Of a terminal that does not say how large it is, for which tqdm would show nothing.
_SIZE = {"ncols": 80, "nrows": 24}


class Progress:
    """Shows how much is done, how fast, and how long the rest takes.

    Give it to `ss.ingest` or `ss.predict` as `progress`, inside its `with` block.

    Args:
        what: What is being done, in a word.
        unit: Of what is counted: "B" for bytes, or a word such as "timestep".
    """

    def __init__(self, what: str = "ingest", unit: str = "B") -> None:
        self._what = what
        self._unit = unit
        self._bar: tqdm[None] | None = None
        self._began = time.monotonic()
        #: What was done at the first call, and when that was; None before.
        self._first: tuple[int, float] | None = None
        self._last_line = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Show that so much of all is done; the first call may say what was done before."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    desc=self._what,
                    total=total,
                    initial=done,
                    unit=self._unit,
                    unit_scale=True,
                    file=sys.stderr,
                    **({} if _says_its_size() else _SIZE),
                )
            self._bar.update(done - self._bar.n)
            return
        now = time.monotonic()
        if self._first is None:
            before = f", {self._amount(done)} of them were done before" if done else ""
            self.note(f"{self._amount(total)}{before}")
            self._first, self._last_line = (done, now), now
        if done == total and total:
            self.note(f"done in {now - self._began:.1f} s")
        elif now - self._last_line >= _SECONDS_BETWEEN_LINES:
            rate = (done - self._first[0]) / (now - self._first[1])
            left = f", {readable_seconds((total - done) / rate)} left" if rate else ""
            so_far, speed = (
                (readable_bytes(done), readable_bytes(rate)) if self._unit == "B" else (f"{done:,}", f"{rate:,.1f}")
            )
            self.note(f"{so_far} of {self._amount(total)}, {speed}/s{left}")
            self._last_line = now

    def note(self, text: str) -> None:
        """Say something on a line of its own."""
        print(f"{self._what}: {text}", file=sys.stderr, flush=True)

    def _amount(self, number: int) -> str:
        return readable_bytes(number) if self._unit == "B" else f"{number:,} {self._unit}s"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _says_its_size() -> bool:
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except (OSError, ValueError):
        return False


def readable_seconds(seconds: float) -> str:
    """Say how long something takes.

    Example:
        >>> [readable_seconds(seconds) for seconds in (7.6, 130, 7300, 200000)]
        ['8 s', '2 min 10 s', '2 h 1 min', '2 days 7 h']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    days = whole // 86400
    return f"{days} day{'s' if days > 1 else ''} {whole % 86400 // 3600} h"
