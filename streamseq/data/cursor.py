"""The cursor: at which window a stream's iteration starts, the same for all processes that iterate it."""

from __future__ import annotations

import torch

_EPOCH, _STEP, _LOADS, _TAKEN_BY, _VERSION = range(5)
_NOBODY, _THIS_PROCESS = 0, -1


class Cursor:
    """The epoch, the version of the store, and a start that one iteration takes.

    A DataLoader copies its dataset into worker processes, which go on from the start that was loaded, each at its own
    time. So that the next iteration begins at 0 although the parent's copy was never iterated, and so that
    persistent workers see a new epoch or version, they lie in shared memory; the iteration that took the start is told
    from others by the seed that a DataLoader draws for it.
    """

    def __init__(self) -> None:
        self._shared = torch.zeros(5, dtype=torch.int64)
        self._shared.share_memory_()  # type: ignore[no-untyped-call]
        self._loads_seen = 0
        self._own_start: int | None = None

    @property
    def epoch(self) -> int:
        """The epoch."""
        return int(self._shared[_EPOCH])

    def set_epoch(self, epoch: int) -> None:
        """Move to an epoch; a start that was loaded for another one is forgotten."""
        if epoch != self.epoch:
            self._shared[_EPOCH] = epoch
            self._shared[_TAKEN_BY] = _THIS_PROCESS

    @property
    def version(self) -> int:
        """The version of the store."""
        return int(self._shared[_VERSION])

    @version.setter
    def version(self, version: int) -> None:
        self._shared[_VERSION] = version

    @property
    def pending(self) -> int:
        """The start that was loaded and that no iteration has taken yet; 0 where there is none."""
        if self._own_start is not None:
            return self._own_start
        waits = self._shared[_LOADS] and self._shared[_TAKEN_BY] == _NOBODY
        return int(self._shared[_STEP]) if waits else 0

    def start_at(self, step: int, *, here_only: bool = False) -> None:
        """Let the next iteration, and only that one, start at `step`.

        Args:
            step: A window.
            here_only: In this process and no other: a StatefulDataLoader loads into each worker a position of its own.
        """
        if here_only:
            self._own_start = step
            return
        self._shared[_STEP] = step
        self._shared[_TAKEN_BY] = _NOBODY
        self._shared[_LOADS] += 1

    def take_start(self, iteration: int | None) -> int:
        """The window at which an iteration starts.

        Args:
            iteration: What tells a DataLoader's iteration from others, the same in all its workers; None outside.
        """
        if self._own_start is not None:
            step, self._own_start = self._own_start, None
            return step
        loads = int(self._shared[_LOADS])
        if loads == self._loads_seen:
            return 0
        self._loads_seen = loads
        iteration = _THIS_PROCESS if iteration is None else iteration
        taken_by = int(self._shared[_TAKEN_BY])
        if taken_by not in (_NOBODY, iteration) or taken_by == _THIS_PROCESS:
            return 0
        self._shared[_TAKEN_BY] = iteration
        return int(self._shared[_STEP])
