"""Boundaries: what is kept before each segment of a sweep, to run it again; in memory up to a budget, then in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamseq.data import state as states
from streamseq.tbptt.replay import Moment, Noise
from streamseq.tbptt.spill import Spill
from streamseq.tbptt.stretches import Segment

# Of the states and moments that are in memory.
MEMORY_BYTES = 256 << 20
# Of those in a file.
_GROUP_BYTES = 32 << 20


@dataclass(frozen=True, slots=True)
class Boundary:
    """A segment, the state before it, and the random generators and buffers then."""

    segment: Segment
    state: Any
    moment: Moment


class Boundaries:
    """The boundaries of a sweep, put in from the first segment on and taken out from the last.

    Args:
        spill: Where those go for which there is no room.
        memory: Bytes of states and moments in memory, about.
    """

    def __init__(self, spill: Spill | None = None, memory: int = MEMORY_BYTES) -> None:
        self._spill = spill or Spill(None)
        self._memory = memory
        self._segments: list[Segment] = []
        # The states and moments of the last boundaries, and their bytes; those before lie in files.
        self._held: list[tuple[Any, Moment, int]] = []
        self._bytes = 0
        self._last: Moment | None = None

    def __len__(self) -> int:
        return len(self._segments)

    @property
    def segments(self) -> Sequence[Segment]:
        """The segments that are in, from the first one on."""
        return self._segments

    @property
    def last_moment(self) -> Moment | None:
        """The moment that was put in last, whose copies can be shared."""
        return self._last

    def push(self, boundary: Boundary) -> None:
        """Put one in."""
        new = _bytes_of(boundary, self._last)
        self._segments.append(boundary.segment)
        self._held.append((boundary.state, boundary.moment, new))
        self._last = boundary.moment
        self._bytes += new
        if self._bytes > self._memory:
            # The older half: what comes last is taken out first.
            self._write((len(self._held) + 1) // 2)

    @property
    def stored(self) -> int:
        """How many lie in files: more than were put in, where a sweep is taken up again."""
        groups = self._spill.groups
        return groups[-1][1] if groups else 0

    def skip(self, segment: Segment) -> None:
        """Put one in whose state lies in a file already."""
        self._segments.append(segment)

    def take_up(self, segment: Segment) -> Boundary:
        """Put in the last one whose state lies in a file, and return it.

        Raises:
            CorruptionError: The file is not what was written.
        """
        self.skip(segment)
        state, moment = _unpacked(self._spill.read_group(self._spill.groups[-1])[-1])
        self._last = moment
        return Boundary(segment, state, moment)

    def drop_after(self, number: int) -> None:
        """Let go of all but the first so many, in files too."""
        del self._segments[number:]
        while self._spill.groups and self._spill.groups[-1][0] >= number:
            self._spill.drop_group()

    def flush(self) -> None:
        """Write all that is in memory to files."""
        self._write(len(self._held))

    def _write(self, number: int) -> None:
        first = len(self._segments) - len(self._held)
        group: list[dict[str, Any]] = []
        size = 0
        for state, moment, bytes_of in self._held[:number]:
            if group and size + bytes_of > _GROUP_BYTES:
                self._spill.write_group(first, group)
                first, group, size = first + len(group), [], 0
            group.append(_packed(state, moment))
            size += bytes_of
        if group:
            self._spill.write_group(first, group)
        del self._held[:number]
        self._bytes = sum(bytes_of for _, _, bytes_of in self._held)

    def pop(self) -> Boundary:
        """Take the last one out.

        Raises:
            CorruptionError: It lies in a file that is not what was written.
        """
        if not self._held:
            self._load()
        state, moment, size = self._held.pop()
        self._bytes -= size
        return Boundary(self._segments.pop(), state, moment)

    def _load(self) -> None:
        # Files that last stay until progress beyond them was saved.
        group = next(group for group in reversed(self._spill.groups) if group[0] < len(self._segments))
        self._held = [(*_unpacked(entry), 0) for entry in self._spill.read_group(group)]
        del self._held[len(self._segments) - group[0] :]
        self._bytes = 0
        if not self._spill.lasting:
            self._spill.drop_group()

    @property
    def all_in_files(self) -> bool:
        """Whether nothing is in memory."""
        return not self._held


def _bytes_of(boundary: Boundary, before: Moment | None) -> int:
    size = sum(leaf.nbytes for leaf in states.leaves(boundary.state) if isinstance(leaf, Tensor))
    moment = boundary.moment
    shared = () if before is None else before.buffers
    size += sum(copy.nbytes for copy in moment.buffers if not any(copy is other for other in shared))
    if before is None or moment.noise is not before.noise:
        size += moment.noise.cpu.nbytes
    return size


def pack_moment(moment: Moment) -> dict[str, Any]:
    """A moment as tensors and plain values."""
    cuda = [(str(device), noise) for device, noise in moment.noise.cuda]
    return {"noise": moment.noise.cpu, "cuda": cuda, "buffers": list(moment.buffers)}


def unpack_moment(packed: dict[str, Any]) -> Moment:
    """The moment that `pack_moment` packed."""
    cuda = tuple((torch.device(device), noise) for device, noise in packed["cuda"])
    return Moment(Noise(packed["noise"], cuda), tuple(packed["buffers"]))


def _packed(state: Any, moment: Moment) -> dict[str, Any]:
    return {"state": states.pack(state), **pack_moment(moment)}


def _unpacked(entry: dict[str, Any]) -> tuple[Any, Moment]:
    return states.unpack(entry["state"]), unpack_moment(entry)
