"""A store as an xarray dataset that is read when it is indexed; importing this needs xarray."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from streamseq.storage.export.rows import AttrsColumn, Column, FieldColumn, IdColumn, PositionColumn, Rows, choose
from streamseq.storage.interface import Store

try:
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError as error:
    raise ImportError("to_xarray needs xarray: pip install streamseq[xarray]") from error

TIMESTEP, ATTRS = "timestep", "sequence_attrs"


def xarray_dataset(
    store: Store,
    ids: str | int | Iterable[str | int] | None,
    fields: Sequence[str] | None,
    *,
    id_name: str,
    position_name: str,
) -> xarray.Dataset:
    """See `Store.to_xarray`."""
    names = store._names(fields)
    chosen = choose(store, ids)
    rows = Rows(store, chosen)
    coords: dict[str, Any] = {position_name: _variable(PositionColumn(rows), TIMESTEP)}
    attrs: dict[str, Any] = {}
    if chosen is not None and (isinstance(ids, str) or not isinstance(ids, Iterable)):
        sequence = int(chosen[0])
        coords[id_name] = store.id_of(sequence)
        attrs = store.attrs(sequence)
    else:
        coords[id_name] = _variable(IdColumn(rows), TIMESTEP)
        # Not along a dimension of their own, so that selected timesteps keep theirs and `to_dataframe` stays a column.
        coords[ATTRS] = _variable(AttrsColumn(rows), TIMESTEP)
    taken = {TIMESTEP, *coords}
    clash = id_name if id_name == position_name else next((name for name in names if name in taken), None)
    if clash is not None:
        raise ValueError(
            f"fields, coordinates and dimensions have names of their own, got {clash!r} twice: choose fields=, "
            "id_name= or position_name="
        )
    variables = {}
    for name in names:
        column = FieldColumn(rows, name)
        variables[name] = _variable(column, TIMESTEP, *(f"{name}_{axis}" for axis in range(column.ndim - 1)))
    return xarray.Dataset(variables, coords, attrs)


class _Lazy(BackendArray):
    """A column, as xarray indexes arrays."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.shape = column.shape
        self.dtype = column.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> Any:
        return np.asarray(self.column[key], self.dtype)


def _variable(column: Column, *dims: str) -> xarray.Variable:
    return xarray.Variable(dims, indexing.LazilyIndexedArray(_Lazy(column)))
