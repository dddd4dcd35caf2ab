"""Several stores as one: their catalogues end to end, behind the interface of a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import CorruptionError
from streamseq.core.fields import Field
from streamseq.storage.boundaries.kept import StoredBoundaries
from streamseq.storage.interface import InFile, Int64, Parts, Reader, ReaderCounts, Store
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.statistics.kept import NAME, gatherers, parse_statistics


def join(stores: Mapping[str, Store] | Iterable[Store]) -> JoinedStore:
    """Return one store over the sequences of several, one store after the other; nothing is copied.

    Its ids are `NAME/ID`, its fields those that all of them have with the same dtype and step shape.

    Args:
        stores: By name; or a list of them, whose names are "0", "1", ...

    Raises:
        TypeError: One is no store, or a name is no text.
        ValueError: There is no store, a name is empty or has a "/", or they have no field in common.

    Example:
        >>> import streamseq as ss
        >>> wiki = ss.from_arrays({"a": {"x": [1, 2, 3]}})
        >>> code = ss.from_arrays({"a": {"x": [7, 8]}, "b": {"x": [9]}})
        >>> both = join({"wiki": wiki, "code": code})
        >>> both.ids.to_pylist(), both.lengths.tolist()
        (['wiki/a', 'code/a', 'code/b'], [3, 2, 1])
        >>> both.read("code/a")["x"].tolist(), both.member(2)
        ([7, 8], ('code', 1))
    """
    if isinstance(stores, Store | str) or not isinstance(stores, Iterable):
        raise TypeError(f"stores are joined from a dict or a list of them, got a {type(stores).__name__}")
    named = dict(stores) if isinstance(stores, Mapping) else {str(at): each for at, each in enumerate(stores)}
    if not named:
        raise ValueError("stores are joined from at least one, got none: pass {name: ss.open(uri), ...}")
    for name, store in named.items():
        if not isinstance(name, str):
            raise TypeError(f"the name of a store is text, got {name!r}")
        if not name or "/" in name:
            raise ValueError(f'the name of a store is not empty and has no "/", which ends it in ids, got {name!r}')
        if not isinstance(store, Store):
            raise TypeError(f"stores are joined, got a {type(store).__name__} for {name!r}: pass ss.open(uri)")
    return JoinedStore(named)


class JoinedStore(Store):
    """The sequences of several stores, one store after the other; see `join`.

    It is of the versions that its stores are of, and has no other: join newer ones to see what was appended.
    """

    def __init__(self, stores: dict[str, Store]) -> None:
        #: By name, in order.
        self.stores: Mapping[str, Store] = stores
        first = next(iter(stores.values())).fields
        self._fields = {name: field for name, field in first.items() if not self._unlike(name)}
        if not self._fields:
            self.check_fields(None)
        counts = [len(store.lengths) for store in stores.values()]
        #: int64 [S + 1], the index of the first sequence of each store.
        self.first: Int64 = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        self._lengths = np.concatenate([store.lengths for store in stores.values()])
        self._lengths.flags.writeable = False

    def __reduce__(self) -> tuple[type[JoinedStore], tuple[dict[str, Store]]]:
        # What is known of them is found again in another process.
        return JoinedStore, (dict(self.stores),)

    def _unlike(self, name: str) -> tuple[str, str] | None:
        """The names of two stores that have different fields of one name, or one of which has none."""
        first, *others = self.stores
        field = self.stores[first].fields.get(name)
        for other in others:
            if not _alike(field, self.stores[other].fields.get(name)):
                return first, other
        return None

    def check_fields(self, names: Iterable[str] | None) -> None:
        """Check that all stores have some fields, with the same dtype and step shape.

        Args:
            names: The fields; None: those that any store has.

        Raises:
            KeyError: No store has a field.
            ValueError: One has it and another has not, or another one of that name.
        """
        known = dict.fromkeys(name for store in self.stores.values() for name in store.fields)
        for name in known if names is None else names:
            if name not in known:
                raise KeyError(f"the stores have fields {', '.join(known)}, not {name!r}")
            pair = self._unlike(name)
            if pair is not None:
                one, other = (f"{each!r} has {_described(self.stores[each].fields.get(name))}" for each in pair)
                raise ValueError(
                    f"stores in one stream have the same fields, and for {name!r} store {one} and store {other}: "
                    f"name the fields that they share, fields=[...] of {', '.join(self.fields) or 'none'}, or ingest "
                    "one of them anew"
                )

    def member(self, sequence: int) -> tuple[str, int]:
        """Return the name of the store that a sequence is of, and its index there.

        Raises:
            IndexError: There is no such sequence.
        """
        number, index = self._locate(self._index(sequence))
        return list(self.stores)[number], index

    def member_of(self, sequences: Int64) -> Int64:
        """Return the number of the store that each of some sequences is of, int64 of the shape of `sequences`."""
        return np.searchsorted(self.first, sequences, "right") - 1

    def _locate(self, sequence: int) -> tuple[int, int]:
        number = int(np.searchsorted(self.first, sequence, "right")) - 1
        return number, sequence - int(self.first[number])

    def _member(self, sequence: int) -> tuple[Store, int]:
        number, index = self._locate(sequence)
        return list(self.stores.values())[number], index

    @property
    def uri(self) -> str:
        """The addresses of all."""
        return " + ".join(store.uri for store in self.stores.values())

    @property
    def backend(self) -> str:
        """Always "joined"."""
        return "joined"

    @property
    def fields(self) -> Mapping[str, Field]:
        """The fields that all stores have with the same dtype and step shape."""
        return dict(self._fields)

    @property
    def version(self) -> int:
        """Always 1: that of the join."""
        return 1

    @property
    def versions(self) -> list[int]:
        """The one version."""
        return [1]

    @cached_property
    def fingerprint(self) -> str:
        """See `Store.fingerprint`: of the names and the contents of all stores, in order."""
        document = [[name, store.fingerprint] for name, store in self.stores.items()]
        return hashlib.sha256(json.dumps(document).encode()).hexdigest()

    @cached_property
    def ids(self) -> pa.Array:
        """The ids, with the names of their stores before them: `NAME/ID`."""
        parts = [
            pc.binary_join_element_wise(
                pa.scalar(name, pa.large_string()), store.ids.cast(pa.large_string()), pa.scalar("/", pa.large_string())
            )
            for name, store in self.stores.items()
        ]
        return pa.concat_arrays(parts)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Store.lengths`."""
        return self._lengths

    @cached_property
    def num_timesteps(self) -> int:
        """See `Store.num_timesteps`."""
        return sum(store.num_timesteps for store in self.stores.values())

    @property
    def decoded_chunk_bytes(self) -> Mapping[str, int]:
        """A chunk of each store, as the reader keeps chunks of each."""
        return {name: sum(store.decoded_chunk_bytes[name] for store in self.stores.values()) for name in self._fields}

    @property
    def chunk_timesteps(self) -> Mapping[str, int]:
        """The most of any store."""
        return {name: max(store.chunk_timesteps[name] for store in self.stores.values()) for name in self._fields}

    def reader(self, fields: Sequence[str], cache_chunks: int, ahead: int = 0) -> Reader:
        """See `Store.reader`; as many chunks are kept, and decoded ahead, of each store."""
        names = self._names(fields)
        readers: list[Reader] = []
        try:
            for store in self.stores.values():
                readers.append(store.reader(names, cache_chunks, ahead))
        except BaseException:
            for each in readers:
                each.close()
            raise
        return JoinedReader({name: self._fields[name] for name in names}, readers, self.first, self._lengths)

    def _read(self, sequence: int, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        store, index = self._member(sequence)
        return store._read(index, start, stop, fields)

    def attrs_json(self, sequence: int) -> str:
        """See `Store.attrs_json`."""
        store, index = self._member(sequence)
        return store.attrs_json(index)

    def id_of(self, sequence: int) -> str:
        """See `Store.id_of`."""
        number, index = self._locate(sequence)
        name, store = list(self.stores.items())[number]
        return f"{name}/{store.id_of(index)}"

    def __len__(self) -> int:
        return len(self._lengths)

    def find(self, id: str) -> int | None:
        """See `Store.find`."""
        name, _, rest = id.partition("/")
        if name not in self.stores:
            return None
        index = self.stores[name].find(rest)
        return None if index is None else index + int(self.first[list(self.stores).index(name)])

    def indices(self, ids: Sequence[str]) -> Int64:
        """See `Store.indices`."""
        named: dict[str, list[int]] = {}
        for place, id in enumerate(ids):
            name = id.partition("/")[0] if isinstance(id, str) else ""
            if name not in self.stores:
                self.index(id)  # says what is wrong
            named.setdefault(name, []).append(place)
        found = np.empty(len(ids), np.int64)
        for name, places in named.items():
            of_store = self.stores[name].indices([ids[place].partition("/")[2] for place in places])
            found[places] = of_store + self.first[list(self.stores).index(name)]
        return found

    @cached_property
    def statistics(self) -> Mapping[str, Statistics] | None:
        """See `Store.statistics`: of all timesteps of all stores, each counted once; None where one has none."""
        merged = gatherers(self._fields)
        for store in self.stores.values():
            content = store.attachment(NAME)
            if content is None:
                return None
            try:
                gathered = parse_statistics(content, store.fields)
            except ValueError as error:
                raise CorruptionError(
                    f"the statistics of {store.uri} version {store.version} cannot be read: {error}: ss.describe makes "
                    "others"
                ) from None
            for name, each in merged.items():
                each.merge(gathered[name])
        return {name: each.summary() for name, each in merged.items()}

    @property
    def boundary_names(self) -> list[str]:
        """The names that stored boundaries have in all stores."""
        names = [set(store.boundary_names) for store in self.stores.values()]
        return sorted(set.intersection(*names))

    def boundaries(self, name: str) -> StoredBoundaries:
        """See `Store.boundaries`: those of this name of all stores."""
        each = [store.boundaries(name) for store in self.stores.values()]
        all_of = [found.boundaries for found in each]
        return StoredBoundaries(
            store=self,
            name=name,
            version=self.version,
            rules=each[0].rules,
            lengths=np.concatenate([_padded(found.lengths, n) for found, n in zip(each, self._counts(), strict=True)]),
            boundaries=Boundaries(
                np.concatenate([found.sequence + low for found, low in zip(all_of, self.first, strict=False)]),
                np.concatenate([np.diff(found.first) for found in all_of]),
                np.concatenate([found.position for found in all_of]),
                np.concatenate([found.breaks for found in all_of]),
            ),
        )

    def _counts(self) -> list[int]:
        return np.diff(self.first).tolist()  # type: ignore[no-any-return]


class JoinedReader(Reader):
    """Reads several stores, each with a reader of its own.

    A chunk's number is that in its own reader times the number of stores, plus the number of the store.
    """

    def __init__(self, fields: dict[str, Field], readers: list[Reader], first: Int64, lengths: Int64) -> None:
        self._fields = fields
        self._readers = readers
        self._first = first
        self._lengths = lengths

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Reader.fields`."""
        return self._fields

    @property
    def lengths(self) -> Int64:
        """See `Reader.lengths`."""
        return self._lengths

    @property
    def counts(self) -> ReaderCounts:
        """Of all readers together."""
        return sum((reader.counts for reader in self._readers), ReaderCounts())

    def locate(self, field: str, spans: tuple[Int64, Int64, Int64]) -> Parts:
        """See `Reader.locate`."""
        sequence, start, stop = spans
        number = np.searchsorted(self._first, sequence, "right") - 1
        found = []
        for store in np.unique(number).tolist() or [0]:
            rows = np.flatnonzero(number == store)
            parts = self._readers[store].locate(field, (sequence[rows] - self._first[store], start[rows], stop[rows]))
            found.append(
                (parts.chunk * len(self._readers) + store, parts.low, parts.count, rows[parts.span], parts.offset)
            )
        columns = [np.concatenate(each) for each in zip(*found, strict=True)] if len(found) > 1 else list(found[0])
        if len(found) > 1:
            # The parts of a span are in order already.
            order = np.argsort(columns[3], kind="stable")
            columns = [each[order] for each in columns]
        chunk, low, count, span, offset = columns
        return Parts(field=field, chunk=chunk, low=low, count=count, span=span, offset=offset)

    def _split(self, chunks: Sequence[int]) -> Iterator[tuple[Reader, list[int], list[int]]]:
        """Of each reader that has some of the chunks: it, their places, and their numbers there."""
        places: dict[int, list[int]] = {}
        for place, chunk in enumerate(chunks):
            places.setdefault(chunk % len(self._readers), []).append(place)
        for store, held in places.items():
            yield self._readers[store], held, [chunks[place] // len(self._readers) for place in held]

    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `Reader.load`."""
        loaded: dict[int, NDArray[Any] | InFile] = {}
        for reader, places, numbers in self._split(chunks):
            loaded.update(zip(places, reader.load(field, numbers, [uses[place] for place in places]), strict=True))
        return [loaded[place] for place in range(len(chunks))]

    def extents(self, field: str, chunks: Sequence[int]) -> list[InFile]:
        """See `Reader.extents`."""
        return [each for reader, _, numbers in self._split(chunks) for each in reader.extents(field, numbers)]

    def prefetch(self, field: str, chunks: Sequence[int]) -> bool:
        """See `Reader.prefetch`."""
        # Of every store, also where there is no room for those of another one.
        there = [reader.prefetch(field, numbers) for reader, _, numbers in self._split(chunks)]
        return all(there)

    def close(self) -> None:
        """See `Reader.close`."""
        for reader in self._readers:
            reader.close()


def _alike(one: Field | None, other: Field | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _described(field: Field | None) -> str:
    return "none" if field is None else f"{field.dtype}{list(field.shape)}"


def _padded(lengths: Int64, count: int) -> Int64:
    """Lengths [N], of sequences that came later 0: they are not covered."""
    return np.concatenate([lengths, np.zeros(count - len(lengths), np.int64)])
