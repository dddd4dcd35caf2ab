"""Reading one partition of a table: rows taken apart by sequence, checked, and handed on sequence by sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from streamseq.etl import Piece, Skipped, SourceError

from .table_cells import Converted, shown, to_numbers
from .table_files import FileProblem, Rows
from .table_index import Keys, keys_of, left_out, read_block, strays
from .table_plan import NO_ROWS, TableContent, broken

# Rows of later sequences that come with those of an earlier one are held in memory up to so much, then on the disk.
_HELD_BYTES = 64 << 20

Arrays = dict[str, NDArray[Any]]


def read_content(content: TableContent, on_error: str) -> Iterator[Piece | Skipped]:
    """Yield the pieces of a partition, and what is left out of it.

    Args:
        content: What the partition holds.
        on_error: One of `ON_ERROR`.

    Raises:
        SourceError: Something is not as it has to be, and `on_error` is "fail".
    """
    yield from content.skipped
    reading = content.reading
    unit = {f"{reading.time_field}_unit": reading.unit} if reading.unit is not None else None
    begun = ""
    with _Held() as held:
        for item in _arrays(content, on_error == "quarantine", held):
            if isinstance(item, Skipped):
                if on_error == "fail" and item.reason != NO_ROWS:
                    raise broken(item)
                yield item
                continue
            id, arrays = item
            yield Piece(id=id, arrays=arrays, attrs=unit if id != begun else None)
            begun = id


def _arrays(content: TableContent, keep_content: bool, held: _Held) -> Iterator[tuple[str, Arrays] | Skipped]:
    """Yield the arrays of sequences in the order of the parts: a block is read when the first part needs it."""
    wanted: dict[int, dict[str, int]] = {}
    for number, part in enumerate(content.parts):
        wanted.setdefault(part.block, {})[part.id] = number
    done: set[int] = set()
    for number, part in enumerate(content.parts):
        if part.block in done:
            for arrays in held.take(number):
                yield part.id, arrays
            continue
        done.add(part.block)
        for item in _Reader(content, part.block, wanted[part.block], keep_content).read():
            if isinstance(item, Skipped):
                yield item
            elif item[0] == number:
                yield part.id, item[1]
            else:
                held.put(*item)
    for place in content.owned:
        if place not in done:
            for item in _Reader(content, place, {}, keep_content).read():
                assert isinstance(item, Skipped)
                yield item


class _Reader:
    """One block, read once for all the parts that need it."""

    def __init__(self, content: TableContent, place: int, wanted: Mapping[str, int], keep_content: bool) -> None:
        self._reading = content.reading
        self._parts = content.parts
        self._block = content.blocks[place]
        self._owned = place in content.owned
        self._damaged = place in content.damaged
        self._wanted = wanted
        self._keep_content = keep_content
        self._latest = {number: content.parts[number].after for number in wanted.values()}

    def read(self) -> Iterator[tuple[int, Arrays] | Skipped]:
        """Yield the numbers of parts with their next timesteps, and what is left out."""
        seen = False
        try:
            for rows in read_block(self._block, self._reading, self._reading.columns, self._keep_content):
                seen = seen or bool(rows.broken) or rows.table.num_rows > 0
                yield from self._rows(rows)
            if self._owned and not seen and not self._place():
                yield Skipped(what=self._block.file.address, reason=NO_ROWS, num_bytes=self._block.num_bytes)
        except FileProblem as problem:
            # What was known beforehand is reported once; what is new, by everybody who misses rows for it.
            if self._owned or not self._damaged:
                yield Skipped(what=self._block.file.address, place=self._place(), reason=str(problem))

    def _place(self) -> str:
        block = self._block
        if block.start <= block.file.start and block.stop in (0, block.file.input.size):
            return ""
        unit = {"parquet": "row groups", "arrow": "record batches"}.get(block.file.format, "bytes")
        return f"{unit} {block.start} to {block.stop}"

    def _rows(self, rows: Rows) -> Iterator[tuple[int, Arrays] | Skipped]:
        if self._owned:
            yield from rows.broken
        only = next(iter(self._wanted), "")
        keys = keys_of(rows.table, self._reading, only)
        problems = rows.problems | strays(rows, keys, self._reading)
        # Which part each row is of; -1 where it is of none here, or of no sequence at all.
        parts = np.array([*(self._wanted.get(id, -1) for id in keys.ids), -1], np.int64)[keys.codes]
        order = np.argsort(parts, kind="stable")
        order = order[np.searchsorted(parts[order], 0) :]
        mine = parts[order]
        starts = np.flatnonzero(np.diff(mine, prepend=-1))
        stops = np.append(starts, len(mine))[1:]
        runs = list(zip(mine[starts].tolist(), starts.tolist(), stops.tolist(), strict=True))
        if keys.times is not None:
            self._check_order(runs, order, keys, problems)
        arrays = self._fields(rows, order, keys, problems)
        stray = set(np.flatnonzero(keys.codes < 0).tolist()) if self._owned else set()
        here = stray.union(order.tolist()) if problems else stray
        for row in sorted(here.intersection(problems)):
            yield left_out(rows, self._block, row, problems[row], self._keep_content)
        good = np.ones(len(order), np.bool_)
        if problems:
            good = ~np.isin(order, np.fromiter(problems, np.int64))
        for number, start, stop in runs:
            fit = good[start:stop]
            if fit.all():
                yield number, {name: values[start:stop] for name, values in arrays.items()}
            elif fit.any():
                yield number, {name: values[start:stop][fit] for name, values in arrays.items()}

    def _check_order(
        self, runs: list[tuple[int, int, int]], order: NDArray[np.int64], keys: Keys, problems: dict[int, str]
    ) -> None:
        """Find the rows whose time is not after those before it, and remember where each sequence stands."""
        assert keys.times is not None
        for number, start, stop in runs:
            rows = order[start:stop]
            rows = rows[~keys.untimed[rows]]
            if not len(rows):
                continue
            times = keys.times[rows]
            latest = self._latest[number]
            first = times[0] if latest is None else latest
            before = np.maximum.accumulate(np.concatenate([[first], times]))
            late = times <= before[:-1] if self._reading.increasing else times < before[:-1]
            if latest is None:
                late[0] = False
            for place in np.flatnonzero(late).tolist():
                problems.setdefault(
                    int(rows[place]),
                    f"sequence {self._parts[number].id!r}, time {times[place]} comes after {before[place]}: "
                    + ("times increase" if self._reading.increasing else "times do not decrease"),
                )
            self._latest[number] = int(before[-1])

    def _fields(self, rows: Rows, order: NDArray[np.int64], keys: Keys, problems: dict[int, str]) -> Arrays:
        """The fields of the rows that are wanted, in their order; what is no value is noted."""
        reading = self._reading
        whole = len(order) == rows.table.num_rows and bool((np.diff(order) == 1).all())
        arrays: Arrays = {}
        if keys.times is not None:
            arrays[reading.time_field] = keys.times if whole else keys.times[order]
        for name, columns in reading.fields:
            field = columns.field
            values = np.empty((len(order), len(columns.names)), field.dtype)
            for place, column in enumerate(columns.names):
                cells = rows.table.column(column)
                found = to_numbers(cells if whole else cells.take(order), field.dtype, reading.allow_missing)
                values[:, place] = found.values
                self._note(found, rows, order, column, field.dtype, problems)
            arrays[name] = values if columns.stacked else values[:, 0]
        return arrays

    def _note(
        self,
        found: Converted,
        rows: Rows,
        order: NDArray[np.int64],
        column: str,
        dtype: np.dtype,
        problems: dict[int, str],
    ) -> None:
        for row in order[found.bad].tolist():
            problems.setdefault(
                row, f"column {column!r} is {shown(rows.table.column(column), row)}, which is no {dtype}"
            )


class _Held:
    """Rows that were read before it is their turn; what is more than memory is for goes to a file without a name."""

    def __init__(self) -> None:
        self._memory: dict[int, list[Arrays]] = {}
        self._disk: dict[int, list[dict[str, tuple[int, tuple[int, ...], str]]]] = {}
        self._bytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def put(self, number: int, arrays: Arrays) -> None:
        """Keep the next timesteps of a part."""
        # Not the batch that they are a view of.
        self._memory.setdefault(number, []).append({name: values.copy() for name, values in arrays.items()})
        self._bytes += sum(values.nbytes for values in arrays.values())
        if self._bytes > _HELD_BYTES:
            self._spill()

    def take(self, number: int) -> Iterator[Arrays]:
        """Hand out what was kept of a part, in order."""
        for places in self._disk.pop(number, []):
            assert self._file is not None
            arrays: Arrays = {}
            for name, (at, shape, dtype) in places.items():
                values = np.empty(shape, dtype)
                self._file.seek(at)
                if self._file.readinto(values.reshape(-1).view(np.uint8).data) != values.nbytes:  # type: ignore[attr-defined]
                    raise SourceError("what was put aside on the disk cannot be read again: the disk may be full")
                arrays[name] = values
            yield arrays
        for arrays in self._memory.pop(number, []):
            self._bytes -= sum(values.nbytes for values in arrays.values())
            yield arrays

    def _spill(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the block is left)
        at = self._file.seek(0, 2)
        for number, several in self._memory.items():
            for arrays in several:
                places = {}
                for name, values in arrays.items():
                    self._file.write(np.ascontiguousarray(values).data)
                    places[name] = (at, values.shape, values.dtype.str)
                    at += values.nbytes
                self._disk.setdefault(number, []).append(places)
        self._memory = {}
        self._bytes = 0
