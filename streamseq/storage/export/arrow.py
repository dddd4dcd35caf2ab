"""A store as an Arrow table, or as record batches one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa

from streamseq.core.fields import Field
from streamseq.core.sizes import parse_bytes
from streamseq.storage.export.rows import Rows, Values, choose
from streamseq.storage.interface import Store

# An id of few letters with its offset, and a position.
_OTHER_BYTES = 24


def arrow_batches(
    store: Store,
    ids: str | int | Iterable[str | int] | None,
    fields: Sequence[str] | None,
    *,
    id_name: str,
    position_name: str,
    batch_bytes: int | str,
) -> pa.RecordBatchReader:
    """See `Store.to_arrow_batches`."""
    names = store._names(fields)
    columns = [id_name, position_name, *names]
    twice = next((name for name in columns if columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"every column has a name of its own, got {twice!r} twice: choose fields=, id_name= or position_name="
        )
    kinds = store.fields
    schema = pa.schema(
        [
            pa.field(id_name, pa.large_string()),
            pa.field(position_name, pa.int64()),
            *(pa.field(name, arrow_type(kinds[name])) for name in names),
        ]
    )
    row_bytes = _OTHER_BYTES + sum(kinds[name].step_bytes for name in names)
    most = max(1, parse_bytes(batch_bytes) // row_bytes)
    return pa.RecordBatchReader.from_batches(schema, _batches(Rows(store, choose(store, ids)), names, schema, most))


def _batches(rows: Rows, names: list[str], schema: pa.Schema, most: int) -> Iterator[pa.RecordBatch]:
    store = rows.store
    with rows.reader(*names) as reader:
        for low in range(0, len(rows), most):
            spans = rows.spans(low, min(low + most, len(rows)))
            place, start, stop = spans
            counts = stop - start
            texts = rows.ids_of(place)
            id_of_row = np.repeat(np.arange(len(place)), counts)
            position = np.arange(counts.sum()) + np.repeat(start - (np.cumsum(counts) - counts), counts)
            values = (arrow_array(store.fields[name], rows.read(reader, name, spans)) for name in names)
            yield pa.record_batch([texts.take(pa.array(id_of_row)), pa.array(position), *values], schema=schema)


def arrow_type(field: Field) -> pa.DataType:
    """The type of a field's column: a fixed shape tensor where a timestep is more than a number."""
    kind = pa.from_numpy_dtype(field.dtype)
    return pa.fixed_shape_tensor(kind, field.shape) if field.shape else kind


def arrow_array(field: Field, values: Values) -> pa.Array:
    """Values `[n, *D]` of a field as a column; `values` is contiguous."""
    flat = pa.array(values.reshape(-1))
    if not field.shape:
        return flat
    kind = arrow_type(field)
    return pa.ExtensionArray.from_storage(kind, pa.FixedSizeListArray.from_arrays(flat, type=kind.storage_type))
