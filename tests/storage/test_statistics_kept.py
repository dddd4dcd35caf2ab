"""Statistics go with a store: gathered on the way, merged by appends, kept or dropped by what changes it."""

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.cli import main
from streamseq.storage.layout import plan_layout
from streamseq.storage.places.place import place_of
from streamseq.storage.shards.shard_writer import ShardWriter
from streamseq.storage.statistics.kept import NAME, format_statistics, gatherers, merge_statistics, parse_statistics
from streamseq.storage.versions.attach import attach
from streamseq.storage.versions.receipts import commit_receipts

FIELDS = {"x": ss.Field("float32", (2,)), "label": ss.Field("uint8"), "wide": ss.Field("int64")}
CUT = {"chunk_bytes": 80, "shard_bytes": 800}


def values(seed, n):
    random = np.random.default_rng(seed)
    x = random.normal(3, 2, (n, 2)).astype(np.float32)
    x[::7, 1] = np.nan
    return {"x": x, "label": random.integers(0, 9, n).astype(np.uint8), "wide": random.integers(-(2**62), 2**62, n)}


@pytest.fixture(params=["zarr", "arrow"])
def uri(request, tmp_path):
    uri = tmp_path / f"store.{request.param}"
    with ss.create(uri, FIELDS, **CUT) as writer:
        writer.write("a", **values(0, 90))
        writer.write("empty", **values(1, 0))
        writer.write("b", **values(2, 41))
    return uri


def check(store):
    """What the store says of its values is what numpy says of them."""
    every = {name: np.concatenate([store.read(id)[name] for id in store.ids.to_pylist()]) for name in store.fields}
    assert sorted(store.statistics) == sorted(store.fields)
    for name, said in store.statistics.items():
        flat = every[name].reshape(store.num_timesteps, -1)
        for channel in range(flat.shape[1]):
            there = flat[np.isfinite(flat[:, channel]), channel]
            assert said.count.flat[channel] == len(there)
            assert said.missing.flat[channel] == store.num_timesteps - len(there)
            assert said.min.flat[channel] == there.min()
            assert said.max.flat[channel] == there.max()
            exact = [int(value) if there.dtype.kind in "iu" else float(value) for value in there]
            assert said.mean.flat[channel] == pytest.approx(sum(exact) / len(exact), rel=1e-9, abs=1e-6)
            assert said.std.flat[channel] == pytest.approx(there.astype(np.float64).std(), rel=1e-9)
            assert said.histogram(channel).count.sum() == len(there)


def test_a_store_knows_what_was_written(uri):
    check(ss.open(uri))
    assert (
        ss.open(uri).statistics["label"].quantile(0.5)
        == np.sort(np.concatenate([ss.open(uri).read(id)["label"] for id in "ab"]))[(131 + 1) // 2 - 1]
    )


def test_appends_add_to_it_and_older_versions_stay(uri):
    before = ss.open(uri).attachment(NAME)
    with ss.append(uri) as writer:
        writer.append("a", **values(3, 55))
        writer.write("c", **values(4, 3))
    check(ss.open(uri))
    assert ss.open(uri, version=1).attachment(NAME) == before
    check(ss.open(uri, version=1))


@pytest.mark.parametrize("cut", [1, 7, 90])
def test_how_the_writing_was_cut_into_calls_does_not_show(uri, tmp_path, cut):
    other = tmp_path / f"other{uri.suffix}"
    with ss.create(other, FIELDS, **CUT) as writer:
        for name, seed, n in (("a", 0, 90), ("empty", 1, 0), ("b", 2, 41)):
            arrays = values(seed, n)
            for start in range(0, max(n, 1), cut):
                writer.append(name, **{field: each[start : start + cut] for field, each in arrays.items()})
    assert ss.open(other).attachment(NAME) == ss.open(uri).attachment(NAME)


def test_writers_that_both_win_are_merged(uri):
    with ss.append(uri) as one:
        one.write("one", **values(5, 20))
        with ss.append(uri) as other:
            other.write("other", **values(6, 30))
    assert ss.open(uri).version == 3
    check(ss.open(uri))


def test_compaction_and_what_is_attached_keep_them(uri):
    with ss.append(uri) as writer:
        writer.write("c", **values(7, 10))
    said = ss.open(uri).attachment(NAME)
    assert attach(place_of(uri), 2, {"other": b"1"}) == 3
    assert ss.compact(uri).version == 4
    assert ss.open(uri).attachment(NAME) == said
    check(ss.open(uri))


def test_repair_that_leaves_out_sequences_drops_them(uri):
    shard = sorted(path for path in (uri / "shards").iterdir() if path.is_dir())[0]
    victim = next(path for path in sorted(shard.rglob("*")) if path.is_file() and path.suffix != ".json")
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.write_bytes(content)
    report = ss.repair(uri)
    assert report.left_out
    assert ss.open(uri).statistics is None
    ss.describe(uri)
    check(ss.open(uri))


def test_without_them_none_are_gathered_until_they_are_asked_for(tmp_path):
    uri = tmp_path / "store.zarr"
    with ss.create(uri, FIELDS, statistics=False, **CUT) as writer:
        writer.write("a", **values(0, 90))
    with ss.append(uri) as writer:
        writer.write("b", **values(1, 90))
    assert ss.open(uri).statistics is None
    assert ss.info(uri).fields[0].statistics is None
    fingerprint = ss.open(uri).fingerprint
    assert ss.describe(uri) == ss.describe(uri) == 3
    check(ss.open(uri))
    assert (ss.open(uri).fingerprint, ss.log(uri)[-1].operation) == (fingerprint, "attach")
    with ss.append(uri) as writer:
        writer.write("c", **values(2, 9))
    check(ss.open(uri))


def test_a_receipt_without_any_makes_a_version_without_any(tmp_path):
    layout = plan_layout(FIELDS, "zarr", **CUT)
    receipts = []
    for number, gather in enumerate([True, False]):
        with ShardWriter(tmp_path / "a.zarr", layout, statistics=gather) as writer:
            writer.append(f"s{number}", values(number, 30))
            receipts.append(writer.finish())
    commit_receipts(tmp_path / "a.zarr", layout, receipts)
    assert ss.open(tmp_path / "a.zarr").statistics is None


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_store_is_described_as_numpy_does(data):
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any))
    store = ss.from_arrays({f"s{number}": values(number, n) for number, n in enumerate(lengths)})
    spans = []
    for number, n in enumerate(lengths):
        for _ in range(data.draw(st.integers(0, 2))):
            start, stop = sorted([data.draw(st.integers(0, n)), data.draw(st.integers(0, n))])
            spans.append((f"s{number}", start, stop))
    if not spans:
        return
    said = ss.statistics(store, sequences=spans, fields=["wide", "x"])
    assert list(said) == ["wide", "x"]
    wide = np.concatenate([store.read(id, start, stop)["wide"] for id, start, stop in spans])
    assert said["wide"].count == len(wide)
    if len(wide):
        assert (said["wide"].min, said["wide"].max) == (wide.min(), wide.max())
        assert float(said["wide"].mean) == pytest.approx(sum(map(int, wide)) / len(wide), rel=1e-9, abs=1e6)


def test_reading_says_what_writing_said(uri, monkeypatch):
    monkeypatch.setattr("streamseq.storage.statistics.describe._SPANS", 2)
    monkeypatch.setattr("streamseq.storage.statistics.describe._BLOCK_BYTES", 100)
    store = ss.open(uri)
    told = []
    again = ss.statistics(store, progress=lambda done, total: told.append((done, total)))
    assert told[0] == (0, 3 * 131)
    assert told[-1] == (3 * 131, 3 * 131)
    for name, said in store.statistics.items():
        for figure in ("count", "missing", "infinite", "min", "max"):
            assert np.array_equal(getattr(again[name], figure), getattr(said, figure))
        np.testing.assert_allclose(again[name].std, said.std, rtol=1e-12)
        assert np.array_equal(again[name].quantile(0.3), said.quantile(0.3))


def test_fields_with_very_many_numbers_have_none(tmp_path):
    fields = {"image": ss.Field("uint8", (130, 130)), "label": ss.Field("uint8")}
    with ss.create(tmp_path / "a.zarr", fields) as writer:
        writer.write("a", image=np.ones((2, 130, 130), np.uint8), label=np.ones(2, np.uint8))
    store = ss.open(tmp_path / "a.zarr")
    assert list(store.statistics) == ["label"]
    assert [field.statistics is None for field in ss.info(tmp_path / "a.zarr").fields] == [True, False]
    with pytest.raises(ValueError, match="up to 16,384"):
        ss.statistics(store, ["image"])
    stream = {"lanes": 1, "window": 1, "fields": ["image"]}
    with pytest.raises(ValueError, match="very many"):
        ss.StreamDataset(store, **stream, normalize=["image"])
    window = ss.StreamDataset(store, **stream, normalize={"image": (0, 255)})[0]
    assert float(window["image"].max()) == np.float32(1 / 255)


def documents():
    good = gatherers({"x": ss.Field("uint8")})
    good["x"].add(np.uint8([1, 2]))
    content = format_statistics(good)
    document = json.loads(content)
    yield b"\xff"
    yield b"[]"
    yield b'{"statistics": 1}'
    yield json.dumps({**document, "statistics": 2}).encode()
    yield json.dumps({**document, "fields": {}}).encode()
    yield json.dumps({**document, "fields": {**document["fields"], "y": {}}}).encode()
    yield json.dumps({**document, "fields": {"x": 3}}).encode()
    yield content  # of two timesteps, and the store has three
    yield b"[" * 100_000


@pytest.mark.parametrize("content", list(documents()))
def test_an_attachment_that_is_no_statistics_is_an_error_and_made_anew(tmp_path, content):
    uri = tmp_path / "a.arrow"
    with ss.create(uri, {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.uint8([1, 2, 3]))
    attach(place_of(uri), 1, {NAME: content})
    with pytest.raises(ss.CorruptionError, match=r"version 2 cannot be read: .*ss\.describe makes others"):
        _ = ss.open(uri).statistics
    assert ss.open(uri).read("a")["x"].tolist() == [1, 2, 3]
    assert ss.describe(uri) == 3
    assert ss.open(uri).statistics["x"].max == 3


def test_merging_in_the_same_order_is_the_same_to_the_last_bit():
    parts = []
    for seed in range(5):
        gathered = gatherers(FIELDS)
        for name, each in values(seed, 50).items():
            gathered[name].add(each)
        parts.append(format_statistics(gathered))
    merged = merge_statistics(parts, FIELDS)
    assert merged == merge_statistics(list(parts), FIELDS)
    assert parse_statistics(merged, FIELDS)["x"].summary().count.tolist() == [250, 210]
    assert merge_statistics([*parts, None], FIELDS) is None


JOB = """
import os, sys
import numpy as np
import streamseq as ss
from streamseq.etl import Partition, Piece

class Source:
    fields = {"x": ss.Field("float32", (2,)), "label": ss.Field("uint8")}
    threads = True
    settings = {"seed": 1}

    def partitions(self, target_bytes):
        return [Partition(num_bytes=1000, content=number) for number in range(12)]

    def read(self, partition):
        random = np.random.default_rng(partition.content)
        if sys.argv[3] == str(partition.content):
            os.kill(os.getpid(), 9)
        for part in range(3):
            x = random.normal(0, 10.0 ** random.integers(-3, 4), (70, 2)).astype(np.float32)
            yield Piece(id=f"{partition.content}-{part}", arrays={"x": x, "label": random.integers(0, 4, 70, np.uint8)})

ss.ingest(Source(), sys.argv[1], workers=int(sys.argv[2]), shard_bytes=1000, chunk_bytes=100)
"""


def run_job(uri, workers, kill="-"):
    return subprocess.run(
        [sys.executable, "-c", JOB, str(uri), str(workers), kill], check=False, env=dict(os.environ)
    ).returncode


def test_an_ingestion_says_the_same_for_any_number_of_workers_and_after_it_was_killed(tmp_path):
    for workers in (1, 2, 4):
        assert run_job(tmp_path / f"{workers}.zarr", workers) == 0
    assert run_job(tmp_path / "killed.zarr", 2, kill="9") == -signal.SIGKILL
    assert run_job(tmp_path / "killed.zarr", 2) == 0
    first = ss.open(tmp_path / "1.zarr")
    assert first.statistics["x"].count.tolist() == [12 * 3 * 70] * 2
    for name in ("2", "4", "killed"):
        store = ss.open(tmp_path / f"{name}.zarr")
        assert (store.fingerprint, store.attachment(NAME)) == (first.fingerprint, first.attachment(NAME))


def test_info_tells_them(uri, capsys):
    said = ss.info(uri).as_dict()["fields"]
    assert said[0]["statistics"]["missing"] == [0, 19]
    assert list(said[1]["statistics"]) == [
        "count", "missing", "infinite", "min", "25%", "median", "75%", "max", "mean", "std",
    ]  # fmt: skip
    json.dumps(said, allow_nan=False)
    lines = str(ss.info(uri)).splitlines()
    assert any(line.startswith("  [1] 112 values, 19 missing; min ") for line in lines)
    assert any(line.startswith("  131 values; min 0, 25% ") for line in lines)


def test_info_says_how_far_many_channels_are_apart(tmp_path):
    with ss.create(tmp_path / "a.zarr", {"x": ss.Field("float32", (4, 5)), "none": ss.Field("float64")}) as writer:
        x = np.arange(40, dtype=np.float32).reshape(2, 4, 5)
        writer.write("a", x=x, none=np.array([math.nan, math.inf]))
    text = str(ss.info(tmp_path / "a.zarr"))
    assert "  20 channels: 2 values; min 0 to 19, " in text
    assert "mean 10 to 29, std 10" in text
    assert "  0 values, 1 missing, 1 infinite; min -, " in text
    json.dumps(ss.info(tmp_path / "a.zarr").as_dict(), allow_nan=False)


def test_the_command_computes_and_keeps_them(tmp_path, capsys):
    uri = tmp_path / "a.zarr"
    with ss.create(uri, {"x": ss.Field("float32")}, statistics=False) as writer:
        writer.write("a", x=np.float32([1, 2, 6]))
    assert run_command("info", str(uri), "--compute", "--json", "--quiet") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["fields"][0]["statistics"]["mean"] == [3.0]
    assert (said["version"], ss.log(uri)[-1].job) == (2, "streamseq info")
    assert run_command("info", str(uri), "--compute", "--version", "1") == 2


def run_command(*arguments):
    try:
        main(list(arguments))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
