"""Zarr and npy: which array becomes which field, along which axis."""

import io
import json

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss

X = np.arange(24, dtype=np.int32).reshape(2, 3, 4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    dtype=st.sampled_from(["bool", "uint8", "float16", "<i4", ">f8"]),
    kind=st.sampled_from(["npy", "npy F", "zarr 2", "zarr 3", "zarr shards"]),
    data=st.data(),
)
def test_any_axis_of_any_array_is_time(tmp_path, monkeypatch, shape, dtype, kind, data):
    monkeypatch.setattr("streamseq.storage.adopted.source.CHUNK_BYTES", 8)
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    if kind.startswith("npy"):
        np.save(tmp_path / "a.npy", np.asarray(values, order="F" if kind == "npy F" else "C"))
        store = ss.adopt_npy(tmp_path / "a.npy", axis)
    else:
        chunks = tuple(data.draw(st.integers(1, size)) for size in shape)
        array = zarr.create_array(
            tmp_path / "a.zarr",
            shape=shape,
            # Zarr v3 has no dtypes of the other order of bytes.
            dtype=dtype if kind == "zarr 2" else values.dtype.newbyteorder("="),
            chunks=chunks,
            shards=tuple(2 * size for size in chunks) if kind == "zarr shards" else None,
            zarr_format=2 if kind == "zarr 2" else 3,
            overwrite=True,
        )
        array[:] = values
        store = ss.adopt_zarr(array, axis)
    wanted = np.moveaxis(values, axis, 0)
    stop = data.draw(st.integers(0, len(wanted)))
    start = data.draw(st.integers(0, stop))
    found = store.read(0, start, stop)["x"]
    assert found.dtype == wanted.dtype.newbyteorder("=")
    assert np.array_equal(found, wanted[start:stop])


def test_a_group_has_a_field_for_each_array(tmp_path):
    group = zarr.open_group(tmp_path / "wind.zarr", mode="w")
    group.attrs["site"] = {"name": "north", "height": float("nan"), "range": [0, float("inf")]}
    group.create_array("speed", data=np.arange(12.0).reshape(3, 4))
    group.create_array("on", data=np.array([True, False, True, True]))
    store = ss.adopt_zarr(tmp_path / "wind.zarr", {"speed": 1})
    assert store.ids.to_pylist() == ["wind"]
    assert list(store.fields) == ["on", "speed"]
    assert store.read("wind", 3)["speed"].tolist() == [[3, 7, 11]]
    # JSON has no words for such numbers.
    assert store.attrs(0) == {"site": {"name": "north", "height": "NaN", "range": [0, "Infinity"]}}
    assert ss.adopt_zarr(group, {"v": 1}, fields={"v": "speed"}).fields["v"].shape == (3,)
    assert ss.adopt_zarr(group, fields=["on"], attrs={"wind": {"site": 1}}).attrs(0) == {"site": 1}
    with pytest.raises(ss.StoreError, match=r"same number of timesteps, 'wind' has \{'on': 4, 'speed': 3\}"):
        ss.adopt_zarr(group)
    with pytest.raises(ValueError, match="got one of 'of'"):
        ss.adopt_zarr(group, {"of": 1})
    with pytest.raises(ss.StoreError, match=r"shape \[4\], which has no axis 1 for time"):
        ss.adopt_zarr(group, 1)
    with pytest.raises(ss.StoreError, match="has no array 'y', it has on, speed"):
        ss.adopt_zarr(group, fields=["y"])


def test_a_group_of_groups_has_a_sequence_for_each(tmp_path):
    root = zarr.open_group(tmp_path / "all.zarr", mode="w")
    for number, id in enumerate("ba"):
        root.create_group(id).create_array("x", data=np.full(3, number))
        root[id].attrs["number"] = number
    store = ss.adopt_zarr(tmp_path / "all.zarr")
    assert store.ids.to_pylist() == ["a", "b"]
    assert store.read("b")["x"].tolist() == [0, 0, 0]
    assert store.attrs("a") == {"number": 1}
    with pytest.raises(ss.StoreError, match="has no arrays"):
        ss.adopt_zarr(zarr.open_group(tmp_path / "empty.zarr", mode="w"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_the_axis_of_time_has_a_name(tmp_path, zarr_format):
    root = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=zarr_format)
    arrays = {"wind": (X, ["lat", "time", "lon"]), "on": (np.arange(3) > 1, ["time"]), "lat": (np.arange(2), ["lat"])}
    for name, (values, dimensions) in arrays.items():
        array = root.create_array(name, data=values, dimension_names=dimensions if zarr_format == 3 else None)
        if zarr_format == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = dimensions
    store = ss.adopt_zarr(tmp_path / "a.zarr", "time")
    assert list(store.fields) == ["on", "wind"]
    assert np.array_equal(store.read(0)["wind"], np.moveaxis(X, 1, 0))
    with pytest.raises(ss.StoreError, match="lat has no dimension 'time', it has lat"):
        ss.adopt_zarr(tmp_path / "a.zarr", "time", fields=["lat"])
    with pytest.raises(ss.StoreError, match="at least one field"):
        ss.adopt_zarr(tmp_path / "a.zarr", "t")


def test_sequences_by_id_are_arrays_groups_dicts_and_lists(tmp_path):
    one = zarr.create_array(tmp_path / "1.zarr", data=np.array([1, 2]))
    two = zarr.create_array(tmp_path / "2.zarr", data=np.array([3]))
    np.save(tmp_path / "1.npy", [1, 2])
    np.save(tmp_path / "2.npy", [3])
    for store in (
        ss.adopt_zarr({"a": one, "b": [tmp_path / "2.zarr", one], "c": {"x": two}}),
        ss.adopt_npy(
            {
                "a": tmp_path / "1.npy",
                "b": [tmp_path / "2.npy", str(tmp_path / "1.npy")],
                "c": {"x": tmp_path / "2.npy"},
            }
        ),
    ):
        assert store.ids.to_pylist() == ["a", "b", "c"]
        assert [store.read(id)["x"].tolist() for id in "abc"] == [[1, 2], [3, 1, 2], [3]]
        assert store.uri == str(tmp_path)
    with pytest.raises(ss.StoreError, match=r"'x' is int64\[\] in .*1\.zarr and bool\[\] in sequence 'b'"):
        ss.adopt_zarr({"a": one, "b": zarr.create_array(tmp_path / "3.zarr", data=np.array([True]))})
    with pytest.raises(ss.StoreError, match=r"'b' has no array 'x', it has y; a dict is of sequences by id"):
        ss.adopt_zarr({"a": {"x": one}, "b": {"y": two}})
    for adopt in (ss.adopt_zarr, ss.adopt_npy):
        with pytest.raises(ValueError, match="at least one sequence"):
            adopt({})
        with pytest.raises(ValueError, match="at least one"):
            adopt({"a": []})
        with pytest.raises(TypeError, match="id is a str"):
            adopt({1: tmp_path / "1.npy"})
        with pytest.raises(TypeError, match="got int"):
            adopt(3)


def test_times_of_zarr_are_counts_of_their_unit(tmp_path):
    days = np.array(["1970-01-03", "1970-01-01"], "datetime64[D]")
    zarr.create_array(tmp_path / "a.zarr", data=days, zarr_format=2)
    assert ss.adopt_zarr(tmp_path / "a.zarr").read(0)["x"].tolist() == [2, 0]


def test_what_zarr_cannot_give_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ss.StoreError, match="does not exist"):
        ss.adopt_zarr(tmp_path / "a.zarr")
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(ss.StoreError, match="does not open as a Zarr array or group"):
        ss.adopt_zarr(tmp_path / "a.zarr")
    (tmp_path / "a.zip").write_bytes(b"PK and nothing else")
    with pytest.raises(ss.StoreError, match=r"a\.zip does not open"):
        ss.adopt_zarr(tmp_path / "a.zip")
    with pytest.raises(ss.StoreError, match=r"lies in a MemoryStore.*ss\.from_arrays"):
        ss.adopt_zarr(zarr.create_array(zarr.storage.MemoryStore(), data=np.arange(3)))
    zarr.create_array(tmp_path / "c.zarr", data=np.arange(3) + 1j)
    with pytest.raises(ss.StoreError, match=r"c\.zarr: a field's dtype is bool, an integer or a float"):
        ss.adopt_zarr(tmp_path / "c.zarr")
    zarr.create_array(tmp_path / "n.zarr", shape=(), dtype="int8")
    with pytest.raises(ss.StoreError, match=r"shape \[\], which has no axis 0"):
        ss.adopt_zarr(tmp_path / "n.zarr")
    monkeypatch.setattr("streamseq.storage.adopted.zarr.MAX_CHUNK_BYTES", 100)
    zarr.create_array(tmp_path / "l.zarr", data=np.arange(30), chunks=(20,))
    with pytest.raises(ss.StoreError, match=r"at most 100 bytes, .*l\.zarr has chunks of shape \[20\]"):
        ss.adopt_zarr(tmp_path / "l.zarr")
    with pytest.raises(ValueError, match="local path or file:// URL"):
        ss.adopt_zarr("s3://bucket/a.zarr")


def test_a_size_that_is_only_claimed_costs_nothing(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(3), chunks=(3,))
    document = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    for shape, chunk, message in (
        (1 << 60, 3, "at most 33554432 chunks"),
        (3, 1 << 40, "at most 1073741824 bytes"),
        (1 << 64, 3, "at most 33554432 chunks"),
    ):
        document["shape"] = [shape]
        document["chunk_grid"]["configuration"]["chunk_shape"] = [chunk]
        (tmp_path / "a.zarr" / "zarr.json").write_text(json.dumps(document))
        with pytest.raises(ss.StoreError, match=message):
            ss.adopt_zarr(tmp_path / "a.zarr")


def test_code_in_a_file_is_not_run(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(3), zarr_format=2, compressors=None)
    document = json.loads((tmp_path / "a.zarr" / ".zarray").read_text())
    document["filters"] = [{"id": "pickle", "protocol": 5}]
    (tmp_path / "a.zarr" / ".zarray").write_text(json.dumps(document))
    with pytest.raises(ss.StoreError, match="pickle"):
        ss.adopt_zarr(tmp_path / "a.zarr")
    np.save(tmp_path / "a.npy", np.array([None, 1]), allow_pickle=True)
    with pytest.raises(ss.StoreError, match=r"a\.npy has dtype object"):
        ss.adopt_npy(tmp_path / "a.npy")


def test_what_npy_cannot_give_is_refused(tmp_path):
    np.savez_compressed(tmp_path / "z.npz", x=np.arange(3))
    with pytest.raises(ss.StoreError, match=r"z\.npz, array 'x' is compressed.*np\.savez"):
        ss.adopt_npy(tmp_path / "z.npz")
    np.save(tmp_path / "r.npy", np.zeros(3, [("a", "i4"), ("b", "f4")]))
    with pytest.raises(ss.StoreError, match="write each variable as its own array"):
        ss.adopt_npy(tmp_path / "r.npy")
    np.savez(tmp_path / "two.npz", x=np.arange(3), y=np.arange(3))
    with pytest.raises(ss.StoreError, match="field 'x' is one array"):
        ss.adopt_npy({"a": {"x": tmp_path / "two.npz"}})
    buffer = io.BytesIO()
    np.save(buffer, np.arange(1000))
    whole = buffer.getvalue()
    for content, message in (
        (b"", "is not a .npy or .npz file"),
        (b"PK\x03\x04 and nothing else", "is not a .npy or .npz file"),
        (whole[:4000], r"says it has shape \[1000\] of int64, for which it is too short"),
        (whole.replace(b"(1000,)", b"(-100,)"), r"shape \[-100\]"),
        (whole.replace(b"(1000,)", b"(1e99,)"), "is not a .npy or .npz file"),
        (whole.replace(b"'<i8'", b"'<U2'"), "a field's dtype is bool"),
    ):
        (tmp_path / "a.npy").write_bytes(content)
        with pytest.raises(ss.StoreError, match=message) as caught:
            ss.adopt_npy(tmp_path / "a.npy")
        assert "\n" not in str(caught.value)


def test_plain_npy_is_read_from_the_file_and_other_arrays_a_chunk_at_a_time(tmp_path):
    x = np.arange(6_000_000, dtype=np.float32).reshape(3, -1)
    np.save(tmp_path / "a.npy", x)
    assert ss.adopt_npy(tmp_path / "a.npy").decoded_chunk_bytes == {"x": 0}
    store = ss.adopt_npy(tmp_path / "a.npy", 1)
    assert 0 < store.decoded_chunk_bytes["x"] <= 1 << 20
    with store.reader(["x"], 2) as reader:
        parts = list(reader.slices("x", 0, 1_000_000, 1_000_010))
        assert reader.counts.decoded == 1
        assert np.array_equal(np.concatenate(parts), x[:, 1_000_000:1_000_010].T)


def test_small_chunks_of_zarr_are_decoded_together(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", data=np.arange(1000), chunks=(7,))
    store = ss.adopt_zarr(tmp_path / "a.zarr")
    with store.reader(["x"], 2) as reader:
        for start in range(0, 1000, 10):
            assert np.array_equal(
                np.concatenate(list(reader.slices("x", 0, start, start + 10))), range(start, start + 10)
            )
        assert reader.counts.decoded == 1
