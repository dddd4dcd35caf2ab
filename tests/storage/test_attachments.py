"""What is said of a version beside its contents: written with it, checked, carried on, never part of its contents."""

import numpy as np
import pytest

import streamseq as ss
from streamseq.storage.places.place import place_of
from streamseq.storage.versions.attach import attach


@pytest.fixture(params=["zarr", "arrow"])
def uri(request, tmp_path):
    uri = tmp_path / f"store.{request.param}"
    with ss.create(uri, {"x": ss.Field("int32")}, chunk_bytes=64, shard_bytes=256, statistics=False) as writer:
        for name in "abc":
            writer.write(name, x=np.arange(50, dtype=np.int32))
    return uri


def test_contents_and_fingerprint_stay(uri):
    before = ss.open(uri)
    assert attach(place_of(uri), 1, {"boundaries.days": b"\x00\x01", "statistics": b""}) == 2
    store = ss.open(uri)
    assert (store.version, store.fingerprint, store.ids) == (2, before.fingerprint, before.ids)
    assert store.attachment("boundaries.days") == b"\x00\x01"
    assert store.attachment("statistics") == b""
    assert store.attachment("nothing") is None
    assert before.attachment("statistics") is None
    assert store.verify().ok
    assert ss.clean(uri).removed == ()
    assert ss.log(uri)[-1].operation == "attach"


def test_one_is_replaced_or_taken_away_and_the_others_stay(uri):
    attach(place_of(uri), 1, {"one": b"1", "other": b"2"})
    attach(place_of(uri), 2, {"one": None, "other": b"3", "third": b"4"})
    store = ss.open(uri)
    assert [store.attachment(name) for name in ("one", "other", "third")] == [None, b"3", b"4"]
    assert ss.open(uri, version=2).attachment("one") == b"1"


def test_compaction_keeps_them(uri):
    with ss.append(uri) as writer:
        writer.append("a", x=np.arange(3, dtype=np.int32))
    attach(place_of(uri), 2, {"one": b"1"})
    assert ss.compact(uri).version == 4
    assert ss.open(uri).attachment("one") == b"1"


def test_only_the_newest_version_is_spoken_of(uri):
    attach(place_of(uri), 1, {"one": b"1"})
    with pytest.raises(ss.VersionConflictError, match="has one after 1"):
        attach(place_of(uri), 1, {"two": b"2"})
    # What the loser wrote is not left.
    assert ss.clean(uri).removed == ()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "1"])
def test_names_are_plain(uri, name):
    with pytest.raises(ValueError, match="is not of the form"):
        attach(place_of(uri), 1, {name: b"1"})
    assert ss.open(uri).version == 1
    assert ss.clean(uri).removed == ()


@pytest.mark.parametrize("how", ["changed", "gone", "longer"])
def test_a_broken_one_is_found_and_repaired(uri, how):
    attach(place_of(uri), 1, {"one": b"1234", "other": b"5"})
    (file,) = [path for path in (uri / "tables").iterdir() if path.name.endswith("attachment-0")]
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(b"1239" if how == "changed" else b"12345")
    store = ss.open(uri)
    with pytest.raises(ss.CorruptionError, match=r"one of .* (is missing|fails its checksum)"):
        store.attachment("one")
    report = store.verify()
    assert [problem.part for problem in report.problems] == ["attachment"]
    assert ss.repair(uri).version == 3
    repaired = ss.open(uri)
    assert repaired.verify().ok
    assert (repaired.attachment("one"), repaired.attachment("other")) == (None, b"5")
    assert repaired.read("b")["x"].tolist() == list(range(50))
