"""Looking after a store in object storage: as on a disk, where claims go by processes and ages."""

import json
import os
import uuid

import fsspec
import numpy as np
import pytest

import streamseq as ss
from streamseq.storage.places.place import place_of
from streamseq.storage.shards.shard_writer import ShardWriter
from streamseq.storage.upkeep.verify import verify
from streamseq.storage.versions.claim import CLAIM_FILE, Claim

FIELDS = {"x": ss.Field("uint8", codec="none")}
CUT = {"chunk_bytes": 25, "shard_bytes": 100}


@pytest.fixture
def address(backend, tmp_path, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_CACHE", str(tmp_path / "cache"))
    root = f"memory://{uuid.uuid4().hex}"
    yield f"{root}/s.{backend}"
    fsspec.filesystem("memory").rm(root, recursive=True)


@pytest.fixture
def store(address):
    for number in range(4):
        with ss.append(address) if number else ss.create(address, FIELDS, **CUT) as writer:
            writer.append("a", x=np.arange(10 * number, 10 * number + 10, dtype=np.uint8))
            writer.write(f"b{number}", x=np.full(20, number, np.uint8))
    return address


def files(address):
    return sorted(fsspec.filesystem("memory").find(address))


def check(address):
    store = ss.open(address)
    assert store.read("a")["x"].tolist() == list(range(40))
    for number in range(4):
        assert store.read(f"b{number}")["x"].tolist() == [number] * 20
    assert store.verify().ok


def test_it_is_well_and_compacted(store):
    before = ss.open(store).fingerprint
    check(store)
    assert ss.compact(store).version == 5
    check(store)
    assert ss.open(store).fingerprint == before
    assert [entry.operation for entry in ss.log(store)] == ["write"] * 4 + ["compact"]
    assert ss.info(store).timesteps == 120
    assert ss.clean(store).removed == ()


def test_verify_looks_at_the_store_and_not_at_copies_on_this_machine(store):
    check(store)
    memory = fsspec.filesystem("memory")
    shard = ss.open(store).snapshot.shards[1].id
    (path,) = [path for path in files(store) if shard in path and path.endswith(("/0", ".arrow"))]
    content = memory.cat_file(path)
    at = content.rindex(bytes([1] * 5))
    memory.pipe_file(path, content[:at] + b"\x41" + content[at + 1 :])
    report = verify(store)
    assert not report.ok
    assert {span.id for span in report.spans} >= {"b1"}


def test_leftovers_are_removed_and_those_of_live_writers_are_not(store):
    place = place_of(store)
    before = files(store)
    layout = ss.open(store).layout
    claim = Claim(place, "a writer")
    claim.hold()
    with ShardWriter(place, layout) as shards:
        claim.note(shards.writer_id)
        shards.append("late", {"x": np.zeros(150, np.uint8)})
        shards.finish()
    report = ss.clean(store)
    assert report.removed == ()
    assert f"process {os.getpid()}" in report.writers[0]
    memory = fsspec.filesystem("memory")
    path = f"{store}/staging/{claim.folder}/{CLAIM_FILE}"
    said = json.loads(memory.cat_file(path))
    # No process has this number.
    memory.pipe_file(path, json.dumps(said | {"pid": 2**22 + 1}).encode())
    report = ss.clean(store)
    assert {each.kind for each in report.removed} == {"staging", "shard"}
    assert files(store) == before
    check(store)


def test_a_claim_of_another_machine_shows_that_it_lives(store, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("streamseq.storage.versions.claim.time.monotonic", lambda: now[0])
    claim = Claim(place_of(store), "a writer")
    with claim:
        for _ in range(3):
            now[0] += 3600
            claim.refresh()
            assert len([path for path in files(store) if "/alive-" in path]) == 1
    assert not [path for path in files(store) if "/staging/" in path and not path.endswith("zarr.json")]
