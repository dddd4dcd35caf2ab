"""A version is on the disk before it is acknowledged, and everything it names is there before it is."""

import os
from pathlib import Path

import pytest

import streamseq as ss

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64")}


@pytest.fixture
def events(monkeypatch):
    """What is made durable (by inode, which survives a rename), moved and linked, in order."""
    events = []

    def record(name, real, describe):
        def recorded(*args):
            events.append((name, describe(*args)))
            return real(*args)

        monkeypatch.setattr(os, name, recorded)

    record("fsync", lambda descriptor: None, lambda descriptor: os.fstat(descriptor).st_ino)
    record("rename", os.rename, lambda source, target: Path(target))
    record("link", os.link, lambda source, target: Path(target))
    return events


def test_everything_is_on_the_disk_before_its_name_and_the_version_last(address, make, events):
    with ss.create(address, FIELDS, chunk_bytes=80, shard_bytes=400) as writer:
        for number in range(3):
            writer.write(f"s{number}", **make(FIELDS, 40 * number, 40))
    version = address / "versions" / "00000001.json"
    commit = events.index(("link", version))
    synced = {inode for name, inode in events[:commit] if name == "fsync"}
    paths = [path for path in address.rglob("*") if path.name != "versions" and path != version]
    assert len(paths) > 20
    for path in [version, *paths]:
        assert path.stat().st_ino in synced, path
    # The folders that got a new name by a rename or link were synced after it.
    for folder in (address / "shards", address / "tables"):
        moved = max(i for i, (name, path) in enumerate(events) if name == "rename" and path.parent == folder)
        assert ("fsync", folder.stat().st_ino) in events[moved:commit]
    assert ("fsync", version.parent.stat().st_ino) in events[commit:]
    # The folder of the store and the one it is in, for the names that were made in them.
    assert {address.stat().st_ino, address.parent.stat().st_ino} <= synced


def test_shards_are_on_the_disk_before_they_have_their_names(address, make, events):
    with ss.create(address, FIELDS, shard_bytes=400) as writer:
        writer.write("a", **make(FIELDS, 0, 100))
    for number, (name, path) in enumerate(events):
        if name == "rename" and path.parent.name == "shards":
            before = {inode for name, inode in events[:number] if name == "fsync"}
            assert all(below.stat().st_ino in before for below in [path, *path.rglob("*")])
