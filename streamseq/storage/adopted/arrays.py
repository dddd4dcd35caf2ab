"""Adoption of arrays: one array for each field of a sequence, any of their axes being time."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field
from streamseq.storage.adopted.names import choose, common_uri, merged_attrs
from streamseq.storage.adopted.source import Adopted, ChunkList, Source, same_fields
from streamseq.storage.adopted.store import AdoptedStore

TimeAxis = int | str | Mapping[str, int | str]
"""The axis of time: a number, or the name of a dimension; of all arrays, or by field."""

#: What a single array without a name is called.
FIELD = "x"


class ForeignArray(ABC):
    """An array in a file."""

    #: What to call it in an error.
    where: str
    #: The file or folder.
    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    #: Names of its axes, where they have some.
    dimensions: tuple[str | None, ...] | None = None

    @abstractmethod
    def source(self, axis: int) -> Source:
        """What reads it along an axis."""

    @abstractmethod
    def add_chunks(self, chunks: ChunkList, number: int, axis: int) -> None:
        """Add its chunks along an axis; `number` is that of its source."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSequence:
    """One sequence that is adopted.

    Args:
        id: Its id.
        pieces: One after the other in time, each with an array of each name.
        attrs: Its attributes.
    """

    id: str
    pieces: Sequence[Mapping[str, ForeignArray]]
    attrs: Mapping[str, Any] = field(default_factory=dict)


def adopt_arrays(
    backend: str,
    sequences: Sequence[ForeignSequence],
    *,
    time_axis: TimeAxis,
    fields: Sequence[str] | Mapping[str, str] | None,
    attrs: Mapping[str, Mapping[str, Any]] | None,
    contents: bool,
) -> AdoptedStore:
    """Return the store of some arrays; see `adopt_zarr` and `adopt_npy`."""
    first = sequences[0].pieces[0]
    where = next(iter(first.values())).where
    # A coordinate has no time axis of that name, and is no field.
    names = choose("array", fields, _with_dimension(first, time_axis) if fields is None else list(first), where)
    if isinstance(time_axis, Mapping):
        strangers = [name for name in time_axis if name not in names]
        if strangers:
            raise ValueError(f"time_axis is of the fields {', '.join(names)}, got one of {strangers[0]!r}")
    lists: dict[str, ChunkList] = {}
    sources: list[Source] = []
    rows: list[tuple[int, int, int]] = []
    for number, sequence in enumerate(sequences):
        for piece in sequence.pieces:
            arrays = _arrays(piece, names, fields is None, sequence.id)
            axes = {name: _axis(name, array, time_axis) for name, array in arrays.items()}
            found = {name: _field(array, axes[name]) for name, array in arrays.items()}
            if not lists:
                lists = {name: ChunkList(name, found[name]) for name in names}
            same_fields({name: each.field for name, each in lists.items()}, found, f"sequence {sequence.id!r}", where)
            lengths = {name: array.shape[axes[name]] for name, array in arrays.items()}
            if len(set(lengths.values())) > 1:
                raise StoreError(
                    f"all fields of a sequence have the same number of timesteps, {sequence.id!r} has {lengths}: "
                    "choose other fields, or say time_axis of each"
                )
            start = next(iter(lists.values())).num_rows
            for name, array in arrays.items():
                array.add_chunks(lists[name], len(sources), axes[name])
                sources.append(array.source(axes[name]))
            length = next(iter(lengths.values()))
            if length:
                rows.append((number, start, length))
    ids = [sequence.id for sequence in sequences]
    adopted = Adopted(
        backend=backend,
        uri=common_uri(array.path for sequence in sequences for piece in sequence.pieces for array in piece.values()),
        fields={name: each.field for name, each in lists.items()},
        ids=pa.array(ids, pa.large_string()),
        attrs=merged_attrs(ids, {number: each.attrs for number, each in enumerate(sequences)}, attrs),
        pieces=np.array(rows, np.int64).reshape(-1, 3),
        sources=tuple(sources),
        chunks={name: each.finish() for name, each in lists.items()},
    )
    return AdoptedStore(adopted, contents)


def _with_dimension(piece: Mapping[str, ForeignArray], time_axis: TimeAxis) -> list[str]:
    if not isinstance(time_axis, str):
        return list(piece)
    return [name for name, array in piece.items() if time_axis in (array.dimensions or ())]


def _arrays(
    piece: Mapping[str, ForeignArray], names: Mapping[str, str], all_of_them: bool, id: str
) -> dict[str, ForeignArray]:
    missing = [source for source in names.values() if source not in piece]
    if missing:
        raise StoreError(
            f"every sequence has the same fields, {id!r} has no array {missing[0]!r}, it has {', '.join(piece)}; "
            "a dict is of sequences by id, and one sequence of several arrays is a dict in it"
        )
    return {name: piece[source] for name, source in names.items()}


def _axis(name: str, array: ForeignArray, time_axis: TimeAxis) -> int:
    axis = time_axis.get(name, 0) if isinstance(time_axis, Mapping) else time_axis
    if isinstance(axis, str):
        if array.dimensions is None or axis not in array.dimensions:
            raise StoreError(
                f"{array.where} has no dimension {axis!r}, it has "
                f"{', '.join(map(str, array.dimensions or ())) or 'none with a name'}: say the number of the axis"
            )
        return array.dimensions.index(axis)
    number = operator.index(axis)
    if not -len(array.shape) <= number < len(array.shape):
        raise StoreError(f"{array.where} has shape {list(array.shape)}, which has no axis {number} for time")
    return number % len(array.shape)


def _field(array: ForeignArray, axis: int) -> Field:
    try:
        return Field(array.dtype, array.shape[:axis] + array.shape[axis + 1 :])
    except (TypeError, ValueError) as error:
        raise StoreError(f"{array.where}: {error}") from None
