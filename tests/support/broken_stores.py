"""Stores in memory that are each broken in one way, for the suite of all stores to find."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from streamseq.core.fields import Field
from streamseq.storage.interface import Parts
from streamseq.storage.memory import MemoryReader, MemoryStore

#: By the way in which a store is broken, its class and the tests of the suite that must fail.
BROKEN: dict[str, tuple[type[MemoryStore], set[str]]] = {}


def finds(*tests: str) -> Callable[[type[MemoryStore]], type[MemoryStore]]:
    """Say which tests find it."""

    def added(broken: type[MemoryStore]) -> type[MemoryStore]:
        BROKEN[broken.__name__] = (broken, {f"test_{test}" for test in tests})
        return broken

    return added


@finds("every_sequence_reads_back_by_id_and_by_index", "spans_and_fields_are_chosen")
class WrongValue(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        read = super()._read(sequence, start, stop, fields)
        for values in read.values():
            if len(values) > 1:
                values[-1] = values[-2]
        return read


@finds("spans_and_fields_are_chosen")
class SpanOneTooEarly(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        shift = int(start > 0)
        return super()._read(sequence, start - shift, stop - shift, fields)


@finds("every_sequence_reads_back_by_id_and_by_index")
class SpanTooShort(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        return super()._read(sequence, start, max(start, stop - 1), fields)


@finds("every_sequence_reads_back_by_id_and_by_index")
class WrongDtype(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        read = super()._read(sequence, start, stop, fields)
        return {name: values.astype("float64") for name, values in read.items()}


@finds("spans_and_fields_are_chosen")
class AllFieldsAlways(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        return super()._read(sequence, start, stop, list(self.fields))


@finds("what_is_read_is_the_callers_own")
class SharedArrays(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        own = self.__dict__.setdefault("own", [{n: v.copy() for n, v in each.items()} for each in self._arrays])
        return {name: own[sequence][name][start:stop] for name in fields}


@finds("ids_and_lengths_are_in_commit_order")
class WrongLengths(MemoryStore):
    @property
    def lengths(self) -> Any:
        lengths = super().lengths.copy()
        lengths[-1] -= 1
        lengths.flags.writeable = False
        return lengths


@finds("ids_and_lengths_are_in_commit_order")
class WritableLengths(MemoryStore):
    @property
    def lengths(self) -> Any:
        return super().lengths.copy()


@finds("ids_and_lengths_are_in_commit_order")
class NumTimestepsOfNumpy(MemoryStore):
    @property
    def num_timesteps(self) -> Any:
        return self.lengths.sum()


@finds("ids_and_lengths_are_in_commit_order")
class IdsOutOfOrder(MemoryStore):
    @property
    def ids(self) -> Any:
        return super().ids[::-1]


@finds("index", "every_sequence_reads_back_by_id_and_by_index")
class FindsAnother(MemoryStore):
    def find(self, id: str) -> int | None:
        found = super().find(id)
        return None if found is None else (found + 1) % len(self)


@finds("unknown_sequences", "index")
class FindsWhatIsNotThere(MemoryStore):
    def find(self, id: str) -> int | None:
        return super().find(id) or 0


@finds("unknown_sequences")
class CountsFromTheEnd(MemoryStore):
    def _index(self, id_or_index: str | int) -> int:
        return super()._index(id_or_index if isinstance(id_or_index, str) else id_or_index % len(self))


@finds("attributes")
class AttributesOfAnother(MemoryStore):
    def attrs_json(self, sequence: int) -> str:
        return super().attrs_json(0)


@finds("attributes")
class SharedAttributes(MemoryStore):
    def attrs(self, id_or_index: str | int) -> dict[str, Any]:
        kept: dict[str | int, dict[str, Any]] = self.__dict__.setdefault("kept", {})
        return kept.setdefault(id_or_index, super().attrs(id_or_index))


@finds("spans_outside_the_sequence_are_refused")
class CutsSpansOff(MemoryStore):
    def read(self, id_or_index: Any, start: int = 0, stop: int | None = None, fields: Any = None) -> Any:
        length = int(self.lengths[self._index(id_or_index)])
        stop = length if stop is None else min(max(stop, 0), length)
        return super().read(id_or_index, min(max(start, 0), stop), stop, fields)


@finds("unknown_fields")
class LeavesUnknownFieldsOut(MemoryStore):
    def _names(self, fields: Any) -> list[str]:
        return super()._names([name for name in fields if name in self.fields] if fields else fields)


@finds("fields_are_those_given")
class ForgetsCodecs(MemoryStore):
    @property
    def fields(self) -> Any:
        return {name: Field(field.dtype, field.shape) for name, field in super().fields.items()}


@finds("fields_are_those_given")
class ChunksOfNothing(MemoryStore):
    @property
    def chunk_timesteps(self) -> Any:
        return dict.fromkeys(self.fields, 0)


@finds("store_survives_pickling")
class LosesWhenPickled(MemoryStore):
    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": self._arrays[::-1]}


@finds("a_forked_process_reads")
class OfOneProcess(MemoryStore):
    def _read(self, sequence: int, start: int, stop: int, fields: Any) -> Any:
        import os

        if self.__dict__.setdefault("process", os.getpid()) != os.getpid():
            raise RuntimeError("opened in another process")
        return super()._read(sequence, start, stop, fields)


@finds("fingerprint_is_of_the_contents")
class FingerprintOfNothing(MemoryStore):
    @property
    def fingerprint(self) -> Any:
        return "0" * 64


@finds("fingerprint_is_of_the_contents")
class FingerprintWithoutValues(MemoryStore):
    @property
    def fingerprint(self) -> Any:
        ids = self.ids.to_pylist()
        return f"{hash((tuple(ids), tuple(self._attrs), tuple(self.lengths.tolist()))) % 2**64:016x}"


@finds("fingerprint_is_of_the_contents", "store_survives_pickling")
class FingerprintOfTheObject(MemoryStore):
    @property
    def fingerprint(self) -> Any:
        return f"{id(self):x}"


@finds("version")
class OtherVersion(MemoryStore):
    @property
    def version(self) -> int:
        return 2


@finds("version")
class AnyVersionIsThisOne(MemoryStore):
    def at_version(self, version: int | None = None) -> Any:
        return self


@finds("verify_finds_nothing")
class VerifyFindsMore(MemoryStore):
    def verify(self, *, workers: Any = None, progress: Any = None) -> Any:
        return replace(super().verify(), sequences=len(self) - 1)


@finds("repr_says_what_there_is")
class SaysNothing(MemoryStore):
    def __repr__(self) -> str:
        return "<Store>"


class _BrokenReader(MemoryStore):
    """A store whose reader is broken."""

    kind: type[MemoryReader]

    def reader(self, fields: Any, cache_chunks: int, ahead: int = 0) -> Any:
        super().reader(fields, cache_chunks, ahead)
        return self.kind({name: self._fields[name] for name in fields}, self._arrays, self._lengths)


@finds("slices_are_read_only_and_stay_valid")
class WritableSlices(_BrokenReader):
    class kind(MemoryReader):
        def load(self, field: str, chunks: Any, uses: Any) -> Any:
            return [values.copy() for values in super().load(field, chunks, uses)]


@finds("slices_are_read_only_and_stay_valid")
class BufferUsedAgain(_BrokenReader):
    class kind(MemoryReader):
        buffer = np.zeros(1 << 16, np.uint8)

        def load(self, field: str, chunks: Any, uses: Any) -> Any:
            (values,) = super().load(field, chunks, uses)
            room = self.buffer[: values.nbytes].view(values.dtype).reshape(values.shape)
            room[:] = values
            room = room.view()
            room.flags.writeable = False
            return [room]


@finds("slices_together_are_the_span", "many_spans_are_located_at_once")
class PartsOneTooLate(_BrokenReader):
    class kind(MemoryReader):
        def locate(self, field: str, spans: Any) -> Parts:
            parts = super().locate(field, spans)
            return replace(parts, low=parts.low + (parts.low > 0))


@finds("many_spans_are_located_at_once")
class PartsByChunk(_BrokenReader):
    class kind(MemoryReader):
        def locate(self, field: str, spans: Any) -> Parts:
            parts = super().locate(field, spans)
            order = np.argsort(parts.chunk, kind="stable")
            columns = {name: getattr(parts, name)[order] for name in ("chunk", "low", "count", "offset")}
            return replace(parts, **columns)


@finds("many_spans_are_located_at_once")
class OffsetsOfTheSequence(_BrokenReader):
    class kind(MemoryReader):
        def locate(self, field: str, spans: Any) -> Parts:
            parts = super().locate(field, spans)
            return replace(parts, offset=parts.low)


@finds("slices_together_are_the_span")
class EmptySlices(_BrokenReader):
    class kind(MemoryReader):
        def arrays(self, parts: Parts) -> Iterator[Any]:
            for values in super().arrays(parts):
                yield values[:0]
                yield values


@finds("reading_ahead_changes_nothing")
class WrongOnceReadAhead(_BrokenReader):
    class kind(MemoryReader):
        ahead = False

        def prefetch(self, field: str, chunks: Any) -> bool:
            self.ahead = True
            return True

        def load(self, field: str, chunks: Any, uses: Any) -> Any:
            loaded = super().load(field, chunks, uses)
            return [np.zeros_like(values) for values in loaded] if self.ahead else loaded


@finds("several_threads_read_at_once")
class LockedByOneThread(_BrokenReader):
    class kind(MemoryReader):
        readers = 0

        def load(self, field: str, chunks: Any, uses: Any) -> Any:
            import time

            self.readers += 1
            time.sleep(0.001)
            self.readers -= 1
            assert self.readers == 0, "two threads at once"
            return super().load(field, chunks, uses)


@finds("reader_refuses_what_it_does_not_read")
class ReadsEveryField(_BrokenReader):
    def reader(self, fields: Any, cache_chunks: int, ahead: int = 0) -> Any:
        super(_BrokenReader, self).reader(fields, cache_chunks, ahead)
        return MemoryReader(dict(self._fields), self._arrays, self._lengths)


@finds("reader_refuses_what_it_does_not_read")
class ReadsAfterItWasClosed(_BrokenReader):
    class kind(MemoryReader):
        def close(self) -> None:
            pass


@finds("unknown_fields")
class ReaderOfNoChunks(MemoryStore):
    def reader(self, fields: Any, cache_chunks: int, ahead: int = 0) -> Any:
        return super().reader(fields, max(cache_chunks, 1), ahead)
