"""Dask dataframes as a source: rows are timesteps, columns are fields."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from streamseq.core.fields import Field, check_fields
from streamseq.etl.collections_blocks import BlockSpan, Key, Run
from streamseq.etl.collections_partitions import PartitionedCollection
from streamseq.etl.source import Piece, SourceError
from streamseq.etl.task_result import TaskResult, Times

if TYPE_CHECKING:
    import dask.dataframe
    import pandas

_ONE_ID = "0"


class FrameCollection(PartitionedCollection):
    """A Dask dataframe as a source; each of its partitions is written by one task, as it is.

    Args:
        frame: The dataframe.
        sequence_column: The column, of text or integers, that says to which sequence a row belongs. The rows of a
            sequence follow each other, over partitions too. None: all rows are one sequence, "0".
        columns: The columns that are fields: a list of names, or a dict of fields, each of a column or of a list of
            columns that are stacked to step shape `[D]`. None: each column is a field, but for that of the sequences.
        time_column: The column by which the rows of a sequence are in order, which is checked.

    Columns hold numbers or bool. Dates and times become int64 nanoseconds since 1970-01-01, UTC where they have a zone.

    Raises:
        TypeError: It is no dataframe, or a column holds what no field does.
        ValueError: A column is not there.

    Example:
        >>> import tempfile, pandas as pd, dask.dataframe as dd, streamseq as ss
        >>> rows = pd.DataFrame({"plant": ["a", "a", "b"], "load": [1.0, 2.0, 3.0], "on": [True, False, True]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = FrameCollection(dd.from_pandas(rows, npartitions=2), sequence_column="plant")
        ...     report = ss.ingest(source, folder + "/plants.zarr", workers=1)
        ...     ss.open(report.store).read("a")
        {'load': array([1., 2.]), 'on': array([ True, False])}
    """

    def __init__(
        self,
        frame: dask.dataframe.DataFrame,
        *,
        sequence_column: str | None = None,
        columns: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
        time_column: str | None = None,
    ) -> None:
        from dask.utils import is_dataframe_like

        if not hasattr(frame, "__dask_graph__") or not is_dataframe_like(frame):
            raise TypeError(
                f"a frame collection is a Dask dataframe, got {type(frame).__name__}: of a series, to_frame()"
            )
        meta = frame._meta
        self._columns = _columns(list(meta.columns), columns, sequence_column)
        used = list(dict.fromkeys(name for names, _ in self._columns.values() for name in names))
        used += [name for name in (sequence_column, time_column) if name is not None and name not in used]
        for name in used:
            if name not in meta.columns:
                raise ValueError(f"the dataframe has no column {name!r}, it has {', '.join(map(str, meta.columns))}")
        self._fields = check_fields(
            {field: _field(field, meta[list(names)], stacked) for field, (names, stacked) in self._columns.items()}
        )
        if time_column is not None and meta.dtypes[time_column].kind not in "iufM":
            raise TypeError(f"times are numbers or dates, column {time_column!r} holds {meta.dtypes[time_column]}")
        self._name = frame._name
        self._sequence_column, self._time_column = sequence_column, time_column
        # Now, for readers may then have other partitions.
        self._frame = frame[used].optimize()

    @property
    def fields(self) -> Mapping[str, Field]:
        """Of columns."""
        return self._fields

    @property
    def settings(self) -> object:
        """Dask's name of the dataframe, and the options."""
        return [self._name, self._columns, self._sequence_column, self._time_column]

    @property
    def dask_collections(self) -> tuple[Any, ...]:
        """The columns that are used."""
        return (self._frame,)

    @property
    def reader(self) -> FrameReader:
        """What makes pieces of partitions."""
        return FrameReader(
            columns=tuple((field, names, stacked) for field, (names, stacked) in self._columns.items()),
            sequence_column=self._sequence_column,
            time_column=self._time_column,
        )

    def _keys(self) -> list[Key]:
        return list(self._frame.__dask_keys__())


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameReader:
    """Makes pieces of the partitions of a dataframe.

    Args:
        columns: Each field with its columns, and whether they are stacked.
        sequence_column: The column of ids.
        time_column: The column by which rows are in order.
    """

    columns: tuple[tuple[str, tuple[str, ...], bool], ...]
    sequence_column: str | None
    time_column: str | None

    def read(self, span: BlockSpan, blocks: Sequence[pandas.DataFrame]) -> Iterator[Piece]:
        """Yield a piece for each sequence of each partition.

        Raises:
            SourceError: A row has no sequence, or times go back.
        """
        for number, frame in enumerate(blocks, span.start):
            arrays = {}
            for field, names, stacked in self.columns:
                values = [_values(frame[name], number) for name in names]
                arrays[field] = np.stack(values, axis=1) if stacked else values[0]
            times = None if self.time_column is None else _values(frame[self.time_column], number)
            start = 0
            for id, steps in self.runs(frame):
                stop = start + steps
                if times is not None:
                    self._check_times(id, times[start:stop], number, start)
                yield Piece(id=id, arrays={field: values[start:stop] for field, values in arrays.items()})
                start = stop

    def _check_times(self, id: str, times: NDArray[Any], number: int, start: int) -> None:
        # Not "later is smaller": a NaN compares with nothing.
        wrong = np.flatnonzero(~(times >= np.concatenate([times[:1], times[:-1]])))
        if wrong.size:
            row = start + int(wrong[0])
            raise SourceError(
                f"rows of a sequence are in the order of {self.time_column!r}, row {row} of partition {number} goes "
                f"back in sequence {id!r}: sort the dataframe"
            )

    def cut(self, block: pandas.DataFrame, rows: tuple[int, int] | None, steps: int | None) -> pandas.DataFrame:
        """The first rows, copied."""
        return block.iloc[:steps].copy(deep=True)

    def num_bytes(self, block: pandas.DataFrame) -> int:
        """The bytes of the columns that are fields."""
        names = list(dict.fromkeys(name for _, several, _ in self.columns for name in several))
        return int(block[names].memory_usage(index=False).sum())

    def times(self, blocks: Sequence[pandas.DataFrame]) -> Times | None:
        """The sequence and the time of the first row and of the last one."""
        frames = [block for block in blocks if len(block)]
        if self.time_column is None or not frames:
            return None
        first, last = (_values(frame[self.time_column], 0) for frame in (frames[0], frames[-1]))
        return self.runs(frames[0])[0][0], first[0].item(), self.runs(frames[-1])[-1][0], last[-1].item()

    def runs(self, block: pandas.DataFrame) -> list[Run]:
        """The sequences of a partition, one after the other.

        Raises:
            SourceError: A row has no sequence.
        """
        if not len(block):
            return []
        if self.sequence_column is None:
            return [(_ONE_ID, len(block))]
        ids = block[self.sequence_column]
        if ids.isna().any():
            raise SourceError(
                f"every row belongs to a sequence, {self.sequence_column!r} is empty: fill it or drop them"
            )
        values = ids.to_numpy(dtype=object)
        starts = [0, *(np.flatnonzero(values[1:] != values[:-1]) + 1).tolist(), len(values)]
        return [(str(values[a]), b - a) for a, b in itertools.pairwise(starts)]


def check_times(results: Sequence[TaskResult]) -> None:
    """Check that a sequence that goes on in another partition goes on in time.

    Args:
        results: Those of all partitions, in order.

    Raises:
        SourceError: It goes back.
    """
    before: tuple[str, float] | None = None
    for result in results:
        if result.times is None:
            continue
        id, first, last_id, last = result.times
        if before is not None and before[0] == id and first < before[1]:
            raise SourceError(
                f"rows of a sequence are in the order of their times, {id!r} has {before[1]} at the end of a partition "
                f"and {first} in the next one: sort the dataframe"
            )
        before = last_id, last


def _columns(
    there: list[str],
    wanted: Sequence[str] | Mapping[str, str | Sequence[str]] | None,
    sequence_column: str | None,
) -> dict[str, tuple[tuple[str, ...], bool]]:
    """The columns of each field, and whether they are stacked."""
    if isinstance(wanted, str):
        raise TypeError(f"columns is a list or a dict, got {wanted!r}: put it in a list")
    if isinstance(wanted, Mapping):
        return {
            field: ((names,), False) if isinstance(names, str) else (tuple(names), True)
            for field, names in wanted.items()
        }
    return {name: ((name,), False) for name in (wanted or there) if wanted or name != sequence_column}


def _field(field: str, meta: pandas.DataFrame, stacked: bool) -> Field:
    dtypes = []
    for name, dtype in meta.dtypes.items():
        kind = dtype.kind if isinstance(dtype, np.dtype) else "M" if hasattr(dtype, "tz") else "O"
        if kind not in "biufM":
            raise TypeError(
                f"fields hold numbers or bool, column {name!r} holds {dtype}: cast it with astype, or name the "
                "columns to take with columns= of ss.etl.FrameCollection"
            )
        dtypes.append(np.dtype(np.int64) if kind == "M" else dtype)
    if not dtypes:
        raise ValueError(f"a field has at least one column, {field!r} has none: name one")
    return Field(np.result_type(*dtypes), (len(dtypes),) if stacked else ())


def _values(column: pandas.Series[Any], number: int) -> NDArray[Any]:
    """A column as numbers; dates as nanoseconds."""
    if isinstance(column.dtype, np.dtype) and column.dtype.kind != "M":
        numbers: NDArray[Any] = column.to_numpy()
        return numbers
    if column.isna().any():
        raise SourceError(
            f"column {column.name!r} has a date in every row, partition {number} has one without: fill it"
        )
    if getattr(column.dtype, "tz", None) is not None:
        column = column.dt.tz_convert("UTC").dt.tz_localize(None)
    dates: NDArray[Any] = column.to_numpy().astype("datetime64[ns]")
    return dates.astype(np.int64)
