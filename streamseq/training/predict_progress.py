"""What a prediction says while it goes on: on a terminal a bar, otherwise a line at the start and one at the end."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm


class PredictProgress:
    """Shows on standard error how many timesteps are done; give it to `predict` as `progress`, inside its `with` block.

    Example:
        >>> with PredictProgress() as progress:  # doctest: +SKIP
        ...     ss.predict(model, store, "hidden.zarr", progress=progress)
    """

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None
        self._said = False
        self._began = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show that so many timesteps of all are done."""
        if sys.stderr.isatty():
            if self._bar is None:
                self._bar = tqdm(
                    desc="predict", total=total, initial=done, unit="timestep", unit_scale=True, file=sys.stderr
                )
            self._bar.update(done - self._bar.n)
            return
        if not self._said:
            before = f", {done:,} of them were done before" if done else ""
            print(f"predict: {total:,} timesteps{before}", file=sys.stderr, flush=True)
            self._said = True
        if done == total:
            print(f"predict: done in {time.monotonic() - self._began:.1f} s", file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
