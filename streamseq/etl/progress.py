"""Progress on standard error: a bar on a terminal, otherwise a line at the start and one at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from streamseq.etl.report import readable_bytes


class Progress:
    """Shows how much is done; give it to `ss.ingest` or `ss.predict` as `progress`, inside its `with` block.

    Args:
        what: What is being done, in a word.
        unit: Of what is counted: "B" for bytes, or a word such as "timestep".
    """

    def __init__(self, what: str = "ingest", unit: str = "B") -> None:
        self._what = what
        self._unit = unit
        self._bar: tqdm[None] | None = None
        self._said = False
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that so much of all is done; the first call may say what was done before."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    desc=self._what, total=total, initial=done, unit=self._unit, unit_scale=True, file=sys.stderr
                )
            self._bar.update(done - self._bar.n)
            return
        if not self._said:
            before = f", {self._amount(done)} of them were done before" if done else ""
            print(f"{self._what}: {self._amount(total)}{before}", file=sys.stderr, flush=True)
            self._said = True
        if done == total and total:
            seconds = time.monotonic() - self._began
            print(f"{self._what}: done in {seconds:.1f} s", file=sys.stderr, flush=True)

    def _amount(self, number: int) -> str:
        return readable_bytes(number) if self._unit == "B" else f"{number:,} {self._unit}s"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
