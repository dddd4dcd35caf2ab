"""From outputs that arrive interleaved, lane by lane, to shards in which every sequence lies in one piece."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field
from streamseq.storage.checksum import as_bytes
from streamseq.storage.layout import ShardLayout
from streamseq.storage.shards.shard_writer import Receipt, ShardWriter
from streamseq.storage.versions.receipts import abandon_receipts
from streamseq.storage.versions.version import Shard


class GroupWriter:
    """Writes the sequences of one task, whose timesteps come in order in each, and mixed between them.

    A sequence that fills a shard has shards of its own, written as its timesteps come. The others wait in a scratch
    file, where the place of each timestep is known beforehand, and are written one after the other at the end. Memory
    is so a chunk of each field for each lane and a shard; the scratch file has less than a shard for each sequence.
    Leaving the block without `finish` removes everything.

    Args:
        root: The root folder of the store.
        layout: How shards are cut and encoded.
        ids: The ids of the sequences.
        lengths: int64 [N], their timesteps, none 0.
        scratch: The folder of the scratch file, which has no name and is gone when this process is.
        begin: Called with the id of each shard writer before it writes.
    """

    def __init__(
        self,
        root: Path,
        layout: ShardLayout,
        ids: Sequence[str],
        lengths: NDArray[np.int64],
        scratch: Path,
        begin: Callable[[str], None],
    ) -> None:
        self._root = root
        self._layout = layout
        self._ids = ids
        self._lengths = lengths
        self._begin = begin
        self._own = lengths >= layout.shard_timesteps
        self._writers: dict[int, ShardWriter] = {}
        self._receipts: dict[int, Receipt] = {}
        self._scratch = _Scratch(layout.fields, np.where(self._own, 0, lengths), scratch)
        self._finished = False

    def write(self, sequence: int, start: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write timesteps of a sequence.

        Args:
            sequence: Its number in this task.
            start: The position of the first one, which is where the last call for this sequence ended.
            arrays: One array `[m, *D]` per field.
        """
        if not self._own[sequence]:
            self._scratch.write(sequence, start, arrays)
            return
        if start == 0:
            self._writers[sequence] = self._new_writer()
        writer = self._writers[sequence]
        writer.append(self._ids[sequence], arrays)
        if start + len(next(iter(arrays.values()))) == self._lengths[sequence]:
            self._receipts[sequence] = writer.finish()
            del self._writers[sequence]

    def finish(self) -> tuple[Shard, ...]:
        """Write what waits and return the shards, in which the sequences lie in the order of `written_order`."""
        receipts = [self._receipts[sequence] for sequence in np.flatnonzero(self._own).tolist()]
        shared = np.flatnonzero(~self._own).tolist()
        if shared:
            writer = self._writers[-1] = self._new_writer()
            for sequence in shared:
                writer.append(self._ids[sequence], self._scratch.read(sequence))
            receipts.append(writer.finish())
            self._receipts[-1] = receipts[-1]
            del self._writers[-1]
        self._finished = True
        return tuple(shard for receipt in receipts for shard in receipt.shards)

    def _new_writer(self) -> ShardWriter:
        writer = ShardWriter(self._root, self._layout, statistics=False)
        self._begin(writer.writer_id)
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._scratch.close()
        if not self._finished:
            for writer in self._writers.values():
                writer.abandon()
            abandon_receipts(self._root, list(self._receipts.values()))


def written_order(lengths: NDArray[np.int64], layout: ShardLayout) -> NDArray[np.int64]:
    """The order in which a `GroupWriter` puts the sequences of a task: those with shards of their own first.

    Args:
        lengths: int64 [N], timesteps of each.
        layout: How shards are cut.
    """
    return np.argsort(lengths < layout.shard_timesteps, kind="stable")


class _Scratch:
    """Sequences end to end in a file of each field."""

    def __init__(self, fields: Mapping[str, Field], lengths: NDArray[np.int64], folder: Path) -> None:
        self._fields = fields
        self._first = np.concatenate(([0], np.cumsum(lengths))).tolist()
        self._files: dict[str, IO[bytes]] = {}
        if self._first[-1]:
            for name in fields:
                self._files[name] = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - see close

    def write(self, sequence: int, start: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, values in arrays.items():
            left = as_bytes(np.ascontiguousarray(values)).data
            offset = (self._first[sequence] + start) * self._fields[name].step_bytes
            while left:
                count = os.pwrite(self._files[name].fileno(), left, offset)
                left, offset = left[count:], offset + count

    def read(self, sequence: int) -> dict[str, NDArray[Any]]:
        first, stop = self._first[sequence : sequence + 2]
        read = {}
        for name, field in self._fields.items():
            values = np.empty((stop - first, *field.shape), field.dtype)
            left, offset = as_bytes(values).data, first * field.step_bytes
            while left:
                count = os.preadv(self._files[name].fileno(), [left], offset)
                if not count:
                    raise EOFError(f"the scratch file of field {name!r} ends early")
                left, offset = left[count:], offset + count
            read[name] = values
        return read

    def close(self) -> None:
        for file in self._files.values():
            file.close()
