"""Budgets: what a source's updates need, and the segment that keeps them within a number of bytes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from streamseq.core.grid import Grid
from streamseq.core.sizes import format_bytes
from streamseq.data.window import Window
from streamseq.tbptt.memory import Memory, choose_segment, longest_cohort, predict
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.past import longest_sequence, random_access, stream_of
from streamseq.tbptt.probe import probe
from streamseq.tbptt.replay import Replay

_log = logging.getLogger("streamseq.tbptt")


class Budget:
    """Predicts the memory of updates, and chooses the segment.

    Args:
        model: What is trained.
        replay: Of the same model.
        limit: Bytes of an update; None: any.
        boundary_memory: Bytes of boundary states in memory.
        all_losses: Whether every loss since the start of back-propagation counts in each update.
    """

    def __init__(
        self, model: StatefulModel, replay: Replay, *, limit: int | None, boundary_memory: int, all_losses: bool
    ) -> None:
        self._model = model
        self._replay = replay
        self._limit = limit
        self._boundary_memory = boundary_memory
        self._all_losses = all_losses

    def memory(self, source: Iterable[Window], first: Window, grid: Grid, segment: int | None) -> Memory:
        """What an update needs.

        Args:
            source: Of the windows.
            first: The first one.
            grid: Of the updates.
            segment: Timesteps whose activations live at once; None: the usual. A limit has its own.

        Raises:
            ValueError: The limit is too little, or the length of the sequences is needed and not known.
        """
        found = probe(self._model, self._replay, first)
        needs = self._needs(source, first, grid)
        if self._limit is not None:
            segment = choose_segment(found, self._limit, **needs)
        return predict(found, segment=segment, **needs)

    def choose(self, source: Iterable[Window], first: Window, grid: Grid, before: int | None) -> int | None:
        """The segment that keeps within the limit, and says so where it is another than before; that one without."""
        if self._limit is None:
            return before
        memory = self.memory(source, first, grid, None)
        if memory.segment != before:
            _log.info("segments of %d timesteps keep within %s: %s", memory.segment, format_bytes(self._limit), memory)
        return memory.segment

    def _needs(self, source: Iterable[Window], first: Window, grid: Grid) -> dict[str, Any]:
        stream, n = stream_of(source), longest_sequence(source)
        if stream is not None:
            n = stream.plan.reach if grid.k1 is not None else longest_cohort(stream.plan)
        return {
            "k1": grid.k1,
            "k2": grid.k2,
            "n": n,
            "window": first.token.window,
            "spill_threshold": self._boundary_memory,
            "reads_again": random_access(source) is not None,
            "every_loss": self._all_losses,
        }
