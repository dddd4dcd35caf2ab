"""When the bytes of chunks are compared with their checksums: when they are first used, whenever, or never."""

import pickle

import numpy as np
import pytest

import streamseq as ss

CODECS = [(backend, codec) for backend in ("zarr", "arrow") for codec in ("none", "lz4", "zstd")]
CODECS.append(("zarr", "bitshuffle"))


@pytest.fixture(params=CODECS, ids="-".join)
def store(request, tmp_path):
    backend, codec = request.param
    values = np.arange(3000)
    with ss.create(tmp_path / f"s.{backend}", {"x": ss.Field("int64", codec=codec)}, chunk_bytes=8000) as writer:
        writer.write("a", x=values)
    return tmp_path / f"s.{backend}"


def data_file(store):
    shard = ss.open(store).snapshot.shards[0].id
    return store / "shards" / shard / ("x.arrow" if store.suffix == ".arrow" else "x/c/0")


def flip(store):
    """Flip a bit of the middle chunk: of its values where they are stored as they are."""
    path = data_file(store)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def read(store):
    """As a stream reads: through a reader that keeps nothing of what was read before."""
    with store.reader(["x"], 1) as reader:
        return np.concatenate([part.copy() for part in reader.slices("x", 0, 0, 3000)])


def unchecked(store):
    """What is read, or the error of a decoder that noticed by itself."""
    try:
        return read(store).tolist()
    except ss.CorruptionError as error:
        return None if "does not decode" in str(error) else str(error).index("decodes to")


@pytest.mark.parametrize("checksums", ["first", "always", "never"])
def test_every_setting_reads_what_was_written(store, checksums):
    opened = ss.open(store, checksums=checksums)
    for _ in range(2):
        assert read(opened).tolist() == opened.read("a")["x"].tolist() == list(range(3000))
    stream = ss.StreamDataset(opened, lanes=2, window=500, layout="even")
    for _ in range(2):
        assert sum(int(window["x"].sum()) for window in ss.StreamLoader(stream)) == sum(range(3000))


def test_first_compares_what_an_open_store_uses_for_the_first_time(store):
    opened = ss.open(store)
    assert read(opened).tolist() == list(range(3000))
    flip(store)
    # It was compared already.
    assert unchecked(opened) != list(range(3000))
    with pytest.raises(ss.CorruptionError, match="fails its checksum"):
        read(ss.open(store))


def test_always_compares_again(store):
    opened = ss.open(store, checksums="always")
    assert read(opened).tolist() == list(range(3000))
    flip(store)
    with pytest.raises(ss.CorruptionError, match="fails its checksum"):
        read(opened)


def test_never_does_not_compare(store):
    flip(store)
    assert unchecked(ss.open(store, checksums="never")) != list(range(3000))


def test_the_setting_goes_with_the_store(store):
    for opened in (
        pickle.loads(pickle.dumps(ss.open(store, checksums="always"))),
        ss.open(store, checksums="always").at_version(1),
    ):
        assert read(opened).tolist() == list(range(3000))
        flip(store)
        with pytest.raises(ss.CorruptionError, match="fails its checksum"):
            read(opened)
        flip(store)


def test_chunks_that_are_compared_whenever_they_are_read_take_memory(store):
    assert ss.open(store, checksums="always").decoded_chunk_bytes["x"] == 8000


def test_there_are_three_settings(store):
    with pytest.raises(ValueError, match="'first', 'always' or 'never', got 'sometimes'"):
        ss.open(store, checksums="sometimes")


@pytest.mark.parametrize("checksums", ["first", "always", "never"])
def test_arrays_of_other_codecs_are_compared_as_well(tmp_path, checksums):
    import zarr

    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("int32")}, chunk_bytes=80) as writer:
        writer.write("a", x=np.arange(90, dtype=np.int32))
    group = zarr.open_group(tmp_path / "s.zarr" / "shards" / ss.open(tmp_path / "s.zarr").snapshot.shards[0].id)
    group.create_array("x", data=np.arange(90, dtype=np.int32), chunks=(10,), overwrite=True)
    opened = ss.open(tmp_path / "s.zarr", checksums=checksums)
    assert opened.read("a")["x"].tolist() == list(range(90))
    group["x"][50] = 0
    if checksums == "never":
        assert ss.open(tmp_path / "s.zarr", checksums=checksums).read("a")["x"][50] == 0
        return
    with pytest.raises(ss.CorruptionError, match="other values"):
        ss.open(tmp_path / "s.zarr", checksums=checksums).read("a")
    if checksums == "always":
        with pytest.raises(ss.CorruptionError, match="chunk 2 fails its checksum"):
            opened.read("a")
