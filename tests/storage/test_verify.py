"""verify finds whatever is not as it was written, names what it hits, and goes on."""

import json
import shutil
import threading
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest

import streamseq as ss
from streamseq.storage.places.place import place_of
from streamseq.storage.upkeep.findings import Span
from streamseq.storage.upkeep.verify import verify
from streamseq.storage.versions.new_version import Added, commit_version
from streamseq.storage.versions.version import _document_crc, to_hex

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool")}


@pytest.fixture
def store(address, make):
    """Three sequences in shards of 100 timesteps, "a" in two pieces."""
    with ss.create(address, FIELDS, chunk_bytes=200, shard_bytes=1700) as writer:
        writer.write("a", attrs={"n": 1}, **make(FIELDS, 0, 130))
        writer.append("b", **make(FIELDS, 130, 20))
    with ss.append(address) as writer:
        writer.append("a", **make(FIELDS, 150, 60))
        writer.write("c", **make(FIELDS, 210, 60))
    return address


def shard_folder(store, number):
    return store / "shards" / ss.open(store).snapshot.shards[number].id


def data_file(store, number, name):
    folder = shard_folder(store, number)
    if store.suffix == ".arrow":
        return folder / f"{name}.arrow"
    return folder.joinpath(name, "c", *["0"] * (1 + len(FIELDS[name].shape)))


def chunk_at(store, number, name, chunk):
    """Where a chunk begins in its file."""
    from streamseq.storage.shards.opening import open_chunks

    version = ss.open(store).snapshot
    count = -(-version.shards[number].num_timesteps // version.layout.chunk_timesteps[name])
    return open_chunks(ss.open(store).place, version, number, name, np.full(count, -1)).extent(chunk)


def flip(store, number, name, chunk):
    extent = chunk_at(store, number, name, chunk)
    path = data_file(store, number, name)
    content = bytearray(path.read_bytes())
    content[extent.offset + extent.num_bytes // 2] ^= 16
    path.write_bytes(content)


def spans(problem):
    return [(span.id, span.start, span.stop) for span in problem.spans]


def test_an_intact_store_is_well_and_all_of_it_was_read(store):
    report = ss.open(store).verify()
    assert report.ok
    assert report.problems == ()
    assert report.spans == []
    version = ss.open(store).snapshot
    chunks = sum(
        -(-shard.num_timesteps // steps)
        for shard in version.shards
        for steps in version.layout.chunk_timesteps.values()
    )
    stored = sum(stored.num_bytes for shard in version.shards for stored in shard.fields.values())
    assert (report.versions, report.shards, report.chunks, report.bytes) == ((2,), 4, chunks, stored)
    assert (report.sequences, report.timesteps) == (3, 270)


def test_a_store_in_memory_is_well_at_once():
    report = ss.from_arrays({"a": {"x": [1.0, 2.0]}}).verify()
    assert (report.ok, report.sequences, report.timesteps) == (True, 1, 2)


def test_a_flipped_bit_is_found_with_the_sequences_and_timesteps_it_hits(store):
    steps = ss.open(store).chunk_timesteps["y"]
    assert steps == 25
    flip(store, 1, "y", 1)
    report = ss.open(store).verify()
    (problem,) = report.problems
    version = ss.open(store).snapshot
    assert (problem.store, problem.versions, problem.part) == (str(store), (2,), "shard")
    assert (problem.shard, problem.field, problem.chunk) == (version.shards[1].id, "y", 1)
    assert "fails its checksum" in problem.what
    # Rows 125 to 150: the end of the first piece of "a", and "b".
    assert spans(problem) == [("a", 125, 130), ("b", 0, 20)]
    with pytest.raises(ss.CorruptionError):
        ss.open(store).read("a", 125, 126)
    ss.open(store).read("a", 0, 125)


def test_timesteps_of_later_pieces_count_from_the_start_of_the_sequence(store):
    flip(store, 2, "x", 0)
    (problem,) = ss.open(store).verify().problems
    assert ss.open(store).chunk_timesteps["x"] == 25
    assert spans(problem) == [("a", 130, 155)]


def test_the_last_chunk_of_a_shard_hits_nothing_of_the_next_one(store):
    assert ss.open(store).chunk_timesteps["b"] == 100
    flip(store, 1, "b", 0)
    (problem,) = ss.open(store).verify().problems
    assert spans(problem) == [("a", 100, 130), ("b", 0, 20)]


def test_values_that_are_not_those_of_the_version_are_found(store):
    """All chunks and their checksums are intact, and not what the version says the field is."""
    path = store / "versions/00000002.json"
    document = json.loads(path.read_bytes())
    document["shards"][0]["fields"]["y"]["crc32c"] = "01234567"
    document.pop("crc32c")
    document["crc32c"] = to_hex(_document_crc(document))
    path.write_text(json.dumps(document))
    (problem,) = ss.open(store).verify().problems
    assert (problem.field, problem.chunk, spans(problem)) == ("y", None, [("a", 0, 100)])
    assert "and was written with 01234567" in problem.what


def test_it_goes_on_after_a_problem_and_finds_all_of_them(store):
    flip(store, 0, "x", 0)
    flip(store, 0, "x", 3)
    flip(store, 3, "y", 0)
    data_file(store, 2, "b").unlink()
    report = ss.open(store).verify(workers=3)
    version = ss.open(store).snapshot
    found = {(version.shards.index(shard_of(version, p.shard)), p.field, p.chunk) for p in report.problems}
    assert found == {(0, "x", 0), (0, "x", 3), (3, "y", 0), (2, "b", None)}
    hit = {(span.id, span.start, span.stop) for span in report.spans}
    assert hit == {("a", 0, 25), ("a", 75, 100), ("a", 130, 190), ("c", 0, 60)}


def shard_of(version, id):
    return next(shard for shard in version.shards if shard.id == id)


def test_a_missing_shard_hits_all_that_lies_in_it(store):
    shutil.rmtree(shard_folder(store, 2))
    report = ss.open(store).verify()
    assert {problem.field for problem in report.problems} == set(FIELDS)
    assert all(spans(problem) == [("a", 130, 190), ("c", 0, 40)] for problem in report.problems)


def test_a_chunk_of_another_place_is_found(store):
    """Whole files that are intact each, and swapped."""
    first, second = data_file(store, 0, "y"), data_file(store, 2, "y")
    contents = first.read_bytes(), second.read_bytes()
    assert len(contents[0]) == len(contents[1])
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    problems = ss.open(store).verify().problems
    assert {problem.field for problem in problems} == {"y"}
    assert {problem.shard for problem in problems} == {ss.open(store).snapshot.shards[n].id for n in (0, 2)}


def test_a_file_that_nobody_wrote_is_a_problem_that_hits_nothing(store):
    (shard_folder(store, 0) / "notes.txt").write_text("x")
    report = ss.open(store).verify()
    (problem,) = report.problems
    assert "notes.txt" in problem.what
    assert problem.spans == ()
    assert not report.ok


@pytest.mark.parametrize("kind", ["sequences", "pieces", "index"])
def test_a_broken_table_is_a_problem_and_the_shards_are_read_all_the_same(store, kind):
    version = ss.open(store).snapshot
    path = store / "tables" / getattr(version.tables[0], kind).name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    flip(store, 0, "y", 0)
    report = ss.open(store).verify()
    table, shard = report.problems
    assert (table.part, shard.part) == ("table", "shard")
    assert path.name in table.what
    hit = {"sequences": [(None, 0, 0, 25)], "pieces": [], "index": [("a", 0, 0, 25)]}[kind]
    assert [(span.id, span.sequence, span.start, span.stop) for span in shard.spans] == hit
    assert report.shards == 4


WRONG = {
    "ids more than once, such as 'a'": ([(0, 0, 100), (1, 100, 50), (2, 150, 120)], ["a", "b", "a"], ["{}"] * 3),
    "an empty id": ([(0, 0, 270)], [""], ["{}"]),
    "attributes of 'a' that are not a JSON object": ([(0, 0, 270)], ["a"], ["[1]"]),
    "not each of 270 rows in one piece": ([(0, 0, 100), (0, 90, 170)], ["a"], ["{}"]),
    "a piece of none of 1 sequences": ([(1, 0, 270)], ["a"], ["{}"]),
    "a piece that is not in the 270 rows": ([(0, 1, 270)], ["a"], ["{}"]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_tables_that_contradict_each_other_are_a_problem(store, wrong):
    pieces, ids, attrs = WRONG[wrong]
    last = ss.open(store).snapshot
    added = Added(
        ids=pa.array(ids, pa.large_string()),
        attrs=pa.array(attrs, pa.large_string()),
        pieces=np.array(pieces, np.int64),
    )
    more = {"fingerprint": last.fingerprint, "operation": "write", "job": "a test"}
    assert commit_version(place_of(store), 3, last.layout, last.shards, (), added, **more)
    (problem,) = ss.open(store).verify().problems
    assert (problem.part, problem.versions) == ("table", (3,))
    assert wrong in problem.what


def test_an_index_that_does_not_find_an_id_is_a_problem(store, monkeypatch):
    monkeypatch.setattr("streamseq.storage.versions.table.hash_of", lambda id: 7)
    monkeypatch.setattr("streamseq.storage.versions.table._hashes", lambda ids: np.full(len(ids), 7, np.uint32))
    with ss.append(store) as writer:
        writer.write("d", x=np.zeros((1, 2), np.float32), y=np.zeros(1, np.int64), b=np.zeros(1, bool))
    monkeypatch.undo()
    (problem,) = ss.open(store).verify().problems
    assert "an index that does not find the ids of table 2" in problem.what


def test_a_broken_version_file_is_a_problem_and_not_the_end(store):
    path = store / "versions" / "00000002.json"
    path.write_bytes(path.read_bytes().replace(b"0", b"1", 1))
    report = verify(store)
    (problem,) = report.problems
    assert (problem.part, problem.versions) == ("version", (2,))
    report = verify(store, all_versions=True)
    assert [problem.part for problem in report.problems] == ["version"]
    assert (report.versions, report.shards, report.sequences) == ((1, 2), 2, 2)


def test_all_versions_are_checked_and_what_they_share_is_read_once(store):
    flip(store, 0, "x", 0)
    report = verify(store, all_versions=True)
    (problem,) = report.problems
    assert (report.versions, report.shards, problem.versions) == ((1, 2), 4, (1, 2))
    assert report.bytes == ss.open(store).verify().bytes
    flip(store, 2, "y", 1)
    assert verify(store, 1).versions == (1,)
    assert len(verify(store, 1).problems) == 1
    assert len(verify(store, 2).problems) == 2


def test_progress_goes_from_nothing_to_everything_whatever_is_broken(store):
    flip(store, 0, "x", 0)
    data_file(store, 2, "b").unlink()
    calls = []
    report = ss.open(store).verify(progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (0, report.bytes)
    assert calls[-1] == (report.bytes, report.bytes)
    assert calls == sorted(calls)


def test_an_interrupt_ends_the_threads(store):
    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.open(store).verify(workers=2, progress=stop)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("streamseq-verify")]


def test_memory_does_not_grow_with_the_store(address):
    """Numpy tells tracemalloc of its arrays."""
    fields = {"x": ss.Field("float64", codec="lz4"), "y": ss.Field("int64", codec="zstd")}
    with ss.create(address, fields, chunk_bytes=1 << 14, shard_bytes=1 << 21) as writer:
        for number in range(8):
            numbers = np.arange(number << 17, (number + 1) << 17)
            writer.write(f"s{number}", x=numbers.astype(np.float64), y=numbers)
    store = ss.open(address)
    store.verify(workers=2)
    tracemalloc.start()
    try:
        assert store.verify(workers=2).ok
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert store.num_timesteps * 16 == 16 << 20
    assert peak < 2 << 20


def test_wrong_use(store):
    with pytest.raises(ValueError, match="at least 1 worker"):
        verify(store, workers=0)
    with pytest.raises(ValueError, match="one version is checked or all"):
        verify(store, 1, all_versions=True)
    with pytest.raises(ss.StoreError, match="has versions 1 to 2, got 3"):
        verify(store, 3)
    with pytest.raises(ss.StoreError, match="is not a store"):
        verify(store.parent / "no.zarr")


def test_the_report_says_all_of_it_as_text_and_as_json(store):
    flip(store, 1, "y", 1)
    report = ss.open(store).verify()
    text = str(report)
    shard = ss.open(store).snapshot.shards[1].id
    assert f"store {store}, shard {shard}, field 'y', chunk 1: fails its checksum" in text
    assert "hits 'a' [125, 130), 'b' [0, 20)" in text
    assert "2 sequences are hit, 25 timesteps" in text
    assert "streamseq repair" in text
    said = json.loads(json.dumps(report.as_dict()))
    assert said["ok"] is False
    assert said["problems"][0]["spans"][0] == {"id": "a", "sequence": 0, "start": 125, "stop": 130}
    assert Span(**said["spans"][1]) == report.spans[1]
