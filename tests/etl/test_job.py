"""The job: all of a source or nothing, the same store for any workers, and an account of it."""

import json
import logging
import os
import sys
import threading
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from distributed import Client, LocalCluster

import streamseq as ss
from streamseq.etl import Partition, Piece, Skipped, SourceError, partition_bytes

CUT = {"chunk_bytes": 80, "shard_bytes": 800}
SILENT = {"dashboard_address": "127.0.0.1:0", "silence_logs": logging.CRITICAL}


class Numbers:
    """Partitions of consecutive numbers; `content` is what `read` yields or raises."""

    def __init__(self, *content, fields=None):
        self.fields = fields or {"x": ss.Field("int64")}
        self.content = content

    def partitions(self, target_bytes):
        return [Partition(num_bytes=10, content=number) for number in range(len(self.content))]

    def read(self, partition):
        for item in self.content[partition.content]:
            if isinstance(item, BaseException):
                raise item
            yield item


def piece(id, start, stop, attrs=None, dtype=np.int64):
    return Piece(id=id, arrays={"x": np.arange(start, stop, dtype=dtype)}, attrs=attrs)


def everything_below(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def test_pieces_of_one_id_are_one_sequence_across_partitions(tmp_path):
    source = Numbers(
        [piece("a", 0, 300, {"site": "north"}), piece("b", 0, 10)],
        [piece("b", 10, 250)],
        [piece("b", 250, 260), piece("c", 0, 0), piece("d", 5, 8)],
    )
    fingerprints = set()
    for workers in (1, 3):
        report = ss.ingest(source, tmp_path / f"{workers}.zarr", workers=workers, **CUT)
        store = ss.open(report.store)
        fingerprints.add(store.fingerprint)
        assert store.ids.to_pylist() == ["a", "b", "c", "d"]
        assert store.lengths.tolist() == [300, 260, 0, 3]
        assert store.read("b")["x"].tolist() == list(range(260))
        assert store.attrs("a") == {"site": "north"}
    assert len(fingerprints) == 1


def test_the_report_accounts_for_everything(tmp_path):
    skipped = Skipped(what="bad.txt", reason="unreadable", num_bytes=4)
    source = Numbers([piece("a", 0, 300), skipped], [piece("a", 300, 310), piece("b", 0, 5)])
    seen = []
    report = ss.ingest(source, tmp_path / "s.arrow", progress=lambda *done: seen.append(done), **CUT)
    assert (report.sequences, report.timesteps, report.bytes_in, report.version) == (2, 315, 16, 1)
    assert report.skipped == (skipped,)
    assert report.store == str(tmp_path / "s.arrow")
    files = [path for path in (tmp_path / "s.arrow/shards").rglob("*") if path.is_file() and path.name.startswith("x")]
    assert report.bytes_out == sum(path.stat().st_size for path in files)
    assert report.rate == pytest.approx(16 / report.seconds)
    assert seen[0] == (0, 20)
    assert seen[1:] == [(10, 20), (20, 20)]
    said = json.loads(report.to_json())
    assert said["skipped"] == [{"what": "bad.txt", "place": "", "reason": "unreadable"}]
    assert {key: said[key] for key in ("sequences", "timesteps", "bytes_in")} == {
        "sequences": 2,
        "timesteps": 315,
        "bytes_in": 16,
    }
    assert "left out 1: bad.txt: unreadable" in str(report)


class Odd(Exception):
    pass


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ([[piece("a", 0, 900)], [piece("b", 0, 200), Odd("disk on fire")]], Odd, "disk on fire"),
        ([[piece("a", 0, 9)], [piece("b", 0, 9), piece("c", 0, 1), piece("b", 9, 10)]], SourceError, "'b' comes twice"),
        ([[piece("a", 0, 9), piece("b", 0, 9)], [piece("a", 9, 10)]], SourceError, "'a' comes twice"),
        (
            [[piece("a", 0, 9), piece("b", 0, 9)], [piece("b", 9, 10), piece("a", 9, 10)]],
            SourceError,
            "'a' comes twice",
        ),
        ([[piece("a", 0, 9, dtype=np.float64)]], SourceError, "'a' does not fit: .*float64"),
        ([[Piece(id="a", arrays={"x": np.zeros((3, 2), np.int64)})]], SourceError, "'a' does not fit: .*shape"),
        ([[Piece(id="a", arrays={"y": np.zeros(3, np.int64)})]], SourceError, "'a' does not fit"),
        ([[piece("a", 0, 9, {"k": 1})], [piece("a", 9, 10, {"k": 2})]], ValueError, "attributes"),
        ([[piece("a", 0, 0)]], SourceError, "at least one timestep"),
        ([[Skipped(what="f", reason="empty")]], SourceError, "f was left out"),
        ([], SourceError, "at least one partition"),
    ],
)
@pytest.mark.parametrize("existing", [False, True])
def test_a_job_that_fails_leaves_nothing_and_raises_what_was_wrong(tmp_path, content, error, message, existing):
    root = tmp_path / "new/folder/s.zarr"
    if existing:
        root.mkdir(parents=True)
    before = everything_below(tmp_path)
    with pytest.raises(error, match=message):
        ss.ingest(Numbers(*content), root, workers=2, **CUT)
    assert everything_below(tmp_path) == before


class Endless:
    """One partition that never ends, and one that fails when the other has begun."""

    fields = {"x": ss.Field("int64")}  # noqa: RUF012 - as a user would write it
    begun, ended = threading.Event(), threading.Event()

    def partitions(self, target_bytes):
        return [Partition(num_bytes=1, content=number) for number in range(2)]

    def read(self, partition):
        if partition.content:
            assert self.begun.wait(20)
            raise Odd("enough")
        try:
            while True:
                yield piece("a", 0, 10)
                self.begun.set()
        finally:
            self.ended.set()


def test_a_task_that_runs_stops_when_its_job_fails(tmp_path):
    with pytest.raises(Odd, match="enough"):
        ss.ingest(Endless(), tmp_path / "s.zarr", workers=2, **CUT)
    assert Endless.ended.is_set()
    assert everything_below(tmp_path) == []


def test_a_job_runs_on_a_cluster_of_the_users_and_leaves_it_running(tmp_path):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", **SILENT) as cluster,
        Client(cluster) as client,
    ):
        source = Numbers(*[[piece(f"{n}", n, n + 200)] for n in range(8)])
        prints = set()
        for name, where in (("a", {"client": client}), ("b", {"scheduler": cluster.scheduler_address}), ("c", {})):
            report = ss.ingest(source, tmp_path / f"{name}.zarr", **where, **CUT)
            prints.add(ss.open(report.store).fingerprint)
        assert len(prints) == 1
        with pytest.raises(Odd):
            ss.ingest(Numbers([piece("a", 0, 500)], [Odd("x")]), tmp_path / "t.zarr", client=client, **CUT)
        assert not (tmp_path / "t.zarr").exists()
        assert client.submit(int, 3).result() == 3


@pytest.fixture
def process(tmp_path):
    """A client whose one worker is a process, which is started again when it dies."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=True, **SILENT) as cluster,
        Client(cluster) as client,
    ):
        yield client


class Deadly:
    """Its second partition kills the process that reads it, `deaths` times."""

    def __init__(self, folder, deaths):
        self.fields = {"x": ss.Field("int64")}
        self.folder = folder
        self.deaths = deaths

    def partitions(self, target_bytes):
        return [Partition(num_bytes=1, content=number) for number in range(2)]

    def read(self, partition):
        yield Piece(id=str(partition.content), arrays={"x": np.arange(500)})
        if partition.content and len(os.listdir(self.folder)) < self.deaths:
            open(f"{self.folder}/{os.getpid()}", "x").close()
            os._exit(1)


@pytest.fixture(autouse=True)
def sent_by_value():
    """The sources of this file can be sent to processes, which cannot import a test."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def test_workers_that_die_again_and_again_are_told_and_nothing_is_left(tmp_path, process):
    (tmp_path / "deaths").mkdir()
    with pytest.raises(ss.StreamseqError, match="worker died"):
        ss.ingest(Deadly(str(tmp_path / "deaths"), 100), tmp_path / "s.zarr", client=process, **CUT)
    assert not (tmp_path / "s.zarr").exists()


def test_a_task_whose_worker_died_is_done_again_and_what_it_left_is_removed(tmp_path, process):
    (tmp_path / "deaths").mkdir()
    report = ss.ingest(Deadly(str(tmp_path / "deaths"), 1), tmp_path / "s.zarr", client=process, **CUT)
    assert len(os.listdir(tmp_path / "deaths")) == 1
    store = ss.open(report.store)
    assert store.lengths.tolist() == [500, 500]
    assert sorted(os.listdir(tmp_path / "s.zarr/staging")) == ["zarr.json"]
    assert len(list((tmp_path / "s.zarr/shards").glob("*-*"))) == 10


def test_an_existing_store_is_refused_and_stays(tmp_path):
    ss.ingest(Numbers([piece("a", 0, 9)]), tmp_path / "s.zarr")
    before = ss.open(tmp_path / "s.zarr").fingerprint
    with pytest.raises(ss.StoreError, match="is a store already"):
        ss.ingest(Numbers([piece("b", 0, 9)]), tmp_path / "s.zarr")
    assert ss.open(tmp_path / "s.zarr").fingerprint == before


def test_a_store_that_appears_meanwhile_is_kept(tmp_path):
    root = tmp_path / "s.zarr"

    class Slow(Numbers):
        def read(self, partition):
            with ss.create(root, self.fields) as writer:
                writer.write("other", x=np.arange(5))
            yield piece("mine", 0, 500)

    with pytest.raises(ss.VersionConflictError):
        ss.ingest(Slow(()), root, workers=1, **CUT)
    assert ss.open(root).ids.to_pylist() == ["other"]
    assert ss.open(root).read("other")["x"].tolist() == list(range(5))
    assert len(list((root / "shards").glob("*-*"))) == 1
    assert list((root / "staging").glob("*[0-9a-f]")) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workers": 0}, ValueError),
        ({"workers": 1.5}, TypeError),
        ({"workers": 1, "scheduler": "tcp://host:1"}, ValueError),
        ({"backend": "csv"}, ValueError),
        ({"chunk_bytes": 0}, ValueError),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_read(tmp_path, options, error):
    with pytest.raises(error):
        ss.ingest(Numbers([Odd("read")]), tmp_path / "s.zarr", **options)
    assert everything_below(tmp_path) == []


def test_a_scheduler_that_does_not_answer_is_told(tmp_path):
    for address in ("tcp://127.0.0.1:1", "nonsense"):
        with pytest.raises(ss.StreamseqError, match="no Dask scheduler answers at"):
            ss.ingest(Numbers([piece("a", 0, 9)]), tmp_path / "s.zarr", scheduler=address)
    assert everything_below(tmp_path) == []


def test_partitions_are_shards_unless_there_are_few():
    shard = 64 << 20
    assert partition_bytes(10**13, shard) == shard
    assert partition_bytes(10, shard) == 4 << 20
    assert partition_bytes(10, 1000) == 1000
    assert partition_bytes(33 * 32 << 20, shard) == 33 << 20


@pytest.mark.parametrize("threads", [True, False])
def test_no_more_workers_are_started_than_there_are_tasks(tmp_path, monkeypatch, threads):
    from streamseq.etl import cluster

    started = []

    class Counting(LocalCluster):
        def __init__(self, **options):
            started.append((options["n_workers"], options["threads_per_worker"]))
            super().__init__(**{**options, "processes": False})

    monkeypatch.setattr(cluster, "LocalCluster", Counting)
    source = Numbers([piece("a", 0, 9)], [piece("b", 0, 9)])
    source.threads = threads
    ss.ingest(source, tmp_path / "s.zarr", workers=7, **CUT)
    ss.ingest(source, tmp_path / "t.zarr", workers=1, **CUT)
    assert started == ([(1, 2), (1, 1)] if threads else [(2, 1), (1, 1)])
