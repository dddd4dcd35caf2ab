"""Reading parts of arrays: in pieces that respect the chunks, time first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_formats import ArrayFile, ArrayProblem, OpenArray, check_same, one_line, opened
from .array_plan import ArrayPart, FieldArray, Layout

Arrays = dict[str, NDArray[Any]]


class PartReader:
    """Reads parts, and keeps the file of the last one open for the next. Use it in a `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._file: ArrayFile | None = None
        self._arrays: Mapping[str, OpenArray] = {}

    def __enter__(self) -> PartReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, part: ArrayPart) -> Iterator[tuple[int, Arrays] | tuple[str, int, str]]:
        """Yield sequences with their next timesteps; or of what cannot be read the place, its bytes, and why."""
        layout = part.layout
        try:
            arrays = self._open(part.file)
        except ArrayProblem as problem:
            yield _place(part, part.first, part.last, part.start, part.stop), part.weight, str(problem)
            return
        if layout.short:
            for first in range(part.first, part.last, layout.slab):
                last = min(part.last, first + layout.slab)
                yield from self._piece(arrays, part, first, last, 0, layout.steps)
            return
        for number in range(part.first, part.last):
            for start in range(part.start, part.stop, layout.grid):
                stop = min(part.stop, start + layout.grid)
                yield from self._piece(arrays, part, number, number + 1, start, stop)

    def _open(self, file: ArrayFile) -> Mapping[str, OpenArray]:
        if file != self._file:
            self._stack.close()
            self._file = None
            self._arrays = self._stack.enter_context(opened(file))
            self._file = file
        return self._arrays

    def _piece(
        self, arrays: Mapping[str, OpenArray], part: ArrayPart, first: int, last: int, start: int, stop: int
    ) -> Iterator[tuple[int, Arrays] | tuple[str, int, str]]:
        found: Arrays = {}
        try:
            for each in part.layout.arrays:
                found[each.field] = _read(arrays, each, first, last, start, stop)
            check_same(part.file)
        except MemoryError:
            raise
        except Exception as error:  # whatever damaged data leads to in five libraries
            num_bytes = (last - first) * (stop - start) * part.layout.step_bytes
            yield _place(part, first, last, start, stop), num_bytes, one_line(error)
            return
        for number in range(first, last):
            yield (
                number,
                {
                    each.field: found[each.field] if each.sequence is None else found[each.field][number - first]
                    for each in part.layout.arrays
                },
            )


def _read(
    arrays: Mapping[str, OpenArray], each: FieldArray, first: int, last: int, start: int, stop: int
) -> NDArray[Any]:
    """Return `[last - first, stop - start, *D]`, or `[stop - start, *D]` of an array that all sequences share."""
    if each.array not in arrays:
        raise ArrayProblem(f"it has no array {each.array!r} any more")
    array = arrays[each.array]
    spans = [slice(0, size) for size in array.shape]
    spans[each.time] = slice(start, stop)
    if each.sequence is not None:
        spans[each.sequence] = slice(first, last)
    values = array.read(tuple(spans))
    if each.sequence is None:
        values = np.moveaxis(values, each.time, 0)
    else:
        values = np.moveaxis(values, (each.sequence, each.time), (0, 1))
    if values.dtype.kind in "mM":
        values = values.astype(values.dtype.newbyteorder("="), copy=False).view(np.int64)
    return np.ascontiguousarray(values, each.dtype)


def _place(part: ArrayPart, first: int, last: int, start: int, stop: int) -> str:
    layout: Layout = part.layout
    places = []
    if layout.sequences is not None and (first, last) != (0, layout.sequences):
        places.append(f"sequence {first}" if last == first + 1 else f"sequences {first} to {last - 1}")
    if (start, stop) != (0, layout.steps):
        places.append(f"timesteps {start} to {stop - 1}")
    return ", ".join(places)
