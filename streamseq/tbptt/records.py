"""Records: how far a long backward sweep has come, saved from time to time, for a process that takes it up again."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from streamseq.core.tokens import StateToken
from streamseq.tbptt.boundaries import pack_moment, unpack_moment
from streamseq.tbptt.replay import Moment, Replay
from streamseq.tbptt.spill import Spill, checksum

_log = logging.getLogger("streamseq.tbptt")

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
        self.spill = spill
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
        self.spill.write_progress(
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


def begin_records(
    folder: Path,
    token: StateToken,
    settings: Mapping[str, Any],
    parameters: Sequence[Tensor] | None,
    replay: Replay,
) -> Records:
    """The records of an update that begins with a window; those of another process, where it began the same one.

    Args:
        folder: Where they lie.
        token: Of the window.
        settings: What decides the update besides, plain values.
        parameters: That are trained.
        replay: Of the model.

    Raises:
        CorruptionError: What another process saved is not what it wrote.
        ValueError: The parameters are not known.
    """
    if parameters is None:
        raise ValueError(
            "an update is taken up again with its gradients, and a model that is a function does not say of what: pass "
            "parameters="
        )
    # Each rank has lanes of its own.
    spill = Spill(folder / f"lane-{int(token.lane[0])}")
    key = {
        **settings,
        **{name: getattr(token, name) for name in ("fingerprint", "version", "epoch", "step", "window")},
        "lanes": len(token.lane),
        "parameters": checksum([*parameters, *replay.buffers()]),
    }
    if spill.begin(key):
        _log.info("going on with an update that was begun before, from %s", folder)
    return Records(spill, parameters)
