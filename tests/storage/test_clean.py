"""clean removes what dead writers left, and never what a version names or a live writer has."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta

import numpy as np
import pytest

import streamseq as ss
from streamseq.storage.disk_store import DiskStore
from streamseq.storage.places.place import place_of
from streamseq.storage.shards.shard_writer import ShardWriter
from streamseq.storage.upkeep import leftovers
from streamseq.storage.versions import claim as claim_module
from streamseq.storage.versions.claim import CLAIM_FILE, Claim, holders
from streamseq.storage.versions.receipts import commit_receipts

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64")}

KILLED = """
import os, sys
import numpy as np
import streamseq as ss
address, at = sys.argv[1:]
if at == "shards":
    from streamseq.storage import writer
    writer.commit_receipts = lambda *_: os.kill(os.getpid(), 9)
if at == "tables":
    from streamseq.storage.places.place import LocalPlace
    put = LocalPlace.put_if_absent
    def put_if_absent(self, name, content, staging):
        if name.startswith("versions/"):
            (staging / name.split("/")[1]).write_bytes(content)
            os.kill(os.getpid(), 9)
        return put(self, name, content, staging)
    LocalPlace.put_if_absent = put_if_absent
with ss.append(address) as writer:
    for number in range(3):
        writer.write(f"d{os.getpid()}-{number}", x=np.zeros((40, 2), np.float32), y=np.arange(40))
    if at == "writing":
        os.kill(os.getpid(), 9)
"""


INGESTED = """
import os, sys, time
import numpy as np
import streamseq as ss
from streamseq.etl.source import Partition, Piece
class Source:
    fields = {"x": ss.Field("int64")}
    def partitions(self, target_bytes):
        return [Partition(num_bytes=1, content=number) for number in range(4)]
    def read(self, partition):
        yield Piece(id=str(partition.content), arrays={"x": np.arange(500)}, attrs={})
        if partition.content == 2:
            print("here", flush=True)
            sys.stdin.read()
            os.kill(os.getpid(), 9)
ss.ingest(Source(), sys.argv[1], workers=1, shard_bytes=1000)
"""


@pytest.fixture
def store(address, make):
    with ss.create(address, FIELDS, chunk_bytes=80, shard_bytes=800) as writer:
        writer.write("a", **make(FIELDS, 0, 120))
    return address


def kill_a_writer(store, at):
    ended = subprocess.run([sys.executable, "-c", KILLED, store, at], check=False, env=dict(os.environ))
    assert ended.returncode == -signal.SIGKILL


def everything(store):
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


def settled(store):
    """All that is there but for empty folders."""
    return sorted(str(path.relative_to(store)) for path in store.rglob("*") if path.is_file())


@pytest.mark.parametrize("at", ["writing", "shards", "tables"])
def test_what_a_killed_writer_left_is_found_and_removed_and_nothing_else(store, make, same, at):
    before = settled(store)
    kill_a_writer(store, at)
    left = settled(store)
    assert len(left) > len(before)
    found = ss.clean(store, dry_run=True)
    assert found.dry_run
    assert settled(store) == left
    assert set(ss.open(store).verify().leftovers) == {each.name for each in found.removed}
    assert ss.open(store).verify().ok
    report = ss.clean(store)
    assert report.removed == found.removed
    kinds = {each.kind for each in report.removed}
    assert (
        kinds == {"writing": {"staging"}, "shards": {"staging", "shard"}, "tables": {"staging", "shard", "table"}}[at]
    )
    assert (report.kept, report.writers) == ((), ())
    assert settled(store) == before
    assert ss.clean(store).removed == ()
    same(ss.open(store).read("a"), make(FIELDS, 0, 120))


def test_what_is_left_of_a_store_that_never_was_is_removed(tmp_path, backend, make):
    address = tmp_path / f"new.{backend}"
    code = KILLED.replace(
        "ss.append(address)", "ss.create(address, {'x': ss.Field('float32', (2,)), 'y': ss.Field('int64')})"
    )
    subprocess.run([sys.executable, "-c", code, address, "tables"], check=False)
    assert settled(address)
    assert ss.clean(address).removed
    assert {name.split("/")[-1] for name in settled(address)} <= {"zarr.json"}
    with ss.create(address, FIELDS) as writer:
        writer.write("a", **make(FIELDS, 0, 10))


def test_nothing_of_a_live_writer_is_removed(store, make, same):
    with ss.append(store) as writer:
        writer.write("b", **make(FIELDS, 120, 150))
        kill_a_writer(store, "tables")
        report = ss.clean(store)
        (who,) = report.writers
        assert f"process {os.getpid()}" in who
        # Shards and folders of the dead writer are known by its claim; its tables are not, and stay for now.
        assert {each.kind for each in report.removed} == {"staging", "shard"}
        assert {each.kept for each in report.kept} == {"its writer is at work", "it may be of a writer that is at work"}
    same(ss.open(store).read("b"), make(FIELDS, 120, 150))
    report = ss.clean(store)
    assert {each.kind for each in report.removed} == {"staging", "table"}
    assert (report.kept, report.writers) == ((), ())
    same(ss.open(store).read("b"), make(FIELDS, 120, 150))


def test_a_live_writer_of_another_process_is_seen(store):
    code = KILLED.replace("os.kill(os.getpid(), 9)", "print('here', flush=True) or sys.stdin.read()")
    with subprocess.Popen(
        [sys.executable, "-c", code, store, "tables"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == b"here\n"
        before = settled(store)
        assert ss.clean(store).removed == ()
        assert settled(store) == before
        child.stdin.close()
        child.stdout.close()
        assert child.wait() == 0
    assert ss.clean(store).removed == ()
    assert len(ss.open(store)) == 4


def test_a_job_that_is_killed_is_cleaned_up_after_and_not_before(tmp_path, backend):
    address = tmp_path / f"new.{backend}"
    with subprocess.Popen(
        [sys.executable, "-c", INGESTED, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        before = settled(address)
        report = ss.clean(address)
        assert report.removed == ()
        assert len(report.writers) == 1
        assert settled(address) == before
        child.communicate()
        assert child.returncode == -signal.SIGKILL
    assert len(list((address / "shards").iterdir())) == 8
    assert {each.kind for each in ss.clean(address).removed} == {"staging", "shard"}
    assert settled(address) == []


def during(monkeypatch, step, act):
    """Do something when clean is about to take a step."""
    real = getattr(leftovers, step)

    def acting(*args, **more):
        monkeypatch.setattr(leftovers, step, real)
        act()
        return real(*args, **more)

    monkeypatch.setattr(leftovers, step, acting)


@pytest.mark.parametrize("step", ["holders", "_named", "_resumable", "_remove"])
def test_a_writer_that_commits_while_clean_runs_loses_nothing(store, make, same, monkeypatch, step):
    """Its shards are there without a version when clean begins."""
    kill_a_writer(store, "shards")
    claim = Claim(place_of(store), "a test")
    claim.hold()
    with ShardWriter(store, DiskStore(store).layout) as shards:
        shards.append("b", make(FIELDS, 120, 150))
        receipt = shards.finish()

    def finish():
        commit_receipts(store, DiskStore(store).layout, [receipt], 1)
        claim.release()

    during(monkeypatch, step, finish)
    assert ss.clean(store).removed
    assert ss.open(store).verify().ok
    same(ss.open(store).read("b"), make(FIELDS, 120, 150))


def test_a_dead_writer_s_claim_that_is_not_dead_after_all_is_kept(store, monkeypatch):
    """A writer that has made the file and not yet locked it."""
    folder = store / "staging" / "0123456789abcdef"
    folder.mkdir()
    with (folder / CLAIM_FILE).open("x") as file:
        during(monkeypatch, "_remove", lambda: fcntl.flock(file, fcntl.LOCK_EX))
        report = ss.clean(store)
        assert [(each.name, each.kept) for each in report.kept] == [(f"staging/{folder.name}", "its writer is at work")]
        assert folder.exists()
    assert [each.name for each in ss.clean(store).removed] == [f"staging/{folder.name}"]


@pytest.mark.parametrize("step", ["holders", "_named", "_resumable", "_remove"])
def test_a_writer_that_starts_while_clean_runs_loses_nothing(store, make, same, monkeypatch, step):
    kill_a_writer(store, "shards")
    held = []

    def start():
        held.append(ss.append(store).__enter__())
        held[0].write("b", **make(FIELDS, 120, 150))

    during(monkeypatch, step, start)
    ss.clean(store)
    held[0].write("c", **make(FIELDS, 270, 30))
    held[0].__exit__(None, None, None)
    assert ss.open(store).verify().ok
    same(ss.open(store).read("b"), make(FIELDS, 120, 150))


def test_a_claim_that_is_removed_while_it_is_made_is_made_anew(store, monkeypatch):
    """Between the file and its lock clean may take it for that of a dead writer."""
    place = place_of(store)
    taken = []

    def locked(descriptor):
        if not taken:
            monkeypatch.undo()
            taken.append(ss.clean(store).removed)
        return lock(descriptor)

    lock = claim_module._lock
    monkeypatch.setattr(claim_module, "_lock", locked)
    claim = Claim(place, "a test")
    claim.hold()
    assert len(taken[0]) == 1
    (holder,) = holders(place, time.time(), 1e9)
    assert holder.folder == claim.folder != taken[0][0].name.split("/")[1]
    claim.release()
    assert list(holders(place, time.time(), 1e9)) == []


def test_a_claim_of_another_machine_counts_as_live_until_it_is_old(store):
    folder = store / "staging" / "0123456789abcdef"
    folder.mkdir()
    said = {"host": "elsewhere", "boot": "another", "pid": 1, "started": "2026-01-01", "job": "ingest", "locked": True}
    (folder / CLAIM_FILE).write_text(json.dumps(said))
    report = ss.clean(store)
    assert report.removed == ()
    assert report.writers == ("ingest (process 1 on elsewhere, since 2026-01-01)",)
    ago = time.time() - 3600
    os.utime(folder / CLAIM_FILE, (ago, ago))
    assert ss.clean(store, older_than=timedelta(hours=2)).removed == ()
    (folder / "alive").touch()
    assert ss.clean(store, older_than=timedelta(minutes=30)).removed == ()
    os.utime(folder / "alive", (ago, ago))
    assert [each.name for each in ss.clean(store, older_than=1800).removed] == [f"staging/{folder.name}"]


def test_a_writer_shows_that_it_lives_now_and_then(store, make, monkeypatch):
    now = [time.monotonic()]
    monkeypatch.setattr("streamseq.storage.versions.claim.time.monotonic", lambda: now[0])
    with ss.append(store) as writer:
        writer.append("a", **make(FIELDS, 0, 1))
        assert not list(store.glob("staging/*/alive"))
        now[0] += 3600
        writer.append("a", **make(FIELDS, 0, 1))
        assert len(list(store.glob("staging/*/alive"))) == 1


def test_where_there_are_no_locks_a_claim_goes_by_the_process(store, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(95, "not supported")

    monkeypatch.setattr("streamseq.storage.versions.claim.fcntl.flock", flock)
    with ss.append(store) as writer:
        writer.append("b", x=np.zeros((100, 2), np.float32), y=np.zeros(100, np.int64))
        assert ss.clean(store).removed == ()
        path = next(store.glob(f"staging/*/{CLAIM_FILE}"))
        said = json.loads(path.read_text())
        assert said["locked"] is False
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    path.parent.mkdir()
    path.write_text(json.dumps(said | {"pid": int(gone.stdout)}))
    assert len(ss.clean(store).removed) == 1


def test_a_writer_without_a_claim_is_kept_while_an_older_one_lives(store, make):
    """Tasks on other machines have no claim of their own: that of their job is older than all they write."""
    with Claim(place_of(store), "a job"), ShardWriter(store, DiskStore(store).layout) as writer:
        writer.append("b", make(FIELDS, 0, 150))
        receipt = writer.finish()
        assert ss.clean(store).removed == ()
    assert len(receipt.shards) == len(ss.clean(store).removed) > 1


def test_shards_of_an_unfinished_prediction_are_kept(store, make):
    from streamseq.training.predict_job import Job

    layout = DiskStore(store).layout
    with ShardWriter(store, layout) as writer:
        writer.append("b", make(FIELDS, 0, 50))
        receipt = writer.finish()
    with ShardWriter(store, layout) as writer:
        writer.append("c", make(FIELDS, 0, 30))
        writer.finish()
    job = Job(store)
    job._receipts.mkdir(parents=True)
    job._writers.mkdir()
    job.put_receipt(0, layout, receipt.shards)
    report = ss.clean(store)
    assert {each.name for each in report.kept} == {f"shards/{shard.id}" for shard in receipt.shards}
    assert {each.kept for each in report.kept} == {"an unfinished prediction goes on with it"}
    assert len(report.removed) == 1
    assert list(job.receipts()) == [0]
    path = next(job._receipts.iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    assert ss.clean(store).removed == ()
    shutil.rmtree(job.path)
    assert len(ss.clean(store).removed) == len(receipt.shards)


def test_nothing_is_cleaned_where_a_version_cannot_be_read(store):
    kill_a_writer(store, "tables")
    before = settled(store)
    path = store / "versions" / "00000001.json"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ss.CorruptionError, match="nothing is cleaned where a version cannot say what it names"):
        ss.clean(store)
    assert settled(store) == before


def test_what_is_not_a_writer_s_is_left_alone(store):
    for name in ("notes.txt", "shards/mine", "tables/notes.arrow", "staging/notes"):
        (store / name).mkdir() if name.endswith("mine") else (store / name).write_text("x")
    before = settled(store)
    assert ss.clean(store).removed == ()
    assert settled(store) == before


def test_wrong_use(tmp_path):
    with pytest.raises(ss.StoreError, match="is not a store"):
        ss.clean(tmp_path / "no.zarr")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(ss.StoreError, match="is not a store"):
        ss.clean(tmp_path)
    assert os.listdir(tmp_path) == ["file.txt"]
    with pytest.raises(ValueError, match="0 seconds or more"):
        ss.clean(tmp_path, older_than=-1)
