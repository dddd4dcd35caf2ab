"""Compaction makes full shards and whole sequences of many small appends, and changes nothing that can be read."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.storage.upkeep import compact as compact_module
from streamseq.storage.upkeep import rewrite
from streamseq.storage.upkeep.rewrite import pieces_of

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool")}
# 20 timesteps a shard, 5 a chunk of y.
CUT = {"chunk_bytes": 40, "shard_bytes": 340}


class Filled:
    """A store, and what is in it."""

    def __init__(self, address, make):
        self.address = address
        self.contents = {}
        self._make = make
        self._written = 0

    def commit(self, pieces):
        with ss.append(self.address) if self.contents else ss.create(self.address, FIELDS, **CUT) as writer:
            for id, steps in pieces:
                self.write(writer, id, steps)
        return self

    def write(self, writer, id, steps):
        arrays = self._make(FIELDS, self._written, steps)
        self._written += steps
        writer.append(id, attrs={"id": id}, **arrays)
        before = self.contents.get(id, self._make(FIELDS, 0, 0))
        self.contents[id] = {name: np.concatenate([before[name], arrays[name]]) for name in FIELDS}

    def check(self, same, version=None):
        store = ss.open(self.address, version)
        assert store.ids.to_pylist() == list(self.contents)
        for id, arrays in self.contents.items():
            same(store.read(id), arrays)
            assert store.attrs(id) == {"id": id}
        assert store.verify().ok
        return store


@pytest.fixture
def filled(address, make):
    return Filled(address, make)


def shard_ids(store):
    return [shard.id for shard in ss.open(store).snapshot.shards]


def test_many_small_appends_become_full_shards_and_whole_sequences(filled, same):
    for _ in range(6):
        filled.commit([("a", 7), ("b", 3)])
    filled.commit([("c", 1)])
    before = ss.open(filled.address)
    report = ss.compact(filled.address)
    store = filled.check(same)
    assert (report.version, report.base, store.version) == (8, 7, 8)
    assert (report.shards_before, report.shards, report.kept) == (7, 4, 0)
    assert (report.timesteps, report.scattered) == (61, 2)
    assert [shard.num_timesteps for shard in store.snapshot.shards] == [20, 20, 20, 1]
    assert len(pieces_of(store)) == len(store)
    assert store.fingerprint == before.fingerprint
    assert len(store.snapshot.tables) == 1
    assert (store.snapshot.operation, before.snapshot.operation) == ("compact", "write")


def test_older_versions_stay_as_they_are(filled, same, make):
    filled.commit([("a", 7)])
    old = dict(filled.contents)
    filled.commit([("a", 5), ("b", 3)])
    ss.compact(filled.address)
    filled.check(same)
    store = ss.open(filled.address, 1)
    assert store.ids.to_pylist() == ["a"]
    same(store.read("a"), old["a"])
    assert ss.open(filled.address).versions == [1, 2, 3]
    assert ss.clean(filled.address).removed == ()


def test_full_shards_whose_rows_stay_are_kept_as_they_are(filled, same):
    filled.commit([("a", 45), ("b", 20)])
    for number in range(4):
        filled.commit([(f"c{number}", 4)])
    before = shard_ids(filled.address)
    report = ss.compact(filled.address)
    filled.check(same)
    after = shard_ids(filled.address)
    # The fourth is short, and goes into one shard with those that were added.
    assert after[:3] == before[:3]
    assert not set(after[3:]) & set(before)
    assert (report.shards_before, report.shards, report.kept, report.timesteps) == (8, 5, 3, 21)


def test_shards_of_sequences_that_grew_are_written_anew_and_others_kept(filled, same):
    filled.commit([("a", 40), ("b", 40), ("c", 40)])
    filled.commit([("b", 20)])
    before = shard_ids(filled.address)
    report = ss.compact(filled.address)
    filled.check(same)
    # What "b" got is a whole shard that only moves.
    assert shard_ids(filled.address) == [before[index] for index in (0, 1, 2, 3, 6, 4, 5)]
    assert (report.scattered, report.timesteps, report.kept) == (1, 0, 7)


def test_where_there_is_nothing_to_gain_no_version_is_made(filled, same):
    filled.commit([("a", 45), ("b", 20)])
    before = sorted(str(path) for path in filled.address.rglob("*"))
    report = ss.compact(filled.address)
    assert report.version is None
    assert "nothing to gain" in str(report)
    assert sorted(str(path) for path in filled.address.rglob("*")) == before
    filled.commit([("c", 17)])
    assert ss.compact(filled.address).version is None
    filled.commit([("d", 1)])
    assert ss.compact(filled.address).version == 4
    assert ss.compact(filled.address).version is None


def sizes(store):
    return [shard.num_timesteps for shard in ss.open(store).snapshot.shards]


def test_shards_that_are_nearly_empty_are_filled_up_from_full_ones_behind_them_where_a_few_do(filled, same):
    for number in range(4):
        filled.commit([(f"s{number}", 23)])
    assert sizes(filled.address) == [20, 3] * 4
    ss.compact(filled.address)
    filled.check(same)
    assert sizes(filled.address) == [20, 20, 20, 20, 12]


def test_a_large_store_is_not_written_anew_for_one_short_shard(filled, same):
    filled.commit([("a", 23)])
    filled.commit([("b", 200)])
    assert ss.compact(filled.address).version is None
    filled.commit([("c", 1)])
    filled.commit([("d", 1)])
    report = ss.compact(filled.address)
    assert (report.timesteps, report.shards) == (2, 13)
    filled.check(same)


def test_many_tables_become_one_where_shards_are_full(filled, same):
    for number in range(10):
        filled.commit([(f"s{number}", 20)])
    before = shard_ids(filled.address)
    assert ss.compact(filled.address).version == 11
    assert shard_ids(filled.address) == before
    assert len(filled.check(same).snapshot.tables) == 1


APPENDS = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 33)), min_size=1, max_size=4), max_size=7
)


@pytest.mark.parametrize("batch", [1, 150, 1 << 20])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(appends=APPENDS)
def test_any_store_compacted_reads_the_same_and_has_nothing_more_to_gain(
    tmp_path_factory, backend, make, same, batch, appends
):
    filled = Filled(tmp_path_factory.mktemp("any") / f"s.{backend}", make)
    filled.commit([("z", 9)])
    for pieces in appends:
        filled.commit(pieces)
    fingerprint = ss.open(filled.address).fingerprint
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewrite, "BATCH_BYTES", batch)
        report = ss.compact(filled.address)
    store = filled.check(same)
    assert store.fingerprint == fingerprint
    held = np.count_nonzero(store.lengths)
    assert len(pieces_of(store)) == held
    assert report.shards == len(store.snapshot.shards) <= report.shards_before + (report.scattered > 0)
    again = ss.compact(filled.address)
    assert (again.version, again.timesteps, again.kept) == (None, 0, report.shards)
    filled.commit([("z", 3), ("new", 5)])
    filled.check(same)


def after(monkeypatch, name, act):
    """Do something once a compaction has written its shards."""
    real = getattr(compact_module, name)

    def acting(*args):
        monkeypatch.setattr(compact_module, name, real)
        done = real(*args)
        act()
        return done

    monkeypatch.setattr(compact_module, name, acting)


def test_what_others_append_meanwhile_stays_behind_it(filled, same, monkeypatch):
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])

    def others():
        filled.commit([("a", 2), ("new", 4)])
        filled.commit([("new", 1), ("b", 25)])

    after(monkeypatch, "carry_out", others)
    report = ss.compact(filled.address)
    assert (report.base, report.version) == (4, 7)
    store = filled.check(same)
    assert [shard.num_timesteps for shard in store.snapshot.shards] == [20, 20, 6, 20, 6]
    assert store.fingerprint == ss.open(filled.address, 6).fingerprint
    assert ss.clean(filled.address).removed == ()
    ss.compact(filled.address)
    filled.check(same)


def test_a_writer_that_began_before_a_compaction_commits_behind_it(filled, same):
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])
    with ss.append(filled.address) as writer:
        filled.write(writer, "a", 6)
        assert ss.compact(filled.address).version == 5
        filled.write(writer, "new", 3)
    assert ss.open(filled.address).version == 6
    filled.check(same)


def test_two_compactions_at_once_one_wins(filled, same, monkeypatch):
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])
    after(monkeypatch, "carry_out", lambda: ss.compact(filled.address))
    with pytest.raises(ss.VersionConflictError, match="compacted or repaired meanwhile, by version 5"):
        ss.compact(filled.address)
    filled.check(same)
    assert ss.open(filled.address).version == 5
    assert ss.clean(filled.address).removed == ()


def test_clean_beside_a_compaction_takes_nothing_from_it(filled, same, monkeypatch):
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])
    removed = []
    after(monkeypatch, "carry_out", lambda: removed.extend(ss.clean(filled.address).removed))
    assert ss.compact(filled.address).version == 5
    assert removed == []
    filled.check(same)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_compaction_that_fails_leaves_nothing(filled, same, error):
    for _ in range(4):
        filled.commit([("a", 17), ("b", 3)])
    before = sorted(str(path) for path in filled.address.rglob("*"))

    def stop(done, total):
        if done:
            raise error("enough")

    with pytest.raises(error):
        ss.compact(filled.address, progress=stop)
    assert sorted(str(path) for path in filled.address.rglob("*")) == before
    filled.check(same)


def test_bad_bytes_are_not_compacted(filled):
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])
    store = ss.open(filled.address)
    shard = filled.address / "shards" / store.snapshot.shards[1].id
    path = shard / "y.arrow" if filled.address.suffix == ".arrow" else shard / "y/c/0"
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ss.CorruptionError):
        ss.compact(filled.address)
    assert ss.open(filled.address).version == 4
    assert ss.clean(filled.address).removed == ()


def test_progress_counts_what_is_written(filled, monkeypatch):
    monkeypatch.setattr(rewrite, "BATCH_BYTES", 100)
    for _ in range(4):
        filled.commit([("a", 7), ("b", 3)])
    calls = []
    report = ss.compact(filled.address, progress=lambda *call: calls.append(call))
    assert calls[0] == (0, 40)
    assert calls[-1] == (40, 40)
    assert len(calls) > 5
    assert report.timesteps == 40


def test_a_chunk_is_decoded_once_for_each_batch(filled, monkeypatch):
    """Of many sequences that all lie in the same chunks."""
    names = [f"s{number}" for number in range(10)]
    for _ in range(5):
        filled.commit([(name, 2) for name in names])
    counts = []
    close = rewrite.DiskReader.close

    def counted(reader):
        close(reader)
        counts.append(reader.counts.decoded)

    monkeypatch.setattr(rewrite.DiskReader, "close", counted)
    ss.compact(filled.address)
    chunks = sum(-(-20 // steps) for steps in ss.open(filled.address).chunk_timesteps.values())
    assert sum(counts) == 5 * chunks


def test_memory_does_not_grow_with_the_store(address, monkeypatch):
    """Numpy tells tracemalloc of its arrays."""
    monkeypatch.setattr(rewrite, "BATCH_BYTES", 1 << 19)
    fields = {"x": ss.Field("float64", codec="lz4"), "y": ss.Field("int64", codec="zstd")}
    for number in range(12):
        numbers = np.arange(number << 16, (number + 1) << 16)
        cut = {"chunk_bytes": 1 << 14, "shard_bytes": 3 << 20}
        with ss.append(address) if number else ss.create(address, fields, **cut) as writer:
            writer.append("a", x=numbers.astype(np.float64)[:30_000], y=numbers[:30_000])
            writer.append(f"s{number}", x=numbers.astype(np.float64)[30_000:], y=numbers[30_000:])
    tracemalloc.start()
    try:
        report = ss.compact(address)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.timesteps * 16 == 12 << 20
    assert peak < 3 << 20
    assert ss.open(address).verify().ok


def test_there_must_be_a_store(tmp_path):
    with pytest.raises(ss.StoreError, match="is not a store"):
        ss.compact(tmp_path / "no.zarr")
    assert list(tmp_path.iterdir()) == []
