"""Dask bags as a source: items are sequences, or the next timesteps of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamseq.core.fields import Field, check_fields
from streamseq.etl.collections_blocks import Block, BlockSpan, Key, Run
from streamseq.etl.collections_partitions import PartitionedCollection
from streamseq.etl.source import Piece, SourceError
from streamseq.etl.transforms_base import num_steps

if TYPE_CHECKING:
    import dask.bag


class BagCollection(PartitionedCollection):
    """A Dask bag as a source; each of its partitions is written by one task, as it is.

    Args:
        bag: Its items are tuples `(id, arrays)` or `(id, arrays, attrs)`, with `arrays` a dict of one `[n, *D]` by
            field, or `Piece`. Items of one id that follow each other, over partitions too, are one sequence.
        fields: The fields.

    Raises:
        TypeError: It is no bag, or a field is no `ss.Field`.
        ValueError: There is no field.

    Example:
        >>> import tempfile, dask.bag as db, streamseq as ss
        >>> bag = db.from_sequence([2, 3], npartitions=2).map(lambda n: (f"to-{n}", {"x": np.arange(n)}))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     source = BagCollection(bag, {"x": ss.Field("int64")})
        ...     report = ss.ingest(source, folder + "/s.zarr", workers=1)
        ...     ss.open(report.store).read("to-3")["x"]
        array([0, 1, 2])
    """

    def __init__(self, bag: dask.bag.Bag, fields: Mapping[str, Field]) -> None:
        import dask.bag

        if not isinstance(bag, dask.bag.Bag):
            raise TypeError(f"a bag collection is a Dask bag, got {type(bag).__name__}: use dask.bag.from_sequence")
        self._bag = bag
        self._fields = check_fields(fields)

    @property
    def fields(self) -> Mapping[str, Field]:
        """Those that were given."""
        return self._fields

    @property
    def settings(self) -> object:
        """Dask's name of the bag."""
        return [self._bag.name]

    @property
    def dask_collections(self) -> tuple[Any, ...]:
        """The bag."""
        return (self._bag,)

    @property
    def reader(self) -> BagReader:
        """What makes pieces of items."""
        return BagReader()

    def _keys(self) -> list[Key]:
        return list(self._bag.__dask_keys__())


@dataclass(frozen=True, slots=True, kw_only=True)
class BagReader:
    """Makes pieces of the items of a bag."""

    def read(self, span: BlockSpan, blocks: Sequence[Any]) -> Iterator[Piece]:
        """Yield a piece for each item.

        Raises:
            SourceError: An item is not what it has to be.
        """
        for items in blocks:
            for item in items:
                yield piece_of(item)

    def cut(self, block: Any, rows: tuple[int, int] | None, steps: int | None) -> list[Piece]:
        """The items of the first timesteps, copied."""
        found: list[Piece] = []
        left = 0 if steps is None else steps
        for piece in map(piece_of, block):
            if not left:
                break
            found.append(
                Piece(
                    id=piece.id,
                    arrays={name: np.array(x[:left]) for name, x in piece.arrays.items()},
                    attrs=piece.attrs,
                )
            )
            left -= num_steps(found[-1].arrays)
        return found

    def num_bytes(self, block: Any) -> int:
        """The bytes of the arrays."""
        return sum(np.asarray(values).nbytes for item in block for values in piece_of(item).arrays.values())

    def times(self, blocks: Sequence[Block]) -> None:
        """None: items have no times to be in the order of."""

    def runs(self, block: Any) -> list[Run]:
        """The sequences of a partition, one after the other."""
        found: list[Run] = []
        for piece in map(piece_of, block):
            steps = num_steps(piece.arrays)
            if found and found[-1][0] == piece.id:
                found[-1] = (piece.id, found[-1][1] + steps)
            else:
                found.append((piece.id, steps))
        return found


def described(block: Any) -> dict[str, tuple[str, tuple[int, ...]]] | None:
    """The dtype and step shape of each field of the first item; None where there is no item."""
    for piece in map(piece_of, block):
        return {name: (values.dtype.str, values.shape[1:]) for name, values in piece.arrays.items()}
    return None


def piece_of(item: object) -> Piece:
    """An item of a bag as a piece.

    Raises:
        SourceError: It is something else.
    """
    if isinstance(item, Piece):
        return item
    match item:
        case (str(id), Mapping() as arrays):
            attrs = None
        case (str(id), Mapping() as arrays, (Mapping() | None) as attrs):
            pass
        case _:
            raise SourceError(
                "an item of a bag is (id, arrays by field), with attributes or not, or a Piece, got "
                f"{_shown(item)}: map the bag to that"
            )
    if not arrays or not all(np.ndim(values) for values in arrays.values()):
        raise SourceError(f"the item of {id!r} has an array [n, ...] for each field, got {_shown(arrays)}: stack them")
    return Piece(id=id, arrays={str(name): np.asarray(values) for name, values in arrays.items()}, attrs=attrs)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
