"""What `verify` looks for in the tables of a version, and which sequences lie in given rows, block by block."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.strict_json import parse_json
from streamseq.storage.upkeep.findings import Problem, Span
from streamseq.storage.versions.attachments import read_attachment
from streamseq.storage.versions.rows import Pieces
from streamseq.storage.versions.table import INDEX, PIECES, SEQUENCES, Table, hash_of
from streamseq.storage.versions.version import Version

Int64 = NDArray[np.int64]

# Rows of numbers, and of texts, that are looked at together.
_BLOCK, _TEXTS = 1 << 18, 1 << 16


class Contents:
    """The tables of a version, as far as they can be read.

    Args:
        sequences: The tables of sequences; None where one of them is broken.
        pieces: The tables of pieces; None where one of them is broken.
    """

    def __init__(self, sequences: Sequence[Table] | None, pieces: Sequence[Table] | None) -> None:
        self._sequences = sequences
        self._pieces = pieces
        lengths = [] if sequences is None else [len(table) for table in sequences]
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
        for table in self._pieces or ():
            for start in range(0, len(table), _BLOCK):
                stop = min(start + _BLOCK, len(table))
                yield np.stack([table.numbers(column, start, stop) for column in range(3)], axis=1)

    def _spans(self, pieces: Pieces, offset: Int64, low: int, high: int) -> Iterator[Span]:
        sequence, row, length = pieces.T
        begin, end = np.maximum(row, low), np.minimum(row + length, high)
        lie = np.flatnonzero(begin < end)
        for index in lie[np.argsort(sequence[lie], kind="stable")].tolist():
            number = int(sequence[index])
            start, stop = (int(offset[index] + edge[index] - row[index]) for edge in (begin, end))
            yield Span(id=self.id_of(number), sequence=number, start=start, stop=stop)

    def id_of(self, sequence: int) -> str | None:
        """The id of a sequence; None where it cannot be read."""
        if self._sequences is None:
            return None
        number = int(np.searchsorted(self._borders, sequence, "right")) - 1
        return self._sequences[number].text(0, sequence - int(self._borders[number]))


def check_tables(store: DiskStore) -> tuple[Contents, list[Problem]]:
    """Check the tables of a version: every block, and that they agree with each other.

    Args:
        store: The version, whose file can be read.
    """
    version, wrong = store.snapshot, []

    def load(kind: str, schema: pa.Schema) -> list[Table] | None:
        loaded = []
        for tables in version.tables:
            try:
                table = Table(store.place, getattr(tables, kind), schema)
                table.batch()
                loaded.append(table)
            except (StoreError, OSError) as error:
                wrong.append(" ".join(str(error).split()))
        return loaded if len(loaded) == len(version.tables) else None

    sequences, pieces, index = load("sequences", SEQUENCES), load("pieces", PIECES), load("index", INDEX)
    contents = Contents(sequences, pieces)
    if sequences is not None:
        wrong += _wrong_ids(sequences, index)
    if pieces is not None:
        wrong += _wrong_pieces(contents, version)
    named = f"the tables of version {version.number}"
    return contents, [
        Problem(
            store=store.uri,
            versions=(version.number,),
            part="table",
            what=what if what.startswith("table") else f"{named} {what}: they were not written by streamseq",
        )
        for what in wrong
    ]


def check_attachments(store: DiskStore) -> list[Problem]:
    """Check what is said of a version beside its contents, as far as its checksum goes."""
    problems = []
    for name, file in store.snapshot.attachments.items():
        try:
            read_attachment(store.place, name, file)
        except (StoreError, OSError) as error:
            what = " ".join(str(error).split())
            problems.append(Problem(store=store.uri, versions=(store.version,), part="attachment", what=what))
    return problems


def _wrong_ids(tables: Sequence[Table], index: Sequence[Table] | None) -> Iterator[str]:
    """Ids are unique, attributes are JSON objects, and the index finds every id."""
    every = [np.empty(0, np.uint32)]
    first = 0
    for number, table in enumerate(tables):
        hashes = np.empty(len(table), np.uint32)
        for start in range(0, len(table), _TEXTS):
            ids, texts = (column.to_pylist() for column in table.batch().slice(start, _TEXTS).columns)
            hashes[start : start + len(ids)] = [hash_of(id) for id in ids]
            if "" in ids:
                yield "have an empty id"
            for id, text in zip(ids, texts, strict=True):
                if text != "{}" and not _is_object(text):
                    yield f"have attributes of {id!r} that are not a JSON object"
        order = np.argsort(hashes, kind="stable")
        if index is not None and not _is_index(index[number], hashes[order], order + first):
            yield f"have an index that does not find the ids of table {number}"
        every.append(hashes)
        first += len(table)
    twice = _twice(tables, np.concatenate(every))
    if twice:
        yield f"have {len(twice):,} ids more than once, such as {twice[0]!r}"


def _is_index(table: Table, hashes: NDArray[np.uint32], sequences: Int64) -> bool:
    if len(table) != len(hashes):
        return False
    found, named = (table.numbers(column, 0, len(table)) for column in range(2))
    return np.array_equal(found, hashes) and np.array_equal(named, sequences)


def _twice(tables: Sequence[Table], hashes: NDArray[np.uint32]) -> list[str]:
    """Ids that are there more than once: only those of one hash are compared."""
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(np.diff(hashes[order]) == 0)
    contents = Contents(tables, None)
    ids = [contents.id_of(int(sequence)) for sequence in order[np.union1d(same, same + 1)]]
    return sorted(id for id, count in Counter(ids).items() if count > 1 and id is not None)


def _is_object(text: str) -> bool:
    try:
        return isinstance(parse_json(text.encode()), dict)
    except ValueError:
        return False


def _wrong_pieces(contents: Contents, version: Version) -> Iterator[str]:
    """Every row is in one piece."""
    total = version.num_timesteps
    rows, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for block in contents.blocks():
        sequence, row, length = block.T
        if np.any(sequence < 0) or np.any(sequence >= version.num_sequences):
            yield f"have a piece of none of {version.num_sequences:,} sequences"
            return
        if np.any(length < 1) or np.any(row < 0) or np.any(row > total) or np.any(length > total - row):
            yield f"have a piece that is not in the {total:,} rows of the shards"
            return
        rows.append(row)
        lengths.append(length)
    row, length = np.concatenate(rows), np.concatenate(lengths)
    order = np.argsort(row, kind="stable")
    row, length = row[order], length[order]
    ends = row + length
    if not np.array_equal(row, np.concatenate(([0], ends))[:-1]) or (ends[-1] if len(ends) else 0) != total:
        yield f"have not each of {total:,} rows in one piece"


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
