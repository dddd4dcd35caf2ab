"""`adopt_npy`: `.npy` files, and the arrays of uncompressed `.npz` files, as a store, read in place."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.storage.adopted.arrays import FIELD, ForeignArray, ForeignSequence, TimeAxis, adopt_arrays
from streamseq.storage.adopted.names import Address, check_ids, expand_all, ids_of_paths, is_address
from streamseq.storage.adopted.source import ChunkList, Descriptor, File, Source, one_line
from streamseq.storage.adopted.store import AdoptedStore

_SUFFIXES = (".npy", ".npz")
_LOCAL_HEADER_BYTES = 30


def adopt_npy(
    paths: Address | Iterable[Address] | Mapping[str, Any],
    time_axis: TimeAxis = 0,
    *,
    fields: Sequence[str] | Mapping[str, str] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
    contents: bool = False,
) -> AdoptedStore:
    """Return a store over `.npy` and uncompressed `.npz` files as they are; nothing is copied.

    An array whose first axis is time is read straight from the file to where it is needed; another one is gathered in
    chunks of about 1 MiB.

    Args:
        paths: Files, patterns such as `"data/*.npy"`, or folders: each file is a sequence, with its name without suffix
            as id. A dict names them: id -> file, or `{field: file}` for several fields, or a list of either, whose
            items follow each other in time. A `.npy` file is the field `x`, a `.npz` file has a field for each array.
        time_axis: Which axis is time; a dict by field.
        fields: The arrays of `.npz` files or dicts that become fields, or a dict field -> array; None: all.
        attrs: Attributes by id.
        contents: Read every value now, for a fingerprint of the values and checksums; see `AdoptedStore`.

    Raises:
        StoreError: A file cannot be read, is compressed, holds no numbers, or does not fit the others.
        TypeError, ValueError: An argument is of a wrong type or out of range.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(folder + "/plant-3.npy", np.arange(6, dtype=np.float32).reshape(3, 2))
        ...     store = ss.adopt_npy(folder + "/*.npy", time_axis=1)
        ...     store.ids.to_pylist(), store.fields["x"].shape, store.read("plant-3", 1)["x"]
        (['plant-3'], (3,), array([[1., 3., 5.]], dtype=float32))
    """
    if isinstance(paths, Mapping):
        sequences = [
            ForeignSequence(id=id, pieces=_pieces(given))
            for id, given in zip(check_ids(paths), paths.values(), strict=True)
        ]
        if not sequences:
            raise ValueError("at least one sequence is adopted, got an empty dict")
    else:
        files = expand_all(paths, _SUFFIXES)
        ids = check_ids(ids_of_paths(files))
        sequences = [ForeignSequence(id=id, pieces=[_open(path)]) for id, path in zip(ids, files, strict=True)]
    return adopt_arrays("npy", sequences, time_axis=time_axis, fields=fields, attrs=attrs, contents=contents)


def _pieces(given: Any) -> list[Mapping[str, ForeignArray]]:
    if isinstance(given, Mapping):
        arrays: dict[str, ForeignArray] = {}
        for name, path in given.items():
            found = _open(*expand_all([path], _SUFFIXES))
            if list(found) != [FIELD]:
                raise StoreError(f"field {name!r} is one array, and {path} has {', '.join(found)}: name a .npy file")
            arrays[name] = found[FIELD]
        return [arrays]
    if is_address(given):
        return [_open(path) for path in expand_all([given], _SUFFIXES)]
    pieces = [piece for each in given for piece in _pieces(each)]
    if not pieces:
        raise ValueError("a sequence is at least one file, got an empty list")
    return pieces


def _open(path: str) -> dict[str, ForeignArray]:
    """The arrays of a file, by name."""
    file = File.at(path)
    try:
        with open(path, "rb") as stream:
            if stream.read(4) == b"PK\x03\x04":
                return _members(file, stream)
            stream.seek(0)
            return {FIELD: _array(file, stream, path, file.num_bytes)}
    except StoreError:
        raise
    except Exception as error:  # whatever a malformed header leads to
        raise StoreError(f"{path} is not a .npy or .npz file: {one_line(error)}") from None


def _members(file: File, stream: IO[bytes]) -> dict[str, ForeignArray]:
    arrays: dict[str, ForeignArray] = {}
    with zipfile.ZipFile(stream) as archive:
        for member in archive.infolist():
            where = f"{file.path}, array {member.filename.removesuffix('.npy')!r}"
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise StoreError(f"{where} is compressed and cannot be read in place: write it with np.savez")
            stream.seek(member.header_offset)
            header = stream.read(_LOCAL_HEADER_BYTES)
            name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
            start = member.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
            stream.seek(start)
            arrays[member.filename.removesuffix(".npy")] = _array(file, stream, where, start + member.file_size)
    return arrays


def _array(file: File, stream: IO[bytes], where: str, end: int) -> _NpyArray:
    """The array that begins where the stream is and ends before `end`."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its format is {version[0]}.{version[1]}, of the formats for numbers there are 1.0 and 2.0")
    with warnings.catch_warnings():
        # An old file may be one that numpy warns of.
        warnings.simplefilter("ignore")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = read(stream)
    offset = stream.tell()
    if dtype.hasobject or dtype.names is not None:
        raise StoreError(f"{where} has dtype {dtype}, and a field holds numbers: write each variable as its own array")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > min(end, file.num_bytes) - offset:
        raise StoreError(
            f"{where} says it has shape {list(shape)} of {dtype}, for which it is too short: it is damaged"
        )
    return _NpyArray(file, where, tuple(shape), dtype, fortran_order, offset)


class _NpyArray(ForeignArray):
    """An array whose values lie together in a file."""

    def __init__(
        self, file: File, where: str, shape: tuple[int, ...], dtype: np.dtype, fortran_order: bool, offset: int
    ) -> None:
        self.path = file.path
        self.where = where
        self.shape = shape
        self.dtype = dtype
        self._file = file
        self._fortran_order = fortran_order and len(shape) > 1
        self._offset = offset

    def source(self, axis: int) -> Source:
        """See `ForeignArray.source`."""
        return NpySource(
            where=self.where,
            file=self._file,
            offset=self._offset,
            # Of Fortran order is the array with its axes reversed that has C order.
            shape=self.shape[::-1] if self._fortran_order else self.shape,
            dtype=self.dtype.str,
            axis=len(self.shape) - 1 - axis if self._fortran_order else axis,
            reverse=self._fortran_order,
        )

    def add_chunks(self, chunks: ChunkList, number: int, axis: int) -> None:
        """See `ForeignArray.add_chunks`."""
        direct = axis == 0 and not self._fortran_order and self.dtype.isnative
        chunks.add_regular(number, self.shape[axis], chunks.usual_steps(), self.where, self._offset if direct else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class NpySource(Source):
    """An array of C order in a file.

    Args:
        where: What to call it in an error.
        file: The file.
        offset: Where its values begin.
        shape: Its shape.
        dtype: Its dtype as numpy spells it, with the order of bytes.
        axis: Which axis is time.
        reverse: Whether the axes are reversed once it is read.
    """

    where: str
    file: File
    offset: int
    shape: tuple[int, ...]
    dtype: str
    axis: int
    reverse: bool

    def open(self, field: str) -> _Gathered:
        """See `Source.open`."""
        return _Gathered(self)

    def descriptor(self) -> Descriptor:
        """See `Source.descriptor`."""
        return Descriptor(self.file)

    def check(self, place: int, steps: int) -> None:
        """See `Source.check`."""
        self.file.check()

    def stamp(self) -> object:
        """See `Source.stamp`."""
        return [self.file.stamp(), self.offset, self.shape, self.dtype, self.axis, self.reverse]


class _Gathered:
    """Chunks whose timesteps do not lie together."""

    def __init__(self, source: NpySource) -> None:
        self._source = source
        self._file = source.descriptor()
        self._dtype = np.dtype(source.dtype)

    def decode(self, place: int, steps: int, spare: NDArray[Any] | None) -> NDArray[Any]:
        """See `OpenChunks.decode`."""
        source, dtype = self._source, self._dtype
        before, length, after = source.shape[: source.axis], source.shape[source.axis], source.shape[source.axis + 1 :]
        step_bytes = math.prod(after) * dtype.itemsize
        found = np.empty((math.prod(before), steps, *after), dtype)
        for outer in range(len(found)):
            rest = found[outer].reshape(-1).view(np.uint8).data
            at = source.offset + (outer * length + place) * step_bytes
            while rest:
                count = os.preadv(self._file.number, [rest], at)
                if not count:
                    raise EOFError("it ends early")
                rest, at = rest[count:], at + count
        array = found.reshape(*before, steps, *after)
        if source.reverse:
            array = array.transpose()
        array = np.moveaxis(array, array.ndim - 1 - source.axis if source.reverse else source.axis, 0)
        shape = array.shape
        values = spare if spare is not None and spare.shape == shape else np.empty(shape, dtype.newbyteorder("="))
        values[...] = array
        return values
