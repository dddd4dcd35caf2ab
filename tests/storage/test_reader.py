"""How often the reader decodes, what it keeps, and that plain zarr and pyarrow read the same."""

import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

import streamseq as ss
from streamseq.storage.shards.chunk_cache import ChunkCache

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool")}


@pytest.fixture
def store(address, make):
    with ss.create(address, FIELDS, chunk_bytes=80, shard_bytes=1700) as writer:
        writer.write("a", **make(FIELDS, 0, 500))
        writer.write("b", **make(FIELDS, 500, 500))
    return ss.open(address)


def num_chunks(store, name):
    return sum(-(-shard.num_timesteps // store.chunk_timesteps[name]) for shard in store.snapshot.shards)


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("step", [1, 7, 64])
def test_sequential_pass_decodes_each_chunk_once(store, make, name, step):
    wanted = make(FIELDS, 0, 1000)[name]
    with store.reader([name], 1) as reader:
        for sequence in (0, 1):
            for start in range(0, 500, step):
                stop = min(500, start + step)
                parts = list(reader.slices(name, sequence, start, stop))
                assert np.array_equal(np.concatenate(parts), wanted[500 * sequence + start : 500 * sequence + stop])
        assert reader.counts.decoded == num_chunks(store, name)


def test_lanes_side_by_side_decode_each_chunk_once(store):
    # Two lanes in step need two chunks of each field kept, and no more.
    with store.reader(["x", "y"], 2) as reader:
        for start in range(0, 500, 5):
            for sequence in (0, 1):
                for name in ("x", "y"):
                    list(reader.slices(name, sequence, start, start + 5))
        # The chunk in which one sequence ends and the other begins is decoded once by each of the two.
        assert reader.counts.decoded <= num_chunks(store, "x") + num_chunks(store, "y") + 2


def test_a_chunk_read_to_its_end_is_the_first_to_go(store):
    steps = store.chunk_timesteps["x"]
    with store.reader(["x"], 2) as reader:
        list(reader.slices("x", 0, 0, 1))
        list(reader.slices("x", 0, steps, 2 * steps))
        list(reader.slices("x", 0, 2 * steps, 2 * steps + 1))
        assert reader.counts.decoded == 3
        list(reader.slices("x", 0, 1, 2))
        assert reader.counts.decoded == 3


def test_least_recently_used_chunk_goes(store):
    steps = store.chunk_timesteps["x"]
    with store.reader(["x"], 2) as reader:
        for chunk in (0, 1, 0, 2, 0):
            list(reader.slices("x", 0, chunk * steps, chunk * steps + 1))
        assert reader.counts.decoded == 3


def test_slices_inside_one_chunk_share_its_memory(store):
    with store.reader(["x"], 1) as reader:
        (first,) = reader.slices("x", 0, 0, 3)
        (second,) = reader.slices("x", 0, 2, 5)
        assert np.shares_memory(first, second)


def test_cache_gives_back_the_memory_of_a_chunk_that_nobody_holds():
    cache = ChunkCache(1)
    cache.put(0, np.zeros(3), 3)
    spare = cache.make_room(0)
    assert 0 not in cache
    assert spare.flags.writeable
    cache.put(1, spare, 3)
    del spare
    held = cache.get(1, 2)[1:]
    assert cache.make_room(0) is None
    assert not held.flags.writeable


def test_cache_has_room_for_what_is_being_decoded_as_well():
    cache = ChunkCache(4)
    for key in range(3):
        cache.put(key, np.zeros(3), 3)
    assert cache.make_room(0) is None
    assert [key in cache for key in range(3)] == [True, True, True]
    assert cache.make_room(2) is not None
    assert [key in cache for key in range(3)] == [False, False, True]
    # More are coming than there is room for.
    assert cache.make_room(7) is not None
    assert 2 not in cache


def test_a_chunk_that_was_read_goes_first_and_only_when_nobody_holds_it():
    cache = ChunkCache(9, keep=False)
    for key in range(4):
        cache.put(key, np.full(3, key), 3)
    held = cache.get(2, 3)
    cache.get(1, 3)
    cache.get(0, 2)
    assert cache.make_room(0).tolist() == [1, 1, 1]
    # There is room, and only one that is held was read.
    assert cache.make_room(0) is None
    assert [key in cache for key in range(4)] == [True, False, True, True]
    del held
    assert cache.make_room(0).tolist() == [2, 2, 2]


def test_memory_of_a_chunk_is_used_again_only_when_nobody_holds_it(tmp_path, make):
    fields = {"x": ss.Field("int64")}
    with ss.create(tmp_path / "s.zarr", fields, chunk_bytes=80) as writer:
        writer.write("a", **make(fields, 0, 100))
    with ss.open(tmp_path / "s.zarr").reader(["x"], 1) as reader:

        def address(chunk):
            (part,) = reader.slices("x", 0, 10 * chunk, 10 * chunk + 9)
            return part.__array_interface__["data"][0]

        assert address(0) == address(1)
        (held,) = reader.slices("x", 0, 20, 29)
        assert address(3) != held.__array_interface__["data"][0]
        assert held.tolist() == list(range(20, 29))


def test_uncompressed_arrow_is_read_without_a_copy(tmp_path, make):
    fields = {"x": ss.Field("float64", (2,), codec="none")}
    with ss.create(tmp_path / "s.arrow", fields, chunk_bytes=320) as writer:
        writer.write("a", **make(fields, 0, 100))
    with ss.open(tmp_path / "s.arrow").reader(["x"], 1) as reader:
        before = pa.total_allocated_bytes()
        held = list(reader.slices("x", 0, 0, 100))
        assert pa.total_allocated_bytes() - before < 320
    assert np.array_equal(np.concatenate(held), make(fields, 0, 100)["x"])


def test_more_shards_than_files_may_be_open(address, make):
    fields = {"x": ss.Field("int64")}
    with ss.create(address, fields, chunk_bytes=8, shard_bytes=8) as writer:
        writer.write("a", **make(fields, 0, 200))
    with ss.open(address).reader(["x"], 1) as reader:
        for _ in range(2):
            assert len(reader._columns["x"]._files) <= 128
            assert np.concatenate(list(reader.slices("x", 0, 0, 200))).tolist() == list(range(200))


def shard_folders(store):
    return [store.place.root / "shards" / shard.id for shard in store.snapshot.shards]


def test_plain_zarr_reads_what_was_written(tmp_path, make):
    fields = FIELDS | {
        "h": ss.Field("float16", (2, 2)),
        "u": ss.Field("uint8", codec="lz4"),
        "d": ss.Field("float64", codec="zstd"),
    }
    with ss.create(tmp_path / "s.zarr", fields, chunk_bytes=80, shard_bytes=5000) as writer:
        writer.write("a", **make(fields, 0, 500))
    group = zarr.open_group(tmp_path / "s.zarr", mode="r")
    assert "shards" in dict(group.members())
    store = ss.open(tmp_path / "s.zarr")
    for name, wanted in make(fields, 0, 500).items():
        shards = [group["shards"][shard.id][name] for shard in store.snapshot.shards]
        assert len(shards) > 1
        assert np.array_equal(np.concatenate([array[:] for array in shards]), wanted)
        assert shards[0].metadata.dimension_names[0] == "timestep"
        for array, folder in zip(shards, shard_folders(store), strict=True):
            assert len([path for path in (folder / name / "c").rglob("*") if path.is_file()]) == 1
            assert array.chunks[0] == min(store.chunk_timesteps[name], array.shape[0])


def test_plain_pyarrow_reads_what_was_written(tmp_path, make):
    fields = {"x": ss.Field("float32", (2, 3)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool", (3,))}
    with ss.create(tmp_path / "s.arrow", fields, chunk_bytes=80, shard_bytes=5000) as writer:
        writer.write("a", **make(fields, 0, 500))
    store = ss.open(tmp_path / "s.arrow")
    wanted = make(fields, 0, 500)
    for name in fields:
        batches = [
            batch
            for folder in shard_folders(store)
            for batch in pa.ipc.open_file(folder / f"{name}.arrow").read_all().to_batches()
        ]
        assert len(batches) > 1
        columns = [batch.column(0) for batch in batches]
        flat = [column.storage.flatten() if fields[name].shape else column for column in columns]
        values = np.concatenate([part.to_numpy(zero_copy_only=False) for part in flat])
        assert np.array_equal(values.reshape(wanted[name].shape), wanted[name])
    first = pa.ipc.open_file(shard_folders(store)[0] / "x.arrow")
    assert first.get_batch(0).num_rows == store.chunk_timesteps["x"]
    assert first.schema.field("x").type == pa.fixed_shape_tensor(pa.float32(), (2, 3))


def test_array_with_other_codecs_is_read_through_zarr(tmp_path, make, same):
    fields = {"x": ss.Field("int32", (2,)), "y": ss.Field("int64")}
    with ss.create(tmp_path / "s.zarr", fields, chunk_bytes=80) as writer:
        writer.write("a", **make(fields, 0, 95))
    store = ss.open(tmp_path / "s.zarr")
    (shard,) = store.snapshot.shards
    group = zarr.open_group(tmp_path / "s.zarr" / "shards" / shard.id, mode="r+")
    values = make(fields, 0, 95)["x"]
    group.create_array("x", data=values, chunks=(10, 2), compressors=zarr.codecs.GzipCodec(), overwrite=True)
    same(store.read("a"), make(fields, 0, 95))
    with store.reader(["x"], 1) as reader:
        assert np.array_equal(np.concatenate(list(reader.slices("x", 0, 7, 93))), values[7:93])
    group["x"][50] = 0
    with pytest.raises(ss.CorruptionError, match="other values than were written"):
        ss.open(tmp_path / "s.zarr").read("a")


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_many_spans_are_found_as_they_are_read(tmp_path, backend):
    uri = tmp_path / f"s.{backend}"
    rng = np.random.default_rng(0)
    with ss.create(uri, {"x": ss.Field("int64", (2,))}, chunk_bytes=160, shard_bytes=1000) as writer:
        for number in range(200):
            # Interleaved, so that some sequences lie in many pieces.
            n = int(rng.integers(1, 9))
            x = number * 1000 + np.arange(2 * n).reshape(n, 2)
            writer.append(f"s{rng.integers(0, 5)}" if number % 2 else f"alone-{number}", x=x)
    store = ss.open(uri)
    sequence = rng.integers(0, len(store), 300)
    start = rng.integers(0, store.lengths[sequence])
    stop = rng.integers(start + 1, store.lengths[sequence] + 1)
    with store.reader(["x"], 3) as reader:
        parts = reader.locate("x", (sequence, start, stop))
        found = [[] for _ in sequence]
        for values, span, offset in zip(reader.arrays(parts), parts.span, parts.offset, strict=True):
            assert offset == sum(map(len, found[span]))
            found[span].append(values.copy())
        for each, i, a, b in zip(found, sequence, start, stop, strict=True):
            assert np.array_equal(np.concatenate(each), store.read(int(i), int(a), int(b))["x"])
        none = np.array([], np.int64)
        assert list(reader.arrays(reader.locate("x", (none, none, none)))) == []


def spans_of(sequence, start, stop):
    return np.array([sequence]), np.array([start]), np.array([stop])


def test_chunks_are_decoded_ahead_as_far_as_there_is_room(store, make):
    steps = store.chunk_timesteps["x"]
    wanted = make(FIELDS, 0, 500)["x"]
    with store.reader(["x"], 1, ahead=2) as reader:
        coming = [reader.locate("x", spans_of(0, chunk * steps, (chunk + 1) * steps)) for chunk in range(4)]
        assert [reader.prefetch("x", parts.chunk.tolist()) for parts in coming] == [True, True, False, False]
        for chunk, parts in enumerate(coming):
            assert np.array_equal(next(reader.arrays(parts)), wanted[chunk * steps : (chunk + 1) * steps])
            assert all(reader.prefetch("x", each.chunk.tolist()) for each in coming[chunk + 1 : chunk + 3])
        assert reader.counts.decoded == 4
        assert reader.prefetch("x", coming[0].chunk.tolist())
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("streamseq-decoder")]


def test_what_goes_wrong_ahead_is_raised_where_it_is_asked_for(store):
    steps = store.chunk_timesteps["x"]
    shard = store.snapshot.shards[0]
    (path,) = [
        p
        for p in (Path(store.uri) / "shards" / shard.id).rglob("*")
        if p.is_file() and "x" in str(p) and p.suffix != ".json"
    ]
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    with store.reader(["x"], 1, ahead=1000) as reader:
        parts = reader.locate("x", spans_of(0, 0, 500))
        assert reader.prefetch("x", parts.chunk.tolist())
        with pytest.raises(ss.CorruptionError, match="checksum"):
            list(reader.arrays(parts))
    assert steps < 500


def test_a_reader_has_sensible_limits(store):
    with pytest.raises(ValueError, match="ahead -1"):
        store.reader(["x"], 1, ahead=-1)
