"""Files of tables: headers, formats, units, kinds of broken files, and the whole way to windows."""

import datetime
import gzip
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from streamseq_pipelines.table import Columns, TableSource, command
from streamseq_pipelines.table_cells import to_numbers

import streamseq as ss
from streamseq.etl import Skipped, SourceError
from streamseq.etl.identity import job_key, partition_keys
from streamseq.storage.layout import plan_layout

PLAIN = "plant,time,a,b\np,1,0.5,1\nq,1,1.5,2\np,2,2.5,3\n"


def put(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read_all(source, target=1 << 20):
    """What the pieces hold together by id and field, as lists, and what was skipped."""
    read, skipped = {}, []
    for partition in source.partitions(target):
        for item in source.read(partition):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            for name, values in item.arrays.items():
                read.setdefault(item.id, {}).setdefault(name, []).extend(values.tolist())
    return read, skipped


def test_all_columns_of_numbers_are_one_field_unless_named(tmp_path):
    path = put(
        tmp_path / "t.csv", "plant,when,note,a,flag,b\np,2024-01-01,hello,0.5,true,1\np,2024-01-02,x,1.5,false,NA\n"
    )
    source = TableSource([path], sequence_column="plant", timestamp_column="when")
    assert source.fields == {"time": ss.Field("int64"), "x": ss.Field("float32", (3,))}
    assert str(read_all(source)[0]["p"]["x"]) == "[[0.5, 1.0, 1.0], [1.5, 0.0, nan]]"
    source = TableSource([path], fields={"a": "a", "one": ["a"], "rest": Columns("*", "float64")})
    assert source.fields == {
        "a": ss.Field("float32"),
        "one": ss.Field("float32", (1,)),
        "rest": ss.Field("float64", (2,)),
    }
    read, _ = read_all(source)
    assert read["t"]["a"] == [0.5, 1.5]
    assert read["t"]["one"] == [[0.5], [1.5]]
    assert TableSource([path], fields={"flag": Columns("flag", "bool")}).fields["flag"].dtype == bool


def test_files_are_sequences_without_a_sequence_column(tmp_path):
    for name in ("north/2024.csv", "south.csv.gz", "west.v1.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        text = b"a\n1\n2\n"
        put(tmp_path / name, gzip.compress(text) if name.endswith("gz") else text)
    put(tmp_path / "README.md", "not a table")
    read, skipped = read_all(TableSource([tmp_path]))
    assert read == {id: {"x": [[1.0], [2.0]]} for id in ("north/2024", "south", "west.v1")}
    assert not skipped
    read, _ = read_all(TableSource([tmp_path], one_sequence=True))
    assert read == {"table": {"x": [[1.0], [2.0]] * 3}}
    put(tmp_path / "south.tsv", "a\n1\n")
    with pytest.raises(SourceError, match=r"south\.csv\.gz' and '.*south\.tsv' are both 'south'"):
        TableSource([tmp_path]).partitions(1 << 20)


def test_other_dialects_of_csv(tmp_path):
    path = put(tmp_path / "t.txt", '\ufeff1;"2,5"\n2;" 3,5"\n')
    source = TableSource([path], format="csv", names=["a", "b"], delimiter=";", decimal=",")
    assert read_all(source)[0] == {"t.txt": {"x": [[1.0, 2.5], [2.0, 3.5]]}}
    path = put(tmp_path / "u.csv", '\ufeff"a, b" , c\r\n1,2\r\n\r\n3,4')
    source = TableSource([path], fields={"x": ["c", "a, b"]})
    assert read_all(source)[0] == {"u": {"x": [[2.0, 1.0], [4.0, 3.0]]}}
    with pytest.raises(SourceError, match=r"format of '.*t\.txt' does not show in its name"):
        TableSource([tmp_path / "t.txt"]).partitions(100)


@pytest.mark.parametrize(
    ("cells", "options", "times"),
    [
        (["2024-01-01 00:00:00", "2024-01-01 01:30:00"], {"unit": "s"}, [1704067200, 1704072600]),
        (["2024-01-01", "2024-01-02"], {}, [1704067200_000000, 1704153600_000000]),
        (["2024-01-01T02:00:00+02:00", "2024-01-01T00:00:01Z"], {"unit": "ms"}, [1704067200_000, 1704067201_000]),
        (
            ["01.02.2024 10:00", "02.02.2024 10:00"],
            {"time_format": "%d.%m.%Y %H:%M", "unit": "s"},
            [1706781600, 1706868000],
        ),
        (["5", "9"], {}, [5, 9]),
        (["5", "9"], {"unit": "s"}, [5, 9]),
    ],
)
def test_times_in_text(tmp_path, cells, options, times):
    path = put(tmp_path / "t.csv", "t,a\n" + "".join(f"{cell},1\n" for cell in cells))
    source = TableSource([path], timestamp_column="t", **options)
    [piece] = source.read(source.partitions(100)[0])
    assert piece.arrays["time"].tolist() == times
    unit = options.get("unit", None if cells[0] == "5" else "us")
    assert piece.attrs == (unit and {"time_unit": unit})


@pytest.mark.parametrize(
    ("type", "unit", "values", "times"),
    [
        (pa.timestamp("ms", "Europe/Berlin"), None, [1, 2], [1, 2]),
        (pa.timestamp("ms"), "ns", [1, 2], [1_000_000, 2_000_000]),
        (pa.timestamp("us"), "ms", [-3000, 2000], [-3, 2]),
        (pa.timestamp("us"), "ms", [3000, 3001], [3]),
        (pa.timestamp("s"), "ns", [1, 1 << 40], [1_000_000_000]),
        (pa.date32(), "s", [1, 2], [86_400, 172_800]),
        (pa.date32(), None, [1, 2], [86_400, 172_800]),
        (pa.int32(), None, [1, 2], [1, 2]),
        (pa.uint64(), None, [1, 1 << 63], [1]),
    ],
)
def test_times_in_parquet(tmp_path, type, unit, values, times):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"t": pa.array(values, type), "a": [1.0, 2.0]}), path)
    read, skipped = read_all(TableSource([path], timestamp_column="t", unit=unit, on_error="quarantine"))
    assert read["t"]["time"] == times
    assert [item.place for item in skipped] == ["row 1"] * (2 - len(times))


@pytest.mark.parametrize(
    ("type", "values", "dtype", "expected"),
    [
        (pa.int64(), [1, 300, -1, None], "uint8", [1, None, None, None]),
        (pa.uint64(), [1, 1 << 63, (1 << 63) - 1], "int64", [1, None, (1 << 63) - 1]),
        (pa.float64(), [1.0, 1.5, 2.0**63, -(2.0**63), float("nan")], "int64", [1, None, None, -(1 << 63), None]),
        (pa.float64(), [0.5, 1e39, float("inf"), None], "float32", [0.5, None, np.inf, np.nan]),
        (pa.int32(), [1, 70_000], "float16", [1.0, None]),
        (pa.int8(), [0, 1, 2], "bool", [False, True, None]),
        (pa.bool_(), [True, None], "float32", [1.0, np.nan]),
        (pa.bool_(), [True, None], "int8", [1, None]),
        (pa.decimal128(5, 2), [1, 2], "float32", [1.0, 2.0]),
        (pa.dictionary(pa.int8(), pa.int64()), [7, 8], "int16", [7, 8]),
    ],
)
def test_a_cell_is_the_number_that_it_says_or_broken(type, values, dtype, expected):
    array = (
        pa.array(values, type.value_type).dictionary_encode()
        if pa.types.is_dictionary(type)
        else pa.array(values, type)
    )
    found = to_numbers(pa.chunked_array([array]), np.dtype(dtype), allow_missing=True)
    assert found.values.dtype == dtype
    assert found.bad.tolist() == [value is None for value in expected]
    good = [value for value in expected if value is not None]
    assert np.array_equal(found.values[~found.bad], np.array(good, dtype), equal_nan=found.values.dtype.kind == "f")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_value_is_nan_or_an_error(tmp_path, kind):
    if kind == "csv":
        path = put(tmp_path / "t.csv", "a,b\n1,2\nNaN,3\n4,\n")
    else:
        path = tmp_path / "t.parquet"
        pq.write_table(pa.table({"a": [1.0, float("nan"), 4.0], "b": [2.0, 3.0, None]}), path)
    read, _ = read_all(TableSource([path]))
    assert str(read["t"]["x"]) == "[[1.0, 2.0], [nan, 3.0], [4.0, nan]]"
    with pytest.raises(SourceError, match=f"{'line 3' if kind == 'csv' else 'row 1'}: column 'a' is (missing|nan)"):
        read_all(TableSource([path], missing="error"))
    read, skipped = read_all(TableSource([path], missing="error", on_error="quarantine"))
    assert read["t"]["x"] == [[1.0, 2.0]]
    assert [item.content for item in skipped] == (
        [b"NaN,3", b"4,"] if kind == "csv" else [b'{"a": NaN, "b": 3.0}', b'{"a": 4.0, "b": null}']
    )


def test_equal_times_may_be_allowed(tmp_path):
    path = put(tmp_path / "t.csv", "t,a\n1,1\n2,2\n2,3\n1,4\n5,5\n")
    read, skipped = read_all(TableSource([path], timestamp_column="t", on_error="skip"))
    assert read["t"]["time"] == [1, 2, 5]
    assert [item.place for item in skipped] == ["line 4", "line 5"]
    assert skipped[0].reason == "sequence 't', time 2 comes after 2: times increase"
    read, skipped = read_all(TableSource([path], timestamp_column="t", order="nondecreasing", on_error="skip"))
    assert read["t"]["time"] == [1, 2, 2, 5]
    assert [item.place for item in skipped] == ["line 5"]


def test_files_whose_times_overlap_are_not_in_order(tmp_path):
    put(tmp_path / "1.csv", "t,a\n5,1\n9,2\n")
    put(tmp_path / "2.csv", "t,a\n1,3\n6,4\n")
    with pytest.raises(SourceError, match=r"1\.csv, line 2: sequence 'table', time 5 comes after 6"):
        read_all(TableSource([tmp_path], timestamp_column="t", one_sequence=True))
    read, _ = read_all(TableSource([tmp_path], timestamp_column="t", one_sequence=True, on_error="skip"))
    assert read["table"]["time"] == [1, 6, 9]


def cut_off(data):
    return data[: len(data) // 2]


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def random_table(num_rows):
    values = np.random.default_rng(1).random(num_rows)
    return pa.table({"plant": ["bad"] * num_rows, "time": np.arange(num_rows), "a": values, "b": np.arange(num_rows)})


def harmed(tmp_path, kind):
    """A file that is broken; where, why, and how many of its rows can be read."""
    table = random_table(100_000)
    if kind == "csv.gz cut off":
        lines = "".join(f"bad,{time},{a!r},{time}\n" for time, a in enumerate(table["a"].to_pylist()))
        return put(tmp_path / "bad.csv.gz", cut_off(gzip.compress(f"plant,time,a,b\n{lines}".encode()))), "runcated"
    if kind == "parquet cut off":
        pq.write_table(table, tmp_path / "bad.parquet")
        return put(tmp_path / "bad.parquet", cut_off((tmp_path / "bad.parquet").read_bytes())), "footer|magic"
    if kind == "parquet flipped":
        pq.write_table(
            table, tmp_path / "bad.parquet", write_page_checksum=True, row_group_size=30_000, use_dictionary=False
        )
        place = pq.ParquetFile(tmp_path / "bad.parquet").metadata.row_group(1).column(2).data_page_offset + 1000
        return put(tmp_path / "bad.parquet", flip((tmp_path / "bad.parquet").read_bytes(), place)), "CRC"
    if kind == "arrow cut off":
        with pa.ipc.new_stream(tmp_path / "bad.arrows", table.schema) as writer:
            writer.write_table(table, 10_000)
        return put(tmp_path / "bad.arrows", cut_off((tmp_path / "bad.arrows").read_bytes())), "Expected"
    contents = {
        "no gzip": ("bad.csv.gz", b"plant,time,a,b\n", "zlib"),
        "empty": ("bad.csv", b"", "it is empty"),
        "header in latin-1": ("bad.csv", "plänt,time,a,b\n".encode("latin-1"), "not UTF-8"),
        "other columns": ("bad.csv", b"plant,time,a,c\np,1,2,3\n", "no column 'b', it has plant, time, a, c"),
        "twice": ("bad.csv", b"plant,time,a,b,b\np,1,2,3\n", "two columns 'b'"),
        "no parquet": ("bad.parquet", b"plant,time,a,b\n", "magic"),
        "no arrow": ("bad.arrow", b"plant,time,a,b\n" * 100, "."),
        "other types": ("bad.parquet", None, "'a' is string"),
    }
    name, data, reason = contents[kind]
    if data is None:
        pq.write_table(pa.table({"plant": ["p"], "time": [1], "a": ["x"], "b": [1]}), tmp_path / name)
        return tmp_path / name, reason
    return put(tmp_path / name, data), reason


@pytest.mark.parametrize(
    "kind",
    [
        "csv.gz cut off",
        "parquet cut off",
        "parquet flipped",
        "arrow cut off",
        "no gzip",
        "empty",
        "header in latin-1",
        "other columns",
        "twice",
        "no parquet",
        "no arrow",
        "other types",
    ],
)
@pytest.mark.parametrize("keyed", [True, False])
def test_a_broken_file_among_good_ones(tmp_path, kind, keyed):
    put(tmp_path / "a.csv", PLAIN)
    put(tmp_path / "z.csv", PLAIN.replace("p,", "r,").replace("q,", "s,"))
    path, reason = harmed(tmp_path, kind)
    keys = {"sequence_column": "plant", "timestamp_column": "time"} if keyed else {}
    options = {**keys, "fields": {"a": Columns("a", "float64"), "b": Columns("b", "int64")}}
    with pytest.raises(SourceError, match=rf"{path.name}.*({reason})"):
        read_all(TableSource([tmp_path], **options))
    read, skipped = read_all(TableSource([tmp_path], on_error="quarantine", **options), 100_000)
    assert {item.what for item in skipped} == {str(path)}
    assert len(skipped) == 1
    assert skipped[0].content is None
    assert set(read) - {"bad"} == ({"p", "q", "r", "s"} if keyed else {"a", "z"})
    assert read["s" if keyed else "z"]["b"] == ([2] if keyed else [1, 2, 3])
    found = read.get("bad", {"b": []})["b"]
    if kind in ("csv.gz cut off", "arrow cut off"):
        # What lies before the break is there.
        assert 10_000 < len(found) < 90_000
        assert found == list(range(len(found)))
    elif kind == "parquet flipped":
        # And what lies in other row groups.
        assert found == [*range(30_000), *range(60_000, 100_000)]
    else:
        assert not found


def test_a_file_that_changes_is_an_error_or_reported(tmp_path):
    put(tmp_path / "a.csv", PLAIN)
    path = put(tmp_path / "b.csv", PLAIN)
    for on_error in ("fail", "skip"):
        source = TableSource([tmp_path], on_error=on_error)
        partitions = source.partitions(100)
        path.write_text(PLAIN + "q,9,9,9\n")
        if on_error == "fail":
            with pytest.raises(SourceError, match=r"b\.csv: changed while it was ingested"):
                [list(source.read(partition)) for partition in partitions]
        else:
            items = [item for partition in partitions for item in source.read(partition)]
            assert [item.what for item in items if isinstance(item, Skipped)] == [str(path)]
        path.write_text(PLAIN)


def test_files_without_rows_are_reported_and_no_error(tmp_path):
    put(tmp_path / "a.csv", "s,a\n7,1\n")
    put(tmp_path / "b.csv", "s,a\n")
    put(tmp_path / "c.csv.gz", gzip.compress(b"s,a\n\n"))
    put(tmp_path / "d.csv", "s,a\n\n\n")
    empty = pa.record_batch([pa.array([], pa.int64()), pa.array([], pa.float64())], ["s", "a"])
    pq.write_table(pa.table(empty), tmp_path / "e.parquet")
    for name, new in (("f.arrows", pa.ipc.new_stream), ("g.arrow", pa.ipc.new_file)):
        with new(tmp_path / name, empty.schema) as writer:
            writer.write_batch(empty)
    for keys in ({}, {"sequence_column": "s"}):
        read, skipped = read_all(TableSource([tmp_path], fields={"x": "a"}, **keys))
        assert read == {"7" if keys else "a": {"x": [1.0]}}
        names = ("b.csv", "c.csv.gz", "d.csv", "e.parquet", "f.arrows", "g.arrow")
        assert sorted(item.what for item in skipped) == [str(tmp_path / name) for name in names]
        assert {item.reason for item in skipped} == {"it has no rows"}


def test_ids_are_text_or_integers(tmp_path):
    for type, ids in ((pa.int16(), ["3"]), (pa.dictionary(pa.int8(), pa.string()), ["3"]), (pa.float64(), None)):
        values = ["3"] if pa.types.is_dictionary(type) else [3]
        pq.write_table(pa.table({"s": pa.array(values, type), "a": [1.0]}), tmp_path / "t.parquet")
        source = TableSource([tmp_path], sequence_column="s", fields={"x": "a"})
        if ids is not None:
            assert list(read_all(source)[0]) == ids
        else:
            with pytest.raises(SourceError, match="'s' is double, and ids are text or integers"):
                read_all(source)


def test_rows_without_a_sequence_are_broken_in_parquet_too(tmp_path):
    pq.write_table(pa.table({"s": ["p", None, "q", ""], "a": [1.0, 2.0, 3.0, 4.0]}), tmp_path / "t.parquet")
    read, skipped = read_all(TableSource([tmp_path], sequence_column="s", on_error="quarantine"))
    assert read == {"p": {"x": [[1.0]]}, "q": {"x": [[3.0]]}}
    assert [(item.place, item.reason, item.content) for item in skipped] == [
        ("row 1", "its sequence, column 's', is missing", b'{"s": null, "a": 2.0}'),
        ("row 3", "its sequence, column 's', is ''", b'{"s": "", "a": 4.0}'),
    ]


def test_rows_that_wait_for_their_turn_go_to_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq_pipelines.table_read._HELD_BYTES", 5000)
    rows = [f"s{number % 7},{number},{number / 2},{number}" for number in range(3000)]
    path = put(tmp_path / "t.csv", "\n".join(["s,t,a,b", *rows]))
    source = TableSource(
        [path], sequence_column="s", timestamp_column="t", fields={"x": ["a", "b"], "b": "b"}, block_bytes=9000
    )
    [partition] = source.partitions(1 << 20)
    assert len(partition.content.blocks) > 5
    read, _ = read_all(source)
    for number in range(7):
        values = list(range(number, 3000, 7))
        assert read[f"s{number}"] == {
            "time": values,
            "x": [[value / 2, value] for value in values],
            "b": values,
        }


@pytest.fixture
def fine(monkeypatch):
    """Small data is cut finely."""
    monkeypatch.setattr("streamseq.etl.source._SMALLEST_PARTITION", 1)
    monkeypatch.setattr("streamseq.etl.source._MIB", 1)


def test_one_huge_file_is_cut_at_line_borders(tmp_path, fine):
    lines = [f"{number},{number * number}" for number in range(5000)]
    path = put(tmp_path / "t.csv", "a,b\n" + "\n".join(lines))
    source = TableSource([path], fields={"a": Columns("a", "int64"), "b": Columns("b", "int64")}, block_bytes=500)
    partitions = source.partitions(4000)
    assert len(partitions) > 15
    assert sum(partition.num_bytes for partition in partitions) == path.stat().st_size
    assert max(partition.num_bytes for partition in partitions) < 4000
    read, _ = read_all(source, 4000)
    assert read["t"]["a"] == list(range(5000))
    assert read["t"]["b"] == [number * number for number in range(5000)]


def test_a_table_whose_sequences_are_mixed_is_read_a_bounded_number_of_times(tmp_path, fine):
    rows = [f"s{number % 100:02},{number},{number}" for number in range(20_000)]
    path = put(tmp_path / "t.csv", "\n".join(["s,t,a", *rows]))
    source = TableSource([path], sequence_column="s", timestamp_column="t", block_bytes=10_000)
    partitions = source.partitions(100)
    read = sum(block.num_bytes for partition in partitions for block in partition.content.blocks)
    assert len(partitions) >= 2
    assert read <= 4 * path.stat().st_size
    assert sum(partition.num_bytes for partition in partitions) == path.stat().st_size


def test_a_file_that_grows_changes_few_partitions(tmp_path, fine):
    for number in range(200):
        put(tmp_path / f"{number:03}.csv", "a\n" + "".join(f"{row}\n" for row in range(100 + number % 7)))
    before = {repr(partition.content) for partition in TableSource([tmp_path]).partitions(4000)}
    path = put(tmp_path / "050.csv", (tmp_path / "050.csv").read_text() + "1\n" * 60)
    after = {repr(partition.content) for partition in TableSource([tmp_path]).partitions(4000)}
    assert len(before) > 15
    assert 1 <= len(after - before) <= 5
    assert any(str(path) in content for content in after - before)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b\nx,y\n", {}, "no column of numbers"),
        ("a,b\n1,\n2,\n", {}, "'b' is empty in the first rows"),
        ("a,b\n1,2\n", {"fields": {"x": ["a", "z"]}}, "no column 'z', it has a, b"),
        ("a,b\n1,2\n", {"sequence_column": "plant"}, "no column 'plant'"),
    ],
)
def test_a_table_without_what_is_asked_for_is_an_error(tmp_path, content, options, message):
    with pytest.raises(SourceError, match=message):
        TableSource([put(tmp_path / "t.csv", content)], **options).partitions(100)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"paths": []}, ValueError),
        ({"paths": "abc"}, TypeError),
        ({"on_error": "stop"}, ValueError),
        ({"order": "any"}, ValueError),
        ({"missing": "zero"}, ValueError),
        ({"timestamp_column": "t", "unit": "h"}, ValueError),
        ({"unit": "s"}, ValueError),
        ({"format": "xls"}, ValueError),
        ({"delimiter": ", "}, ValueError),
        ({"one_sequence": True, "sequence_column": "s"}, ValueError),
        ({"id": "x"}, ValueError),
        ({"id": "", "one_sequence": True}, ValueError),
        ({"block_bytes": 0}, ValueError),
        ({"fields": {"time": "a"}, "timestamp_column": "t"}, ValueError),
        ({"fields": {"a b": "a"}}, ValueError),
        ({"fields": {"x": []}}, ValueError),
        ({"fields": {"x": ["a", "a"]}}, ValueError),
        ({"fields": {}}, ValueError),
    ],
)
def test_wrong_arguments_are_refused(options, error):
    with pytest.raises(error):
        TableSource(**({"paths": ["t.csv"]} | options))


def ett(path, stations, hours):
    """Hourly readings of seven channels at several stations, as in the public ETT sets."""
    begin = datetime.datetime(2016, 7, 1)
    channels = ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    lines = [",".join(["date", "station", *channels])]
    for hour in range(hours):
        for station in range(stations):
            values = [f"{np.sin(hour / 24 + channel) + station:.3f}" for channel in range(7)]
            lines.append(",".join([str(begin + datetime.timedelta(hours=hour)), f"ETTh{station + 1}", *values]))
    return put(path, "\n".join(lines) + "\n")


def test_sensor_readings_go_from_csv_to_windows_in_one_command_and_a_few_lines(tmp_path):
    path = ett(tmp_path / "ett.csv", stations=3, hours=24 * 20)
    fingerprints = set()
    for workers in (1, 3):
        arguments = [path, "--to", tmp_path / f"ett-{workers}.zarr", "--sequence", "station", "--timestamp", "date"]
        arguments += ["--unit", "s", "--workers", workers, "--json", "--quiet"]
        result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["timesteps"] == 3 * 24 * 20
        store = ss.open(tmp_path / f"ett-{workers}.zarr")
        fingerprints.add(store.fingerprint)
    assert len(fingerprints) == 1
    assert store.fields == {"time": ss.Field("int64"), "x": ss.Field("float32", (7,))}
    assert store.ids.to_pylist() == ["ETTh1", "ETTh2", "ETTh3"]
    assert store.attrs("ETTh2") == {"time_unit": "s"}
    found = store.read("ETTh2")
    assert np.diff(found["time"]).tolist() == [3600] * (24 * 20 - 1)
    assert found["x"][100].tolist() == pytest.approx([np.sin(100 / 24 + channel) + 1 for channel in range(7)], abs=1e-3)
    stream = ss.StreamDataset(store, lanes=3, window=24)
    assert len(stream) == 20
    assert tuple(stream[0]["x"].shape) == (3, 24, 7)


def test_the_command_reads_fields_and_columns(tmp_path):
    path = put(tmp_path / "t.csv", "1;0,5;7\n2;1,5;8\n")
    arguments = ["--names", "t,a,b", "--delimiter", ";", "--decimal", ",", "--timestamp", "t", "--time-field", "when"]
    arguments += [
        "--field",
        "a:float64",
        "--field",
        "y=a,b",
        "--field",
        "one=b,:int16",
        "--one-sequence",
        "--id",
        "all",
    ]
    result = CliRunner().invoke(command, [str(path), "--to", str(tmp_path / "t.arrow"), "--quiet", *arguments])
    assert result.exit_code == 0, result.output
    found = ss.open(tmp_path / "t.arrow").read("all")
    assert {name: (values.dtype.name, values.tolist()) for name, values in found.items()} == {
        "when": ("int64", [1, 2]),
        "a": ("float64", [0.5, 1.5]),
        "y": ("float32", [[0.5, 7.0], [1.5, 8.0]]),
        "one": ("int16", [[7], [8]]),
    }
    for wrong in (["--field", "x="], ["--field", "x=a:text"], ["--field", "a", "--field", "a"]):
        result = CliRunner().invoke(command, [str(path), "--to", str(tmp_path / "u.arrow"), *wrong])
        assert result.exit_code == 2
        assert "--field" in result.output


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_an_unreadable_file_is_reported(tmp_path):
    put(tmp_path / "a.csv", PLAIN)
    put(tmp_path / "b.csv", PLAIN).chmod(0)
    _, skipped = read_all(TableSource([tmp_path], on_error="skip"))
    assert [item.what for item in skipped] == [str(tmp_path / "b.csv")]


def test_a_table_behind_a_url_is_read():
    import fsspec

    system = fsspec.filesystem("memory")
    system.pipe("/tables/a.csv", PLAIN.encode())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"plant": ["p"], "time": [3], "a": [3.5], "b": [4]}), sink)
    system.pipe("/tables/b.parquet", sink.getvalue().to_pybytes())
    try:
        read, _ = read_all(TableSource(["memory://tables"], sequence_column="plant", timestamp_column="time"))
        assert read["p"] == {"time": [1, 2, 3], "x": [[0.5, 1.0], [2.5, 3.0], [3.5, 4.0]]}
    finally:
        system.rm("/tables", recursive=True)


def test_a_job_knows_what_was_done_already(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.etl.source._SMALLEST_PARTITION", 1)
    monkeypatch.setattr("streamseq.etl.source._MIB", 1)
    put(tmp_path / "a.csv", PLAIN)
    put(tmp_path / "b.csv", PLAIN)
    layout = plan_layout(TableSource([tmp_path]).fields, "zarr")

    def keys(**options):
        source = TableSource([tmp_path], **options)
        key = job_key(source, layout)
        assert key is not None
        return key, partition_keys(key, source.partitions(1))

    before = keys()
    assert keys() == before
    assert keys(on_error="skip")[0] != before[0]
    put(tmp_path / "b.csv", PLAIN + "r,9,9,9\n")
    after = keys()
    assert after[0] == before[0]
    assert len(before[1]) == len(after[1]) == 2
    assert after[1][0] == before[1][0]
    assert after[1][1] != before[1][1]
