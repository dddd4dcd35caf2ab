"""Progress on standard error: a bar on a terminal, otherwise a line at the start and one at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from streamseq.etl.report import readable_bytes


class Progress:
    """Shows how many bytes are done; give it to `ss.ingest` as `progress`, inside its `with` block.

    Args:
        what: What is being done, in a word.
    """

    def __init__(self, what: str = "ingest") -> None:
        self._what = what
        self._bar: tqdm[None] | None = None
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many bytes of all are done."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(desc=self._what, total=total, unit="B", unit_scale=True, file=sys.stderr)
            self._bar.update(done - self._bar.n)
        elif done == 0:
            print(f"{self._what}: {readable_bytes(total)}", file=sys.stderr, flush=True)
        elif done == total:
            seconds = time.monotonic() - self._began
            print(f"{self._what}: done in {seconds:.1f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
