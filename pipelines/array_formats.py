"""Arrays in files, opened alike: `.npy`, `.npz`, HDF5, NetCDF and Zarr."""

from __future__ import annotations

import math
import os
import threading
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, Any

import fsspec.core
import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from streamseq.etl import SourceError

from .file_bytes import FileError, check_unchanged
from .files import InputFile
from .netcdf_classic import least_size

Index = tuple[int | slice, ...]

_SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".he5": "hdf5",
    ".nc": "netcdf",
    ".nc4": "netcdf",
    ".cdf": "netcdf",
    ".zarr": "zarr",
}
FORMATS = ("npy", "npz", "hdf5", "netcdf", "zarr")
FIELD = "x"
_REASON = 200
# The NetCDF library may be in one thread at a time.
_NETCDF = threading.Lock()


class ArrayProblem(Exception):
    """A file, or part of an array, cannot be read; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayFile:
    """A file, or a Zarr folder, of arrays.

    Args:
        input: As it was found; of Zarr `size` is that of all its files.
        format: One of `FORMATS`.
        stamp: Of Zarr a hash of what tells its files from others: names, sizes, times of modification.
    """

    input: InputFile
    format: str
    stamp: str = ""

    @property
    def address(self) -> str:
        """The absolute path, or the URL."""
        return self.input.address


class OpenArray(ABC):
    """One array of a file that is open.

    Args:
        shape: Its shape.
        dtype: The dtype of what `read` returns.
        dims: The names of its axes, where they have some.
        chunks: The shape of what is decoded at once; None where there are no chunks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    dims: tuple[str | None, ...] | None = None
    chunks: tuple[int, ...] | None = None

    @abstractmethod
    def read(self, index: Index) -> NDArray[Any]:
        """Read a part: of each axis a slice with start and stop, or one place."""


def format_of(address: str) -> str | None:
    """The format that the suffix of a name says."""
    return _SUFFIXES.get(os.path.splitext(address.lower().rstrip("/"))[1])


def patterns() -> tuple[str, ...]:
    """Globs of the names of files, not folders, whose format is known."""
    names = [suffix for suffix, kind in _SUFFIXES.items() if kind != "zarr"]
    return tuple("*" + "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in name) for name in names)


@contextmanager
def opened(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    """Open a file and yield its arrays by name; those in groups by their path, with `/`.

    Raises:
        ArrayProblem: It cannot be read, or is not the file that was found.
        SourceError: A package is missing.
    """
    with ExitStack() as stack:
        try:
            check_same(file)
            arrays = stack.enter_context(_OPEN[file.format](file))
        except SourceError:
            raise
        except ArrayProblem:
            raise
        except Exception as error:  # whatever a malformed file leads to in five libraries
            raise ArrayProblem(one_line(error)) from error
        yield arrays


def check_same(file: ArrayFile) -> None:
    """Check that a file is still the one that was found; of a Zarr folder that is too much to ask each time.

    Raises:
        ArrayProblem: It has changed.
        OSError: It is gone.
    """
    if file.format != "zarr":
        try:
            check_unchanged(file.input)
        except FileError as error:
            raise ArrayProblem(error.reason) from error


def one_line(error: BaseException) -> str:
    """What an error says, in one line of bounded length."""
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    text = " ".join(text.split())
    return text if len(text) <= _REASON else text[:_REASON] + "…"


def _binary(file: ArrayFile) -> IO[bytes]:
    if file.input.modified is not None:
        return open(file.address, "rb")
    system, path = fsspec.core.url_to_fs(file.address)
    stream: IO[bytes] = system.open(path, "rb")
    return stream


@dataclass(frozen=True, slots=True)
class _Header:
    """What a `.npy` says before its values."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _header(stream: IO[bytes]) -> _Header:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ArrayProblem(f"its format is {version[0]}.{version[1]}, of the formats for numbers there are 1.0 and 2.0")
    with warnings.catch_warnings():
        # An old file may be one that numpy warns of.
        warnings.simplefilter("ignore")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    if min(shape, default=0) < 0:
        raise ArrayProblem(f"it says that its shape is {list(shape)}: it is damaged")
    return _Header(tuple(shape), fortran and len(shape) > 1, dtype)


@contextmanager
def _open_npy(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    with _binary(file) as stream:
        header = _header(stream)
        if not header.dtype.hasobject and header.num_bytes > file.input.size - stream.tell():
            raise ArrayProblem(f"it is too short for shape {list(header.shape)} of {header.dtype}: it is damaged")
        yield {FIELD: _NpyArray(stream, header, stream.tell())}


class _NpyArray(OpenArray):
    """Values that lie in a file one after the other."""

    def __init__(self, stream: IO[bytes], header: _Header, offset: int) -> None:
        self.shape, self.dtype = header.shape, header.dtype
        self._stream, self._fortran, self._offset = stream, header.fortran, offset

    def read(self, index: Index) -> NDArray[Any]:
        if self._fortran:
            # Of Fortran order is the array with its axes reversed that has C order.
            part = self._read(index[::-1], self.shape[::-1])
            return part.transpose()
        return self._read(index, self.shape)

    def _read(self, index: Index, shape: tuple[int, ...]) -> NDArray[Any]:
        """Read each run of values that lie together on its own."""
        spans = [(each, each + 1) if isinstance(each, int) else (each.start, each.stop) for each in index]
        # Axes from `inner` on are read whole, so that what lies in them is one run with the axis before.
        inner = len(shape)
        while inner > 1 and spans[inner - 1] == (0, shape[inner - 1]):
            inner -= 1
        outer = tuple(stop - start for start, stop in spans[: inner - 1])
        first, last = spans[inner - 1]
        width = math.prod(shape[inner:])
        values = np.empty((*outer, (last - first) * width), self.dtype)
        for place in np.ndindex(*outer):
            at = 0
            for axis, each in enumerate(place):
                at = at * shape[axis] + spans[axis][0] + each
            at = (at * shape[inner - 1] + first) * width
            self._stream.seek(self._offset + at * self.dtype.itemsize)
            run = values[place]
            if self._stream.readinto(run.view(np.uint8).data) != run.nbytes:  # type: ignore[attr-defined]
                raise ArrayProblem("it ends early")
        whole = values.reshape([stop - start for start, stop in spans])
        return whole[tuple(0 if isinstance(each, int) else slice(None) for each in index)]


@contextmanager
def _open_npz(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    with _binary(file) as stream, zipfile.ZipFile(stream) as archive, ExitStack() as stack:
        arrays: dict[str, OpenArray] = {}
        for member in archive.infolist():
            array = _NpzArray(archive, member)
            stack.callback(array.close)
            arrays[member.filename.removesuffix(".npy")] = array
        yield arrays


class _NpzArray(OpenArray):
    """A member of a zip file, which can only be read from its start on.

    Time along the first axis of an array in C order goes through it once; otherwise all of it is held.
    """

    def __init__(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        self._archive, self._member = archive, member
        self._stream: IO[bytes] | None = None
        self._at = 0
        self._held: NDArray[Any] | None = None
        with archive.open(member) as stream:
            self._header = _header(stream)
        self.shape, self.dtype = self._header.shape, self._header.dtype
        if not self.dtype.hasobject and self._header.num_bytes > member.file_size:
            raise ArrayProblem(f"array {member.filename!r} is too short for shape {list(self.shape)}: it is damaged")

    def read(self, index: Index) -> NDArray[Any]:
        first, rest = index[0], index[1:]
        whole = all(
            isinstance(each, slice) and (each.start, each.stop) == (0, n)
            for each, n in zip(rest, self.shape[1:], strict=True)
        )
        if self._header.fortran or not whole or isinstance(first, int):
            if self._held is None:
                values = self._next(0, math.prod(self.shape))
                order = self.shape[::-1] if self._header.fortran else self.shape
                self._held = values.reshape(order).transpose() if self._header.fortran else values.reshape(order)
            return self._held[index]
        width = math.prod(self.shape[1:])
        values = self._next(first.start * width, (first.stop - first.start) * width)
        return values.reshape(first.stop - first.start, *self.shape[1:])

    def _next(self, start: int, count: int) -> NDArray[Any]:
        if self._stream is None or start < self._at:
            self.close()
            self._stream = self._archive.open(self._member)
            _header(self._stream)
            self._at = 0
        while self._at < start:
            step = min(start - self._at, 1 << 20)
            self._fill(np.empty(step, self.dtype))
        values = np.empty(count, self.dtype)
        self._fill(values)
        if self._at == math.prod(self.shape):
            # At its end the stream compares all that was read with the checksum.
            assert self._stream is not None
            self._stream.read(1)
        return values

    def _fill(self, values: NDArray[Any]) -> None:
        assert self._stream is not None
        left = values.view(np.uint8).data
        while left:
            count = self._stream.readinto(left)  # type: ignore[attr-defined]
            if not count:
                raise ArrayProblem("it ends early")
            left = left[count:]
        self._at += len(values)

    def close(self) -> None:
        """Close the member."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None


class _Slices(OpenArray):
    """An array of a library that takes slices."""

    def __init__(
        self,
        array: Any,
        dims: tuple[str | None, ...] | None,
        chunks: tuple[int, ...] | None,
        dtype: np.dtype | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> None:
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype) if dtype is None else dtype
        self.dims, self.chunks = dims, chunks
        self._array = array
        self._lock = lock or nullcontext()

    def read(self, index: Index) -> NDArray[Any]:
        with self._lock:
            values = self._array[index]
        if isinstance(values, np.ma.MaskedArray):
            # A value that is missing in a packed or float variable.
            values = np.ma.filled(values.astype(self.dtype), np.nan)
        return np.asarray(values, self.dtype)


@contextmanager
def _open_hdf5(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    try:
        import h5py
    except ImportError:
        raise SourceError(f"{file.address!r} is HDF5, which needs h5py: pip install streamseq[hdf5]") from None
    arrays: dict[str, OpenArray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and item.shape is not None:
            dims = tuple(dim.label or (dim[0].name.rpartition("/")[2] if len(dim) else None) for dim in item.dims)
            arrays[name] = _Slices(item, dims, item.chunks)

    with ExitStack() as stack:
        source: Any = file.address
        if file.input.modified is None:
            source = stack.enter_context(_binary(file))
        opened = stack.enter_context(h5py.File(source, "r"))
        opened.visititems(visit)
        yield arrays


@contextmanager
def _open_netcdf(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    try:
        import netCDF4
    except ImportError:
        raise SourceError(f"{file.address!r} is NetCDF, which needs netCDF4: pip install streamseq[netcdf]") from None
    if file.input.modified is None:
        raise ArrayProblem("the NetCDF library reads local files only: copy it to a disk first")
    with _binary(file) as stream:
        if (least := least_size(stream)) > file.input.size:
            raise ArrayProblem(f"it has {file.input.size} bytes, and its header speaks of {least}: it was cut off")
    with _NETCDF:
        opened = netCDF4.Dataset(file.address, "r")
        arrays: dict[str, OpenArray] = {name: _variable(variable) for name, variable in _variables(opened, "")}
    try:
        yield arrays
    finally:
        with _NETCDF:
            opened.close()


def _variables(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, variable in group.variables.items():
        yield prefix + name, variable
    for name, inner in group.groups.items():
        yield from _variables(inner, f"{prefix}{name}/")


def _variable(variable: Any) -> _Slices:
    chunks = variable.chunking()
    dtype = variable.dtype if isinstance(variable.dtype, np.dtype) else np.dtype(object)
    packed = {"scale_factor", "add_offset"} & set(variable.ncattrs())
    # The numbers that were packed, as the conventions say; integers that are not packed stay what they are.
    decode = bool(packed) or dtype.kind == "f"
    variable.set_auto_maskandscale(decode)
    if packed and dtype.kind in "iu":
        dtype = np.dtype("float32" if dtype.itemsize <= 2 else "float64")
    chunks = None if chunks in (None, "contiguous") else tuple(chunks)
    return _Slices(variable, tuple(variable.dimensions), chunks, dtype.newbyteorder("="), _NETCDF)


@contextmanager
def _open_zarr(file: ArrayFile) -> Iterator[dict[str, OpenArray]]:
    import zarr

    opened = zarr.open(file.address, mode="r")
    found: Mapping[str, Any] = (
        {FIELD: opened}
        if isinstance(opened, zarr.Array)
        # Sorted, for folders list their members in any order.
        else {name: item for name, item in sorted(opened.members(max_depth=None)) if isinstance(item, zarr.Array)}
    )
    yield {name: _Slices(item, _zarr_dims(item), item.shards or item.chunks) for name, item in found.items()}


def _zarr_dims(array: Any) -> tuple[str | None, ...] | None:
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return None if names is None else tuple(names)


_OPEN = {
    "npy": _open_npy,
    "npz": _open_npz,
    "hdf5": _open_hdf5,
    "netcdf": _open_netcdf,
    "zarr": _open_zarr,
}
