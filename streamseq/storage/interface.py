"""What every store and every reader offers, so that the code that streams need not know where the data lies."""

from __future__ import annotations

import math
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.core.fields import Field
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.statistics.kept import NAME, read_statistics
from streamseq.storage.strict_json import parse_json

if TYPE_CHECKING:
    import xarray

    from streamseq.storage.boundaries.kept import StoredBoundaries
    from streamseq.storage.upkeep.findings import VerifyReport

Int64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Where spans of one field lie: P parts, each in one chunk, in the order of the spans and of their timesteps.

    Args:
        field: The field.
        chunk: int64 [P], the numbers of the chunks, which mean something to the reader that gave them.
        low: int64 [P], the first timestep in the chunk.
        count: int64 [P], timesteps.
        span: int64 [P], the number of the span.
        offset: int64 [P], timesteps of the span before the part.
    """

    field: str
    chunk: Int64
    low: Int64
    count: Int64
    span: Int64
    offset: Int64

    def __len__(self) -> int:
        return len(self.chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class InFile:
    """Bytes of an open file: a chunk that is stored as it is, or what it is decoded from.

    Args:
        file: What keeps the file open.
        descriptor: Its descriptor.
        offset: The position of the first byte.
        num_bytes: How many.
    """

    file: object
    descriptor: int
    offset: int
    num_bytes: int

    def read(self, dtype: np.dtype, shape: tuple[int, ...], start: int, stop: int) -> NDArray[Any]:
        """Timesteps `[start, stop)` of a chunk that is stored as it is, of the given dtype and step shape.

        Raises:
            EOFError: The file ends early.
        """
        values = np.empty((stop - start, *shape), dtype)
        step_bytes = dtype.itemsize * math.prod(shape)
        rest, position = values.reshape(-1).view(np.uint8).data, self.offset + start * step_bytes
        while rest:
            count = os.preadv(self.descriptor, [rest], position)
            if not count:
                raise EOFError("a file ends early")
            rest, position = rest[count:], position + count
        return values


@dataclass(slots=True, kw_only=True)
class ReaderCounts:
    """What a reader did.

    Args:
        loaded: Chunks that were asked for.
        decoded: Chunks that were decoded for that, or found in their file.
        decoded_bytes: Their size, decoded.
        decoding: Seconds that decoding took, in whatever thread.
    """

    loaded: int = 0
    decoded: int = 0
    decoded_bytes: int = 0
    decoding: float = 0.0

    def __add__(self, other: ReaderCounts) -> ReaderCounts:
        names = self.__slots__
        return ReaderCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


class Reader(ABC):
    """Reads timesteps of sequences in small steps, keeping decoded chunks.

    Several threads may `load`, `prefetch` and ask for `extents` at once; each iteration of a stream makes a reader of
    its own.
    """

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The fields that are read."""

    @property
    @abstractmethod
    def lengths(self) -> Int64:
        """int64 [N], timesteps of each sequence."""

    @property
    def counts(self) -> ReaderCounts:
        """What was read and decoded so far; of a reader that decodes nothing all zero."""
        return ReaderCounts()

    @abstractmethod
    def locate(self, field: str, spans: tuple[Int64, Int64, Int64]) -> Parts:
        """Find out where spans lie, without reading them.

        Args:
            field: The field.
            spans: Sequence, start and stop of each of S spans, int64 `[S]` each; none empty, each in its sequence
                (which is not checked).

        Raises:
            ValueError: The reader does not read this field, or is closed.
        """

    @abstractmethod
    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """Return chunks whole, read-only arrays `[m, *D]`, or where they are stored as they are.

        The arrays are decoded chunks or the user's own, and stay valid however long they are held.

        Args:
            field: The field.
            chunks: Their numbers.
            uses: How many timesteps of each are going to be read.

        Raises:
            CorruptionError: Stored bytes are not what was written.
        """

    def arrays(self, parts: Parts) -> Iterator[NDArray[Any]]:
        """Yield the parts, arrays `[count, *D]`; where chunks are decoded, views of them.

        Raises:
            CorruptionError: Stored bytes are not what was written.
        """
        field = self.fields[parts.field]
        columns = (parts.chunk.tolist(), parts.low.tolist(), parts.count.tolist())
        for number, low, count in zip(*columns, strict=True):
            (chunk,) = self.load(parts.field, [number], [count])
            if isinstance(chunk, InFile):
                try:
                    yield chunk.read(field.dtype, field.shape, low, low + count)
                except EOFError:
                    raise CorruptionError(f"a chunk of field {parts.field!r} ends early: restore the shard") from None
            else:
                yield chunk[low : low + count]

    def extents(self, field: str, chunks: Sequence[int]) -> list[InFile]:
        """Where chunks lie that are going to be asked for, so that the operating system can begin to read them.

        Those that are there or were asked for lately are left out, and those whose file is not open and had to be
        closed again before.
        """
        return []

    def prefetch(self, field: str, chunks: Sequence[int]) -> bool:
        """Begin to decode chunks that `load` is going to be asked for; False where there is no room for all yet."""
        return True

    def slices(self, field: str, sequence: int, start: int, stop: int) -> Iterator[NDArray[Any]]:
        """Return the arrays `[m, *D]` that together are timesteps `[start, stop)` of a sequence.

        Raises:
            CorruptionError: Stored bytes are not what was written.
            IndexError: There is no such sequence.
            ValueError: The reader does not read this field, the span does not lie in the sequence, or the reader is
                closed.
        """
        lengths = self.lengths
        if not 0 <= sequence < len(lengths):
            raise IndexError(f"sequences are numbered from 0 to {len(lengths) - 1}, got {sequence}")
        if not 0 <= start <= stop <= lengths[sequence]:
            raise ValueError(
                f"a span has 0 <= start <= stop <= length, got start {start}, stop {stop} and length "
                f"{lengths[sequence]} of sequence {sequence}"
            )
        span = np.array([[sequence], [start], [stop]], np.int64)[:, : int(start < stop)]
        return self.arrays(self.locate(field, (span[0], span[1], span[2])))

    @abstractmethod
    def close(self) -> None:
        """Close files and drop decoded chunks. Arrays that were handed out stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_limits(cache_chunks: int, ahead: int) -> None:
    """Check the limits of a reader.

    Raises:
        ValueError: One is out of range.
    """
    if cache_chunks < 1:
        raise ValueError(f"a reader keeps at least one chunk of each field, got cache_chunks {cache_chunks}")
    if ahead < 0:
        raise ValueError(f"a reader decodes 0 or more chunks ahead, got ahead {ahead}")


class Store(ABC):
    """Sequences that can be read: a version of a store on disk, or arrays in memory."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where the store lies."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """How it is stored: "zarr", "arrow" or "memory"; of adopted files "zarr", "parquet", "arrow" or "npy"."""

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The fields by name."""

    @property
    @abstractmethod
    def version(self) -> int:
        """The version that is read here, from 1."""

    @property
    @abstractmethod
    def versions(self) -> list[int]:
        """The versions that exist now, ascending."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hexadecimal digest of the contents: fields, ids, attributes, lengths and values.

        The same writes give the same fingerprint anywhere and at any time; a different value gives another one.
        """

    @property
    @abstractmethod
    def ids(self) -> pa.Array:
        """The N ids, an Arrow (large) string array in commit order."""

    @property
    @abstractmethod
    def lengths(self) -> NDArray[np.int64]:
        """int64 `[N]`: timesteps of each sequence; read-only."""

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """Timesteps of all sequences together."""

    @property
    @abstractmethod
    def decoded_chunk_bytes(self) -> Mapping[str, int]:
        """What a chunk of each field takes in memory while it is kept decoded; 0 where nothing is decoded."""

    @property
    @abstractmethod
    def chunk_timesteps(self) -> Mapping[str, int]:
        """Timesteps that are decoded at once, by field."""

    @abstractmethod
    def reader(self, fields: Sequence[str], cache_chunks: int, ahead: int = 0) -> Reader:
        """Return a reader of some fields.

        Args:
            fields: The fields to read; one that is named twice is read twice, as is one that is also looked ahead in.
            cache_chunks: Decoded chunks that are kept of each field at most.
            ahead: Chunks of each field that a thread of the reader's own may decode before they are asked for, beside
                those that are kept; 0: there is no such thread.

        Raises:
            ValueError: There is no such field, `cache_chunks` is less than 1, or `ahead` is negative.
        """

    @abstractmethod
    def _read(self, sequence: int, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Read a span that was checked."""

    @abstractmethod
    def attrs_json(self, sequence: int) -> str:
        """Return the attributes of a sequence that exists, as JSON text."""

    @abstractmethod
    def find(self, id: str) -> int | None:
        """Return the index of an id, None where there is no such sequence."""

    def attachment(self, name: str) -> bytes | None:
        """Return what is said of this version beside its contents, under a name; None where nothing is.

        Raises:
            CorruptionError: It is not what was written.
        """
        return None

    @cached_property
    def statistics(self) -> Mapping[str, Statistics] | None:
        """What is known of the values of each field, where it is kept with this version; else None.

        It is gathered while a store is written. Of any other store `ss.statistics` computes it, and `ss.describe` keeps
        it. Fields with more than 16,384 numbers a timestep have none.

        Raises:
            CorruptionError: It is not what was written.

        Example:
            >>> import tempfile, numpy as np, streamseq as ss
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     with ss.create(folder + "/plants.zarr", {"x": ss.Field("float32", (2,))}) as writer:
            ...         writer.write("plant-3", x=np.float32([[1, 5], [3, 9]]))
            ...     x = ss.open(folder + "/plants.zarr").statistics["x"]
            >>> x.mean, x.std
            (array([2., 7.]), array([1., 2.]))
        """
        content = self.attachment(NAME)
        if content is None:
            return None
        try:
            return read_statistics(content, self.fields, self.num_timesteps)
        except ValueError as error:
            raise CorruptionError(
                f"the statistics of {self.uri} version {self.version} cannot be read: {error}: ss.describe makes others"
            ) from None

    @property
    def attachment_names(self) -> list[str]:
        """The names under which something is said of this version beside its contents."""
        return []

    @property
    def boundary_names(self) -> list[str]:
        """The names of boundaries that are stored; see `ss.mark`."""
        from streamseq.storage.boundaries.kept import PREFIX

        return sorted(name.removeprefix(PREFIX) for name in self.attachment_names if name.startswith(PREFIX))

    def boundaries(self, name: str) -> StoredBoundaries:
        """Return boundaries that were found before and are stored beside the sequences; see `ss.mark`.

        Args:
            name: Their name.

        Returns:
            By id: positions and which of them are breaks.

        Raises:
            KeyError: There are none of this name.
            CorruptionError: They are not what was written.
        """
        from streamseq.storage.boundaries.kept import PREFIX, parse_boundaries

        content = self.attachment(PREFIX + name)
        if content is None:
            names = ", ".join(map(repr, self.boundary_names)) or "none"
            raise KeyError(
                f"{self.uri} version {self.version} has no boundaries {name!r}, it has {names}: ss.mark finds and "
                "stores them"
            )
        return parse_boundaries(content, self, name)

    def __len__(self) -> int:
        """N, the number of sequences."""
        return len(self.ids)

    def length(self, sequence: int) -> int:
        """Return the timesteps of a sequence that exists, without looking at the others where that is slower."""
        return int(self.lengths[sequence])

    def id_of(self, sequence: int) -> str:
        """Return the id of a sequence that exists, without looking at the others where that is slower."""
        id: str = self.ids[sequence].as_py()
        return id

    def indices(self, ids: Sequence[str]) -> Int64:
        """Return the indices of sequences in `ids`, int64 `[M]`: as `index`, faster for many.

        Raises:
            KeyError: There is no sequence with one of these ids.
            TypeError: An id is not a string.
        """
        return np.array([self.index(id) for id in ids], np.int64)

    def index(self, id: str) -> int:
        """Return the index of a sequence in `ids`.

        Raises:
            KeyError: There is no sequence with this id.
            TypeError: The id is not a string.
        """
        if not isinstance(id, str):
            raise TypeError(f"a sequence's id is a str, got {type(id).__name__}")
        found = self.find(id)
        if found is None:
            raise self._no_sequence(id)
        return found

    def _no_sequence(self, id: str) -> KeyError:
        return KeyError(f"there is no sequence {id!r} in {self.uri} version {self.version}: see store.ids")

    def attrs(self, id_or_index: str | int) -> dict[str, Any]:
        """Return the attributes of a sequence, a new dict at each call.

        Raises:
            KeyError: There is no sequence with this id.
            IndexError: There is no sequence with this index.
            CorruptionError: What is stored is no JSON object.
        """
        index = self._index(id_or_index)
        try:
            attrs = parse_json(self.attrs_json(index).encode())
        except ValueError as error:
            raise CorruptionError(f"the attributes of sequence {index} of {self.uri} are not JSON: {error}") from None
        if not isinstance(attrs, dict):
            raise CorruptionError(f"the attributes of sequence {index} of {self.uri} are no JSON object: {attrs!r}")
        return attrs

    def read(
        self, id_or_index: str | int, start: int = 0, stop: int | None = None, fields: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Read timesteps `[start, stop)` of one sequence.

        Args:
            id_or_index: The id of the sequence, or its index in `ids`.
            start: The first timestep.
            stop: The timestep after the last one; None: the end of the sequence.
            fields: The fields to read; None: all.

        Returns:
            One array `[stop - start, *D]` per field, the caller's own.

        Raises:
            KeyError: There is no sequence with this id.
            IndexError: There is no sequence with this index.
            ValueError: The span does not lie in the sequence, or there is no such field.
            CorruptionError: Stored bytes are not what was written.

        Example:
            >>> import streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0, 3.0]}})
            >>> store.read("a", 1)["x"]
            array([2., 3.])
        """
        sequence = self._index(id_or_index)
        length = self.length(sequence)
        first = operator.index(start)
        last = length if stop is None else operator.index(stop)
        if not 0 <= first <= last <= length:
            raise ValueError(
                f"a span has 0 <= start <= stop <= length, got start {first}, stop {last} and length {length} "
                f"of {self.id_of(sequence)!r}"
            )
        return self._read(sequence, first, last, self._names(fields))

    def at_version(self, version: int | None = None) -> Store:
        """Return this store at another version.

        Args:
            version: The version; None: the newest one there is now.

        Returns:
            The store itself where it is of this version. One that is in memory, or was adopted, has no other.

        Raises:
            StoreError: There is no such version.

        Example:
            >>> import streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0]}})
            >>> store.at_version() is store
            True
        """
        if version is not None and version != self.version:
            raise StoreError(f"{self.uri} has version {self.version} alone, got {version}: open that one")
        return self

    def to_arrow(
        self,
        ids: str | int | Iterable[str | int] | None = None,
        fields: Sequence[str] | None = None,
        *,
        id_name: str = "id",
        position_name: str = "position",
    ) -> pa.Table:
        """Sequences end to end as an Arrow table, a row a timestep; all of it is read into memory.

        Attributes are not in it: see `attrs`. For more than fits in memory there is `to_arrow_batches`.

        Args:
            ids: An id or index, several in any order, or None for all.
            fields: The fields; None: all.
            id_name: The name of the column of ids (large string).
            position_name: The name of the column of positions in the sequence (int64).

        Returns:
            Columns of ids, of positions, then the fields, those with a step shape as `fixed_shape_tensor`.

        Raises:
            KeyError: There is no sequence with this id.
            IndexError: There is no sequence with this index.
            ValueError: There is no such field, or two columns have one name.
            CorruptionError: Stored bytes are not what was written.

        Example:
            >>> import streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": [1.5, 2.5]}, "b": {"x": [3.5]}})
            >>> store.to_arrow().to_pylist()[1:]
            [{'id': 'a', 'position': 1, 'x': 2.5}, {'id': 'b', 'position': 0, 'x': 3.5}]
        """
        return self.to_arrow_batches(ids, fields, id_name=id_name, position_name=position_name).read_all()

    def to_arrow_batches(
        self,
        ids: str | int | Iterable[str | int] | None = None,
        fields: Sequence[str] | None = None,
        *,
        id_name: str = "id",
        position_name: str = "position",
        batch_bytes: int | str = "16 MiB",
    ) -> pa.RecordBatchReader:
        """What `to_arrow` returns, read batch by batch: for what does not fit in memory.

        Args:
            ids: See `to_arrow`.
            fields: See `to_arrow`.
            id_name: See `to_arrow`.
            position_name: See `to_arrow`.
            batch_bytes: About the bytes of a batch, or text such as "16 MiB"; at least one timestep.

        Raises:
            What `to_arrow` raises: `CorruptionError` when the batch is read.

        Example:
            >>> import streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": [1.5, 2.5]}, "b": {"x": [3.5]}})
            >>> [batch.num_rows for batch in store.to_arrow_batches(batch_bytes=70)]
            [2, 1]
        """
        from streamseq.storage.export.arrow import arrow_batches

        names = {"id_name": id_name, "position_name": position_name}
        return arrow_batches(self, ids, fields, **names, batch_bytes=batch_bytes)

    def to_xarray(
        self,
        ids: str | int | Iterable[str | int] | None = None,
        fields: Sequence[str] | None = None,
        *,
        id_name: str = "id",
        position_name: str = "position",
    ) -> xarray.Dataset:
        """Sequences end to end as an xarray dataset, which reads what is indexed, when it is needed.

        The fields are variables along the dimension "timestep"; the axes of a step shape have the dimensions `x_0`,
        `x_1`, ... of a field `x`, as in Zarr shards. `.chunk()` makes Dask arrays of them.

        Args:
            ids: One id or index, several in any order, or None for all.
            fields: The fields; None: all.
            id_name: The name of the coordinate of ids.
            position_name: The name of the coordinate of positions in the sequence.

        Returns:
            Of one id a dataset with its attributes, its id and, along "timestep", positions. Of several, or all, one
            with coordinates along "timestep": ids, positions, and `sequence_attrs`, the attributes as JSON.

        Raises:
            ImportError: xarray is not installed: `pip install streamseq[xarray]`.
            KeyError: There is no sequence with this id.
            IndexError: There is no sequence with this index.
            ValueError: There is no such field, or a field has the name of a coordinate or dimension.
            CorruptionError: Stored bytes are not what was written; when they are read.

        Example:
            >>> import streamseq as ss
            >>> store = ss.from_arrays({"a": {"x": [1.5, 2.5]}, "b": {"x": [3.5]}}, attrs={"a": {"site": "north"}})
            >>> store.to_xarray("a").attrs, store.to_xarray("a")["x"].values
            ({'site': 'north'}, array([1.5, 2.5]))
            >>> store.to_xarray()["x"].groupby("id").max().values
            array([2.5, 3.5])
        """
        from streamseq.storage.export.xarray import xarray_dataset

        return xarray_dataset(self, ids, fields, id_name=id_name, position_name=position_name)

    def verify(self, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Read all of it, and say what is not as it was written; it does not stop at the first problem.

        Args:
            workers: Threads that read, where that helps; None: one a core.
            progress: Called with how much is done and how much there is.

        Returns:
            The report: `ok`, `problems`, and the `spans` of sequences that cannot be read.

        Example:
            >>> import streamseq as ss
            >>> ss.from_arrays({"a": {"x": [1.0, 2.0, 3.0]}}).verify().ok
            True
        """
        from streamseq.storage.upkeep.verify_reading import verify_by_reading

        return verify_by_reading(self, progress)

    def _index(self, id_or_index: str | int) -> int:
        if isinstance(id_or_index, str):
            return self.index(id_or_index)
        try:
            index = operator.index(id_or_index)
        except TypeError:
            raise TypeError(f"a sequence is named by its id or its index, got {type(id_or_index).__name__}") from None
        if not 0 <= index < len(self):
            raise IndexError(f"sequences are numbered from 0 to {len(self) - 1}, got {index}")
        return index

    def _names(self, fields: Sequence[str] | None) -> list[str]:
        if fields is None:
            return list(self.fields)
        if isinstance(fields, str):
            raise TypeError(f"fields is a list of names, got the string {fields!r}: put it in a list")
        for name in fields:
            if name not in self.fields:
                raise ValueError(f"there is no field {name!r} in {self.uri}: it has {', '.join(self.fields)}")
        return list(fields)

    def __repr__(self) -> str:
        fields = ", ".join(
            f"{name} {field.dtype}{list(field.shape) if field.shape else ''}" for name, field in self.fields.items()
        )
        return (
            f"<Store {self.uri!r} version {self.version} ({self.backend}): {len(self):,} sequences, "
            f"{self.num_timesteps:,} timesteps of {fields}>"
        )
