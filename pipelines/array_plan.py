"""Which arrays of a file are fields, which axis is time, and the parts that are read together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from streamseq.core.fields import Field, check_fields

from .array_formats import ArrayFile, ArrayProblem, OpenArray

Axis = int | str | None

_PIECE_BYTES = 4 << 20
# Chunks are not cut while what they reach over is not more than this.
_MOST_BYTES = 64 << 20
_TIME = "time"
_UNFIT = re.compile(r"[^A-Za-z0-9_-]")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldArray:
    """The array of one field.

    Args:
        field: The name of the field.
        array: The name of the array in its file.
        dtype: The dtype of the field.
        shape: Its step shape.
        time: Which axis is time.
        sequence: Which axis has the sequences; None: it has none, all sequences share it.
        unit: Of dates and durations, what they count.
    """

    field: str
    array: str
    dtype: str
    shape: tuple[int, ...]
    time: int
    sequence: int | None
    unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the sequences lie in one file.

    Args:
        arrays: The arrays of the fields.
        steps: The timesteps of each sequence.
        sequences: How many there are; None without an axis of sequences.
        grid: The timesteps that are read together, from 0 on.
        slab: The sequences that are read together where they are short, from 0 on.
    """

    arrays: tuple[FieldArray, ...]
    steps: int
    sequences: int | None
    grid: int
    slab: int

    @property
    def fields(self) -> dict[str, Field]:
        """The fields."""
        return check_fields({each.field: Field(each.dtype, each.shape) for each in self.arrays})

    @property
    def step_bytes(self) -> int:
        """Decoded bytes of one timestep."""
        return sum(field.step_bytes for field in self.fields.values())

    @property
    def short(self) -> bool:
        """Whether sequences are read whole, several together, for they may be in the same chunks."""
        return self.sequences is not None and self.steps * self.step_bytes <= _MOST_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayPart:
    """What is read of one file: all timesteps of several sequences, or some of one.

    Args:
        file: The file.
        layout: How the sequences lie in it.
        first, last: The sequences `[first, last)`; `[0, 1)` without an axis of them.
        start, stop: The timesteps `[start, stop)`.
    """

    file: ArrayFile
    layout: Layout
    first: int
    last: int
    start: int
    stop: int

    @property
    def weight(self) -> int:
        """Its decoded bytes."""
        return (self.last - self.first) * (self.stop - self.start) * self.layout.step_bytes


def lay_out(
    arrays: Mapping[str, OpenArray],
    wanted: Mapping[str, str] | None,
    time_axis: Axis | Mapping[str, Axis],
    sequence_axis: Axis,
) -> Layout:
    """Find the fields in the arrays of a file.

    Args:
        arrays: The arrays.
        wanted: The array of each field; None: all that have numbers, and time.
        time_axis: Which axis is time, of all or by field; None: the one that is called "time", otherwise the first.
        sequence_axis: Which axis has sequences; None: none.

    Raises:
        ArrayProblem: There are none, they do not fit each other, or one that is wanted does not do.
    """
    names = wanted if wanted is not None else _all(arrays)
    named = any(_TIME in (array.dims or ()) for array in arrays.values())
    found: list[FieldArray] = []
    for field, name in names.items():
        if name not in arrays:
            raise ArrayProblem(f"it has no array {name!r}, it has {', '.join(arrays) or 'none'}")
        axis = time_axis.get(field) if isinstance(time_axis, Mapping) else time_axis
        problem = None
        try:
            found.append(_field(field, name, arrays[name], axis, sequence_axis, named))
        except ArrayProblem as error:
            problem = error
        if problem is not None and wanted is not None:
            raise problem
    if not found:
        has = ", ".join(f"{name} ({array.dtype}, {list(array.shape)})" for name, array in arrays.items())
        raise ArrayProblem(f"it has no array of numbers with a time axis, it has {has or 'none'}")
    if sequence_axis is not None and all(each.sequence is None for each in found):
        raise ArrayProblem(f"none of its arrays has the axis of sequences {sequence_axis!r}")
    steps = {each.field: arrays[each.array].shape[each.time] for each in found}
    counts = {each.field: arrays[each.array].shape[each.sequence] for each in found if each.sequence is not None}
    for what, sizes in (("timesteps", steps), ("sequences", counts)):
        if len(set(sizes.values())) > 1:
            says = ", ".join(f"{field} {size}" for field, size in sizes.items())
            raise ArrayProblem(f"its arrays have as many {what}, it has {says}: name the fields, or the axes")
    return _with_grid(found, arrays, next(iter(steps.values())), next(iter(counts.values()), None))


def _with_grid(
    found: Sequence[FieldArray], arrays: Mapping[str, OpenArray], steps: int, sequences: int | None
) -> Layout:
    """Add what is read together: whole chunks, as far as memory allows."""
    step_bytes = sum(Field(each.dtype, each.shape).step_bytes for each in found)
    along_time, along_sequences = [1], [1]
    for each in found:
        chunks = arrays[each.array].chunks
        if chunks is not None:
            along_time.append(chunks[each.time])
            if each.sequence is not None:
                along_sequences.append(chunks[each.sequence])
    grid = _together(max(along_time), step_bytes)
    slab = _together(max(along_sequences), steps * step_bytes)
    return Layout(arrays=tuple(found), steps=steps, sequences=sequences, grid=grid, slab=slab)


def _together(chunk: int, each_bytes: int) -> int:
    """How many are read together, of which `chunk` lie in one chunk."""
    if chunk * each_bytes > _MOST_BYTES:
        return max(1, _MOST_BYTES // each_bytes)
    return chunk * max(1, _PIECE_BYTES // max(1, chunk * each_bytes))


def _all(arrays: Mapping[str, OpenArray]) -> dict[str, str]:
    """Names of fields for all arrays."""
    names: dict[str, str] = {}
    for array in arrays:
        field = _UNFIT.sub("_", array)[:64]
        field = field if field[:1].isalpha() or field[:1] == "_" else "_" + field[:63]
        if field in names:
            raise ArrayProblem(f"arrays {names[field]!r} and {array!r} are both field {field!r}: name the fields")
        names[field] = array
    return names


def _field(field: str, name: str, array: OpenArray, time: Axis, sequence: Axis, named: bool) -> FieldArray:
    dtype, unit = _dtype(name, array.dtype)
    if time is None:
        time = _TIME if named else 0
    time_place = _place(name, array, time)
    if time_place is None:
        raise ArrayProblem(f"array {name!r} has no axis {time!r}, it has shape {list(array.shape)}{_dims(array)}")
    # An array without the axis of that name, such as the times of all sequences, is shared by them.
    sequence_place = None if sequence is None else _place(name, array, sequence)
    if sequence_place is None and isinstance(sequence, int):
        raise ArrayProblem(f"array {name!r} has no axis {sequence!r}, it has shape {list(array.shape)}{_dims(array)}")
    if sequence_place == time_place:
        raise ArrayProblem(f"array {name!r}: time and sequences are two axes, both are axis {time_place}")
    shape = tuple(size for axis, size in enumerate(array.shape) if axis not in (time_place, sequence_place))
    if not all(shape):
        raise ArrayProblem(f"array {name!r} has shape {list(array.shape)}: a timestep has at least one value")
    return FieldArray(
        field=field, array=name, dtype=dtype, shape=shape, time=time_place, sequence=sequence_place, unit=unit
    )


def _dtype(name: str, dtype: np.dtype) -> tuple[str, str | None]:
    if dtype.kind in "mM":
        unit, count = np.datetime_data(dtype)
        return "int64", unit if count == 1 else f"{count}{unit}"
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise ArrayProblem(f"array {name!r} has dtype {dtype}, and a field has bool, integers or floats up to 64 bits")
    return dtype.newbyteorder("=").name, None


def _place(name: str, array: OpenArray, axis: int | str) -> int | None:
    if isinstance(axis, str):
        return array.dims.index(axis) if array.dims is not None and axis in array.dims else None
    place = axis + len(array.shape) if axis < 0 else axis
    return place if 0 <= place < len(array.shape) else None


def _dims(array: OpenArray) -> str:
    return f" ({', '.join(map(str, array.dims))})" if array.dims is not None and any(array.dims) else ""


def parts_of(file: ArrayFile, layout: Layout, target: int) -> Iterator[ArrayPart]:
    """Cut a file into parts of about `target` decoded bytes, at borders of what is read together."""
    whole = layout.steps * layout.step_bytes
    count = 1 if layout.sequences is None else layout.sequences
    if layout.short:
        many = max(layout.slab, target // max(1, whole) // layout.slab * layout.slab)
        for first in range(0, count, many):
            last = min(count, first + many)
            yield ArrayPart(file=file, layout=layout, first=first, last=last, start=0, stop=layout.steps)
        return
    steps = max(layout.grid, target // layout.step_bytes // layout.grid * layout.grid)
    for number in range(count):
        for start in range(0, layout.steps, steps):
            stop = min(layout.steps, start + steps)
            yield ArrayPart(file=file, layout=layout, first=number, last=number + 1, start=start, stop=stop)
