"""Writing whole shards from a stream of timesteps, and the receipt that says what was written.

This is what every writer is made of: the `with ss.create(...)` block has one, each task of a job has its own. Timesteps
are encoded as soon as they fill a chunk, so that a writer holds less than a chunk of each field, and never a shard.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from streamseq.core.errors import StoreError
from streamseq.core.fields import Field, check_step_array
from streamseq.storage.checksum import as_bytes, crc32c
from streamseq.storage.layout import ShardLayout
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.shards.arrow_shard import ArrowFieldFile, write_arrow_manifest
from streamseq.storage.shards.manifest import FieldManifest
from streamseq.storage.shards.zarr_shard import ZarrFieldFile, write_zarr_manifest
from streamseq.storage.statistics.gather import FieldStatistics
from streamseq.storage.statistics.kept import format_statistics, gatherers
from streamseq.storage.versions.version import Shard, StoredField


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one shard writer wrote: all that is needed to commit it. Picklable.

    Rows count from the first timestep of the first shard of this receipt.

    Args:
        writer: The id of the writer.
        shards: The shards, in order.
        ids: The ids of the sequences, in the order of their first piece.
        attrs: Their attributes as JSON text, None where none were given.
        pieces: int64 `[P, 3]`: sequence (an index into `ids`), first row, length; in the order written.
        statistics: The document of statistics of the values; None where none were gathered.
    """

    writer: str
    shards: tuple[Shard, ...]
    ids: tuple[str, ...]
    attrs: tuple[str | None, ...]
    pieces: NDArray[np.int64]
    statistics: bytes | None = None

    @property
    def num_timesteps(self) -> int:
        """Timesteps of all shards together."""
        return sum(shard.num_timesteps for shard in self.shards)


class ShardWriter:
    """Writes timesteps of sequences into whole shards that only this writer knows of, until they are committed.

    Args:
        root: Where the store lies: an address, or the place itself. Its folder is made where it is missing.
        layout: How shards are cut and encoded.
        statistics: Whether statistics of the values are gathered on the way.

    Example:
        >>> import tempfile
        >>> from streamseq.core.fields import Field
        >>> from streamseq.storage.layout import plan_layout
        >>> layout = plan_layout({"x": Field("float32")}, "zarr")
        >>> with tempfile.TemporaryDirectory() as root, ShardWriter(root, layout) as writer:
        ...     writer.append("plant-3", {"x": np.ones(5, np.float32)})
        ...     receipt = writer.finish()
        >>> receipt.ids, receipt.num_timesteps
        (('plant-3',), 5)
    """

    def __init__(self, root: str | os.PathLike[str] | Place, layout: ShardLayout, statistics: bool = True) -> None:
        self.writer_id = uuid.uuid4().hex[:16]
        self._place = place_of(root)
        self._layout = layout
        self._index: dict[str, int] = {}
        self._attrs: list[str | None] = []
        self._pieces = array("q")
        self._rows = 0
        self._open: _OpenShard | None = None
        self._shards: list[Shard] = []
        self._gathered = gatherers(layout.fields) if statistics else None
        self._state = "open"

    def append(self, id: str, arrays: Mapping[str, object], attrs: Mapping[str, Any] | None = None) -> None:
        """Write the next timesteps of a sequence. A call that refuses its arguments writes nothing.

        Args:
            id: The id of the sequence.
            arrays: One array `[n, *D]` per field, all of the same n, which may be 0.
            attrs: The attributes of the sequence. They are set once: later calls leave them out or repeat them.

        Raises:
            TypeError: The id or an array has the wrong type, or attributes are not JSON.
            ValueError: A field is missing or unknown, a shape is wrong, lengths differ, attributes are not those given
                before, or the writer is closed.
        """
        if self._state != "open":
            raise ValueError(f"a shard writer writes until it is finished or has failed, this one is {self._state}")
        check_id(id)
        checked, steps = check_arrays(self._layout.fields, arrays)
        sequence = self._index.get(id)
        text = None if attrs is None else attrs_json(id, attrs)
        if sequence is not None and text is not None:
            text = agreed_attrs(id, self._attrs[sequence], text)
        # Whatever stops the writing half-way (a full disk, Ctrl-C) leaves the fields out of step.
        self._state = "failed"
        if sequence is None:
            sequence = self._index[id] = len(self._index)
            self._attrs.append(text)
        elif text is not None:
            self._attrs[sequence] = text
        if steps:
            self._write(checked, steps)
            self._add_piece(sequence, steps)
        self._state = "open"

    def append_new(self, ids: Sequence[str], lengths: NDArray[np.int64], arrays: Mapping[str, object]) -> None:
        """Write many whole sequences without attributes at once. A call that refuses its arguments writes nothing.

        Args:
            ids: Their ids, none of which was written before.
            lengths: int64 `[M]`, their timesteps.
            arrays: One array `[n, *D]` per field, of all their timesteps end to end.

        Raises:
            TypeError: An id or an array has the wrong type.
            ValueError: An id was written before, lengths are not those of the arrays, or as for `append`.
        """
        if self._state != "open":
            raise ValueError(f"a shard writer writes until it is finished or has failed, this one is {self._state}")
        check_ids(ids)
        checked, steps = check_arrays(self._layout.fields, arrays)
        new = dict.fromkeys(ids)
        if len(new) != len(ids) or not new.keys().isdisjoint(self._index):
            raise ValueError("sequences that are written at once are new, and one of them was written before")
        if len(lengths) != len(ids) or int(lengths.sum()) != steps or np.any(lengths < 0):
            raise ValueError(f"each sequence has a length, all together {steps}, got {len(lengths)} for {len(ids)}")
        self._state = "failed"
        first = len(self._index)
        self._index.update(zip(ids, range(first, first + len(ids)), strict=True))
        self._attrs.extend([None] * len(ids))
        if steps:
            self._write(checked, steps)
        held = np.flatnonzero(lengths)
        rows = self._rows + np.cumsum(lengths) - lengths
        self._pieces.frombytes(np.stack([first + held, rows[held], lengths[held]], axis=1).astype(np.int64).tobytes())
        self._rows += steps
        self._state = "open"

    def finish(self) -> Receipt:
        """Close the last shard, publish all of them and return the receipt.

        Raises:
            ValueError: The writer is finished already or has failed.
        """
        if self._state != "open":
            raise ValueError(f"a shard writer is finished once and after no failure, this one is {self._state}")
        self._state = "failed"
        if self._open is not None:
            self._close_shard()
        if self._shards and not self._place.copies:
            staging = self._place.staging(self.writer_id)
            self._place.publish_shards([staging / shard.id for shard in self._shards])
        self._place.end_staging(self.writer_id)
        self._state = "finished"
        return Receipt(
            writer=self.writer_id,
            shards=tuple(self._shards),
            ids=tuple(self._index),
            attrs=tuple(self._attrs),
            pieces=np.array(self._pieces, np.int64).reshape(-1, 3),
            statistics=None if self._gathered is None else format_statistics(self._gathered),
        )

    def abandon(self) -> None:
        """Remove everything that this writer wrote; what cannot be removed stays as a leftover, for `clean`.

        Raises:
            ValueError: The writer is finished: whoever has its receipt decides.
        """
        if self._state == "finished":
            raise ValueError("a finished shard writer is abandoned by its receipt: use abandon_receipts")
        self._state = "abandoned"
        if self._open is not None:
            self._open.close()
            self._open = None
        with contextlib.suppress(OSError, StoreError):
            for shard in self._shards:
                self._place.remove(f"shards/{shard.id}")
            self._place.end_staging(self.writer_id)

    def __contains__(self, id: str) -> bool:
        """Whether a sequence was begun here."""
        return id in self._index

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Abandon what was not finished."""
        if self._state != "finished":
            self.abandon()

    def _write(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
        if self._open is not None and self._open.hold(arrays, steps):
            return
        start = 0
        while start < steps:
            if self._open is None:
                self._open = self._new_shard()
            stop = min(steps, start + self._layout.shard_timesteps - self._open.num_timesteps)
            self._open.write({name: values[start:stop] for name, values in arrays.items()}, stop - start)
            if self._open.num_timesteps == self._layout.shard_timesteps:
                self._close_shard()
            start = stop

    def _add_piece(self, sequence: int, steps: int) -> None:
        # Rows are given out in order, so the pieces of one sequence touch when no other sequence came between.
        if self._pieces and self._pieces[-3] == sequence:
            self._pieces[-1] += steps
        else:
            self._pieces.extend((sequence, self._rows, steps))
        self._rows += steps

    def _new_shard(self) -> _OpenShard:
        staging = self._place.staging(self.writer_id)
        shard_id = f"{self.writer_id}-{len(self._shards):06d}"
        return _OpenShard(staging, shard_id, self._layout, self._gathered or {})

    def _close_shard(self) -> None:
        assert self._open is not None
        shard = self._open.finish()
        self._shards.append(shard)
        self._open = None
        if self._place.copies:
            # What lies on this machine only as long as it is not elsewhere would fill its disk.
            self._place.publish_shards([self._place.staging(self.writer_id) / shard.id])


class _OpenShard:
    """The shard that is being written, in the staging folder of its writer."""

    def __init__(
        self, staging: Path, shard_id: str, layout: ShardLayout, gathered: Mapping[str, FieldStatistics]
    ) -> None:
        self._folder = staging / shard_id
        self._id = shard_id
        self._layout = layout
        self.num_timesteps = 0
        self._folder.mkdir()
        self._columns: dict[str, _Column] = {}
        try:
            for name in layout.fields:
                self._columns[name] = _Column(self._folder, name, layout, gathered.get(name))
        except BaseException:
            self.close()
            raise

    def hold(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> bool:
        """Keep the next timesteps of every field, where they fill no chunk and no shard; whether they do not.

        Sequences may be short and very many.
        """
        if self.num_timesteps + steps >= self._layout.shard_timesteps:
            return False
        columns = self._columns
        for column in columns.values():
            if column.room <= steps:
                return False
        for name, column in columns.items():
            column.hold(arrays[name], steps)
        self.num_timesteps += steps
        return True

    def write(self, arrays: Mapping[str, NDArray[Any]], steps: int) -> None:
        """Write the next timesteps of every field."""
        for name, column in self._columns.items():
            column.write(arrays[name])
        self.num_timesteps += steps

    def finish(self) -> Shard:
        """Put everything on the disk and return the shard."""
        finished = {name: column.finish() for name, column in self._columns.items()}
        write_manifest = write_zarr_manifest if self._layout.backend == "zarr" else write_arrow_manifest
        manifest_crc = write_manifest(self._folder, {name: manifest for name, (_, manifest) in finished.items()})
        fields = {name: stored for name, (stored, _) in finished.items()}
        return Shard(id=self._id, num_timesteps=self.num_timesteps, fields=fields, manifest_crc32c=manifest_crc)

    def close(self) -> None:
        """Close the files of a shard that is not going to be finished."""
        for column in self._columns.values():
            column.file.close()


class _Column:
    """One field of the open shard: cuts timesteps into chunks."""

    def __init__(self, shard: Path, name: str, layout: ShardLayout, gathered: FieldStatistics | None) -> None:
        field, codec = layout.fields[name], layout.codecs[name]
        self._chunk_timesteps = layout.chunk_timesteps[name]
        self._field = field
        self.file: ZarrFieldFile | ArrowFieldFile
        if layout.backend == "zarr":
            self.file = ZarrFieldFile(shard, name, field, codec, self._chunk_timesteps)
        else:
            self.file = ArrowFieldFile(shard, name, field, codec)
        self._crc = 0
        self._gathered = gathered
        self._waiting: NDArray[Any] | None = None
        self._num_waiting = 0

    def write(self, values: NDArray[Any]) -> None:
        """Write timesteps `[m, *D]`: whole chunks straight from the array, the rest waits in a buffer."""
        start = 0
        while start < len(values):
            stop = min(len(values), start + self._chunk_timesteps - self._num_waiting)
            if stop - start == self._chunk_timesteps:
                self._write_chunk(np.ascontiguousarray(values[start:stop]))
            else:
                self._wait(values[start:stop])
            start = stop

    @property
    def room(self) -> int:
        """Timesteps that the buffer of a chunk has room for; 0 where there is no buffer yet."""
        return 0 if self._waiting is None else self._chunk_timesteps - self._num_waiting

    def hold(self, values: NDArray[Any], steps: int) -> None:
        """Keep timesteps that there is room for."""
        assert self._waiting is not None
        stop = self._num_waiting + steps
        self._waiting[self._num_waiting : stop] = values
        self._num_waiting = stop

    def finish(self) -> tuple[StoredField, FieldManifest]:
        """Write what waits and finish the file."""
        if self._waiting is not None and self._num_waiting:
            self._write_chunk(self._waiting[: self._num_waiting])
        return self.file.finish(self._crc)

    def _wait(self, values: NDArray[Any]) -> None:
        if self._waiting is None:
            self._waiting = np.empty((self._chunk_timesteps, *self._field.shape), self._field.dtype)
        stop = self._num_waiting + len(values)
        self._waiting[self._num_waiting : stop] = values
        self._num_waiting = stop
        if stop == self._chunk_timesteps:
            self._write_chunk(self._waiting)
            self._num_waiting = 0

    def _write_chunk(self, chunk: NDArray[Any]) -> None:
        self._crc = crc32c(as_bytes(chunk), self._crc)
        # Whole chunks, so that what is gathered does not depend on how the writing was cut into calls.
        if self._gathered is not None:
            self._gathered.add(chunk)
        self.file.write_chunk(chunk)


def check_id(id: object) -> None:
    """Check that a sequence can have this id.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or not text that can be written down as UTF-8.
    """
    if not isinstance(id, str):
        raise TypeError(f"a sequence's id is a str, got {type(id).__name__}: use str(id)")
    if not id:
        raise ValueError("a sequence's id has at least one character, got an empty one")
    try:
        id.encode()
    except UnicodeEncodeError:
        raise ValueError(f"a sequence's id is text that UTF-8 can hold, got {id!r}") from None


def check_ids(ids: Sequence[object]) -> None:
    """Check that sequences can have these ids, which may be very many.

    Raises:
        TypeError: As for `check_id`.
        ValueError: The same.
    """
    with contextlib.suppress(TypeError, UnicodeEncodeError):
        "".join(ids).encode()  # type: ignore[arg-type]
        if all(ids):
            return
    for id in ids:
        check_id(id)


def attrs_json(id: str, attrs: Mapping[str, Any]) -> str:
    """Return the attributes of a sequence as JSON text.

    Raises:
        TypeError: They are not a mapping from strings to what JSON can hold.
        ValueError: A number is NaN or infinite, which JSON has no word for.
    """
    if not isinstance(attrs, Mapping) or not all(isinstance(name, str) for name in attrs):
        raise TypeError(f"the attributes of {id!r} are a dict with str keys, got {attrs!r}")
    try:
        return json.dumps(dict(attrs), default=_plain, allow_nan=False, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"the attributes of {id!r} are values that JSON holds: {error}") from None
    except ValueError as error:
        raise ValueError(f"the attributes of {id!r} are values that JSON holds: {error}; use None or text") from None


def agreed_attrs(id: str, before: str | None, now: str) -> str:
    """Return the attributes of a sequence that are given once more.

    Raises:
        ValueError: They differ from those before.
    """
    if before is not None and before != now:
        raise ValueError(
            f"the attributes of a sequence are set once, {id!r} has {before} and now gets {now}: omit them"
        )
    return now


def _plain(value: object) -> object:
    """A numpy number or array as JSON holds it."""
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is none")


def check_arrays(fields: Mapping[str, Field], arrays: Mapping[str, object]) -> tuple[dict[str, NDArray[Any]], int]:
    """Return the arrays of one call, checked, and their number of timesteps."""
    if arrays.keys() != fields.keys():
        missing = [name for name in fields if name not in arrays]
        if missing:
            raise ValueError(
                f"every field is written at each call, got none of {', '.join(missing)}: pass an array of each"
            )
        unknown = [name for name in arrays if name not in fields]
        raise ValueError(f"a store has the fields it was created with, {', '.join(fields)}, got {', '.join(unknown)}")
    checked = {name: check_step_array(name, field, arrays[name]) for name, field in fields.items()}
    steps = len(next(iter(checked.values())))
    for values in checked.values():
        if len(values) != steps:
            lengths = {name: len(each) for name, each in checked.items()}
            raise ValueError(f"all fields of a sequence have the same number of timesteps, got {lengths}")
    return checked, steps
