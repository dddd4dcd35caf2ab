"""Records: how far a long backward sweep has come, saved from time to time, for a process that takes it up again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from streamseq.tbptt.boundaries import pack_moment, unpack_moment
from streamseq.tbptt.replay import Moment
from streamseq.tbptt.spill import Spill

# From one record to the next.
SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a backward sweep has come.

    Args:
        left: Segments that are left.
        total: The loss of those that were done.
        gradient: Of that loss, with respect to each leaf of the state before them.
        after: The random generators and buffers after the whole update; None where there is one segment only.
    """

    left: int
    total: Tensor
    gradient: Sequence[Tensor | None]
    after: Moment | None


class Records:
    """Saves progress and gradients beside a sweep's boundaries.

    Args:
        spill: Where they lie; its sweep has begun.
        parameters: Whose `.grad` is saved and restored.
    """

    def __init__(self, spill: Spill, parameters: Sequence[Tensor]) -> None:
        self._spill = spill
        self._parameters = parameters
        self._saved = time.monotonic()
        found = spill.read_progress()
        #: What an earlier process saved; None: nothing.
        self.progress: Progress | None = None
        self._gradients: list[Tensor | None] = []
        if found is not None:
            after = None if found["after"] is None else unpack_moment(found["after"])
            self.progress = Progress(found["left"], found["total"], found["gradient"], after)
            self._gradients = found["parameters"]

    def due(self) -> bool:
        """Whether it is time to save."""
        return time.monotonic() - self._saved >= SECONDS

    def saved(self) -> None:
        """Boundaries were saved just now."""
        self._saved = time.monotonic()

    def save(self, progress: Progress) -> None:
        """Save progress, and the gradients so far."""
        self._spill.write_progress(
            {
                "left": progress.left,
                "total": progress.total,
                "gradient": list(progress.gradient),
                "after": None if progress.after is None else pack_moment(progress.after),
                "parameters": [parameter.grad for parameter in self._parameters],
            }
        )
        self._saved = time.monotonic()

    def restore(self) -> Progress:
        """The progress that an earlier process saved, whose gradients are put into `.grad`."""
        assert self.progress is not None
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)
        return self.progress
