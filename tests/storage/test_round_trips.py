"""Whatever is written in whatever pieces, over however many shards and versions, reads back."""

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss

DTYPES = ["bool", "uint8", "int8", "uint16", "int32", "int64", "uint64", "float16", "float32", "float64"]
SHAPES = [(), (1,), (3,), (2, 3)]


@st.composite
def fields_of(draw, backend):
    codecs = [None, "none", "lz4", "zstd"] + (["bitshuffle"] if backend == "zarr" else [])
    field = st.builds(ss.Field, st.sampled_from(DTYPES), st.sampled_from(SHAPES), st.sampled_from(codecs))
    return draw(st.dictionaries(st.sampled_from(["x", "id", "self", "name_2", "Z-1"]), field, min_size=1, max_size=3))


ids = st.sampled_from(["a", "b", "c", "dd", "é"])
# A version is a list of appended pieces: the id and the number of timesteps.
versions = st.lists(st.lists(st.tuples(ids, st.integers(0, 20)), max_size=6), min_size=1, max_size=3)


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_interleaved_pieces_read_back_from_every_version(backend, data, make, same):
    fields = data.draw(fields_of(backend))
    plan = data.draw(versions)
    # Chunks from one timestep on; shards large enough that there are tens and not hundreds of them.
    chunk_bytes, shard_bytes = data.draw(st.integers(1, 200)), data.draw(st.integers(200, 2000))
    expected, model, first = [], {}, 0
    with tempfile.TemporaryDirectory() as folder:
        for number, pieces in enumerate(plan):
            address = Path(folder, f"s.{backend}")
            writer = ss.append(address) if number else ss.create(address, fields, None, chunk_bytes, shard_bytes)
            with writer:
                for id, steps in pieces:
                    arrays = make(fields, first, steps)
                    first += steps
                    writer.append(id, **arrays)
                    before = model.get(id, make(fields, 0, 0))
                    model = model | {id: {name: np.concatenate([before[name], arrays[name]]) for name in fields}}
            if pieces or not number:
                expected.append(model)
        assert ss.open(address).versions == list(range(1, len(expected) + 1))
        for number, wanted in enumerate(expected, start=1):
            store = ss.open(address, version=number)
            assert store.ids.to_pylist() == list(wanted)
            assert store.lengths.tolist() == [len(next(iter(named.values()))) for named in wanted.values()]
            with store.reader(list(fields), data.draw(st.integers(1, 3))) as reader:
                for index, (id, named) in enumerate(wanted.items()):
                    same(store.read(id), named)
                    length = int(store.lengths[index])
                    start = data.draw(st.integers(0, length))
                    stop = data.draw(st.integers(start, length))
                    for name in fields:
                        parts = list(reader.slices(name, index, start, stop))
                        assert np.concatenate([named[name][:0], *parts]).tobytes() == named[name][start:stop].tobytes()


def test_both_backends_have_one_fingerprint(tmp_path, make):
    fields = {"x": ss.Field("float32", (2,)), "mark": ss.Field("bool")}
    for backend in ("zarr", "arrow"):
        with ss.create(tmp_path / f"s.{backend}", fields, chunk_bytes=40, shard_bytes=300) as writer:
            writer.write("a", **make(fields, 0, 100))
    assert ss.open(tmp_path / "s.zarr").fingerprint == ss.open(tmp_path / "s.arrow").fingerprint


def test_every_version_has_its_own_fingerprint(address, make):
    fields = {"x": ss.Field("int32")}
    with ss.create(address, fields) as writer:
        writer.write("a", **make(fields, 0, 10))
    with ss.append(address) as writer:
        writer.append("a", **make(fields, 10, 1))
    assert ss.open(address).fingerprint != ss.open(address, version=1).fingerprint


def test_fingerprint_is_of_the_versions_before_too(tmp_path, backend, make):
    fields = {"x": ss.Field("int32")}
    for first in (0, 1):
        with ss.create(tmp_path / f"{first}", fields, backend) as writer:
            writer.write("a", **make(fields, first, 10))
        with ss.append(tmp_path / f"{first}") as writer:
            writer.append("a", **make(fields, 10, 1))
    assert ss.open(tmp_path / "0").fingerprint != ss.open(tmp_path / "1").fingerprint


def test_pickling_keeps_the_version(address, make):
    fields = {"x": ss.Field("int32")}
    with ss.create(address, fields) as writer:
        writer.write("a", **make(fields, 0, 10))
    first = ss.open(address)
    with ss.append(address) as writer:
        writer.append("a", **make(fields, 10, 1))
    assert len(pickle.loads(pickle.dumps(first)).read("a")["x"]) == 10
    assert len(pickle.loads(pickle.dumps(ss.open(address))).read("a")["x"]) == 11


def test_values_are_kept_to_the_bit(address):
    odd = np.array([-0.0, np.nan, np.inf, -np.inf, 5e-324, np.finfo("f8").max])
    odd = np.concatenate([odd, np.array([0x7FF8000000000123], np.uint64).view(np.float64)])
    with ss.create(address, {"x": ss.Field("float64")}) as writer:
        writer.write("a", x=odd)
    assert ss.open(address).read("a")["x"].tobytes() == odd.tobytes()


def test_arrays_of_any_memory_layout_are_written(address):
    base = np.arange(600, dtype=np.float64).reshape(3, 10, 20)
    values = base.transpose(2, 1, 0)[::-2]
    big_endian = np.arange(10, dtype=">i4")
    with ss.create(address, {"x": ss.Field("float64", (10, 3)), "y": ss.Field("int32")}, chunk_bytes=700) as writer:
        writer.write("a", x=values, y=big_endian)
    read = ss.open(address).read("a")
    assert np.array_equal(read["x"], values)
    assert np.array_equal(read["y"], big_endian)


def test_a_timestep_larger_than_a_chunk_is_a_chunk(address, make):
    fields = {"x": ss.Field("float32", (100,)), "y": ss.Field("uint8")}
    with ss.create(address, fields, chunk_bytes=64, shard_bytes=128) as writer:
        writer.write("a", **make(fields, 0, 3))
    store = ss.open(address)
    assert store.chunk_timesteps["x"] == 1
    assert np.array_equal(store.read("a")["x"], make(fields, 0, 3)["x"])


def test_contiguous_pieces_are_one(address, make):
    fields = {"x": ss.Field("int64")}
    with ss.create(address, fields, chunk_bytes=40, shard_bytes=160) as writer:
        for first in range(100):
            writer.append("a", **make(fields, first, 1))
    assert [entry.pieces.num_rows for entry in ss.open(address).snapshot.tables] == [1]
