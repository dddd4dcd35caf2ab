"""Boundaries: what is kept before each segment of a sweep, to run it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamseq.tbptt.replay import Moment
from streamseq.tbptt.stretches import Segment


@dataclass(frozen=True, slots=True)
class Boundary:
    """A segment, the state before it, and the random generators and buffers then."""

    segment: Segment
    state: Any
    moment: Moment


class Boundaries:
    """The boundaries of a sweep, put in from the first segment on and taken out from the last."""

    def __init__(self) -> None:
        self._kept: list[Boundary] = []

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def last(self) -> Boundary | None:
        """The one that is taken out next."""
        return self._kept[-1] if self._kept else None

    def push(self, boundary: Boundary) -> None:
        """Put one in."""
        self._kept.append(boundary)

    def pop(self) -> Boundary:
        """Take the last one out."""
        return self._kept.pop()
