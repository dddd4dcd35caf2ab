"""A field of a store as a Dask array."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from streamseq.core.sizes import parse_bytes

if TYPE_CHECKING:
    import dask.array

    from streamseq.storage.interface import Store


def to_dask(
    store: Store,
    field: str,
    ids: str | int | Iterable[str | int] | None = None,
    *,
    chunk_bytes: int | str | None = None,
) -> dask.array.Array:
    """A field of a store as a Dask array: the timesteps of its sequences, end to end in the order of `ids`.

    Nothing is read before it is computed; workers open the store themselves, so they must reach it. Slices read
    what they show. Sequence i of `store.lengths` begins at the sum of the lengths before it.

    Args:
        store: Any store. One in memory is sent to the workers.
        field: The name of the field.
        ids: An id or index, several in any order, or None for all.
        chunk_bytes: The most that a Dask chunk takes, or text such as "32 MiB"; None: Dask's own `array.chunk-size`.
            Dask chunks end where stored chunks or sequences do, so that in the store's order nothing is decoded twice;
            a stored chunk that must be decoded as a whole is never cut, however large.

    Returns:
        A Dask array `[R, *D]`, in chunks along the first axis.

    Raises:
        KeyError: There is no sequence with this id.
        IndexError: There is no sequence with this index.
        TypeError: Something is neither an id nor an index.
        ValueError: There is no such field.

    Example:
        >>> import streamseq as ss
        >>> store = ss.from_arrays({"a": {"x": [1.0, 2.0]}, "b": {"x": [3.0, 4.0, 5.0]}})
        >>> x = ss.etl.to_dask(store, "x", chunk_bytes=24)
        >>> x.chunks, float(x.mean().compute())
        (((2, 3),), 3.0)
    """
    # Here, for whoever only asks for help with a source waits for none of it.
    import dask
    import dask.array
    from dask.base import tokenize

    from streamseq.storage.export.rows import FieldColumn, Rows, choose

    store._names([field])
    rows = Rows(store, choose(store, ids))
    column = FieldColumn(rows, field)
    limit = parse_bytes(dask.config.get("array.chunk-size") if chunk_bytes is None else chunk_bytes)
    cuts = rows.cuts(field, max(1, limit // store.fields[field].step_bytes))
    chunks = (tuple(np.diff(cuts).tolist()) or (0,), *((size,) for size in column.shape[1:]))
    name = f"streamseq-{field}-{tokenize(store.uri, store.fingerprint, field, rows.sequences, cuts)}"
    meta = np.empty((0,) * column.ndim, column.dtype)
    array: dask.array.Array = dask.array.from_array(  # type: ignore[no-untyped-call]
        column, chunks, name=name, meta=meta
    )
    return array
