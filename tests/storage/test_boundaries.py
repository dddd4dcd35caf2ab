"""Stored boundaries: what is stored is what was found, with the timesteps that it covers; broken bytes are refused."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.core.boundaries import Boundaries
from streamseq.core.errors import PlanError
from streamseq.storage.boundaries.kept import format_boundaries, parse_boundaries
from streamseq.storage.boundaries.mark import mark_all
from streamseq.storage.places.place import place_of
from streamseq.storage.versions.attach import attach

DAY = 86_400
DAYS = ss.splits.Calendar("time", every="day")
GAPS = ss.splits.Gap("time", longer_than=100)


def times(*days):
    return np.array([day * DAY + 7 for day in days], np.int64)


@pytest.fixture(params=["zarr", "arrow"])
def uri(request, tmp_path):
    uri = tmp_path / f"store.{request.param}"
    with ss.create(uri, {"time": ss.Field("int64"), "x": ss.Field("uint8")}, chunk_bytes=64) as writer:
        writer.write("a", time=times(0, 0, 1, 1, 3), x=np.zeros(5, np.uint8))
        writer.write("empty", time=times(), x=np.zeros(0, np.uint8))
        writer.write("b", time=times(5, 5), x=np.array([0, 1], np.uint8))
    return uri


@pytest.fixture
def fields_read(monkeypatch):
    """The fields that stores on disk were asked to read."""
    from streamseq.storage.disk_store import DiskStore

    asked, reader = [], DiskStore.reader
    monkeypatch.setattr(
        DiskStore, "reader", lambda self, names, *rest: asked.append(list(names)) or reader(self, names, *rest)
    )
    return asked


def test_they_are_there_by_id_and_say_where_they_are_from(uri):
    before = ss.open(uri)
    assert ss.mark(uri, "days", DAYS) == 2
    store = ss.open(uri)
    assert (store.fingerprint, store.boundary_names, before.boundary_names) == (before.fingerprint, ["days"], [])
    found = store.boundaries("days")
    assert [found[name].positions.tolist() for name in ("a", "empty", "b")] == [[2, 4], [], []]
    assert found[0].breaks.tolist() == [False, False]
    assert (len(found), found.version, found.lengths.tolist()) == (2, 1, [5, 0, 2])
    assert "every='day'" in found.rules[0]
    assert store.verify().ok
    assert ss.log(uri)[-1].operation == "attach"


def test_names_that_are_not_there_are_answered_by_those_that_are(uri):
    ss.mark(uri, "days", DAYS)
    ss.mark(uri, "gaps", GAPS)
    with pytest.raises(KeyError, match="no boundaries 'hours', it has 'days', 'gaps'"):
        ss.StreamDataset(ss.open(uri), 1, 4, split=ss.splits.Domain("hours"))
    with pytest.raises(KeyError, match="it has none"):
        ss.from_arrays({"a": {"x": [1]}}).boundaries("days")
    with pytest.raises(KeyError, match="'nobody'"):
        ss.open(uri).boundaries("days")["nobody"]


def test_a_stream_plans_without_reading_a_field(uri, fields_read):
    ss.mark(uri, "days", DAYS)
    assert fields_read == [["time"]]
    del fields_read[:]
    stream = ss.StreamDataset(ss.open(uri), 1, 4, fields=["x"], split=ss.splits.Domain("days"))
    assert stream.plan.boundaries.position.tolist() == [2, 4]
    assert len(stream) == 4
    assert fields_read == []


def test_the_same_again_makes_no_version_and_other_ones_replace_them(uri, fields_read):
    ss.mark(uri, "days", DAYS)
    del fields_read[:]
    assert ss.mark(uri, "days", DAYS) == 2
    assert fields_read == []  # the same rule over the same timesteps finds the same
    by_function = [lambda arrays: [1] if len(arrays["x"]) > 2 else []]
    assert ss.mark(uri, "days", by_function) == 3
    assert ss.mark(uri, "days", by_function) == 3
    assert ss.open(uri).boundaries("days")["a"].positions.tolist() == [1]
    assert ss.open(uri, version=2).boundaries("days")["a"].positions.tolist() == [2, 4]
    assert ss.mark(uri, "days", {"a": [1]}) == 4  # another rule, though it says the same
    assert ss.mark(uri, "days", {"a": [1]}) == 4
    assert ss.mark(uri, "days", {"a": [3]}) == 5


def test_several_are_one_version(uri):
    assert mark_all(place_of(uri), {"days": DAYS, "gaps": [GAPS, {"b": [1]}]}) == 2
    store = ss.open(uri)
    assert store.boundary_names == ["days", "gaps"]
    assert (store.boundaries("gaps")["a"].breaks.tolist(), store.boundaries("gaps")["b"].breaks.tolist()) == (
        [True, True],
        [False],
    )
    assert mark_all(place_of(uri), {"days": DAYS}) == 2
    assert ss.info(uri).as_dict()["boundaries"] == ["days", "gaps"]
    assert str(ss.info(uri)).endswith("stored boundaries: days, gaps")
    assert "boundaries" not in str(ss.info(uri, version=1))


def test_stored_ones_and_rules_together(uri):
    ss.mark(uri, "days", DAYS)
    mixed = ["days", ss.splits.At({"a": [3]}, reset=True)]
    stream = ss.StreamDataset(ss.open(uri), 1, 4, split=ss.splits.Domain(mixed))
    assert stream.plan.boundaries.position.tolist() == [2, 3, 4]
    assert stream.plan.boundaries.breaks.tolist() == [False, True, False]
    # They can be stored under another name in turn.
    ss.mark(uri, "both", mixed)
    again = ss.StreamDataset(ss.open(uri), 1, 4, split=ss.splits.Domain("both"))
    assert again.plan.fingerprint == stream.plan.fingerprint


def test_what_is_appended_is_not_covered_and_what_was_there_still_is(uri):
    ss.mark(uri, "days", DAYS)
    with ss.append(uri) as writer:
        writer.append("a", time=times(4), x=np.zeros(1, np.uint8))
        writer.write("c", time=times(9), x=np.zeros(1, np.uint8))
    store, split = ss.open(uri), ss.splits.Domain("days")
    assert store.version == 3
    for sequences, covered, wanted in ((None, 5, 6), (["a"], 5, 6), (["c"], 0, 1), ([("a", 3, 6)], 5, 6)):
        with pytest.raises(
            PlanError,
            match=re.escape(f"found in version 1, this is version 3: they cover {covered} of {wanted} timesteps of")
            + r" '[ac]'; find them again with ss.mark\(uri, 'days', .*every='day'",
        ):
            ss.StreamDataset(store, 1, 4, split=split, sequences=sequences)
    with pytest.raises(KeyError, match="cover 0 of 1 timesteps of 'c'"):
        store.boundaries("days")["c"]
    stream = ss.StreamDataset(store, 1, 4, split=split, sequences=["b", ("a", 1, 5)])
    assert stream.plan.boundaries.position.tolist() == [2, 4]
    assert ss.mark(uri, "days", DAYS) == 4
    assert ss.StreamDataset(ss.open(uri), 1, 4, split=split).plan.boundaries.position.tolist() == [2, 4, 5]


def test_an_empty_sequence_that_was_added_is_covered_once_they_are_found_again(uri):
    ss.mark(uri, "days", DAYS)
    with ss.append(uri) as writer:
        writer.write("none", time=times(), x=np.zeros(0, np.uint8))
        writer.append("b", time=times(), x=np.zeros(0, np.uint8))
    assert ss.StreamDataset(ss.open(uri), 1, 4, split=ss.splits.Domain("days")).plan.boundaries.position.tolist() == [
        2,
        4,
    ]
    with pytest.raises(KeyError, match="cover 0 of 0 timesteps of 'none'"):
        ss.open(uri).boundaries("days")["none"]
    assert ss.mark(uri, "days", DAYS) == 4
    assert ss.open(uri).boundaries("days")["none"].positions.tolist() == []


def test_a_stream_that_moves_to_a_version_that_is_not_covered_stays(uri):
    ss.mark(uri, "days", DAYS)
    stream = ss.StreamDataset(ss.open(uri), 1, 4, split=ss.splits.Domain("days"))
    with ss.append(uri) as writer:
        writer.append("a", time=times(4), x=np.zeros(1, np.uint8))
    with pytest.raises(PlanError, match="find them again"):
        stream.refresh()
    assert stream.store.version == 2
    ss.mark(uri, "days", DAYS)
    assert stream.refresh()
    assert stream.plan.boundaries.position.tolist() == [2, 4, 5]


def test_compaction_keeps_them_and_a_repair_that_leaves_sequences_out_does_not(uri):
    ss.mark(uri, "days", DAYS)
    for day in (6, 7):
        with ss.append(uri) as writer:
            writer.append("b", time=times(day), x=np.zeros(1, np.uint8))
    assert ss.compact(uri).version == 5
    assert ss.open(uri).boundaries("days")["a"].positions.tolist() == [2, 4]
    with ss.append(uri) as writer:
        writer.write("late", time=times(1, 2), x=np.array([77, 77], np.uint8))
    ss.mark(uri, "days", DAYS)
    shard = ss.open(uri).snapshot.shards[-1].id
    paths = (uri / "shards" / shard).rglob("*")
    file = next(path for path in paths if path.is_file() and b"MM" in path.read_bytes())
    file.write_bytes(file.read_bytes().replace(b"MM", b"MN"))
    assert [each.id for each in ss.repair(uri).left_out] == ["late"]
    assert ss.open(uri).boundary_names == []


def test_they_are_found_again_where_others_append_meanwhile(uri, monkeypatch):
    from streamseq.storage.boundaries import mark as marking

    find = marking.find_boundaries

    def slowly(*args):
        found = find(*args)
        with ss.append(uri) as writer:
            writer.append("b", time=times(6), x=np.zeros(1, np.uint8))
        return found

    monkeypatch.setattr(marking, "find_boundaries", slowly)
    assert ss.mark(uri, "days", DAYS) == 3
    found = ss.open(uri).boundaries("days")
    assert (found.version, found.lengths.tolist()) == (1, [5, 0, 2])
    assert ss.clean(uri).removed == ()


# Bytes


@st.composite
def boundaries(draw):
    lengths = draw(st.lists(st.integers(0, 2**40) | st.integers(0, 9), min_size=1, max_size=8))
    held = [
        sorted(draw(st.sets(st.integers(1, n - 1), max_size=5))) if n > 1 and draw(st.booleans()) else []
        for n in lengths
    ]
    flat = [position for each in held for position in each]
    counts = np.array([len(each) for each in held], np.int64)
    sequence = np.flatnonzero(counts)
    breaks = np.array(draw(st.lists(st.booleans(), min_size=len(flat), max_size=len(flat))), np.bool_)
    return np.array(lengths, np.int64), Boundaries(sequence, counts[sequence], np.array(flat, np.int64), breaks)


class Says:
    """What a store says of itself, with as many timesteps as are wanted."""

    uri, version = "here", 7

    def __init__(self, lengths):
        self.lengths = np.asarray(lengths)
        self.num_timesteps = sum(map(int, lengths))

    def __len__(self):
        return len(self.lengths)


@settings(deadline=None)
@given(boundaries(), st.integers(0, 3))
def test_what_is_read_is_what_was_written(given, more):
    lengths, wanted = given
    store = Says([*(lengths + more), *[5] * more])
    read = parse_boundaries(format_boundaries(3, ["a rule", "ein Maß"], lengths, wanted), store, "n")
    assert read.boundaries.fingerprint == wanted.fingerprint
    assert read.boundaries.first.tolist() == wanted.first.tolist()
    assert (read.lengths.tolist(), read.version, read.rules) == (lengths.tolist(), 3, ("a rule", "ein Maß"))
    assert read.whole == (not more)


LENGTHS = np.array([9, 0, 4])
WRITTEN = format_boundaries(
    2,
    ["rule"],
    LENGTHS,
    Boundaries(np.array([0, 2]), np.array([2, 1]), np.array([3, 8, 1]), np.array([True, False, True])),
)


def changed(**header):
    line, blocks = WRITTEN.split(b"\n", 1)
    return json.dumps({**json.loads(line), **header}).encode() + b"\n" + blocks


def written(lengths=LENGTHS, sequence=(0, 2), counts=(2, 1), position=(3, 8, 1)):
    found = Boundaries(np.array(sequence), np.array(counts), np.array(position), np.ones(len(position), np.bool_))
    return format_boundaries(2, [], np.array(lengths), found)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "no header"),
        (b"{}\n", "another one"),
        (b"[1]\n", "another one"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (changed(format_version=2), "format version is 2"),
        (changed(version=0), "version 0"),
        (changed(version=8), "version 8"),
        (changed(version=True), "no count"),
        (changed(sequences=4), "4 sequences, there are 3"),
        (changed(sequences=2**62), "sequences"),
        (changed(sequences=-1), "no count"),
        (changed(boundaries=14), "14 boundaries of 13 timesteps"),
        (changed(boundaries=2), "another number"),
        (changed(boundaries=4), "another number"),
        (changed(rules="rule"), "rules are texts"),
        (changed(rules=[1]), "rules are texts"),
        (changed(blocks={}), "'lengths' is missing"),
        (changed(blocks=[]), "indices"),
        (WRITTEN[:-1], "ends early"),
        (WRITTEN + b"x", "something follows"),
        (WRITTEN.replace(b"\x28\xb5\x2f\xfd", b"\x28\xb5\x2f\xfe"), "does not decode to 3 bytes"),
        (written(lengths=[10, 0, 4]), "longer than that of the store"),
        (written(position=(3, 9, 1)), "outside"),
        (written(position=(3, 3, 1)), "do not ascend"),
        (written(position=(3, 8, 0)), "do not ascend"),
        (written(sequence=(1, 2), counts=(1, 2), position=(0, 1, 2)), "more boundaries than it has room for"),
        (written(position=(2**62, 2**63 - 1, 2**63 - 1)), "outside"),
        # Steps whose sum has become a small number again.
        (written(counts=(3, 1), position=(2**63 - 1, -2, 2, 1)), "outside"),
    ],
)
def test_broken_bytes_are_refused(content, match):
    with pytest.raises(ss.CorruptionError, match=f"boundaries 'n' of here break the format: .*{match}"):
        parse_boundaries(content, Says(LENGTHS), "n")


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_bytes_that_were_changed_anywhere_are_refused_or_keep_the_rules(data):
    content = bytearray(WRITTEN)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = parse_boundaries(bytes(content), Says(LENGTHS), "n")
    except ss.CorruptionError:
        return
    held = read.boundaries
    assert np.all(read.lengths <= LENGTHS)
    for slot, sequence in enumerate(held.sequence.tolist()):
        positions = held.position[held.first[slot] : held.first[slot + 1]]
        assert np.all(np.diff(positions) > 0)
        assert 0 < positions[0] <= positions[-1] < read.lengths[sequence]


def test_a_store_says_which_boundaries_are_broken(uri):
    attach(place_of(uri), 1, {"boundaries.days": b"nonsense"})
    with pytest.raises(ss.CorruptionError, match=r"boundaries 'days' of .*store.* no header"):
        ss.open(uri).boundaries("days")
    # Whoever marks it again needs nothing of that.
    assert ss.mark(uri, "days", DAYS) == 3
