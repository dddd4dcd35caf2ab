"""Leaving streamseq: stores as Arrow tables, Parquet files, xarray datasets, and arrays that are read when indexed."""

import itertools
import json
import pickle
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.core.errors import CorruptionError
from streamseq.storage.export.rows import FieldColumn, IdColumn, PositionColumn, Rows, choose

FIELDS = {"x": ss.Field("float32", (2, 3)), "flag": ss.Field("bool"), "half": ss.Field("float16", (2,))}
LENGTHS = {"a": 7, "empty": 0, "b": 40, "ä/c": 1, "d": 12}


@pytest.fixture(params=["zarr", "arrow", "memory"])
def store(request, tmp_path, make):
    """Several sequences over many chunks and shards; "d" is in two pieces."""
    first, data = 0, {}
    for id, length in LENGTHS.items():
        data[id] = make(FIELDS, first, length)
        first += length
    attrs = {id: {"number": number} for number, id in enumerate(LENGTHS)}
    if request.param == "memory":
        return ss.from_arrays(data, FIELDS, attrs)
    address = tmp_path / f"store.{request.param}"
    with ss.create(address, FIELDS, chunk_bytes=64, shard_bytes=400) as writer:
        for id, arrays in data.items():
            if id != "d":
                writer.write(id, **arrays, attrs=attrs[id])
        writer.append("d", **{name: values[:5] for name, values in data["d"].items()}, attrs=attrs["d"])
    with ss.append(address) as writer:
        writer.append("a", **make(FIELDS, 0, 0))
        writer.append("d", **{name: values[5:] for name, values in data["d"].items()})
    return ss.open(address)


def end_to_end(store, field, ids=None):
    return np.concatenate([store.read(id)[field] for id in (store.ids.to_pylist() if ids is None else ids)])


def test_a_table_has_a_row_for_each_timestep_in_the_order_of_the_ids(store, same):
    for ids in (None, ["d", "empty", "a"]):
        table = store.to_arrow(ids)
        chosen = store.ids.to_pylist() if ids is None else ids
        assert table.column_names == ["id", "position", *FIELDS]
        assert table["id"].to_pylist() == [id for id in chosen for _ in range(LENGTHS[id])]
        assert table["position"].to_pylist() == [step for id in chosen for step in range(LENGTHS[id])]
        for name in ("x", "half"):
            same({name: table[name].combine_chunks().to_numpy_ndarray()}, {name: end_to_end(store, name, ids)})
        assert table["flag"].to_pylist() == end_to_end(store, "flag", ids).tolist()
    assert store.to_arrow(2, fields=["flag"]).equals(store.to_arrow(["b"], fields=["flag"]))
    assert store.to_arrow("empty").num_rows == 0
    assert store.to_arrow([]).num_rows == 0


def test_batches_are_the_table_and_no_larger_than_asked_for(store):
    whole = store.to_arrow()
    for batch_bytes in (1, 200, "1 kB"):
        batches = list(store.to_arrow_batches(batch_bytes=batch_bytes))
        assert pa.Table.from_batches(batches).equals(whole)
        assert max(batch.num_rows for batch in batches) == {1: 1, 200: 3, "1 kB": 18}[batch_bytes]


def test_batches_are_read_when_they_are_asked_for(tmp_path):
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8")}, chunk_bytes=10) as writer:
        writer.write("a", x=np.arange(30, dtype=np.uint8))
    (path,) = (tmp_path / "s.zarr" / "shards").glob("*/x/c/0")
    content = bytearray(path.read_bytes())
    begin = len(content) - 4 - 16 * 3 - 1  # the last byte of the last chunk: after it comes the index and its checksum
    content[begin] ^= 1
    path.write_bytes(content)
    batches = ss.open(tmp_path / "s.zarr").to_arrow_batches(batch_bytes=25 * 20)
    assert batches.read_next_batch()["x"].to_pylist() == list(range(20))
    with pytest.raises(CorruptionError):
        batches.read_next_batch()


def test_parquet_files_hold_the_same_table(store, tmp_path):
    whole = store.to_arrow()
    pq.write_table(whole, tmp_path / "whole.parquet")
    with (
        store.to_arrow_batches(batch_bytes=500) as batches,
        pq.ParquetWriter(tmp_path / "batches.parquet", batches.schema) as file,
    ):
        for batch in batches:
            file.write_batch(batch)
    assert pq.read_table(tmp_path / "whole.parquet").equals(whole)
    assert pq.read_table(tmp_path / "batches.parquet").equals(whole)


def test_exported_parquet_can_be_adopted(store, tmp_path, same):
    pq.write_table(store.to_arrow(), tmp_path / "out.parquet")
    adopted = ss.adopt_parquet(tmp_path / "out.parquet", columns=list(FIELDS), sequence_column="id")
    assert adopted.ids.to_pylist() == ["a", "b", "ä/c", "d"]  # one without timesteps leaves no row
    for id in adopted.ids.to_pylist():
        same(adopted.read(id), store.read(id))
    assert adopted.to_arrow().equals(store.to_arrow())
    same({"x": adopted.to_xarray("b")["x"].values}, {"x": store.read("b")["x"]})


def test_columns_can_be_named_otherwise(store):
    assert store.to_arrow(fields=["x"], id_name="plant", position_name="hour").column_names == ["plant", "hour", "x"]
    assert "plant" in store.to_xarray(id_name="plant").coords
    clashing = ss.from_arrays({"a": {"position": [1], "timestep": [1]}})
    for export in (clashing.to_arrow, clashing.to_xarray):
        with pytest.raises(ValueError, match=r"^.*'position' twice: choose fields=, id_name= or position_name=$"):
            export(fields=["position"])
        assert "at" in export(fields=["position"], position_name="at").to_pandas()
        with pytest.raises(ValueError, match="'id' twice"):
            export(position_name="id")
    with pytest.raises(ValueError, match="'timestep' twice"):
        clashing.to_xarray(position_name="at")


def test_what_is_not_there_is_refused(store):
    for export in (store.to_arrow, store.to_arrow_batches, store.to_xarray):
        with pytest.raises(KeyError, match="no sequence 'nope'"):
            export(["a", "nope"])
        with pytest.raises(KeyError, match="no sequence 'nope'"):
            export("nope")
        with pytest.raises(IndexError, match="from 0 to 4, got 5"):
            export(5)
        with pytest.raises(TypeError, match="by its id or its index"):
            export([None])
        with pytest.raises(ValueError, match="no field 'y'"):
            export(fields=["y"])


def test_a_dataset_of_one_sequence_has_its_attributes(store, same):
    for one in ("d", 4):
        dataset = store.to_xarray(one)
        assert dict(dataset.sizes) == {"timestep": 12, "x_0": 2, "x_1": 3, "half_0": 2}
        assert dataset.attrs == {"number": 4}
        assert dataset["id"].item() == "d"
        assert dataset["position"].values.tolist() == list(range(12))
        assert dataset["x"].dims == ("timestep", "x_0", "x_1")
        same({name: dataset[name].values for name in FIELDS}, store.read("d"))
    assert store.to_xarray("empty")["x"].values.shape == (0, 2, 3)


def test_a_dataset_of_several_sequences_says_whose_each_timestep_is(store, same):
    for ids in (None, ["d", "empty", "a"]):
        dataset = store.to_xarray(ids)
        chosen = store.ids.to_pylist() if ids is None else ids
        assert dataset["id"].values.tolist() == [id for id in chosen for _ in range(LENGTHS[id])]
        assert dataset["position"].values.tolist() == [step for id in chosen for step in range(LENGTHS[id])]
        attrs = [json.loads(text) for text in dataset["sequence_attrs"].values]
        assert attrs == [{"number": list(LENGTHS).index(id)} for id in chosen for _ in range(LENGTHS[id])]
        same({name: dataset[name].values for name in FIELDS}, {name: end_to_end(store, name, ids) for name in FIELDS})
        assert dataset["id"][-1].item() == chosen[-1]
    totals = store.to_xarray(fields=["flag"])["flag"].groupby("id").sum()
    assert totals.sel(id="b").item() == store.read("b")["flag"].sum()


def test_a_dataset_is_read_when_it_is_indexed(store, same, monkeypatch):
    dataset, wanted = store.to_xarray(), end_to_end(store, "x")
    read = []
    spans_read = Rows.read
    monkeypatch.setattr(Rows, "read", lambda *args: (read.append(args[3]), spans_read(*args))[1])
    part = dataset["x"].isel(timestep=slice(3, 50)).isel(timestep=slice(10, 20), x_1=1)
    assert not read
    same({"x": part.values}, {"x": wanted[13:23, :, 1]})
    assert sum(int((stop - start).sum()) for _, start, stop in read) == 10
    picked = dataset.isel(timestep=dataset["position"] == 0)
    same({"x": picked["x"].values}, {"x": wanted[[0, 7, 47, 48]]})
    lazily = pickle.loads(pickle.dumps(dataset)).chunk({"timestep": 17})
    same({"x": lazily["x"].compute().values}, {"x": wanted})


def test_a_dataset_can_be_saved(store, tmp_path):
    import xarray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr's about what xarray has it write
        store.to_xarray(fields=["x", "flag"]).to_zarr(tmp_path / "out.zarr")
        saved = xarray.open_zarr(tmp_path / "out.zarr")
    assert np.array_equal(saved["x"].values, end_to_end(store, "x"))
    assert saved["id"].values.tolist() == store.to_xarray()["id"].values.tolist()


def test_without_xarray_the_error_names_the_extra(store, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "xarray"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "streamseq.storage.export.xarray", raising=False)
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r"^to_xarray needs xarray: pip install streamseq\[xarray\]$"):
        store.to_xarray()


KEYS = st.one_of(
    st.slices(60),
    st.integers(-60, 59),
    st.lists(st.integers(-60, 59), max_size=30).map(lambda rows: np.array(rows, np.int64)),
)


@settings(max_examples=150, deadline=None)
@given(key=KEYS, inner=st.one_of(st.slices(2), st.integers(-2, 1), st.just(np.array([1, 0, 1]))))
def test_columns_are_indexed_as_arrays_axis_by_axis(key, inner):
    values = np.arange(120).reshape(60, 2)
    store = ss.from_arrays({"a": {"x": values[:7]}, "e": {"x": values[:0]}, "b": {"x": values[7:]}})
    rows = Rows(store, None)
    wanted = values[key][..., inner]
    assert np.array_equal(FieldColumn(rows, "x")[key, inner], wanted)
    assert np.array_equal(PositionColumn(rows)[key], np.concatenate([np.arange(7), np.arange(53)])[key])
    assert np.array_equal(IdColumn(rows)[key], np.array(["a"] * 7 + ["b"] * 53, object)[key])


@pytest.mark.parametrize(("block", "dense"), [(1 << 16, 8), (4, 8), (4, 0), (1 << 16, 0)])
def test_scattered_rows_are_read_whether_together_or_one_by_one(store, monkeypatch, block, dense):
    monkeypatch.setattr("streamseq.storage.export.rows._BLOCK", block)
    monkeypatch.setattr("streamseq.storage.export.rows._DENSE", dense)
    column, wanted = FieldColumn(Rows(store, choose(store, ["b", "a"])), "x"), end_to_end(store, "x", ["b", "a"])
    for rows in ([0], [5, 6, 7, 40, 41, 3, 3], [46, 0], np.arange(47)[::-1], []):
        assert np.array_equal(column[np.array(rows, np.int64)], wanted[np.array(rows, np.int64)])
    assert np.array_equal(column[::5], wanted[::5])
    for wrong in ([47], [-48], np.array([0.5])):
        with pytest.raises(IndexError):
            column[np.array(wrong)]


def test_spans_of_rows_are_never_empty_and_rows_are_pickled_small(store):
    rows = Rows(store, choose(store, ["empty", "a", "empty", "d"]))
    assert [column.tolist() for column in rows.spans(0, 19)] == [[1, 3], [0, 0], [7, 12]]
    assert [column.tolist() for column in rows.spans(7, 8)] == [[3], [0], [1]]
    assert [column.tolist() for column in rows.spans(7, 7)] == [[], [], []]
    copy = pickle.loads(pickle.dumps(rows))
    assert copy.sequences.tolist() == [1, 0, 1, 4]
    if store.backend != "memory":
        assert len(pickle.dumps(rows)) < 1000


def test_many_sequences_are_looked_up_as_a_few_are(store, monkeypatch):
    few = store.to_arrow(["d", "a"])
    monkeypatch.setattr("streamseq.storage.export.rows._FEW", 0)
    assert store.to_arrow(["d", "a"]).equals(few)
    assert store.to_xarray(["d", "a"])["id"].values.tolist() == few["id"].to_pylist()


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8), most=st.integers(1, 40), data=st.data())
def test_blocks_are_within_the_limit_and_end_where_sequences_do(lengths, most, data):
    total = sum(lengths)
    store = ss.from_arrays(
        {str(number): {"x": np.arange(length)} for number, length in enumerate(lengths)}, {"x": ss.Field("int64")}
    )
    order = data.draw(st.none() | st.permutations(range(len(lengths))))
    rows = Rows(store, choose(store, order))
    cuts = rows.cuts("x", most)
    assert cuts[0] == 0
    assert cuts[-1] == total
    sizes = np.diff(cuts)
    assert ((sizes > 0) & (sizes <= most)).all()
    ends = set(rows.bounds.tolist())
    for low, high in itertools.pairwise(cuts):
        # Where a block ends within a sequence, the sequence fills the block from its begin on.
        assert high in ends or not any(low < end <= low + most for end in ends)


def test_blocks_of_a_stored_field_end_where_chunks_do(tmp_path):
    address = tmp_path / "s.zarr"
    fields = {"x": ss.Field("int64", codec="zstd"), "raw": ss.Field("int64", codec="none")}
    with ss.create(address, fields, chunk_bytes=80, shard_bytes=16 * 25) as writer:
        for id in "abc":
            writer.write(id, x=np.arange(23), raw=np.arange(23))
    store = ss.open(address)
    assert len(store.snapshot.shards) == 4  # of 20 timesteps, the last one of 9
    rows = Rows(store, None)
    assert rows.cuts("x", 1000) == [0, 69]
    assert rows.cuts("x", 45) == [0, 40, 69]
    assert rows.cuts("x", 29) == [0, 20, 40, 69]
    assert rows.cuts("x", 3) == [0, 10, 20, 30, 40, 50, 60, 69]  # decoded as a whole, not in parts
    assert rows.cuts("raw", 8)[:5] == [0, 8, 10, 18, 20]
    assert Rows(store, choose(store, "c")).cuts("x", 15) == [0, 14, 23]
    assert Rows(store, choose(store, ["c", "a"])).cuts("x", 15) == [0, 14, 23, 33, 46]
