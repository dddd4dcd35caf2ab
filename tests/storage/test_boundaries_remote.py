"""Boundaries of stores in object storage."""

import numpy as np
import pytest

import streamseq as ss

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_they_are_found_stored_and_streamed(bucket, backend):
    uri = f"{bucket}/marked.{backend}"
    with ss.create(uri, {"x": ss.Field("int64")}, chunk_bytes=64, shard_bytes=256) as writer:
        writer.write("a", x=np.arange(100) // 30)
        writer.write("b", x=np.arange(20))
    assert ss.mark(uri, "changes", ss.splits.Change("x")) == 2
    with ss.append(uri) as writer:
        writer.write("c", x=np.arange(5))
    store = ss.open(uri)
    found = store.boundaries("changes")
    assert (store.version, found["a"].positions.tolist(), len(found)) == (3, [30, 60, 90], 22)
    stream = ss.StreamDataset(store, 1, 50, split=ss.splits.Domain("changes"), sequences=["a"])
    assert [window.lengths.tolist() for window in stream] == [[30], [30], [30], [10]]
