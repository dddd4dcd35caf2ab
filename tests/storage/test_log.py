"""The log says how each version came to be, and info what one holds."""

import json

import numpy as np
import pytest

import streamseq as ss

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none")}


@pytest.fixture
def store(address, make):
    """Four versions: created, added to twice, compacted."""
    with ss.create(address, FIELDS, chunk_bytes=80, shard_bytes=320, job="the first") as writer:
        writer.write("a", **make(FIELDS, 0, 30))
        writer.write("empty", **make(FIELDS, 0, 0))
    for first in (30, 35):
        with ss.append(address, job="more") as writer:
            writer.append("a", **make(FIELDS, first, 5))
            writer.write(f"b{first}", **make(FIELDS, first, 3))
    ss.compact(address, job="at night")
    return address


def bytes_of(store, version, shards):
    snapshot = ss.open(store, version).snapshot
    return sum(stored.num_bytes for shard in snapshot.shards if shard.id in shards for stored in shard.fields.values())


def test_the_log_says_what_each_version_added_and_by_which_job(store):
    entries = ss.log(store)
    assert [entry.version for entry in entries] == [1, 2, 3, 4]
    assert [entry.operation for entry in entries] == ["write", "write", "write", "compact"]
    assert [entry.job for entry in entries] == ["the first", "more", "more", "at night"]
    assert [entry.sequences_added for entry in entries] == [2, 1, 1, 0]
    assert [entry.timesteps_added for entry in entries] == [30, 8, 8, 0]
    assert [(entry.sequences, entry.timesteps) for entry in entries] == [(2, 30), (3, 38), (4, 46), (4, 46)]
    ids = [{shard.id for shard in ss.open(store, version).snapshot.shards} for version in range(1, 5)]
    assert [entry.shards_added for entry in entries] == [len(ids[0]), 1, 1, len(ids[3] - ids[2])]
    assert [entry.shards_dropped for entry in entries] == [0, 0, 0, len(ids[2] - ids[3])]
    assert [entry.shards for entry in entries] == [len(each) for each in ids]
    assert entries[1].bytes_added == bytes_of(store, 2, ids[1] - ids[0])
    assert entries[3].fingerprint == entries[2].fingerprint == ss.open(store, 3).fingerprint
    assert all(entry.software.startswith("streamseq ") and entry.created.endswith("+00:00") for entry in entries)
    assert "compact by at night" in str(entries[3])
    assert json.loads(json.dumps(entries[0].as_dict()))["timesteps_added"] == 30


def test_a_writer_that_says_no_job_has_the_program_s_name(address, make):
    with ss.create(address, FIELDS) as writer:
        writer.write("a", **make(FIELDS, 0, 3))
    (entry,) = ss.log(address)
    assert entry.job


def test_a_repair_is_logged_with_what_it_left_out(store):
    shard = store / "shards" / ss.open(store).snapshot.shards[-1].id
    path = shard / "y.arrow" if store.suffix == ".arrow" else shard / "y/c/0"
    path.unlink()
    report = ss.repair(store, job="mended")
    entry = ss.log(store)[-1]
    assert (entry.operation, entry.job) == ("repair", "mended")
    assert entry.sequences_added == -len(report.left_out) < 0
    assert entry.timesteps_added == -sum(each.timesteps for each in report.left_out)


def test_a_broken_version_file_is_an_entry_that_says_so(store):
    path = store / "versions/00000002.json"
    path.write_bytes(path.read_bytes()[:-5])
    entries = ss.log(store)
    assert [bool(entry.problem) for entry in entries] == [False, True, False, False]
    assert "00000002.json" in entries[1].problem
    assert (entries[2].sequences_added, entries[2].timesteps_added) == (2, 16)


def test_info_says_what_is_there_and_how_it_is_stored(store):
    found = ss.info(store, 3)
    opened = ss.open(store, 3)
    assert (found.version, found.versions, found.backend) == (3, (1, 2, 3, 4), opened.backend)
    assert (found.sequences, found.timesteps, found.fingerprint) == (4, 46, opened.fingerprint)
    assert found.lengths == {"min": 0, "25%": 2.25, "median": 3, "mean": 11.5, "75%": 12.25, "max": 40}
    assert found.scattered == 1
    x, y = found.fields
    assert (x.name, x.dtype, x.shape, x.chunk_timesteps) == ("x", "float32", (2,), 10)
    assert (y.codec, y.decoded_bytes) == ("none", 46 * 8)
    assert x.bytes == sum(shard.fields["x"].num_bytes for shard in opened.snapshot.shards)
    assert found.decoded_bytes == 46 * 16
    assert found.ratio == pytest.approx(found.decoded_bytes / found.bytes)
    assert found.shards == len(opened.snapshot.shards)
    assert ss.info(store).scattered == 0
    assert "4 sequences, 46 timesteps" in str(found)
    said = json.loads(json.dumps(found.as_dict()))
    assert (said["fields"][0]["shape"], said["versions"]) == ([2], [1, 2, 3, 4])


def test_there_must_be_a_store(tmp_path, store):
    for ask in (ss.log, ss.info):
        with pytest.raises(ss.StoreError, match="is not a store"):
            ask(tmp_path / "no.zarr")
    with pytest.raises(ss.StoreError, match="has versions 1 to 4, got 5"):
        ss.info(store, 5)


def test_a_store_of_empty_sequences_has_figures(address):
    with ss.create(address, FIELDS) as writer:
        writer.write("a", x=np.zeros((0, 2), np.float32), y=np.zeros(0, np.int64))
    found = ss.info(address)
    assert (found.timesteps, found.ratio, found.shards) == (0, 0.0, 0)
    assert str(found)
    assert ss.open(address).verify().ok
    assert ss.compact(address).version is None
