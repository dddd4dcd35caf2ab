"""Dask dataframes and bags as sources: any partitions, with sequences that go on from one to the next."""

import itertools
from functools import reduce

import dask.bag as db
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synchronous_pool import connect
from support.transforms import FIELDS, HALO, IN_ORDER, STEPWISE, TIMED, values

import streamseq as ss
from streamseq.etl import BagCollection, FrameCollection, Piece, SourceError
from streamseq.etl.transforms import Filter, Scan

CUT = {"chunk_bytes": 80, "shard_bytes": 800}
chains = st.lists(st.sampled_from([*STEPWISE, *HALO, *IN_ORDER]), max_size=2) | st.sampled_from(TIMED).map(
    lambda x: [x]
)


@pytest.fixture
def at_once(monkeypatch):
    """Tasks run in this thread."""
    monkeypatch.setattr("streamseq.etl.cluster.connect", connect)


IN_ORDER_OF_X = [Scan(lambda total, arrays: (total, arrays), 0, threads=True)]


def check(store, sequences, chain):
    assert store.ids.to_pylist() == list(sequences)
    for id, whole in sequences.items():
        wanted = reduce(lambda arrays, step: step[1](arrays), chain, whole)
        for name, expected in wanted.items():
            np.testing.assert_allclose(store.read(id)[name], expected, rtol=1e-9, atol=1e-7)


def partitioned(rows, edges):
    """A Dask dataframe whose partitions end anywhere, empty ones too."""
    edges = [0, *sorted(edge % (len(rows) + 1) for edge in edges), len(rows)]
    parts = [rows.iloc[a:b] for a, b in itertools.pairwise(edges)]
    return dd.from_map(lambda part: part, parts, meta=rows.iloc[:0])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=4),
    edges=st.lists(st.integers(0, 60), max_size=6),
    chain=chains,
)
def test_a_sequence_of_rows_goes_on_over_partitions(tmp_path_factory, at_once, lengths, edges, chain):
    sequences = {f"s{number}": values(number, length) for number, length in enumerate(lengths)}
    rows = pd.concat(
        pd.DataFrame({"id": id, "t": x["time"], "a": x["x"][:, 0], "b": x["x"][:, 1], "label": x["label"]})
        for id, x in sequences.items()
    )
    columns = {"time": "t", "x": ["a", "b"], "label": "label"}
    source = FrameCollection(partitioned(rows, edges), sequence_column="id", columns=columns, time_column="t")
    assert source.fields == FIELDS
    address = tmp_path_factory.mktemp("s") / "s.arrow"
    report = ss.ingest(source, address, [transform for transform, _ in chain], **CUT)
    check(ss.open(report.store), sequences, chain)
    assert report.bytes_in == 25 * sum(lengths)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 15), min_size=1, max_size=4),
    borders=st.lists(st.integers(0, 14), max_size=4),
    partitions=st.integers(1, 6),
    chain=chains,
)
def test_items_of_one_id_are_one_sequence(tmp_path_factory, at_once, lengths, borders, partitions, chain):
    sequences = {f"s{number}": values(number, length) for number, length in enumerate(lengths)}
    items = []
    for number, (id, arrays) in enumerate(sequences.items()):
        edges = [0, *sorted(border % len(arrays["x"]) for border in borders), len(arrays["x"])]
        for a, b in itertools.pairwise(edges):
            part = {name: array[a:b] for name, array in arrays.items()}
            items.append((id, part) if number % 2 else Piece(id=id, arrays=part, attrs=None if a else {"n": number}))
    address = tmp_path_factory.mktemp("s") / "s.arrow"
    bag = db.from_sequence(items, npartitions=partitions)
    store = ss.open(ss.ingest(bag, address, [transform for transform, _ in chain], **CUT).store)
    check(store, sequences, chain)
    assert store.attrs("s0") == {"n": 0}


def test_frames_and_bags_run_on_the_users_client_or_on_own_threads(tmp_path):
    rows = pd.DataFrame({"x": np.arange(300), "y": np.arange(300) % 2 == 0}, index=np.arange(300) * 2)
    frame = dd.from_pandas(rows, npartitions=7)
    frame = frame[frame.x != 5]
    bag = db.from_sequence(range(8), npartitions=3).map(lambda n: (f"n{n}", {"x": np.full(n, n)}, {"n": n}))
    bag = bag.filter(lambda item: item[0] != "n0")
    fingerprints = []
    with Client(processes=False, n_workers=2, dashboard_address=None, set_as_default=False) as client:
        for name, how in (("a", {"client": client}), ("b", {"workers": 2})):
            report = ss.ingest(frame, tmp_path / f"frame-{name}.zarr", [Filter("x", [1.0, 0.0, 0.0])], **how, **CUT)
            store = ss.open(report.store)
            assert store.read("0")["y"].tolist() == (rows.y[rows.x != 5]).tolist()
            other = ss.open(ss.ingest(bag, tmp_path / f"bag-{name}.zarr", **how, **CUT).store)
            assert other.ids.to_pylist() == [f"n{n}" for n in range(1, 8)]
            assert other.attrs("n3") == {"n": 3}
            fingerprints.append((store.fingerprint, other.fingerprint))
        persisted = client.persist(frame)
        again = ss.open(ss.ingest(persisted, tmp_path / "p.zarr", client=client, **CUT).store)
        assert again.read("0")["x"].tolist() == rows.x[rows.x != 5].tolist()
    assert fingerprints[0] == fingerprints[1]


def test_a_second_run_skips_what_is_done(tmp_path):
    frame = dd.from_pandas(pd.DataFrame({"x": np.arange(300)}), npartitions=7)
    bag = db.from_sequence(range(1, 5), npartitions=4).map(lambda n: (f"n{n}", {"x": np.full(n, n)}))
    for name, given_ in (("a", frame), ("b", bag)):
        first = ss.ingest(given_, tmp_path / f"{name}.zarr", workers=1, **CUT)
        again = ss.ingest(given_, tmp_path / f"{name}.zarr", workers=1, **CUT)
        assert again.partitions_done_before == first.partitions
        assert again.version == first.version


def test_dates_are_nanoseconds(tmp_path):
    dates = pd.date_range("2026-03-29", periods=4, freq="h")
    rows = pd.DataFrame({"utc": dates, "zone": dates.tz_localize("UTC").tz_convert("Europe/Berlin")})
    for unit in ("s", "ns"):
        there = rows.astype({"utc": f"datetime64[{unit}]"})
        report = ss.ingest(dd.from_pandas(there, npartitions=2), tmp_path / f"{unit}.zarr", workers=1)
        read = ss.open(report.store).read("0")
        expected = dates.to_numpy().astype("datetime64[ns]").astype(np.int64)
        np.testing.assert_array_equal(read["utc"], expected)
        np.testing.assert_array_equal(read["zone"], expected)


def test_times_go_on_from_one_partition_to_the_next(tmp_path):
    rows = pd.DataFrame({"t": [1, 2, 5, 4, 6, 7], "x": range(6)})
    for name, transforms in (("a", []), ("b", [Filter("x", [1.0, 1.0, 1.0])]), ("c", IN_ORDER_OF_X)):
        for edges in ([3], [3, 3, 3]):
            source = FrameCollection(partitioned(rows, edges), time_column="t")
            with pytest.raises(SourceError, match="'0' has 5 at the end of a partition and 4 in the next one"):
                ss.ingest(source, tmp_path / f"{name}.zarr", transforms, workers=1)
            # The receipts of an earlier run say it too.
            with pytest.raises(SourceError, match="'0' has 5 at the end"):
                ss.ingest(source, tmp_path / f"{name}.zarr", transforms, workers=1)
    good = FrameCollection(partitioned(rows.sort_values("t"), [2, 2, 4]), time_column="t")
    assert ss.ingest(good, tmp_path / "good.zarr", workers=1).timesteps == 6


ROWS = pd.DataFrame({"id": list("aabb"), "t": [1.0, 2.0, 1.0, 2.0], "x": [1, 2, 3, 4]})


@pytest.mark.parametrize(
    ("rows", "options", "error", "message"),
    [
        (ROWS, {}, TypeError, "column 'id' holds .*: cast it with astype, or name the columns to take with columns="),
        (ROWS, {"columns": ["x"], "sequence_column": "di"}, ValueError, "no column 'di', it has id, t, x"),
        (ROWS, {"columns": "x"}, TypeError, "put it in a list"),
        (ROWS, {"columns": {"x": []}}, ValueError, "at least one column, 'x' has none"),
        (ROWS, {"columns": ["x"], "time_column": "id"}, TypeError, "times are numbers or dates"),
        (ROWS.astype({"x": "Int64"}), {"columns": ["x"]}, TypeError, "column 'x' holds Int64"),
        (ROWS.assign(id=["a", "b", "b", "a"]), {"sequence_column": "id"}, SourceError, "'a' comes twice"),
        (
            ROWS.assign(id=["a", None, "b", "b"]),
            {"sequence_column": "id"},
            SourceError,
            "every row belongs to a sequence",
        ),
        (
            ROWS.assign(t=[2.0, 1.0, 1, 2]),
            {"sequence_column": "id", "time_column": "t"},
            SourceError,
            "in sequence 'a'",
        ),
        (ROWS.assign(t=[1, np.nan, 1, 2]), {"sequence_column": "id", "time_column": "t"}, SourceError, "row 1 of part"),
        (
            ROWS.assign(t=pd.to_datetime(["2020", None, None, None])),
            {"sequence_column": "id"},
            SourceError,
            "'t' has a date",
        ),
    ],
)
def test_dataframes_that_are_none_of_sequences_are_refused(tmp_path, at_once, rows, options, error, message):
    with pytest.raises(error, match=message):
        ss.ingest(FrameCollection(dd.from_pandas(rows, npartitions=2), **options), tmp_path / "s.zarr")
    with pytest.raises(ss.StoreError):
        ss.open(tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([3], r"an item of a bag is \(id, arrays by field\), .*got 3: map the bag"),
        ([("a", {"x": 3})], "an array .n, .... for each field"),
        ([("a", {"x": np.zeros(2, np.int64)}), ("a", {"y": np.zeros(2, np.int64)})], "'a' does not fit"),
        ([("a", {"x": [1]}), ("b", {"x": [1]}), ("a", {"x": [1]})], "'a' comes twice"),
        ([], "at least one item"),
    ],
)
def test_items_that_are_no_sequences_are_refused(tmp_path, at_once, items, message):
    bag = db.from_sequence(items or [0], npartitions=2)
    with pytest.raises(SourceError, match=message):
        ss.ingest(bag if items else bag.filter(bool), tmp_path / "s.zarr")
    with pytest.raises(ss.StoreError):
        ss.open(tmp_path / "s.zarr")


def test_what_is_no_bag_or_dataframe_is_refused():
    with pytest.raises(TypeError, match="a frame collection is a Dask dataframe, got DataFrame"):
        FrameCollection(ROWS)
    with pytest.raises(TypeError, match="of a series, to_frame"):
        FrameCollection(dd.from_pandas(ROWS, npartitions=1)["x"])
    with pytest.raises(TypeError, match="a bag collection is a Dask bag, got list"):
        BagCollection([1], {"x": ss.Field("int64")})
