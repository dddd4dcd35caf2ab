"""Parquet and Arrow: which column becomes which field, and which rows which sequence."""

import datetime
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss


def write_parquet(path, table, rows=3):
    pa.parquet.write_table(table, path, row_group_size=rows)


def write_arrow(path, table, rows=3):
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def write_stream(path, table, rows=3):
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


KINDS = {
    "parquet": (write_parquet, ss.adopt_parquet, ".parquet"),
    "arrow": (write_arrow, ss.adopt_arrow, ".arrow"),
    "stream": (write_stream, ss.adopt_arrow, ".arrows"),
}


@pytest.fixture(params=KINDS)
def adopt(request, tmp_path):
    """`adopt(*tables, **options)`: files of these tables, adopted."""
    write, function, suffix = KINDS[request.param]

    def adopt(*tables, **options):
        paths = []
        for number, table in enumerate(tables):
            paths.append(tmp_path / f"part-{number:03}{suffix}")
            write(paths[-1], table if isinstance(table, pa.Table) else pa.table(table))
        return function(paths, **options)

    return adopt


def test_rows_of_a_sequence_come_together_from_wherever_they_lie(adopt):
    store = adopt(
        {"id": ["b", "b", "a", "a", "c"], "x": [0, 1, 2, 3, 4]},
        {"id": ["c", "b", "a", "a"], "x": [5, 6, 7, 8]},
        {"id": ["a"], "x": [9]},
        sequence_column="id",
    )
    assert store.ids.to_pylist() == ["b", "a", "c"]
    assert store.lengths.tolist() == [3, 5, 2]
    assert store.read("a")["x"].tolist() == [2, 3, 7, 8, 9]
    assert store.read("b")["x"].tolist() == [0, 1, 6]
    assert store.read("c", 1)["x"].tolist() == [5]
    assert list(store.fields) == ["x"]


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([7, 7, 3], pa.uint16()),
        pa.array(["7", "7", "3"], pa.large_string()),
        pa.array(["7", "7", "3"]).dictionary_encode(),
        pa.array(["7", "7", "3"], pa.string_view()),
    ],
)
def test_ids_are_text_or_integers(adopt, ids):
    if ids.type == pa.string_view():
        # Arrow's file and stream cannot yet be read for one column beside views in every version.
        ids = ids.cast(pa.string())
    store = adopt({"id": ids, "x": [1.0, 2.0, 3.0]}, sequence_column="id")
    assert store.ids.to_pylist() == ["7", "3"]
    assert store.read("7")["x"].tolist() == [1.0, 2.0]


def test_sequences_come_in_the_order_of_their_rows_not_of_a_dictionary(adopt):
    ids = pa.DictionaryArray.from_arrays(pa.array([2, 0, 2], pa.int8()), pa.array(["c", "unused", "a"]))
    store = adopt({"id": ids, "x": [1, 2, 3]}, sequence_column="id")
    assert store.ids.to_pylist() == ["a", "c"]
    assert store.read("a")["x"].tolist() == [1, 3]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.lists(st.sampled_from("abcd"), max_size=20), min_size=1, max_size=4).filter(any),
    rows=st.integers(1, 7),
    kind=st.sampled_from(list(KINDS)),
    data=st.data(),
)
def test_any_rows_in_any_files_are_what_a_dict_of_lists_has(tmp_path, files, rows, kind, data):
    write, function, suffix = KINDS[kind]
    wanted, paths, value = {}, [], 0
    for number, ids in enumerate(files):
        values = list(range(value, value + len(ids)))
        value += len(ids)
        for id, x in zip(ids, values, strict=True):
            wanted.setdefault(id, []).append(x)
        table = pa.table(
            {"id": pa.array(ids, pa.string()), "x": pa.array(values, pa.int64()), "y": np.array(values) % 2 == 0}
        )
        paths.append(tmp_path / f"{number}{suffix}")
        write(paths[-1], table, rows)
    store = function(paths, sequence_column="id")
    assert store.ids.to_pylist() == list(wanted)
    for id, values in wanted.items():
        stop = data.draw(st.integers(0, len(values)))
        start = data.draw(st.integers(0, stop))
        assert store.read(id, start, stop)["x"].tolist() == values[start:stop]
        assert store.read(id)["y"].tolist() == [x % 2 == 0 for x in values]


def test_without_a_sequence_column_a_file_is_a_sequence(adopt):
    store = adopt({"x": [1, 2]}, {"x": [3]})
    assert store.ids.to_pylist() == ["part-000", "part-001"]
    assert store.read("part-001")["x"].tolist() == [3]


def test_files_of_a_dict_follow_each_other(tmp_path):
    for number in range(3):
        write_parquet(tmp_path / f"{number}.parquet", pa.table({"x": [number]}))
    store = ss.adopt_parquet(
        {"long": [tmp_path / "2.parquet", tmp_path / "0.parquet"], "short": tmp_path / "1.parquet"}
    )
    assert store.read("long")["x"].tolist() == [2, 0]
    assert store.read("short")["x"].tolist() == [1]
    with pytest.raises(ValueError, match="got both"):
        ss.adopt_parquet({"a": tmp_path / "1.parquet"}, sequence_column="x")


def test_folders_patterns_and_names(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "1" / "_SUCCESS").touch()
    for folder in "21":
        write_parquet(tmp_path / folder / "x.parquet", pa.table({"x": [int(folder)]}))
    for given_as in (tmp_path, str(tmp_path / "*" / "*.parquet"), f"file://{tmp_path}"):
        store = ss.adopt_parquet(given_as)
        assert store.ids.to_pylist() == ["1/x", "2/x"]
        assert store.uri == str(tmp_path)
    assert ss.adopt_parquet(tmp_path / "1").uri == str(tmp_path / "1" / "x.parquet")
    with pytest.raises(ss.StoreError, match="no file matches it"):
        ss.adopt_parquet(tmp_path / "*.pq")
    with pytest.raises(ss.StoreError, match=r"no file in it ends in \.arrow"):
        ss.adopt_arrow(tmp_path)
    with pytest.raises(ss.StoreError, match="cannot be read, No such file"):
        ss.adopt_parquet(tmp_path / "3.parquet")
    with pytest.raises(ValueError, match="is there twice"):
        ss.adopt_parquet([tmp_path / "1", tmp_path / "1"])
    with pytest.raises(ValueError, match="empty list"):
        ss.adopt_parquet([])
    with pytest.raises(TypeError, match="named by paths, got int"):
        ss.adopt_parquet(3)


def test_times_are_counts_of_their_unit(adopt):
    when = datetime.datetime(2024, 2, 29, 12)
    table = {
        "ms": pa.array([when], pa.timestamp("ms", "UTC")),
        "ns": pa.array([when], pa.timestamp("ns")),
        "day": pa.array([when.date()]),
        "clock": pa.array([datetime.time(0, 0, 1)], pa.time32("ms")),
        "lasts": pa.array([datetime.timedelta(seconds=3)], pa.duration("us")),
    }
    read = adopt(table).read(0)
    assert {name: str(values.dtype) for name, values in read.items()} == {
        "ms": "int64",
        "ns": "int64",
        "day": "int32",
        "clock": "int32",
        "lasts": "int64",
    }
    seconds = int(np.datetime64(when, "s").astype(int))
    assert [int(values[0]) for values in read.values()] == [
        seconds * 1000,
        seconds * 10**9,
        seconds // 86400,
        1000,
        3 * 10**6,
    ]


def test_columns_are_chosen_and_renamed(adopt):
    table = {"id": ["a", "a"], "Wind (m/s)": [1.0, 2.0], "note": ["", ""], "y": [True, False]}
    store = adopt(table, columns={"wind": "Wind (m/s)", "y": "y"}, sequence_column="id")
    assert list(store.fields) == ["wind", "y"]
    assert store.read("a")["wind"].tolist() == [1.0, 2.0]
    assert list(adopt(table, columns=["y"]).fields) == ["y"]


WRONG = {
    "text": (pa.array(["a"]), "part-000.*column 'x' is string: a field holds numbers"),
    "list": (pa.array([[1, 2]]), "column 'x' is list.*different lengths.*fixed size list"),
    "struct": (pa.array([{"a": 1}]), "column 'x' is struct"),
    "decimal": (pa.array([1]).cast(pa.decimal128(30, 2)), "column 'x' is decimal"),
    "list of text": (
        pa.array([["a"]], pa.list_(pa.string(), 1)),
        "column 'x' is fixed_size_list.*a field holds numbers",
    ),
    "nothing": (pa.nulls(1), "column 'x' is null"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_field_is_refused_with_file_and_column(adopt, name):
    values, message = WRONG[name]
    with pytest.raises(ss.StoreError, match=message) as caught:
        adopt({"x": values})
    assert "\n" not in str(caught.value)


def test_wrong_columns_are_refused(adopt):
    with pytest.raises(ss.StoreError, match=r"part-000\S+ has no column 'z', it has id, x"):
        adopt({"id": ["a"], "x": [1]}, columns=["z"])
    with pytest.raises(ss.StoreError, match="has no column 'plant'"):
        adopt({"id": ["a"], "x": [1]}, columns=["x"], sequence_column="plant")
    with pytest.raises(ss.StoreError, match=r"'a b': rename it, with a dict that says \{'x': 'a b'\}"):
        adopt({"a b": [1]})
    with pytest.raises(ss.StoreError, match="at least one field"):
        adopt({"id": ["a"]}, sequence_column="id")
    with pytest.raises(TypeError, match="a list of names"):
        adopt({"x": [1]}, columns="x")
    with pytest.raises(TypeError, match="name of a column"):
        adopt({"x": [1]}, sequence_column=1)
    with pytest.raises(ValueError, match="there is no 'b'"):
        adopt({"id": ["a"], "x": [1]}, sequence_column="id", attrs={"b": {}})


def test_files_that_differ_are_refused(adopt):
    with pytest.raises(ss.StoreError, match=r"'x' is int64\[\] in .*part-000\S* and float64\[\] in .*part-001"):
        adopt({"x": [1]}, {"x": [1.0]})
    with pytest.raises(ss.StoreError, match=r"part-001\S* has no column 'x'"):
        adopt({"x": [1]}, {"y": [1]})


def test_wrong_ids_are_refused(adopt):
    with pytest.raises(ss.StoreError, match=r"part-000.*column 'id' has 1 nulls"):
        adopt({"id": ["a", None], "x": [1, 2]}, sequence_column="id")
    with pytest.raises(ss.StoreError, match="at least one character"):
        adopt({"id": ["a", ""], "x": [1, 2]}, sequence_column="id")
    with pytest.raises(ss.StoreError, match="'id' is double, ids are text or integers"):
        adopt({"id": [1.5], "x": [1]}, sequence_column="id")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, 2, 3, None]),
        pa.array([[1, 2], [3, 4], [5, 6], None], pa.list_(pa.int64(), 2)),
        pa.array([[1, 2], [3, 4], [5, 6], [7, None]], pa.list_(pa.int64(), 2)),
    ],
)
def test_nulls_are_refused_when_a_file_is_adopted(tmp_path, kind, column):
    write, function, suffix = KINDS[kind]
    # Another column before it, that Parquet stores as several.
    table = pa.table({"s": pa.array([{"a": 1, "b": [1, 2]}] * 4), "x": column})
    write(tmp_path / f"a{suffix}", table)
    with pytest.raises(ss.StoreError, match=r"a\.\w+, column 'x', (row group|record batch) 1 has 1 nulls"):
        function(tmp_path / f"a{suffix}", columns=["x"])


def test_nulls_that_a_file_does_not_count_are_refused_when_they_are_read(tmp_path):
    table = pa.table({"x": [1, 2, 3, None]})
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2, write_statistics=False)
    with pa.ipc.new_file(
        tmp_path / "a.arrow", table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")
    ) as writer:
        writer.write_table(table, max_chunksize=2)
    for store in (ss.adopt_parquet(tmp_path / "a.parquet"), ss.adopt_arrow(tmp_path / "a.arrow")):
        assert store.read(0, 0, 2)["x"].tolist() == [1, 2]
        with pytest.raises(ss.StoreError, match=r"a\.\w+, column 'x'.* has 1 nulls"):
            store.read(0)
    with pytest.raises(ss.StoreError, match="has 1 nulls"):
        ss.adopt_parquet(tmp_path / "a.parquet", contents=True)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_such_file_is_refused(tmp_path, kind):
    _, function, suffix = KINDS[kind]
    for content in (b"", b"PAR1", b"ARROW1\0\0", b"FEA1 and more", os.urandom(1000), b"PAR1" + b"\xff" * 100 + b"PAR1"):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(ss.StoreError, match=rf"a\{suffix}") as caught:
            function(tmp_path / f"a{suffix}")
        assert "\n" not in str(caught.value)


def test_a_row_group_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.storage.adopted.source.MAX_CHUNK_BYTES", 100)
    write_parquet(tmp_path / "a.parquet", pa.table({"x": np.arange(40)}), rows=20)
    with pytest.raises(ss.StoreError, match=r"at most 100 bytes, .*a\.parquet, column 'x' has one of 20 timesteps"):
        ss.adopt_parquet(tmp_path / "a.parquet")


@pytest.mark.parametrize("write", [write_arrow, write_stream])
def test_plain_arrow_columns_are_read_from_the_file_and_others_decoded(tmp_path, write):
    table = pa.table({"x": np.arange(1000), "on": np.arange(1000) % 2 == 0})
    write(tmp_path / "a.arrow", table, 400)
    store = ss.adopt_arrow(tmp_path / "a.arrow")
    assert store.decoded_chunk_bytes == {"x": 0, "on": 400}
    assert store.chunk_timesteps["on"] == 400
    with store.reader(["x"], 1) as reader:
        assert np.array_equal(np.concatenate(list(reader.slices("x", 0, 350, 900))), np.arange(350, 900))
        assert reader.counts.decoded == 0


def test_tables_in_memory_are_sequences_by_their_number(make):
    tables = [pa.table({"x": [1, 2]}), pa.record_batch({"x": [3]})]
    store = ss.adopt_arrow(tables)
    assert store.ids.to_pylist() == ["0", "1"]
    assert store.uri == "memory"
    assert store.read("1")["x"].tolist() == [3]
    assert ss.adopt_arrow(tables[0]).fingerprint != ss.adopt_arrow(pa.table({"x": [1, 3]})).fingerprint
    with pytest.raises(TypeError, match="got both"):
        ss.adopt_arrow({"a": tables, "b": __file__})
    with pytest.raises(ss.StoreError, match="memory, column 'x' has 1 nulls"):
        ss.adopt_arrow(pa.table({"x": [1, None]}))
