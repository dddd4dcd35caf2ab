"""Tables as sequences: every good row once, in order, in its sequence, however the table is stored and cut."""

import doctest
import gzip
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from streamseq_pipelines import table, table_columns, table_files
from streamseq_pipelines.table import Columns, TableSource

from streamseq.etl import Piece, Skipped, SourceError


@pytest.mark.parametrize("module", [table, table_columns, table_files])
def test_examples_do_what_they_show(module):
    assert doctest.testmod(module).failed == 0


def read_all(source, target=10_000):
    """The arrays of every id, and what was skipped, as a job would see them."""
    read, skipped, last = {}, [], None
    fields = source.fields
    partitions = source.partitions(target)
    for partition in pickle.loads(pickle.dumps(partitions)):
        for item in source.read(partition):
            if isinstance(item, Skipped):
                skipped.append(item)
                continue
            assert isinstance(item, Piece)
            assert item.id == last or item.id not in read, "pieces of one id follow each other"
            assert set(item.arrays) == set(fields)
            lengths = set()
            for name, values in item.arrays.items():
                assert values.dtype == fields[name].dtype
                assert values.shape[1:] == fields[name].shape
                lengths.add(len(values))
            assert len(lengths) == 1
            last = item.id
            read.setdefault(last, []).append(item.arrays)
    joined = {
        id: {name: np.concatenate([piece[name] for piece in pieces]) for name in fields} for id, pieces in read.items()
    }
    return joined, skipped


def write_rows(path, rows, kind, rows_a_group=7):
    """Rows of (plant, time, a, b) in one of the formats."""
    if kind in ("csv", "csv.gz", "csv.zst", "tsv"):
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(["plant", "time", "a", "b"]), *(mark.join(map(str, row)) for row in rows)]
        data = ("\n".join(lines) + "\n").encode()
        if kind == "csv.gz":
            data = gzip.compress(data)
        elif kind == "csv.zst":
            data = pa.Codec("zstd").compress(data, asbytes=True)
        path.write_bytes(data)
        return
    columns = list(zip(*rows, strict=True)) if rows else [[], [], [], []]
    types = [pa.string(), pa.int64(), pa.float64(), pa.int32()]
    content = pa.table(
        {
            name: pa.array(values, type)
            for name, values, type in zip(["plant", "time", "a", "b"], columns, types, strict=True)
        }
    )
    if kind == "parquet":
        pq.write_table(content, path, row_group_size=rows_a_group)
    elif kind == "arrows":
        with pa.ipc.new_stream(path, content.schema) as writer:
            writer.write_table(content, rows_a_group)
    else:
        with pa.ipc.new_file(path, content.schema) as writer:
            writer.write_table(content, rows_a_group)


KINDS = ["csv", "csv.gz", "csv.zst", "tsv", "parquet", "arrow", "arrows"]


@st.composite
def tables(draw):
    """Files of rows, and of each plant its rows in order; a plant's times in one file lie before those in another."""
    num_files = draw(st.integers(1, 4))
    plants = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    order = draw(st.permutations(range(num_files)))
    files, value = [[] for _ in range(num_files)], 0
    clock = dict.fromkeys(plants, 0)
    for number in order:
        for plant in draw(st.lists(st.sampled_from(plants), max_size=60)):
            clock[plant] += draw(st.integers(1, 3))
            value += 1
            files[number].append((plant, clock[plant], value / 2, value))
    if not any(files):
        files[0].append((plants[0], 1, 0.5, 1))
    expected = {}
    for number in order:
        for plant, *rest in files[number]:
            expected.setdefault(plant, []).append(tuple(rest))
    kinds = draw(st.lists(st.sampled_from(KINDS), min_size=num_files, max_size=num_files))
    return files, kinds, expected


@settings(max_examples=80, deadline=None)
@given(content=tables(), target=st.integers(1, 5000), block_bytes=st.integers(1, 3000))
def test_sequences_come_out_whole_and_in_order_wherever_their_rows_lie(
    tmp_path_factory, monkeypatch_session, content, target, block_bytes
):
    files, kinds, expected = content
    folder = tmp_path_factory.mktemp("tables")
    for number, (rows, kind) in enumerate(zip(files, kinds, strict=True)):
        write_rows(folder / f"{number}.{kind}", rows, kind)
    source = TableSource(
        [folder],
        sequence_column="plant",
        timestamp_column="time",
        fields={"x": ["a", "b"], "b": Columns("b", "int64")},
        block_bytes=block_bytes,
    )
    read, skipped = read_all(source, target)
    assert {item.reason for item in skipped} <= {"it has no rows"}
    assert len(skipped) == sum(not rows for rows in files)
    assert {
        id: [(time, a, b) for time, a, b in zip(arrays["time"], arrays["x"][:, 0], arrays["b"], strict=True)]
        for id, arrays in read.items()
    } == expected
    for arrays in read.values():
        assert arrays["x"][:, 1].tolist() == arrays["b"].tolist()
    partitions = source.partitions(target)
    assert sum(part.num_bytes for part in partitions) <= sum(path.stat().st_size for path in folder.iterdir())
    assert partitions == source.partitions(target)


@pytest.fixture(scope="module")
def monkeypatch_session():
    """Small data is cut finely, and held rows go to the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamseq.etl.source._SMALLEST_PARTITION", 1)
        patch.setattr("streamseq.etl.source._MIB", 1)
        patch.setattr("streamseq_pipelines.table_read._HELD_BYTES", 200)
        patch.setattr("streamseq_pipelines.table_csv._CHUNK_BYTES", 150)
        patch.setattr("streamseq_pipelines.table_arrow._BATCH_BYTES", 100)
        yield patch


LATE = "{plant},0,1,1"
BAD = {
    "{plant},{time},x,1": "column 'a' is double: invalid value 'x'",
    "{plant},{time},1,1.5": "column 'b' is int64: invalid value '1.5'",
    "{plant},{time},1": "3 cells, the header has 4",
    "{plant},{time},1,1,1": "5 cells, the header has 4",
    "{plant},{time},1,": "column 'b' is missing, which is no int32",
    "{plant},{time},1e300,3": "column 'a' is 1e+300, which is no float32",
    '{plant},{time},"1,3': "a quote is not closed",
    '{plant},{time},1,"3': "a quote is not closed",
    "{plant},{time},1,99999999999": "column 'b' is 99999999999, which is no int32",
    LATE: "comes after",
    "{plant},,1,1": "its time, column 'time', is missing",
    "{plant},soon,1,1": "column 'time' is int64: invalid value 'soon'",
    ",{time},1,1": "its sequence, column 'plant', is ''",
    "\udcff\udcfe,{time},1,1": "column 'plant' is string: invalid UTF8 data",
}


@st.composite
def broken_tables(draw):
    """Lines of a file with good and bad rows and empty lines; the good rows by plant; and the bad lines."""
    clock = dict.fromkeys("abc", 0)
    lines, good, bad, timed = ["plant,time,a,b"], {}, {}, set()
    for value in range(draw(st.integers(1, 60))):
        plant = draw(st.sampled_from("abc"))
        clock[plant] += 1
        kind = draw(st.sampled_from(["good"] * 20 + [""] + list(BAD)))
        if kind == "good":
            lines.append(f"{plant},{clock[plant]},{value / 2},{value}")
            good.setdefault(plant, []).append((clock[plant], value / 2, value))
        elif kind == LATE and plant not in timed:
            lines.append(kind.format(plant=plant))
            good[plant] = [(0, 1, 1)]
        else:
            lines.append(kind.format(plant=plant, time=clock[plant]))
            if kind:
                bad[len(lines)] = (lines[-1], BAD[kind])
        if kind in ("good", LATE) or BAD.get(kind, "").startswith(("column 'a'", "column 'b'")):
            timed.add(plant)
    # Most rows are good: what a column holds is told by most of its first cells.
    good["z"] = [(time, 0.5, 1) for time in range(len(lines) + 2)]
    lines += [f"z,{time},0.5,1" for time, _, _ in good["z"]]
    return lines, good, bad, draw(st.sampled_from(["\n", "\r\n"])), draw(st.booleans())


@settings(max_examples=120, deadline=None)
@given(content=broken_tables(), target=st.integers(1, 400), block_bytes=st.integers(1, 300), packed=st.booleans())
def test_each_broken_row_is_reported_once_with_its_line_and_no_other_is_lost(
    tmp_path_factory, monkeypatch_session, content, target, block_bytes, packed
):
    lines, good, bad, newline, ends = content
    data = (newline.join(lines) + (newline if ends else "")).encode(errors="surrogateescape")
    path = tmp_path_factory.mktemp("broken") / ("t.csv.gz" if packed else "t.csv")
    path.write_bytes(gzip.compress(data) if packed else data)
    options = {
        "sequence_column": "plant",
        "timestamp_column": "time",
        "fields": {"x": "a", "b": Columns("b", "int32")},
        "block_bytes": block_bytes,
    }
    read, skipped = read_all(TableSource([path], on_error="quarantine", **options), target)
    assert {
        id: list(zip(arrays["time"].tolist(), arrays["x"].tolist(), arrays["b"].tolist(), strict=True))
        for id, arrays in read.items()
    } == good
    assert sorted(item.place for item in skipped) == sorted(f"line {number}" for number in bad)
    for item in skipped:
        line, reason = bad[int(item.place.removeprefix("line "))]
        assert item.what == str(path)
        assert reason in item.reason
        assert item.content == line.encode(errors="surrogateescape")
        assert item.num_bytes == (0 if packed else len(item.content))
    again, without = read_all(TableSource([path], on_error="skip", **options), target + 1)
    assert again.keys() == read.keys()
    assert all(item.content is None for item in without)
    if bad:
        with pytest.raises(SourceError, match=r"t\.csv.*, line \d+: .*on_error 'skip'"):
            read_all(TableSource([path], **options), target)
