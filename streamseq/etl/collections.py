"""What `ss.ingest` takes: a source as it is, or a Dask collection, made into one that its job can give blocks to."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from streamseq.core.fields import Field
from streamseq.etl.collections_array import ArrayCollection
from streamseq.etl.collections_bag import BagCollection, BagReader, described
from streamseq.etl.collections_blocks import BlockInput, Collection
from streamseq.etl.collections_frame import FrameCollection
from streamseq.etl.collections_run import ask
from streamseq.etl.collections_transformed import TransformedCollection
from streamseq.etl.source import Source, SourceError
from streamseq.etl.transformed_source import TransformedSource
from streamseq.etl.workers import Workers

if TYPE_CHECKING:
    import dask.bag


def prepared(given: object, transforms: Sequence[object], workers: Workers) -> tuple[Source, Workers]:
    """The source of a job, with its transforms, and the workers to run it on.

    Of a collection whose blocks have to be known for its transforms and are not, they are computed once to count them.
    A job on a collection runs where Dask would compute it: on the current client, where no workers are chosen.

    Args:
        given: A source, a Dask array, bag or dataframe, or a dict of arrays.
        transforms: What is done to the data.
        workers: The workers that were chosen.

    Raises:
        TypeError: It is something else.
        SourceError: There is nothing in a bag.
    """
    if isinstance(given, TransformedSource) and isinstance(given.source, Collection):
        transforms, given = [*given.transforms, *transforms], given.source
    if not isinstance(given, Collection) and not _is_dask(given):
        source = _checked(given)
        return TransformedSource(source, transforms) if transforms else source, workers
    workers = _where_dask_computes(workers)
    collection = given if isinstance(given, Collection) else _collection(given, workers)
    if not transforms:
        return collection, workers
    transformed = TransformedCollection(collection, transforms)
    if transformed.looks_around and not collection.lengths_known:
        with _pool(workers) as pool:
            inputs = collection.survey_inputs()
            runs = ask(pool, collection.dask_collections, collection.reader, inputs, collection.reader.runs)
        transformed = TransformedCollection(collection.surveyed(runs), transforms)
    return transformed, workers


def _is_dask(given: object) -> bool:
    if isinstance(given, Mapping):
        return bool(given) and all(hasattr(array, "__dask_graph__") for array in given.values())
    return hasattr(given, "__dask_graph__")


def _checked(given: object) -> Source:
    if not all(hasattr(given, name) for name in ("fields", "partitions", "read")):
        raise TypeError(
            "ss.ingest takes a source, a Dask array, bag or dataframe, or a dict of Dask arrays, got "
            f"{type(given).__name__}: see streamseq.etl.source"
        )
    source: Source = given  # type: ignore[assignment]
    return source


def _collection(given: Any, workers: Workers) -> Collection:
    import dask.array
    import dask.bag
    from dask.utils import is_dataframe_like

    if isinstance(given, Mapping | dask.array.Array):
        return ArrayCollection(given)
    if isinstance(given, dask.bag.Bag):
        return BagCollection(given, _fields(given, workers))
    if is_dataframe_like(given):
        return FrameCollection(given)
    raise TypeError(
        f"of Dask's collections, ss.ingest takes arrays, bags and dataframes, got {type(given).__name__}: of xarray, "
        "take .data; of a series, to_frame()"
    )


def _fields(bag: dask.bag.Bag, workers: Workers) -> dict[str, Field]:
    """The fields of a bag's first item."""
    with _pool(workers) as pool:
        for key in bag.__dask_keys__():
            [found] = ask(pool, (bag,), BagReader(), [BlockInput(block=key)], described)
            if found is not None:
                return {name: Field(dtype, shape) for name, (dtype, shape) in found.items()}
    raise SourceError("a bag has at least one item, got none: there is nothing to write")


def _where_dask_computes(workers: Workers) -> Workers:
    if (workers.client, workers.threads, workers.scheduler) != (None, None, None) or "distributed" not in sys.modules:
        return workers
    from distributed import Client

    try:
        return replace(workers, client=Client.current())  # type: ignore[no-untyped-call]
    except ValueError:  # there is none
        return workers


def _pool(workers: Workers) -> Any:
    # Here, for other sources do not wait for Dask before they have been looked at.
    from streamseq.etl.cluster import connect

    return connect(workers)
