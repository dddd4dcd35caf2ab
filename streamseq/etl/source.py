"""What a source is: raw data that is cut into partitions, each of which yields pieces of sequences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import StreamseqError
from streamseq.core.fields import Field

_MIB = 1 << 20
# Data smaller than a few shards is cut finer, so that all workers have something to do.
_FEWEST_PARTITIONS = 32
_SMALLEST_PARTITION = 4 * _MIB

# What a source does with input that is not what it has to be: raise an error, leave it out and report it, or hand its
# bytes over as well, so that nothing is lost.
ON_ERROR = ("fail", "skip", "quarantine")


class SourceError(StreamseqError):
    """The data that a source reads is not what it has to be; the message names the file or the sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """What one task reads; picklable.

    Args:
        num_bytes: The bytes of input, as far as they are known beforehand: what progress is counted in.
        content: What the source needs to find its data again, made of plain values, tuples and frozen dataclasses. It
            says what the data was (a file's path, size and time of modification), so that other data has another one.
        continues: The id of the sequence that goes on from the partition before, for transforms that need to know; None
            where every sequence of the partition begins in it. The rule: it is the id of the first piece that the
            partition is planned to hold, if an earlier partition is planned to hold a piece of that id. A partition
            that is planned to hold none, between two pieces of one sequence, names that one. What is then left out as
            `Skipped` changes nothing.
    """

    num_bytes: int
    content: Any
    continues: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The next timesteps of a sequence, which may be all of it.

    Args:
        id: The id of the sequence.
        arrays: One array `[n, *D]` per field, all of the same n.
        attrs: The attributes of the sequence; None where an earlier piece had them, or where there are none.
    """

    id: str
    arrays: Mapping[str, NDArray[Any]]
    attrs: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """Many whole sequences end to end, for sources that have very many short ones.

    Args:
        ids: Their ids, each of a sequence that is nowhere else.
        lengths: int64 `[M]`, their timesteps.
        arrays: One array `[n, *D]` per field, of all timesteps.
    """

    ids: Sequence[str]
    lengths: NDArray[np.int64]
    arrays: Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """Something that was left out.

    Args:
        what: The file or the sequence that it was in, or was.
        place: Where in it, such as "line 17", "row 5" or "byte 1024"; empty where all of it was left out.
        reason: Why, in a few words.
        num_bytes: The bytes of input that were left out with it.
        content: The bytes themselves, of a row or record that is quarantined; None for a whole file, which stays where
            it is, and where bad input is only skipped.

    Example:
        >>> str(Skipped(what="plant.csv", place="line 17", reason="3 cells, the header has 4"))
        'plant.csv, line 17: 3 cells, the header has 4'
    """

    what: str
    place: str = ""
    reason: str
    num_bytes: int = 0
    content: bytes | None = None

    def __str__(self) -> str:
        where = f"{self.what}, {self.place}" if self.place else self.what
        return f"{where}: {self.reason}"


class Source(Protocol):
    """Raw data for `ss.ingest`. It is sent to every task, so it is small and can be pickled.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> class Countdowns:
        ...     fields = {"x": ss.Field("int64")}
        ...     threads = True
        ...     def partitions(self, target_bytes):
        ...         return [Partition(num_bytes=8 * n, content=n) for n in (3, 5)]
        ...     def read(self, partition):
        ...         yield Piece(id=f"from-{partition.content}", arrays={"x": np.arange(partition.content)[::-1]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = ss.ingest(Countdowns(), folder + "/countdowns.zarr")
        ...     ss.open(report.store).read("from-3")["x"]
        array([2, 1, 0])
    """

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields of the sequences."""
        ...

    @property
    def threads(self) -> bool:
        """Whether most of its work lets go of the interpreter lock, as input, numpy and pyarrow do.

        Where it does not, the job works with processes.
        """
        ...

    def partitions(self, target_bytes: int) -> Sequence[Partition]:
        """Cut the source into partitions of about `target_bytes` decoded bytes: a shard.

        They depend on the source and on `target_bytes`, never on the number of workers, so that the store does not
        either.
        """
        ...

    def read(self, partition: Partition) -> Iterator[Piece | Skipped]:
        """Yield what one partition holds, in order.

        Consecutive pieces of one id, across partitions too, are one sequence; an id that comes back later is an error.
        What is left out is yielded as well, as `Skipped`.
        """
        ...


def read_at_once(source: Source, partition: Partition) -> Iterator[Piece | Pieces | Skipped]:
    """What one partition holds, in as few items as the source can say it.

    A source may have a method `read_at_once(partition)`, which yields the same as its `read` and may put whole
    sequences together as `Pieces`.
    """
    read = getattr(source, "read_at_once", source.read)
    found: Iterator[Piece | Pieces | Skipped] = read(partition)
    return found


def partition_bytes(total_bytes: int, target_bytes: int) -> int:
    """How large partitions of so much data are: a shard, or less where there would be too few for many workers.

    Args:
        total_bytes: Bytes of all the data.
        target_bytes: Bytes of a shard.

    Example:
        >>> [partition_bytes(total, 64 << 20) >> 20 for total in (10**12, 10**9, 1)]
        [64, 30, 4]
    """
    share = -(-total_bytes // _FEWEST_PARTITIONS)
    whole_mib = -(-share // _MIB) * _MIB
    return max(1, min(target_bytes, max(_SMALLEST_PARTITION, whole_mib)))
