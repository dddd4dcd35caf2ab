"""`adopt_zarr`: Zarr arrays and groups of both formats as a store, read in place."""

from __future__ import annotations

import hashlib
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore, ZipStore

from streamseq.core.errors import CorruptionError, StoreError
from streamseq.storage.adopted.arrays import FIELD, ForeignArray, ForeignSequence, TimeAxis, adopt_arrays
from streamseq.storage.adopted.names import check_ids, is_address
from streamseq.storage.adopted.source import ChunkList, Descriptor, File, Source, one_line
from streamseq.storage.adopted.store import AdoptedStore
from streamseq.storage.layout import MAX_CHUNK_BYTES
from streamseq.storage.places.location import local_path

_METADATA = ("zarr.json", ".zarray")


def adopt_zarr(
    source: Any,
    time_axis: TimeAxis = 0,
    *,
    fields: Sequence[str] | Mapping[str, str] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    contents: bool = False,
) -> AdoptedStore:
    """Return a store over Zarr arrays of format 2 or 3 as they are; nothing is copied.

    Values are as they are stored: no scale, offset or missing value of a convention is applied, and a chunk that is not
    there holds the fill value. What is decoded at once is a chunk along time, or several to make about 1 MiB.

    Args:
        source: A local folder or `.zip` file, or a `zarr.Array` or `zarr.Group` that lies in one. An array is one
            sequence with the field `x`; a group one with a field for each of its arrays, or, where it only has groups,
            a sequence for each of those. The id is the last part of the path without suffix. A dict names sequences:
            id -> one of these, or `{field: array}`, or a list of any of them, whose items follow each other in time.
        time_axis: Which axis is time: its number, or the name of a dimension (of Zarr v3, or of xarray); a dict by
            field.
        fields: The arrays of groups that become fields, or a dict field -> array; None: all of them, or where
            `time_axis` is a name, those that have the dimension.
        attrs: Attributes by id, beside those in Zarr.
        contents: Read every value now, for a fingerprint of the values and checksums; see `AdoptedStore`.

    Raises:
        StoreError: There is no such array, it does not lie in local files, holds no numbers, has too large chunks, or
            does not fit the others.
        TypeError, ValueError: An argument is of a wrong type or out of range.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss, zarr
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     array = zarr.create_array(folder + "/wind.zarr", shape=(2, 100), chunks=(1, 10), dtype="int16")
        ...     array[:] = np.arange(200).reshape(2, 100)
        ...     store = ss.adopt_zarr(folder + "/wind.zarr", time_axis=1)
        ...     store.ids.to_pylist(), store.fields["x"].shape, store.read("wind", 98)["x"].tolist()
        (['wind'], (2,), [[98, 198], [99, 199]])
    """
    if isinstance(source, Mapping):
        ids = check_ids(source)
        if not ids:
            raise ValueError("at least one sequence is adopted, got an empty dict")
        sequences = []
        for id, given in zip(ids, source.values(), strict=True):
            pieces = list(_pieces(given))
            sequences.append(ForeignSequence(id=id, pieces=[piece for piece, _ in pieces], attrs=pieces[0][1]))
    else:
        node = _node(source)
        arrays, groups = _members(node)
        if groups and not arrays:
            ids, found = check_ids(groups), [_arrays(group) for group in groups.values()]
        else:
            ids, found = [Path(_where(node)).stem], [_arrays(node)]
        sequences = [
            ForeignSequence(id=id, pieces=[arrays], attrs=of_it) for id, (arrays, of_it) in zip(ids, found, strict=True)
        ]
    return adopt_arrays("zarr", sequences, time_axis=time_axis, fields=fields, attrs=attrs, contents=contents)


def _pieces(given: Any) -> Iterator[tuple[Mapping[str, ForeignArray], dict[str, Any]]]:
    """The arrays and attributes of each piece of a sequence."""
    if isinstance(given, Mapping):
        nodes = {name: _node(each) for name, each in given.items()}
        arrays = {name: _ZarrArray(node) for name, node in nodes.items() if isinstance(node, zarr.Array)}
        if not arrays or len(arrays) < len(nodes):
            raise StoreError(f"each field of a sequence is an array, got {given!r}: name arrays")
        yield arrays, {}
    elif is_address(given) or isinstance(given, zarr.Array | zarr.Group):
        yield _arrays(_node(given))
    else:
        if not isinstance(given, Iterable):
            raise TypeError(
                f"a sequence is an address, a zarr array or group, a dict or a list, got {type(given).__name__}"
            )
        several = list(given)
        if not several:
            raise ValueError("a sequence is at least one array or group, got an empty list")
        for each in several:
            yield from _pieces(each)


def _node(source: Any) -> zarr.Array[Any] | zarr.Group:
    """The array or group that somebody means."""
    if isinstance(source, zarr.Array | zarr.Group):
        _place(source)
        return source
    if not is_address(source):
        raise TypeError(f"an address, a zarr array or group, or a dict of such is adopted, got {type(source).__name__}")
    path = local_path(source)
    if not path.exists():
        raise StoreError(f"{path} does not exist: check the address")
    try:
        where = ZipStore(path, mode="r") if path.is_file() else LocalStore(path, read_only=True)
        # A document that repeats the metadata of what is below could say something else than that.
        return zarr.open(where, mode="r", use_consolidated=False)
    except Exception as error:  # whatever a malformed document leads to
        raise StoreError(f"{path} does not open as a Zarr array or group: {one_line(error)}") from None


def _arrays(node: zarr.Array[Any] | zarr.Group) -> tuple[dict[str, ForeignArray], dict[str, Any]]:
    """The arrays of a node by name, and its attributes."""
    attrs = {name: _plain(value) for name, value in node.attrs.asdict().items()}
    arrays, _ = _members(node)
    if not arrays:
        raise StoreError(f"{_where(node)} has no arrays: name a group that has")
    return {name: _ZarrArray(array) for name, array in arrays.items()}, attrs


def _members(node: zarr.Array[Any] | zarr.Group) -> tuple[dict[str, zarr.Array[Any]], dict[str, zarr.Group]]:
    """The arrays and the groups of a group, by name; an array has itself."""
    if isinstance(node, zarr.Array):
        return {FIELD: node}, {}
    try:
        return dict(sorted(node.arrays())), dict(sorted(node.groups()))
    except Exception as error:  # whatever a malformed document leads to
        raise StoreError(f"{_where(node)} has something in it that does not open: {one_line(error)}") from None


def _plain(value: Any) -> Any:
    """An attribute without numbers that JSON has no word for, which Zarr files contain all the same."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _place(node: zarr.Array[Any] | zarr.Group) -> tuple[str, str, bool]:
    """The folder or archive that a node lies in, its path there, and whether it is an archive.

    Raises:
        StoreError: It lies elsewhere.
    """
    store = node.store_path.store
    if isinstance(store, ZipStore):
        return os.path.abspath(store.path), node.store_path.path, True
    if isinstance(store, LocalStore):
        return os.path.abspath(store.root), node.store_path.path, False
    raise StoreError(
        f"what is adopted lies in local files, {node.name!r} lies in a {type(store).__name__}: copy it to a folder, or "
        "pass arrays in memory to ss.from_arrays"
    )


def _where(node: zarr.Array[Any] | zarr.Group) -> str:
    root, path, _ = _place(node)
    return os.path.join(root, path) if path else root


class _ZarrArray(ForeignArray):
    """An array in a folder or archive."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._array = array
        self._root, self._path, self._zipped = _place(array)
        self.path = self.where = _where(array)
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype)
        if self.dtype.kind in "mM":
            # Counts of their unit, since what they count from is not stored either.
            self.dtype = np.dtype(np.int64)
        _refuse_pickle(array, self.where)
        named = array.metadata.dimension_names if array.metadata.zarr_format == 3 else None
        dimensions = named or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
        if isinstance(dimensions, list | tuple) and len(dimensions) == len(self.shape):
            self.dimensions = tuple(None if each is None else str(each) for each in dimensions)

    def source(self, axis: int) -> Source:
        """See `ForeignArray.source`."""
        return ZarrSource(
            where=self.where,
            root=self._root,
            path=self._path,
            axis=axis,
            shape=self.shape,
            files=File.at(self._root) if self._zipped else ChunkFiles.scan(self.where, self._array, axis),
        )

    def add_chunks(self, chunks: ChunkList, number: int, axis: int) -> None:
        """See `ForeignArray.add_chunks`."""
        try:
            inner = self._array.chunks
        except Exception as error:  # of grids that are not regular
            raise StoreError(f"{self.where} has no regular chunks: {one_line(error)}") from None
        if any(size < 1 for size in inner):
            raise StoreError(f"{self.where} says its chunks have shape {list(inner)}: it is damaged")
        if math.prod(inner) * self._array.dtype.itemsize > MAX_CHUNK_BYTES:
            raise StoreError(
                f"a chunk is decoded whole and has at most {MAX_CHUNK_BYTES} bytes, {self.where} has chunks of shape "
                f"{list(inner)}: write it in smaller chunks"
            )
        steps = inner[axis] * max(1, chunks.usual_steps() // inner[axis])
        chunks.add_regular(number, self.shape[axis], min(steps, max(1, self.shape[axis])), self.where)


def _refuse_pickle(array: zarr.Array[Any], where: str) -> None:
    """Decoding what was pickled runs whatever code it names."""
    metadata = array.metadata.to_dict()
    for key in ("filters", "compressor", "codecs"):
        if "pickle" in str(metadata.get(key)):
            raise StoreError(f"{where} is stored with a pickle codec, which runs code of the file: write it without")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChunkFiles:
    """The files of an array in a folder as they were when it was adopted.

    Args:
        folder: The folder of the array.
        metadata: The file that describes it.
        along: Timesteps of a file.
        grid: How many files there can be along each axis.
        axis: The axis of time.
        digests: By the number of the file along time, a digest of the sizes and times of modification of all files
            with that number; those of which none exists have none.
        prefix, separator: What the name of a chunk's file begins with, and what is between its numbers.
    """

    folder: str
    metadata: File
    along: int
    grid: tuple[int, ...]
    axis: int
    digests: Mapping[int, int]
    prefix: str
    separator: str

    @classmethod
    def scan(cls, folder: str, array: zarr.Array[Any], axis: int) -> ChunkFiles:
        """Look at all files of an array."""
        metadata = next(
            (File.at(path) for name in _METADATA if os.path.exists(path := os.path.join(folder, name))), None
        )
        if metadata is None:
            raise StoreError(f"{folder} has neither {' nor '.join(_METADATA)}: check the address")
        shape = array.shards or array.chunks
        grid = tuple(-(-size // max(1, each)) for size, each in zip(array.shape, shape, strict=True))
        prefix, separator = _spelling(array)
        files = cls(
            folder=folder,
            metadata=metadata,
            along=max(1, shape[axis]),
            grid=grid,
            axis=axis,
            digests={},
            prefix=prefix,
            separator=separator,
        )
        sums: dict[int, int] = defaultdict(int)
        for key, number in files._there():
            sums[number] += _digest(folder, key)
        return cls(**{name: getattr(files, name) for name in cls.__slots__} | {"digests": dict(sums)})

    def _there(self) -> Iterator[tuple[str, int]]:
        """The keys of the chunks that exist, each with its number along time."""
        stack = [self.folder]
        while stack:
            with os.scandir(stack.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        stack.append(entry.path)
                        continue
                    key = os.path.relpath(entry.path, self.folder).replace(os.sep, "/")
                    parts = key.removeprefix(self.prefix).split(self.separator)
                    if len(parts) != max(1, len(self.grid)) or not all(part.isdecimal() for part in parts):
                        continue
                    numbers = tuple(map(int, parts))
                    inside = all(number < size for number, size in zip(numbers, self.grid, strict=True))
                    if inside and key == self._key(numbers):
                        yield key, numbers[self.axis]

    def _key(self, numbers: Sequence[int]) -> str:
        return self.prefix + self.separator.join(map(str, numbers))

    def check(self, place: int, steps: int) -> None:
        """Check the files of timesteps.

        Raises:
            CorruptionError: One has changed, is new or is gone.
        """
        self.metadata.check()
        for number in range(place // self.along, -(-(place + steps) // self.along)):
            ranges = [range(size) for size in self.grid]
            ranges[self.axis] = range(number, number + 1)
            if sum(_digest(self.folder, self._key(numbers)) for numbers in product(*ranges)) != self.digests.get(
                number, 0
            ):
                raise CorruptionError(
                    f"{self.folder} has changed since it was adopted, in the chunks number {number} along axis "
                    f"{self.axis}: adopt it again"
                )

    def stamp(self) -> object:
        """See `Source.stamp`."""
        digests = np.array(sorted(self.digests.items()), np.uint64)
        return [self.metadata.ends_crc32c, hashlib.sha256(digests.tobytes()).hexdigest()]


def _spelling(array: zarr.Array[Any]) -> tuple[str, str]:
    """What the keys of an array's chunks begin with, and what is between the numbers."""
    metadata: Any = array.metadata
    one = metadata.encode_chunk_key((7,) * 2)
    prefix, separator = one[: one.index("7")], one[one.index("7") + 1 : one.rindex("7")]
    return prefix, separator


def _digest(folder: str, key: str) -> int:
    """A digest of 32 bits of the size and time of modification of a file; 0 where there is none."""
    try:
        found = os.stat(os.path.join(folder, key))
    except FileNotFoundError:
        return 0
    text = f"{key}:{found.st_size}:{found.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


@dataclass(frozen=True, slots=True, kw_only=True)
class ZarrSource(Source):
    """A Zarr array.

    Args:
        where: What to call it in an error.
        root: The folder or archive.
        path: Its path in there.
        axis: Which axis is time.
        shape: Its shape.
        files: The archive, or the files of the array in its folder, as they were adopted.
    """

    where: str
    root: str
    path: str
    axis: int
    shape: tuple[int, ...]
    files: File | ChunkFiles

    def open(self, field: str) -> _ZarrChunks:
        """See `Source.open`."""
        store = ZipStore(self.root, mode="r") if isinstance(self.files, File) else LocalStore(self.root, read_only=True)
        array = zarr.open_array(store, path=self.path, mode="r")
        if tuple(array.shape) != self.shape:
            raise CorruptionError(
                f"{self.where} has shape {list(array.shape)} and was adopted with {list(self.shape)}: adopt it again"
            )
        return _ZarrChunks(array, self.axis)

    def descriptor(self) -> Descriptor:
        """No chunk is read straight from a file."""
        raise NotImplementedError

    def check(self, place: int, steps: int) -> None:
        """See `Source.check`."""
        if isinstance(self.files, File):
            self.files.check()
        else:
            self.files.check(place, steps)

    def stamp(self) -> object:
        """See `Source.stamp`."""
        return [self.path, self.axis, self.files.stamp()]


class _ZarrChunks:
    """Slabs of an array along time."""

    def __init__(self, array: zarr.Array[Any], axis: int) -> None:
        self._array = array
        self._axis = axis

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """See `OpenChunks.decode`."""
        slab = np.asarray(self._array[(*(slice(None),) * self._axis, slice(place, place + steps))])
        if slab.dtype.kind in "mM":
            slab = slab.view(slab.dtype.str[0] + "i8")
        slab = np.moveaxis(slab, self._axis, 0)
        native = slab.dtype.newbyteorder("=")
        if slab.flags.c_contiguous and slab.flags.owndata and slab.flags.writeable and slab.dtype == native:
            return slab
        values = spare if spare is not None and spare.shape == slab.shape else np.empty(slab.shape, native)
        values[...] = slab
        return values
