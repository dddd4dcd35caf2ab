"""A field of a store as a Dask array."""

import pickle

import dask
import numpy as np
import pytest
from distributed import Client

import streamseq as ss
from streamseq.storage.export.rows import Rows
from streamseq.storage.reader import DiskReader

VALUES = np.arange(600, dtype=np.float32).reshape(300, 2)
SEQUENCES = {"a": VALUES[:70], "empty": VALUES[:0], "b": VALUES[70:275], "c": VALUES[275:]}


@pytest.fixture(params=["zarr", "arrow", "memory", "npy"])
def store(request, tmp_path):
    if request.param == "memory":
        return ss.from_arrays({id: {"x": values} for id, values in SEQUENCES.items()})
    if request.param == "npy":
        for id, values in SEQUENCES.items():
            np.save(tmp_path / f"{id}.npy", values)
        return ss.adopt_npy({id: tmp_path / f"{id}.npy" for id in SEQUENCES})
    address = tmp_path / f"s.{request.param}"
    with ss.create(address, {"x": ss.Field("float32", (2,))}, chunk_bytes=80, shard_bytes=400) as writer:
        for id, values in SEQUENCES.items():
            writer.write(id, x=values)
    return ss.open(address)


def test_the_array_is_the_sequences_end_to_end(store):
    for ids in (None, "b", 2, ["c", "a"], [], "empty"):
        chosen = SEQUENCES if ids is None else [ids] if isinstance(ids, str) else ["b"] if ids == 2 else ids
        wanted = np.concatenate([VALUES[:0], *(SEQUENCES[id] for id in chosen)])
        for chunk_bytes in (None, "160 B", 1):
            array = ss.etl.to_dask(store, "x", ids, chunk_bytes=chunk_bytes)
            assert array.shape == wanted.shape
            assert array.dtype == np.float32
            computed = array.compute()
            assert computed.dtype == np.float32
            assert np.array_equal(computed, wanted)


def test_chunks_go_by_bytes_of_the_call_or_of_dask(store):
    assert ss.etl.to_dask(store, "x").chunks == ((300,), (2,))
    asked = ss.etl.to_dask(store, "x", chunk_bytes=800).chunks
    assert max(asked[0]) <= 100
    with dask.config.set({"array.chunk-size": "800 B"}):
        assert ss.etl.to_dask(store, "x").chunks == asked


@pytest.mark.parametrize(
    "key",
    [
        np.s_[3:290:7],
        np.s_[::-1],
        np.s_[280:3:-3],
        np.s_[5],
        np.s_[-1, 1],
        np.s_[:, None],
        np.s_[..., 0],
        np.s_[[1, 5, 299]],
    ],
)
def test_the_array_is_indexed_as_numpy_s(store, key):
    assert np.array_equal(ss.etl.to_dask(store, "x", chunk_bytes=160)[key].compute(), VALUES[key])


def test_only_what_is_shown_is_read(store, monkeypatch):
    read = []
    read_spans = Rows.read
    monkeypatch.setattr(Rows, "read", lambda *args: (read.append(args[3]), read_spans(*args))[1])
    array = ss.etl.to_dask(store, "x", chunk_bytes=800)
    assert not read
    array[30:40, :1].compute(scheduler="synchronous")
    assert sum(int((stop - start).sum()) for _, start, stop in read) == 10


def test_no_chunk_is_decoded_twice(tmp_path, monkeypatch):
    with ss.create(
        tmp_path / "s.zarr", {"x": ss.Field("int64", codec="zstd")}, chunk_bytes=80, shard_bytes=800
    ) as writer:
        for id, length in [("a", 33), ("b", 210), ("c", 4)]:
            writer.write(id, x=np.arange(length))
    counts = []
    close = DiskReader.close
    monkeypatch.setattr(DiskReader, "close", lambda self: (counts.append(self.counts.decoded), close(self)))
    array = ss.etl.to_dask(ss.open(tmp_path / "s.zarr"), "x", chunk_bytes=300)
    assert array.npartitions == 8
    counts.clear()
    array.compute(scheduler="synchronous")
    assert sum(counts) == 25  # of 10 timesteps, the last one of 7
    counts.clear()
    assert sum(batch.num_rows for batch in ss.open(tmp_path / "s.zarr").to_arrow_batches(batch_bytes=300)) == 247
    assert sum(counts) == 25


def test_the_name_says_what_the_array_holds(store):
    chosen = (None, "a", ["a", "b"], ["b", "a"])
    names = {ss.etl.to_dask(store, "x", ids, chunk_bytes=size).name for ids in chosen for size in (None, 160)}
    assert len(names) == 8
    assert ss.etl.to_dask(store, "x", "a").name in names


def test_a_graph_is_small_for_a_store_on_disk(store):
    size = len(pickle.dumps(ss.etl.to_dask(store, "x", chunk_bytes=800)))
    if store.backend in ("zarr", "arrow"):
        assert size < 4000


def test_processes_open_the_store_themselves(store):
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as client:
        array = ss.etl.to_dask(store, "x", ["c", "b"], chunk_bytes=160)
        wanted = np.concatenate([SEQUENCES["c"], SEQUENCES["b"]])
        assert np.array_equal(client.gather(client.compute(array)), wanted)


def test_an_array_stays_with_its_version(tmp_path):
    address = tmp_path / "s.zarr"
    with ss.create(address, {"x": ss.Field("int64")}) as writer:
        writer.write("a", x=np.arange(5))
    array = ss.etl.to_dask(ss.open(address), "x")
    with ss.append(address) as writer:
        writer.append("a", x=np.arange(5, 9))
    assert pickle.loads(pickle.dumps(array)).compute().tolist() == list(range(5))
    assert ss.etl.to_dask(ss.open(address), "x").compute().tolist() == list(range(9))


def test_what_is_not_there_is_refused(store):
    with pytest.raises(ValueError, match="no field 'y'"):
        ss.etl.to_dask(store, "y")
    with pytest.raises(KeyError, match="no sequence 'nope'"):
        ss.etl.to_dask(store, "x", ["nope"])
    with pytest.raises(IndexError, match="from 0 to 3"):
        ss.etl.to_dask(store, "x", 4)
