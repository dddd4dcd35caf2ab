"""A job that is run again: what is done stays done, what changed is done again, and the store is the same."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import streamseq as ss
from streamseq.etl import Partition, Piece, Skipped
from streamseq.etl.identity import job_key, partition_keys
from streamseq.storage.layout import plan_layout

CUT = {"chunk_bytes": 80, "shard_bytes": 800, "workers": 2}


class Files:
    """A partition for each file of numbers in a folder; files that say "fail" fail, every reading leaves a mark."""

    threads = True

    def __init__(self, folder, marks, scale=1, settings=True):
        self.fields = {"x": ss.Field("int64")}
        self.folder = Path(folder)
        self.marks = Path(marks)
        self.scale = scale
        if settings:
            self.settings = {"scale": scale}

    def partitions(self, target_bytes):
        found = sorted(self.folder.iterdir())
        return [Partition(num_bytes=10, content=(path.name, path.read_text())) for path in found]

    def read(self, partition):
        name, text = partition.content
        (self.marks / f"{name}-{len(os.listdir(self.marks))}-{os.urandom(4).hex()}").touch()
        if text == "fail":
            raise OSError(5, "disk on fire")
        if text == "skip":
            yield Skipped(what=name, place="line 3", reason="odd", content=b"\x00raw")
            return
        yield Piece(id=name, arrays={"x": np.arange(int(text)) * self.scale}, attrs={"from": name})


@pytest.fixture
def folders(tmp_path):
    for name in ("in", "marks"):
        (tmp_path / name).mkdir()
    for number in range(6):
        (tmp_path / "in" / f"f{number}").write_text(str(90 + number))
    return tmp_path


def source(folders, **options):
    return Files(folders / "in", folders / "marks", **options)


def reads(folders):
    """How often each file was read since the last call."""
    found = Counter(path.name.split("-")[0] for path in (folders / "marks").iterdir())
    for path in (folders / "marks").iterdir():
        path.unlink()
    return found


def contents(address):
    store = ss.open(address)
    return {id: (store.read(id)["x"].tolist(), store.attrs(id)) for id in store.ids.to_pylist()}


def fresh(folders, address="fresh.zarr", **options):
    report = ss.ingest(source(folders, **options), folders / address, **CUT)
    reads(folders)
    return ss.open(report.store)


def test_a_job_that_failed_goes_on_where_it_stopped(folders):
    (folders / "in/f4").write_text("fail")
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(source(folders), folders / "s.zarr", **CUT | {"workers": 1})
    with pytest.raises(ss.StoreError, match="no version was ever committed"):
        ss.open(folders / "s.zarr")
    done = set(reads(folders)) - {"f4"}
    (folders / "in/f4").write_text("94")
    report = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert "f4" in reads(folders).keys() == {f"f{number}" for number in range(6)} - done
    assert report.partitions_done_before == len(done) > 0
    assert f"{len(done)} of 6 parts were done before" in str(report)
    wanted = fresh(folders)
    assert contents(folders / "s.zarr") == contents(wanted.uri)
    assert ss.open(folders / "s.zarr").fingerprint == wanted.fingerprint
    assert ss.open(folders / "s.zarr").verify().ok


def test_a_job_with_nothing_new_reads_nothing_and_makes_no_version(folders):
    first = fresh(folders, "s.zarr")
    report = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert (report.version, report.partitions_done_before, report.timesteps) == (1, 6, first.num_timesteps)
    assert not reads(folders)
    assert ss.open(folders / "s.zarr").versions == [1]


def test_what_changed_is_done_again_and_only_that(folders):
    before = contents(fresh(folders, "s.zarr").uri)
    (folders / "in/f1").write_text("11")
    (folders / "in/f3").unlink()
    (folders / "in/f25").write_text("7")
    report = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert reads(folders) == {"f1": 1, "f25": 1}
    assert (report.version, report.partitions_done_before) == (2, 4)
    wanted = fresh(folders)
    store = ss.open(folders / "s.zarr")
    assert contents(store.uri) == contents(wanted.uri)
    assert store.ids.to_pylist() == ["f0", "f1", "f2", "f25", "f4", "f5"]
    assert store.fingerprint == wanted.fingerprint
    old = ss.open(folders / "s.zarr", version=1)
    assert {id: old.read(id)["x"].tolist() for id in old.ids.to_pylist()} == {id: before[id][0] for id in before}
    assert [entry.operation for entry in ss.log(folders / "s.zarr")] == ["write", "replace"]
    # Back to what there was: nothing has to be read.
    (folders / "in/f1").write_text("91")
    assert ss.ingest(source(folders), folders / "s.zarr", **CUT).version == 3
    assert not reads(folders)


def test_other_settings_are_another_job(folders):
    fresh(folders, "s.zarr")
    with pytest.raises(ss.StoreError, match="is a store already, and not one that this job wrote"):
        ss.ingest(source(folders, scale=2), folders / "s.zarr", **CUT)
    with ss.append(folders / "s.zarr") as writer:
        writer.write("mine", x=np.arange(3))
    with pytest.raises(ss.StoreError, match="not one that this job wrote"):
        ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert not reads(folders)
    assert ss.open(folders / "s.zarr").version == 2


def test_a_source_without_settings_leaves_nothing_to_go_on_with(folders):
    (folders / "in/f5").write_text("fail")
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(source(folders, settings=False), folders / "s.zarr", **CUT | {"workers": 1})
    assert not (folders / "s.zarr").exists()
    (folders / "in/f5").write_text("5")
    ss.ingest(source(folders, settings=False), folders / "s.zarr", **CUT)
    with pytest.raises(ss.StoreError, match="not one that this job wrote"):
        ss.ingest(source(folders, settings=False), folders / "s.zarr", **CUT)


def receipts(folders):
    return sorted((folders / "s.zarr/staging/jobs").rglob("*.json"))


@pytest.mark.parametrize("damage", ["flipped", "emptied", "of another", "shard gone"])
def test_receipts_that_are_damaged_do_not_count(folders, damage):
    (folders / "in/f5").write_text("fail")
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(source(folders), folders / "s.zarr", **CUT | {"workers": 1})
    before = len(receipts(folders))
    assert before
    path = receipts(folders)[0]
    if damage == "flipped":
        content = bytearray(path.read_bytes())
        content[content.index(b'"length"' if b'"length"' in content else b'"pieces"') + 12] ^= 1
        path.write_bytes(content)
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "of another":
        path.write_bytes(b'{"writer": 3}')
    else:
        shard = json.loads(path.read_bytes())["receipt"]["shards"][0]["id"]
        for file in sorted((folders / "s.zarr/shards" / shard).rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        (folders / "s.zarr/shards" / shard).rmdir()
    (folders / "in/f5").write_text("95")
    report = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert report.partitions_done_before == before - 1
    assert ss.open(folders / "s.zarr").fingerprint == fresh(folders).fingerprint


def test_clean_keeps_what_a_job_goes_on_with_unless_told(folders):
    (folders / "in/f5").write_text("fail")
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(source(folders), folders / "s.zarr", **CUT | {"workers": 1})
    report = ss.clean(folders / "s.zarr")
    assert report.kept
    assert all("an ingestion that is run again goes on with it" in each.kept for each in report.kept)
    before = len(receipts(folders))
    assert before == len({each.name.split("-")[0] for each in report.kept})
    report = ss.clean(folders / "s.zarr", jobs=True)
    assert not report.kept
    assert not receipts(folders)
    assert not [path for path in (folders / "s.zarr/shards").iterdir() if path.is_dir()]
    (folders / "in/f5").write_text("95")
    reads(folders)
    assert ss.ingest(source(folders), folders / "s.zarr", **CUT).partitions_done_before == 0
    assert sum(reads(folders).values()) == 6


def test_what_was_left_out_before_is_reported_again(folders):
    (folders / "in/f2").write_text("skip")
    first = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    again = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert first.skipped == again.skipped == (Skipped(what="f2", place="line 3", reason="odd", content=b"\x00raw"),)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_rerun import CUT, Files
import streamseq as ss
ss.ingest(Files({inputs!r}, {marks!r}), {address!r}, progress=lambda done, total: print(done, total, flush=True), **CUT)
"""


@pytest.mark.alone
def test_a_job_that_is_killed_again_and_again_ends_in_the_same_store(folders):
    for number in range(6, 40):
        (folders / "in" / f"f{number:02d}").write_text(str(20 + number))
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        inputs=str(folders / "in"),
        marks=str(folders / "marks"),
        address=str(folders / "s.zarr"),
    )
    for share in (0.2, 0.5, 0.9):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            done, total = map(int, line.split())
            if done >= share * total:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        with pytest.raises(ss.StoreError, match="no version was ever committed"):
            ss.open(folders / "s.zarr")
    reads(folders)
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True)
    # Killed at nine tenths, it had little left to do.
    assert 0 < sum(reads(folders).values()) <= 0.15 * 40
    wanted = fresh(folders)
    store = ss.open(folders / "s.zarr")
    assert contents(store.uri) == contents(wanted.uri)
    assert store.fingerprint == wanted.fingerprint
    assert store.verify().ok
    ss.clean(folders / "s.zarr")
    named = {shard.id for shard in store.snapshot.shards}
    assert {path.name for path in (folders / "s.zarr/shards").iterdir() if path.is_dir()} == named


def test_keys_depend_on_what_decides_the_data(folders):
    layout = plan_layout({"x": ss.Field("int64")}, "zarr")
    one, two = source(folders), source(folders, scale=2)
    assert job_key(one, layout) == job_key(source(folders), layout) != job_key(two, layout)
    assert job_key(one, layout) != job_key(one, plan_layout({"x": ss.Field("int64")}, "arrow"))
    assert job_key(source(folders, settings=False), layout) is None
    odd = source(folders)
    odd.settings = {"function": print}
    assert job_key(odd, layout) is None
    values = [1, 1.0, True, "1", b"1", None, (1,), np.float32(1), np.arange(2), Path("1"), {"a": 1}, {1}]
    keys = partition_keys("job", [Partition(num_bytes=1, content=value) for value in values])
    assert keys is not None
    assert len(set(keys)) == len(values)
    same = partition_keys("job", [Partition(num_bytes=1, content="a")] * 2)
    assert same is not None
    assert same[0] != same[1]
    assert partition_keys("job", [Partition(num_bytes=1, content=object())]) is None


def test_transforms_are_part_of_a_job(folders):
    (folders / "in/f5").write_text("fail")
    transforms = [lambda arrays: {"x": arrays["x"] + 1}]
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(source(folders), folders / "s.zarr", transforms, **CUT | {"workers": 1})
    done = len(receipts(folders))
    assert done
    (folders / "in/f5").write_text("95")
    report = ss.ingest(source(folders), folders / "s.zarr", [lambda arrays: {"x": arrays["x"] + 1}], **CUT)
    assert report.partitions_done_before == done
    assert ss.open(folders / "s.zarr").read("f2")["x"].tolist() == list(range(1, 93))
    with pytest.raises(ss.StoreError, match="not one that this job wrote"):
        ss.ingest(source(folders), folders / "s.zarr", [lambda arrays: {"x": arrays["x"] + 2}], **CUT)


def test_a_job_without_statistics_is_done_again_where_they_are_wanted(folders):
    bare = ss.ingest(source(folders), folders / "s.zarr", statistics=False, **CUT)
    assert ss.open(bare.store).attachment("statistics") is None
    assert sum(reads(folders).values()) == 6
    again = ss.ingest(source(folders), folders / "s.zarr", statistics=False, **CUT)
    assert (again.partitions_done_before, reads(folders)) == (6, {})
    full = ss.ingest(source(folders), folders / "s.zarr", **CUT)
    assert (full.partitions_done_before, sum(reads(folders).values())) == (0, 6)
    assert ss.open(full.store).attachment("statistics") is not None
    assert ss.open(full.store).fingerprint == ss.open(bare.store, version=bare.version).fingerprint
