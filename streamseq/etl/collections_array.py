"""Dask arrays as a source: any axis is time, and one may be that of sequences."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamseq.core.fields import Field, check_fields
from streamseq.etl.collections_blocks import Block, BlockInput, BlockSpan, Collection, Run, group
from streamseq.etl.source import Partition, Piece, partition_bytes

if TYPE_CHECKING:
    import dask.array

    DaskArray = dask.array.Array


class ArrayCollection(Collection):
    """Dask arrays as a source: one sequence, or one for each entry along an axis.

    Chunks stay as they are. Along time, arrays whose chunks end at different timesteps are cut where any of them ends;
    along other axes, the chunks of some timesteps are put together by the task that writes them.

    Args:
        arrays: An array, or a dict of arrays by field with as many timesteps each. Chunk sizes along time may be
            unknown, as they are after a selection.
        time_axis: Which axis is time; a dict by field.
        sequence_axis: Which axis has the sequences; a dict by field. None: there is one.
        field: The name of the field of an array that has none.
        ids: The id of the sequence, or those of the sequences in order. None: "0", or "0", "1", ...

    Raises:
        TypeError: Something is no Dask array, or its dtype cannot be that of a field.
        ValueError: An axis is not there, arrays do not fit each other, or there are no timesteps.

    Example:
        >>> import tempfile, dask.array as da, streamseq as ss
        >>> x = da.arange(12, chunks=5).reshape(2, 6)  # [sequences, time]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = ArrayCollection(x, time_axis=1, sequence_axis=0, ids=["a", "b"])
        ...     report = ss.ingest(source, folder + "/x.zarr", workers=1)
        ...     ss.open(report.store).read("b")["x"]
        array([ 6,  7,  8,  9, 10, 11])
    """

    def __init__(
        self,
        arrays: DaskArray | Mapping[str, DaskArray],
        *,
        time_axis: int | Mapping[str, int] = 0,
        sequence_axis: int | Mapping[str, int] | None = None,
        field: str = "x",
        ids: str | Sequence[str] | None = None,
    ) -> None:
        named = dict(arrays) if isinstance(arrays, Mapping) else {field: arrays}
        if not named:
            raise ValueError("a collection of arrays has at least one, got an empty dict")
        axes = {name: _axes(name, array, time_axis, sequence_axis) for name, array in named.items()}
        self._names = [array.name for array in named.values()]
        self._axes = list(axes.values())
        self._arrays = _with_equal_chunks(named, axes)
        self._fields = check_fields({name: _field(name, named[name], axes[name]) for name in named})
        chunks = next(array.chunks[axes[name].time] for name, array in self._arrays.items())
        #: Timesteps of each block along time; None where they are unknown.
        self._lengths = [None if math.isnan(length) else int(length) for length in chunks]
        if not self._lengths or not any(length is None or length for length in self._lengths):
            raise ValueError("a collection has at least one timestep, got arrays of none: there is nothing to write")
        #: Sequences of each block along the axis of sequences; None where there is no such axis.
        self._sequences: tuple[int, ...] | None = None
        if sequence_axis is not None:
            name = next(iter(named))
            axis = axes[name].sequence
            assert axis is not None
            self._sequences = self._arrays[name].chunks[axis]
        self._ids = _ids(ids, None if self._sequences is None else sum(self._sequences))

    @property
    def fields(self) -> Mapping[str, Field]:
        """One for each array."""
        return self._fields

    @property
    def settings(self) -> object:
        """Dask's names of the arrays, and the options."""
        return [self._names, self._axes, list(self._ids)]

    @property
    def dask_collections(self) -> tuple[Any, ...]:
        """The arrays, whose chunks end at the same timesteps."""
        return tuple(self._arrays.values())

    @property
    def reader(self) -> ArrayReader:
        """What makes pieces of chunks."""
        return ArrayReader(fields=tuple(self._fields), axes=tuple(self._axes), ids=tuple(self._ids))

    @property
    def lengths_known(self) -> bool:
        """Whether chunk sizes along time are known."""
        return None not in self._lengths

    def survey_inputs(self) -> list[BlockInput]:
        """One chunk of the first array for each block along time."""
        array, axes = next(iter(self._arrays.values())), self._axes[0]
        indices = (tuple(b if axis == axes.time else 0 for axis in range(array.ndim)) for b in range(self._num_blocks))
        return [BlockInput(block=[(array.name, *index)]) for index in indices]

    def surveyed(self, runs: Sequence[Sequence[Run]]) -> ArrayCollection:
        """The same, with these lengths of blocks."""
        same = copy.copy(self)
        same._lengths = [sum(steps for _, steps in each) for each in runs]
        return same

    @property
    def _num_blocks(self) -> int:
        return len(self._lengths)

    def partitions(self, target_bytes: int) -> list[Partition]:
        """Cut it along time, or by sequences where whole ones are smaller than that."""
        step = sum(field.step_bytes for field in self._fields.values())
        blocks = [None if length is None else length * step for length in self._lengths]
        whole = None if None in blocks else sum(size or 0 for size in blocks)
        target = partition_bytes((whole or 0) * len(self._ids), target_bytes) if whole is not None else target_bytes
        if self._sequences is None:
            return [
                self._partition(BlockSpan(start=start, stop=stop), step, self._ids[0] if start else None)
                for start, stop in group(blocks, target)
            ]
        if self._num_blocks > 1 and (whole is None or whole > target):
            return [
                self._partition(BlockSpan(start=start, stop=stop, rows=(row, row + 1)), step, id if start else None)
                for row, id in enumerate(self._ids)
                for start, stop in group(blocks, target)
            ]
        return [
            self._partition(BlockSpan(start=0, stop=self._num_blocks, rows=rows), step, None)
            for rows in self._groups_of_rows(whole, target)
        ]

    def _groups_of_rows(self, whole: int | None, target: int) -> list[tuple[int, int]]:
        """Half-open ranges of sequences; a block is cut only where all of its sequences would be far more in memory."""
        assert self._sequences is not None
        most = None if whole is None or self._num_blocks == 1 else max(1, target // max(1, whole))
        units: list[int] = []
        for size in self._sequences:
            per = size if most is None else min(size, most)
            units += [min(per, size - start) for start in range(0, size, max(1, per))]
        edges = [0, *itertools.accumulate(units)]
        sizes = [None if whole is None else count * whole for count in units]
        return [(edges[start], edges[stop]) for start, stop in group(sizes, target)]

    def _partition(self, span: BlockSpan, step_bytes: int, continues: str | None) -> Partition:
        lengths = [length or 0 for length in self._lengths[span.start : span.stop]]
        rows = 1 if span.rows is None else span.rows[1] - span.rows[0]
        return Partition(num_bytes=sum(lengths) * rows * step_bytes, content=span, continues=continues)

    def inputs(self, span: BlockSpan) -> list[BlockInput]:
        """The chunks of a span: block by block along time, or sequences first."""
        found: list[BlockInput] = []
        for chunk, rows in self._chunks_of(span.rows):
            left = span.steps
            for block in range(span.start, span.stop):
                steps = None
                if left is not None:
                    length = self._lengths[block] or 0
                    steps, left = (left if left < length else None), max(0, left - length)
                found.append(BlockInput(block=self._block(block, chunk), rows=rows, steps=steps))
                if left == 0:
                    break
        return found

    def _chunks_of(self, rows: tuple[int, int] | None) -> Iterator[tuple[int, tuple[int, int] | None]]:
        """The blocks along the axis of sequences that have some of them, and which part of each."""
        if rows is None or self._sequences is None:
            yield 0, None
            return
        begin = 0
        for chunk, size in enumerate(self._sequences):
            start, stop = max(0, rows[0] - begin), min(size, rows[1] - begin)
            if start < stop:
                yield chunk, (None if (start, stop) == (0, size) else (start, stop))
            begin += size

    def _block(self, block: int, chunk: int) -> Block:
        """For each array the names of the chunks of a block, nested along the axes."""
        return [
            _nested((array.name,), array.numblocks, {axes.time: block, axes.sequence: chunk})
            for array, axes in zip(self._arrays.values(), self._axes, strict=True)
        ]

    def first_steps(self, span: BlockSpan) -> int:
        """The timesteps of the span's blocks."""
        return sum(length or 0 for length in self._lengths[span.start : span.stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """The axes of an array: that of time, and that of sequences, if there is one."""

    time: int
    sequence: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayReader:
    """Makes pieces of chunks.

    Args:
        fields: The fields.
        axes: Of each of them.
        ids: The ids of the sequences.
    """

    fields: tuple[str, ...]
    axes: tuple[Axes, ...]
    ids: tuple[str, ...]

    def read(self, span: BlockSpan, blocks: Sequence[Block]) -> Iterator[Piece]:
        """Yield a piece for each block along time of each sequence."""
        joined = (
            {name: self._time_first(*each) for name, *each in zip(self.fields, block, self.axes, strict=True)}
            for block in blocks
        )
        if span.rows is None:
            yield from (Piece(id=self.ids[0], arrays=arrays) for arrays in joined)
            return
        # Chunks of sequences come one after the other, each with all of its blocks along time.
        rows = iter(range(*span.rows))
        along_time = span.stop - span.start if span.steps is None else len(blocks)
        while beside := list(itertools.islice(joined, along_time)):
            for row in range(len(next(iter(beside[0].values())))):
                id = self.ids[next(rows)]
                yield from (Piece(id=id, arrays={name: x[row] for name, x in arrays.items()}) for arrays in beside)

    def _time_first(self, chunks: Block, axes: Axes) -> Any:
        """One array of nested chunks, time first; sequences before it where they have an axis."""
        array = _joined(chunks)
        first = [axes.time] if axes.sequence is None else [axes.sequence, axes.time]
        return np.moveaxis(array, first, range(len(first)))

    def cut(self, block: Block, rows: tuple[int, int] | None, steps: int | None) -> Block:
        """The first timesteps of some sequences, copied."""
        return [_cut(chunks, axes, rows, steps) for chunks, axes in zip(block, self.axes, strict=True)]

    def num_bytes(self, block: Block) -> int:
        """The bytes of the chunks."""
        return sum(map(self.num_bytes, block)) if isinstance(block, list) else int(block.nbytes)

    def times(self, blocks: Sequence[Block]) -> None:
        """None: chunks have no times to be in the order of."""

    def runs(self, block: Block) -> list[Run]:
        """The length of a chunk of the first array."""
        return [(self.ids[0], int(block[0].shape[self.axes[0].time]))]


def _nested(index: tuple[Any, ...], numblocks: tuple[int, ...], fixed: Mapping[int | None, int]) -> Block:
    """The names of chunks in nested lists, one level an axis; along fixed axes there is one."""
    axis = len(index) - 1
    if axis == len(numblocks):
        return index
    along = [fixed[axis]] if axis in fixed else range(numblocks[axis])
    return [_nested((*index, number), numblocks, fixed) for number in along]


def _joined(chunks: Block, axis: int = 0) -> Any:
    """Put nested chunks together; without a copy where there is one along an axis."""
    if not isinstance(chunks, list):
        return np.asarray(chunks)
    parts = [_joined(chunk, axis + 1) for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _cut(chunks: Block, axes: Axes, rows: tuple[int, int] | None, steps: int | None) -> Block:
    if isinstance(chunks, list):
        return [_cut(chunk, axes, rows, steps) for chunk in chunks]
    index = [slice(None)] * chunks.ndim
    index[axes.time] = slice(steps)
    if rows is not None:
        assert axes.sequence is not None
        index[axes.sequence] = slice(*rows)
    return np.array(chunks[tuple(index)])


def _axes(name: str, array: object, time: int | Mapping[str, int], sequence: int | Mapping[str, int] | None) -> Axes:
    import dask.array

    if not isinstance(array, dask.array.Array):
        raise TypeError(
            f"field {name!r} is a Dask array, got {type(array).__name__}: use dask.array.from_array, or .data of xarray"
        )
    found = [_axis(name, array, "time", time)]
    if sequence is not None:
        found.append(_axis(name, array, "sequences", sequence))
        if found[0] == found[1]:
            raise ValueError(f"time and sequences have an axis each, of field {name!r} both have {found[0]}")
    unknown = [axis for axis, size in enumerate(array.shape) if math.isnan(size) and axis != found[0]]
    if unknown:
        raise ValueError(
            f"chunk sizes may be unknown along time only, those of field {name!r} are along axis {unknown[0]}: call "
            "compute_chunk_sizes() on the array"
        )
    return Axes(time=found[0], sequence=None if sequence is None else found[1])


def _axis(name: str, array: DaskArray, what: str, wanted: int | Mapping[str, int]) -> int:
    axis = wanted.get(name) if isinstance(wanted, Mapping) else wanted
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"the axis of {what} is an int, or a dict of one by field, got {axis!r} for field {name!r}")
    if not -array.ndim <= axis < array.ndim:
        raise ValueError(f"field {name!r} has {array.ndim} axes, the axis of {what} is {axis}: choose one of them")
    return int(axis % array.ndim)


def _field(name: str, array: DaskArray, axes: Axes) -> Field:
    try:
        return Field(
            array.dtype, tuple(n for axis, n in enumerate(array.shape) if axis not in (axes.time, axes.sequence))
        )
    except (TypeError, ValueError) as error:
        raise type(error)(f"the array of field {name!r} is no field: {error}") from None


def _with_equal_chunks(arrays: Mapping[str, DaskArray], axes: Mapping[str, Axes]) -> dict[str, DaskArray]:
    """The arrays, cut along time and sequences wherever a chunk of any of them ends; nothing is put together."""
    found = dict(arrays)
    for what, axis in (
        ("timesteps", {name: each.time for name, each in axes.items()}),
        ("sequences", {name: each.sequence for name, each in axes.items() if each.sequence is not None}),
    ):
        sizes = {name: found[name].shape[number] for name, number in axis.items()}
        chunks = {name: found[name].chunks[number] for name, number in axis.items()}
        if any(math.isnan(size) for size in sizes.values()):
            if len({len(each) for each in chunks.values()}) > 1:
                raise ValueError(
                    "arrays whose chunk sizes are unknown have as many chunks along time each, got "
                    + ", ".join(f"{len(each)} of {name!r}" for name, each in chunks.items())
                )
            continue
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{size} of {name!r}" for name, size in sizes.items())
            raise ValueError(f"fields have as many {what} each, got {listed}: choose the axes, or cut the arrays")
        if len(set(chunks.values())) > 1:
            edges = sorted({edge for each in chunks.values() for edge in itertools.accumulate(each)} - {0})
            common = tuple(np.diff([0, *edges]).tolist())
            found = {name: array.rechunk({axis[name]: common}) for name, array in found.items()}  # type: ignore[no-untyped-call]
    return found


def _ids(ids: str | Sequence[str] | None, sequences: int | None) -> list[str]:
    if sequences is None:
        if ids is not None and not isinstance(ids, str):
            raise TypeError(
                f"one sequence has one id, a str, got {ids!r}: say which axis has sequences (sequence_axis)"
            )
        return ["0" if ids is None else ids]
    if ids is None:
        return [str(number) for number in range(sequences)]
    if isinstance(ids, str):
        raise TypeError(f"{sequences} sequences have an id each, got {ids!r}: give a list")
    found = list(ids)
    if len(found) != sequences or len(set(found)) != sequences or not all(isinstance(id, str) for id in found):
        raise ValueError(f"{sequences} sequences have an id each, all different strs, got {len(found)}: {found[:3]}...")
    return found
