"""`statistics` and `describe`: what is known of the values of a store, by reading it once; and kept with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.selection import Selection
from streamseq.storage.chosen import choose
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.interface import Store
from streamseq.storage.places.place import Place, place_of
from streamseq.storage.statistics.channels import Statistics
from streamseq.storage.statistics.gather import FieldStatistics
from streamseq.storage.statistics.kept import MOST_CHANNELS, NAME, format_statistics, gatherers
from streamseq.storage.versions.attach import attach

# Spans that are looked for at a time, and values that are added at a time.
_SPANS = 1 << 14
_BLOCK_BYTES = 1 << 20
_CACHE_CHUNKS = 2


def statistics(
    store: Store,
    fields: Sequence[str] | None = None,
    sequences: Iterable[Any] | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Statistics]:
    """Compute what is known of the values of a store, or of some of its sequences, by reading them once.

    Memory does not grow with the store. Of all of a store on disk, `store.statistics` has it already, as a rule.

    Args:
        store: Any store.
        fields: The fields; None: all that have at most 16,384 numbers a timestep.
        sequences: A subset as `StreamDataset` takes it: ids, or `(id, start, stop)` spans; None for all.
            A timestep that is chosen twice counts twice.
        progress: Called with the timesteps that were read, of all fields, and how many there are.

    Raises:
        KeyError: There is no such sequence.
        PlanError: The subset is empty.
        ValueError: There is no such field, it has too many numbers a timestep, or a span is not in its sequence.
        CorruptionError: Stored bytes are not what was written.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0, 3.0]}, "b": {"x": [40.0, 50.0]}})
        >>> ss.statistics(store)["x"].mean.item(), ss.statistics(store, sequences=["a"])["x"].mean.item()
        (19.2, 2.0)
    """
    if not isinstance(store, Store):
        raise TypeError(f"statistics are of a store, got a {type(store).__name__}: pass ss.open(uri)")
    return {name: each.summary() for name, each in _gathered(store, fields, sequences, progress).items()}


def describe(
    uri: str | os.PathLike[str] | Place,
    *,
    job: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> int:
    """Compute the statistics of the newest version of a store and keep them with it, as a new version.

    That is for stores whose versions were written without: `store.statistics` is None. Contents and fingerprint stay,
    and later versions that are appended have statistics again.

    Args:
        uri: Where the store lies.
        job: What the log of the store says did it; None: the name of the program.
        progress: Called with the timesteps that were read, of all fields, and how many there are.
        storage_options: What fsspec connects to an object store with, beside what the environment and fsspec's
            configuration say.

    Returns:
        The version that has them: the newest one as it is, where it has them already.

    Raises:
        StoreError: There is no store.
        VersionConflictError: Another version was committed meanwhile. Nothing was changed.
        CorruptionError: Stored bytes are not what was written.

    Example:
        >>> import tempfile, numpy as np, streamseq as ss
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with ss.create(folder + "/a.arrow", {"x": ss.Field("float32")}, statistics=False) as writer:
        ...         writer.write("plant-3", x=np.float32([1, 2, 6]))
        ...     before = ss.open(folder + "/a.arrow").statistics
        ...     before, ss.describe(folder + "/a.arrow"), ss.open(folder + "/a.arrow").statistics["x"].mean.item()
        (None, 2, 3.0)
    """
    store = DiskStore(place_of(uri, storage_options))
    if _is_well(store):
        return store.version
    content = format_statistics(_gathered(store, None, None, progress))
    return attach(store.place, store.version, {NAME: content}, job)


def _is_well(store: Store) -> bool:
    from streamseq.core.errors import CorruptionError

    try:
        return store.statistics is not None
    except CorruptionError:
        return False


def _gathered(
    store: Store,
    fields: Sequence[str] | None,
    sequences: Iterable[Any] | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, FieldStatistics]:
    """What was gathered of each field, one after the other."""
    selection = choose(store, sequences)
    gathered = gatherers(store.fields)
    if fields is not None:
        names = store._names(fields)
        for name in names:
            if name not in gathered:
                raise ValueError(
                    f"there are statistics of fields with up to {MOST_CHANNELS:,} numbers a timestep, {name!r} has "
                    f"shape {list(store.fields[name].shape)}"
                )
        gathered = {name: gathered[name] for name in names}
    total, done = int(selection.lengths.sum()) * len(gathered), 0
    if progress is not None:
        progress(0, total)
    for name, each in gathered.items():
        for values in _blocks(store, name, selection):
            each.add(values)
            done += len(values)
            if progress is not None:
                progress(done, total)
    return gathered


def _blocks(store: Store, name: str, selection: Selection) -> Iterable[NDArray[Any]]:
    """The timesteps of one field that were chosen, in pieces of about `_BLOCK_BYTES`; each is valid until the next."""
    field = store.fields[name]
    block = np.empty((max(1, _BLOCK_BYTES // field.step_bytes), *field.shape), field.dtype)
    filled = 0
    with store.reader([name], _CACHE_CHUNKS) as reader:
        for first in range(0, len(selection), _SPANS):
            rows = np.arange(first, min(first + _SPANS, len(selection)))
            rows = rows[selection.lengths[rows] > 0]
            starts = selection.starts_of(rows)
            spans = (selection.sequences_of(rows), starts, starts + selection.lengths[rows])
            for values in reader.arrays(reader.locate(name, spans)) if len(rows) else ():
                if len(values) >= len(block):
                    yield values
                    continue
                if filled + len(values) > len(block):
                    yield block[:filled]
                    filled = 0
                block[filled : filled + len(values)] = values
                filled += len(values)
    if filled:
        yield block[:filled]
