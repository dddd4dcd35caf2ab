"""Sequences in memory behind the interface of a store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from streamseq.core.fields import Field, check_fields
from streamseq.storage.checksum import as_bytes, crc32c, to_hex
from streamseq.storage.interface import InFile, Int64, Parts, Reader, Store, check_limits
from streamseq.storage.layout import CHUNK_BYTES, timesteps_of_bytes
from streamseq.storage.shards.shard_writer import attrs_json, check_arrays, check_id
from streamseq.storage.upkeep.findings import VerifyReport


def from_arrays(
    arrays: Mapping[str, Mapping[str, Any]],
    fields: Mapping[str, Field] | None = None,
    attrs: Mapping[str, Mapping[str, Any]] | None = None,
) -> Store:
    """Return a store over arrays in memory, which are not copied.

    Args:
        arrays: By id, one array `[n, *D]` per field.
        fields: The fields by name; None: as the arrays of the first sequence are.
        attrs: Attributes by id.

    Raises:
        TypeError: An id, field or array has the wrong type.
        ValueError: There is no sequence to take the fields from, a field is missing or unknown, a shape is wrong,
            lengths differ, or there are attributes of no sequence.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [[1, 2], [3, 4], [5, 6]]}}, attrs={"a": {"site": "north"}})
        >>> store.fields["x"].shape, len(store), store.num_timesteps, store.attrs("a")
        ((2,), 1, 3, {'site': 'north'})
    """
    for id, named in arrays.items():
        check_id(id)
        if not isinstance(named, Mapping):
            raise TypeError(f"a sequence is a dict of one array per field, got {type(named).__name__} for {id!r}")
    if fields is None:
        if not arrays:
            raise ValueError("fields are taken from the first sequence, and there is none: pass fields={...}")
        first = {name: np.asarray(values) for name, values in next(iter(arrays.values())).items()}
        fields = {name: Field(values.dtype, values.shape[1:]) for name, values in first.items()}
    fields = check_fields(fields)
    attrs = attrs or {}
    strangers = [id for id in attrs if id not in arrays]
    if strangers:
        raise ValueError(f"attributes belong to a sequence, and there is no {strangers[0]!r}: add it or omit them")
    checked = [check_arrays(fields, named)[0] for named in arrays.values()]
    texts = [attrs_json(id, attrs.get(id, {})) for id in arrays]
    return MemoryStore(fields, list(arrays), checked, texts)


class MemoryStore(Store):
    """Arrays in memory; see `from_arrays`, which checks its arguments."""

    def __init__(
        self, fields: dict[str, Field], ids: list[str], arrays: list[dict[str, NDArray[Any]]], attrs: list[str]
    ) -> None:
        self._fields = fields
        self._ids = pa.array(ids, pa.large_string())
        self._attrs = attrs
        self._arrays = [{name: _read_only(values) for name, values in named.items()} for named in arrays]
        name = next(iter(fields))
        self._lengths = np.array([len(named[name]) for named in arrays], np.int64)
        self._lengths.flags.writeable = False

    @property
    def uri(self) -> str:
        """Memory has no address."""
        return "memory"

    @property
    def backend(self) -> str:
        """See `Store.backend`."""
        return "memory"

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Store.fields`."""
        return dict(self._fields)

    @property
    def version(self) -> int:
        """Always 1."""
        return 1

    @property
    def versions(self) -> list[int]:
        """The one version."""
        return [1]

    @cached_property
    def fingerprint(self) -> str:
        """See `Store.fingerprint`."""
        document = {
            "fields": [[name, field.dtype.name, field.shape] for name, field in self._fields.items()],
            "ids": self._ids.to_pylist(),
            "attrs": self._attrs,
            "lengths": self._lengths.tolist(),
            "values": [
                {name: to_hex(crc32c(as_bytes(np.ascontiguousarray(values)))) for name, values in named.items()}
                for named in self._arrays
            ],
        }
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    @property
    def ids(self) -> pa.Array:
        """See `Store.ids`."""
        return self._ids

    @property
    def lengths(self) -> NDArray[np.int64]:
        """See `Store.lengths`."""
        return self._lengths

    @cached_property
    def num_timesteps(self) -> int:
        """See `Store.num_timesteps`."""
        return int(self._lengths.sum())

    @property
    def chunk_timesteps(self) -> Mapping[str, int]:
        """What a store on disk would have; nothing is decoded here."""
        return {name: timesteps_of_bytes(CHUNK_BYTES, field) for name, field in self._fields.items()}

    @property
    def decoded_chunk_bytes(self) -> Mapping[str, int]:
        """Zeros: nothing is decoded."""
        return dict.fromkeys(self._fields, 0)

    def reader(self, fields: Sequence[str], cache_chunks: int, ahead: int = 0) -> Reader:
        """See `Store.reader`."""
        check_limits(cache_chunks, ahead)
        return MemoryReader({name: self._fields[name] for name in self._names(fields)}, self._arrays, self._lengths)

    @cached_property
    def _index_of_id(self) -> dict[str, int]:
        return {id: number for number, id in enumerate(self._ids.to_pylist())}

    def find(self, id: str) -> int | None:
        """See `Store.find`."""
        return self._index_of_id.get(id)

    def attrs_json(self, sequence: int) -> str:
        """See `Store.attrs_json`."""
        return self._attrs[sequence]

    def verify(self, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """See `Store.verify`: nothing is stored, so nothing can have changed."""
        return VerifyReport(store=self.uri, versions=(1,), sequences=len(self), timesteps=self.num_timesteps)

    def _read(self, sequence: int, start: int, stop: int, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        return {name: self._arrays[sequence][name][start:stop].copy() for name in fields}


class MemoryReader(Reader):
    """Hands out views of the arrays; it decodes nothing."""

    def __init__(self, fields: dict[str, Field], arrays: list[dict[str, NDArray[Any]]], lengths: Int64) -> None:
        self._fields = fields
        self._arrays = arrays
        self._lengths = lengths

    @property
    def fields(self) -> Mapping[str, Field]:
        """See `Reader.fields`."""
        return self._fields

    @property
    def lengths(self) -> Int64:
        """See `Reader.lengths`."""
        return self._lengths

    def locate(self, field: str, spans: tuple[Int64, Int64, Int64]) -> Parts:
        """See `Reader.locate`: each sequence is a chunk."""
        if field not in self._fields:
            names = ", ".join(sorted(self._fields)) or "nothing once it is closed"
            raise ValueError(f"a reader reads {names}, got {field!r}")
        sequence, start, stop = spans
        number = np.arange(len(sequence))
        offset = np.zeros_like(number)
        return Parts(field=field, chunk=sequence, low=start, count=stop - start, span=number, offset=offset)

    def load(self, field: str, chunks: Sequence[int], uses: Sequence[int]) -> list[NDArray[Any] | InFile]:
        """See `Reader.load`."""
        return [self._arrays[sequence][field] for sequence in chunks]

    def close(self) -> None:
        """See `Reader.close`."""
        self._fields = {}


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    view = values.view()
    view.flags.writeable = False
    return view
