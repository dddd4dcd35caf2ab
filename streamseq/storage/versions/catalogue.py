"""Which sequences a version has and where they lie: one of them found at once, or all of them as arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isqrt

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamseq.core.errors import CorruptionError
from streamseq.storage.places.place import Place
from streamseq.storage.versions.rows import Pieces, RowIndex, RowIndexBuilder, merge_pieces
from streamseq.storage.versions.table import INDEX, PIECES, SEQUENCES, Table, hash_of
from streamseq.storage.versions.version import Version

# With more tables than this, each looked into in turn, it is faster to read all of them once.
_FEW_TABLES = 8
# Ids that are looked up one by one; more of them are looked up together.
_FEW_IDS = 64
# With no more pieces than this all of them are read, and checked, at once.
_FEW_PIECES = 1 << 16
# Rows of a table that are read at once.
_ROWS = 1 << 17

_ID, _ATTRS = 0, 1
_HASH, _INDEX_SEQUENCE = 0, 1
_SEQUENCE = 0


class Catalogue:
    """The tables of one version. Several threads may use it.

    Args:
        place: Where the store lies.
        version: The version.
    """

    def __init__(self, place: Place, version: Version) -> None:
        self._place = place
        self._version = version
        #: The number of the first sequence of each table, and N.
        self._first = np.concatenate(
            ([0], np.cumsum([entry.sequences.num_rows for entry in version.tables], dtype=np.int64))
        )
        self._open: dict[str, Table] = {}

    @cached_property
    def ids(self) -> pa.Array:
        """The N ids, large strings; mapped where there is one table."""
        return self._column(_ID)

    @cached_property
    def attrs(self) -> pa.Array:
        """The N attributes as JSON text, large strings."""
        return self._column(_ATTRS)

    def _column(self, column: int) -> pa.Array:
        parts = [self._table("sequences", number).batch().column(column) for number in range(self._num_tables)]
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    @cached_property
    def rows(self) -> RowIndex:
        """Where all sequences lie.

        Raises:
            CorruptionError: The tables break the format.
        """
        builder = RowIndexBuilder(self._version.num_sequences, self._version.num_timesteps)
        try:
            for entry in self._version.tables:
                # Not kept open: what is found is all that is in it.
                table = Table(self._place, entry.pieces, PIECES)
                for start in range(0, len(table), _ROWS):
                    stop = min(len(table), start + _ROWS)
                    builder.add(*(table.numbers(column, start, stop) for column in range(3)))
            return builder.finish()
        except ValueError as error:
            raise self._broken(str(error)) from None

    def id_of(self, sequence: int) -> str:
        """The id of one sequence."""
        number, row = self._row(sequence)
        return self._table("sequences", number).text(_ID, row)

    def attrs_of(self, sequence: int) -> str:
        """The attributes of one sequence, JSON text."""
        number, row = self._row(sequence)
        return self._table("sequences", number).text(_ATTRS, row)

    def find(self, id: str) -> int | None:
        """The number of the sequence with this id; None where there is none."""
        if self._num_tables > _FEW_TABLES:
            found = int(self.find_all([id])[0])
            return None if found < 0 else found
        hash = hash_of(id)
        for number in range(self._num_tables):
            table = self._table("index", number)
            start, stop = _equal(table, _HASH, hash, hash / 2**32)
            for sequence in table.numbers(_INDEX_SEQUENCE, start, stop).tolist():
                if not self._first[number] <= sequence < self._first[number + 1]:
                    raise self._broken(f"an index names sequence {sequence}, which is not in its table")
                if self.id_of(sequence) == id:
                    return int(sequence)
        return None

    def find_all(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The number of the sequence with each id, int64 `[M]`; -1 where there is none."""
        if len(ids) <= _FEW_IDS and self._num_tables <= _FEW_TABLES:
            found = [self.find(id) for id in ids]
            return np.array([-1 if sequence is None else sequence for sequence in found], np.int64)
        hashes, sequences = self._hashes
        wanted = np.array([hash_of(id) for id in ids], np.uint32)
        start, stop = (np.searchsorted(hashes, wanted, side) for side in ("left", "right"))
        result = np.full(len(ids), -1, np.int64)
        open_ = np.flatnonzero(start < stop)
        while len(open_):
            # Nearly always there is one with this hash.
            candidates = sequences[start[open_]]
            same = pc.equal(
                self.ids.take(pa.array(candidates)), pa.array([ids[i] for i in open_.tolist()], pa.large_string())
            )
            hit = same.to_numpy(zero_copy_only=False)
            result[open_[hit]] = candidates[hit]
            open_ = open_[~hit]
            start[open_] += 1
            open_ = open_[start[open_] < stop[open_]]
        return result

    @cached_property
    def _hashes(self) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The hashes of all ids, ascending, and whose they are."""
        tables = [self._table("index", number) for number in range(self._num_tables)]
        hashes, sequences = (
            np.concatenate([table.numbers(column, 0, len(table)) for table in tables])
            for column in (_HASH, _INDEX_SEQUENCE)
        )
        if len(sequences) and not 0 <= sequences.min() <= sequences.max() < self._version.num_sequences:
            raise self._broken("an index names a sequence that is not in its table")
        if len(tables) > 1:
            order = np.argsort(hashes, kind="stable")
            hashes, sequences = hashes[order], sequences[order]
        return hashes, sequences

    def pieces_of(self, sequence: int) -> Pieces:
        """The pieces of one sequence, int64 `[P, 3]` in the order of its timesteps: 0, first row, length.

        Raises:
            CorruptionError: The tables break the format.
        """
        num_pieces = sum(entry.pieces.num_rows for entry in self._version.tables)
        if num_pieces <= _FEW_PIECES or self._num_tables > _FEW_TABLES or "rows" in self.__dict__:
            return self.rows.pieces_of(sequence)
        found = [np.empty((0, 3), np.int64)]
        for number in range(self._num_tables):
            if sequence >= self._first[number + 1]:
                continue
            table = self._table("pieces", number)
            new = int(self._first[number + 1] - self._first[number])
            guess = (sequence - int(self._first[number])) / new if sequence >= self._first[number] else 0.0
            start, stop = _equal(table, _SEQUENCE, sequence, guess)
            columns = [table.numbers(column, start, stop) for column in range(3)]
            found.append(np.stack(columns, axis=1))
        together = np.concatenate(found)
        _, row, length = together.T
        total = self._version.num_timesteps
        if np.any(length < 1) or np.any(row < 0) or np.any(row > total) or np.any(length > total - row):
            raise self._broken(f"a piece does not lie in {total} timesteps")
        together[:, 0] = 0
        return merge_pieces(together)

    def rows_of(self, sequence: int, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where timesteps `[start, stop)` of one sequence lie: first rows and numbers of rows, int64 `[P]` each."""
        _, row, length = self.pieces_of(sequence).T
        end = np.cumsum(length)
        low = np.clip(start - (end - length), 0, length)
        count = np.clip(stop - (end - length), 0, length) - low
        there = count > 0
        return row[there] + low[there], count[there]

    @property
    def _num_tables(self) -> int:
        return len(self._version.tables)

    def _row(self, sequence: int) -> tuple[int, int]:
        """The table of a sequence, and its row there."""
        number = int(np.searchsorted(self._first, sequence, "right")) - 1
        return number, sequence - int(self._first[number])

    def _table(self, kind: str, number: int) -> Table:
        file = self._version.tables[number].files[kind]
        table = self._open.get(file.name)
        if table is None:
            # Two threads may open it twice; a lock could be held when the process is forked.
            table = Table(self._place, file, {"sequences": SEQUENCES, "pieces": PIECES, "index": INDEX}[kind])
            self._open[file.name] = table
        return table

    def _broken(self, what: str) -> CorruptionError:
        return CorruptionError(
            f"the tables of {self._place.uri} version {self._version.number} break the format: {what}"
        )


def _equal(table: Table, column: int, value: int, guess: float) -> tuple[int, int]:
    """The rows `[start, stop)` of a sorted column that have a value, which is thought to be at a part of the whole."""
    size = len(table)
    reach = 16 + 4 * isqrt(size)
    place = int(guess * size)
    while True:
        low, high = max(0, place - reach), min(size, place + reach)
        values = table.numbers(column, low, high)
        start, stop = (int(np.searchsorted(values, value, side)) for side in ("left", "right"))
        if (start > 0 or low == 0) and (stop < len(values) or high == size):
            return low + start, low + stop
        reach *= 8
