"""What an adopted store is made of: somebody else's files, where their chunks lie, and whether a file has changed."""

from __future__ import annotations

import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.core.fields import Field
from streamseq.storage.checksum import crc32c
from streamseq.storage.interface import Int64
from streamseq.storage.layout import CHUNK_BYTES, MAX_CHUNK_BYTES, timesteps_of_bytes
from streamseq.storage.versions.rows import Pieces

# What the metadata of other people's files may make us list: 32 million chunks are 32 TiB of usual ones.
_MAX_CHUNKS = 1 << 25
_MAX_TIMESTEPS = 1 << 62
# Headers lie at the start of a file, footers at the end.
_END_BYTES = 1 << 16


class OpenChunks(Protocol):
    """The chunks of one field in an open file."""

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """Return a chunk `[steps, *D]`, in the memory of `spare` where that helps. Several threads may do so.

        Whatever it raises is an error of the file.
        """


class Source(ABC):
    """A file, or an array of many files, that holds chunks; picklable, and opened by each process that reads."""

    #: What to call it in an error.
    where: str

    @abstractmethod
    def open(self, field: str) -> OpenChunks:
        """Open the chunks of a field that are decoded; whatever it raises is an error of the file."""

    @abstractmethod
    def descriptor(self) -> Descriptor:
        """Open the file that chunks are read straight from."""

    @abstractmethod
    def check(self, place: int, steps: int) -> None:
        """Check that what a chunk is made from has not changed since it was adopted.

        Raises:
            CorruptionError: It has.
        """

    @abstractmethod
    def stamp(self) -> object:
        """What changes when the file does and not when it is moved, and how it is read, as JSON holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as it was when it was adopted.

    Args:
        path: Absolute.
        num_bytes: Its size.
        modified: When it was modified, in nanoseconds.
        ends_crc32c: Checksum of its first and last 64 KiB, where formats keep what says how to read the rest.
    """

    path: str
    num_bytes: int
    modified: int
    ends_crc32c: int

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> File:
        """Look at a file.

        Raises:
            StoreError: There is none that can be read.
        """
        absolute = os.path.abspath(path)
        try:
            with open(absolute, "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise StoreError(f"{absolute} is not a file: name files")
                crc = crc32c(file.read(_END_BYTES))
                file.seek(max(_END_BYTES, found.st_size - _END_BYTES))
                crc = crc32c(file.read(_END_BYTES), crc)
        except OSError as error:
            raise StoreError(f"{absolute} cannot be read, {error.strerror}: check the address") from None
        return cls(path=absolute, num_bytes=found.st_size, modified=found.st_mtime_ns, ends_crc32c=crc)

    def check(self) -> None:
        """Check that the file has the size and time of modification that it was adopted with.

        Raises:
            CorruptionError: It has not, or is gone.
        """
        try:
            now = os.stat(self.path)
        except OSError as error:
            raise CorruptionError(f"{self.path} cannot be read any more, {error.strerror}: adopt it again") from None
        if (now.st_size, now.st_mtime_ns) != (self.num_bytes, self.modified):
            raise CorruptionError(
                f"{self.path} has changed since it was adopted, from {self.num_bytes} bytes modified at "
                f"{self.modified} ns to {now.st_size} at {now.st_mtime_ns}: adopt it again"
            )

    def stamp(self) -> list[int]:
        """See `Source.stamp`."""
        return [self.num_bytes, self.modified, self.ends_crc32c]


class Descriptor:
    """An open file, closed when nobody holds it any more."""

    def __init__(self, file: File) -> None:
        self.number = os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self.number)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FieldChunks:
    """The chunks of one field, which tile the rows: the timesteps of all sources end to end.

    Args:
        borders: int64 [C + 1], the first row of each chunk, and the number of rows.
        source: int64 [C], the number of its source.
        place: int64 [C], where in the source: the position of its first byte where it is `direct`, else what the
            source makes of it.
        direct: bool [C], whether it is stored as it is and read from the file.
    """

    borders: Int64
    source: Int64
    place: Int64
    direct: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.source)

    def steps(self, chunk: int) -> int:
        """Timesteps of a chunk."""
        return int(self.borders[chunk + 1] - self.borders[chunk])

    def longest(self) -> int:
        """Timesteps of the longest chunk; at least one."""
        return int(np.diff(self.borders).max(initial=1))

    def longest_decoded(self) -> int:
        """Timesteps of the longest chunk that is decoded, 0 where none is."""
        return int(np.diff(self.borders)[~self.direct].max(initial=0))


class ChunkList:
    """Collects the chunks of one field in the order of their rows."""

    def __init__(self, name: str, field: Field) -> None:
        self.name = name
        self.field = field
        self.num_rows = 0
        self._count = 0
        self._parts: list[tuple[Int64, Int64, Int64, NDArray[np.bool_]]] = []

    def add(self, source: int, place: Int64, steps: Int64, where: str, direct: bool = False) -> None:
        """Add chunks of a source; empty ones are left out.

        Args:
            source: The number of the source.
            place: int64 [C], see `FieldChunks`.
            steps: int64 [C], timesteps of each.
            where: What to call the source in an error.
            direct: Whether they are stored as they are.

        Raises:
            StoreError: A chunk is negative or too large, or there are too many of them.
        """
        if np.any(steps < 0) or steps.astype(np.float64).sum() + self.num_rows > _MAX_TIMESTEPS:
            raise StoreError(f"{where} says it has {steps.tolist()[:3]} timesteps, which no file has: it is damaged")
        if not direct and len(steps) and int(steps.max()) > MAX_CHUNK_BYTES // self.field.step_bytes:
            raise StoreError(
                f"a chunk is decoded whole and has at most {MAX_CHUNK_BYTES} bytes, {where} has one of "
                f"{int(steps.max())} timesteps of {self.field.step_bytes} bytes: write smaller chunks or row groups"
            )
        there = steps > 0
        if not there.all():
            place, steps = place[there], steps[there]
        self._check_count(len(steps), where)
        self._parts.append((np.full(len(steps), source), place, steps, np.full(len(steps), direct)))
        self._count += len(steps)
        self.num_rows += int(steps.sum())

    def add_regular(self, source: int, length: int, steps: int, where: str, direct_at: int | None = None) -> None:
        """Add `length` timesteps of a source in chunks of `steps`, the last of what is left.

        Args:
            direct_at: The position in the file of the first timestep, where they are stored as they are; None: chunks
                are decoded, and their place is their first timestep.
        """
        self._check_count(-(-length // steps), where)
        first = np.arange(0, length, steps, dtype=np.int64)
        place = first if direct_at is None else direct_at + first * self.field.step_bytes
        self.add(source, place, np.minimum(steps, length - first), where, direct_at is not None)

    def _check_count(self, more: int, where: str) -> None:
        if self._count + more > _MAX_CHUNKS:
            raise StoreError(f"an adopted store has at most {_MAX_CHUNKS} chunks, {where} says it has {more} more")

    def usual_steps(self) -> int:
        """Timesteps of a chunk where the file does not say."""
        return timesteps_of_bytes(CHUNK_BYTES, self.field)

    def finish(self) -> FieldChunks:
        """Return the chunks."""
        empty = np.zeros(0, np.int64)
        parts = self._parts or [(empty, empty, empty, np.zeros(0, np.bool_))]
        source, place, steps, direct = (np.concatenate(each) for each in zip(*parts, strict=True))
        return FieldChunks(
            borders=np.concatenate([[0], np.cumsum(steps)]).astype(np.int64), source=source, place=place, direct=direct
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Adopted:
    """Everything that is known of an adopted store; picklable, and the same in every process.

    Args:
        backend: Of which kind the files are.
        uri: Where they lie.
        fields: The fields by name.
        ids: Large string array [N].
        attrs: Attributes as JSON text, of the sequences that have some.
        pieces: int64 [P, 3], where the sequences lie in the rows.
        sources: The files.
        chunks: By field, how they tile the rows.
    """

    backend: str
    uri: str
    fields: Mapping[str, Field]
    ids: pa.Array
    attrs: Mapping[int, str]
    pieces: Pieces
    sources: tuple[Source, ...]
    chunks: Mapping[str, FieldChunks]

    @property
    def num_rows(self) -> int:
        """Rows of all sources together."""
        return int(next(iter(self.chunks.values())).borders[-1])


def one_line(error: object) -> str:
    """The message of somebody else's error on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def same_fields(wanted: Mapping[str, Field], found: Mapping[str, Field], where: str, first: str) -> None:
    """Check that what a source holds is what the first one holds.

    Raises:
        StoreError: It is not.
    """
    for name, field in wanted.items():
        other = found.get(name)
        if other is None:
            raise StoreError(f"every sequence has the same fields, {where} has no field {name!r} as {first} has")
        if other != field:
            raise StoreError(
                f"field {name!r} is {field.dtype}{list(field.shape)} in {first} and {other.dtype}{list(other.shape)} "
                f"in {where}: write it with one dtype and step shape"
            )
    strangers = [name for name in found if name not in wanted]
    if strangers:
        raise StoreError(
            f"every sequence has the same fields, {where} has {strangers[0]!r} beside those of {first}: choose some"
        )
