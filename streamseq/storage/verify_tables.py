"""What `verify` looks for in the tables of a version, and which sequences lie in given rows, block by block."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.findings import Problem, Span
from streamseq.storage.rows import Pieces
from streamseq.storage.table import PIECES, SEQUENCES, Table
from streamseq.storage.version import Version

Int64 = NDArray[np.int64]

# Rows of a table that are looked at together.
_BLOCK = 1 << 18


class Contents:
    """The tables of a version, as far as they can be read.

    Args:
        sequences: The tables of sequences; None where one of them is broken.
        pieces: The tables of pieces; None where one of them is broken.
    """

    def __init__(self, sequences: Sequence[pa.RecordBatch] | None, pieces: Sequence[pa.RecordBatch] | None) -> None:
        self._sequences = sequences
        self._pieces = pieces
        lengths = [] if sequences is None else [batch.num_rows for batch in sequences]
        self._borders = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)

    def spans(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[Span, ...]]:
        """The timesteps that lie in each range `[start, stop)` of rows; none where the tables are broken.

        The tables are gone through twice, however many ranges there are.
        """
        if self._pieces is None or not ranges:
            return [()] * len(ranges)
        starts, stops = _union(ranges)
        hit = np.unique(np.concatenate([block[_overlaps(block, starts, stops), 0] for block in self.blocks()]))
        if not len(hit):
            return [()] * len(ranges)
        pieces = np.concatenate([block[np.isin(block[:, 0], hit)] for block in self.blocks()])
        pieces = pieces[np.argsort(pieces[:, 0], kind="stable")]
        # Where each piece starts in its sequence.
        before = np.cumsum(pieces[:, 2]) - pieces[:, 2]
        first = np.searchsorted(pieces[:, 0], pieces[:, 0])
        offset = before - before[first]
        order = np.argsort(pieces[:, 1], kind="stable")
        pieces, offset = pieces[order], offset[order]
        return [tuple(self._spans(pieces, offset, low, high)) for low, high in ranges]

    def blocks(self) -> Iterator[Pieces]:
        """The pieces, int64 `[m, 3]` at a time, in the order of the tables."""
        for batch in self._pieces or ():
            for start in range(0, batch.num_rows, _BLOCK):
                part = batch.slice(start, _BLOCK)
                yield np.stack([column.to_numpy() for column in part.columns], axis=1)

    def _spans(self, pieces: Pieces, offset: Int64, low: int, high: int) -> Iterator[Span]:
        sequence, row, length = pieces.T
        begin, end = np.maximum(row, low), np.minimum(row + length, high)
        lie = np.flatnonzero(begin < end)
        for index in lie[np.argsort(sequence[lie], kind="stable")].tolist():
            number = int(sequence[index])
            start, stop = (int(offset[index] + edge[index] - row[index]) for edge in (begin, end))
            yield Span(id=self._id(number), sequence=number, start=start, stop=stop)

    def _id(self, sequence: int) -> str | None:
        if self._sequences is None:
            return None
        table = int(np.searchsorted(self._borders, sequence, "right")) - 1
        id: str = self._sequences[table].column(0)[sequence - int(self._borders[table])].as_py()
        return id


def check_tables(store: DiskStore) -> tuple[Contents, list[Problem]]:
    """Check the tables of a version.

    Args:
        store: The version, whose file can be read.
    """
    version, wrong = store.snapshot, []

    def load(kind: str, schema: pa.Schema) -> list[pa.RecordBatch] | None:
        batches = []
        for tables in version.tables:
            try:
                batches.append(Table(store.place, tables.files[kind], schema).batch())
            except (StoreError, OSError) as error:
                wrong.append(" ".join(str(error).split()))
        return batches if len(batches) == len(version.tables) else None

    sequences, pieces = load("sequences", SEQUENCES), load("pieces", PIECES)
    contents = Contents(sequences, pieces)
    if sequences is not None:
        wrong += _wrong_ids(sequences)
    if pieces is not None:
        wrong += _wrong_pieces(contents, version)
    named = f"the tables of version {version.number}"
    return contents, [
        Problem(
            store=store.uri,
            versions=(version.number,),
            part="table",
            what=what if what.startswith("table") else f"{named} {what}",
        )
        for what in wrong
    ]


def _wrong_ids(batches: Sequence[pa.RecordBatch]) -> Iterator[str]:
    ids = pa.chunked_array([batch.column(0) for batch in batches], pa.large_string())
    if pc.count_distinct(ids).as_py() != len(ids):
        counts = pc.value_counts(ids)
        twice = [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1]
        yield f"have {len(twice):,} ids more than once, such as {twice[0]!r}: they were not written by streamseq"
    for batch in batches:
        for start in range(0, batch.num_rows, _BLOCK):
            id, attrs = (column.to_pylist() for column in batch.slice(start, _BLOCK).columns)
            for name, text in zip(id, attrs, strict=True):
                if not name:
                    yield "have an empty id: they were not written by streamseq"
                if text != "{}" and not _is_object(text):
                    yield f"have attributes of {name!r} that are not a JSON object: they were not written by streamseq"


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _wrong_pieces(contents: Contents, version: Version) -> Iterator[str]:
    """Every row is in one piece."""
    total = version.num_timesteps
    in_order, row = True, 0
    for block in contents.blocks():
        sequence, first, length = block.T
        if np.any(sequence < 0) or np.any(sequence >= version.num_sequences):
            yield f"have a piece of none of {version.num_sequences} sequences: they were not written by streamseq"
            return
        if np.any(length < 1) or np.any(first < 0) or np.any(first > total) or np.any(length > total - first):
            yield f"have a piece that is not in the {total:,} rows of the shards: they were not written by streamseq"
            return
        in_order = in_order and first[0] == row and np.array_equal(first[1:], (first + length)[:-1])
        row = int(first[-1] + length[-1])
    if not in_order:
        # Those of a version that was rewritten in another order.
        every = np.concatenate(list(contents.blocks()))
        first, length = every[np.argsort(every[:, 1], kind="stable"), 1:].T
        in_order = first[0] == 0 and np.array_equal(first[1:], (first + length)[:-1])
        row = int(first[-1] + length[-1])
    if not in_order or row != total:
        yield f"have not each of {total:,} rows in one piece: they were not written by streamseq"


def _union(ranges: Sequence[tuple[int, int]]) -> tuple[Int64, Int64]:
    """Starts and stops of the fewest ranges that cover the same rows, ascending."""
    joined: list[list[int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1][1] = max(joined[-1][1], high)
        else:
            joined.append([low, high])
    starts, stops = np.array(joined, np.int64).T
    return starts, stops


def _overlaps(pieces: Pieces, starts: Int64, stops: Int64) -> NDArray[np.bool_]:
    """Which pieces share rows with one of the ranges."""
    _, row, length = pieces.T
    # The first range that ends behind the piece's start.
    number = np.searchsorted(stops, row, "right")
    shares: NDArray[np.bool_] = (starts[np.minimum(number, len(starts) - 1)] < row + length) & (number < len(starts))
    return shares
