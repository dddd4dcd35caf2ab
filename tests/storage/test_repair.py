"""A repair leaves out the sequences that are hit, says which, and changes nothing of the others."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamseq as ss
from streamseq.storage.shards.opening import open_chunks
from streamseq.storage.upkeep import repair as repair_module
from streamseq.storage.upkeep.rewrite import pieces_of

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64", codec="none"), "b": ss.Field("bool")}
# 20 timesteps a shard, 5 a chunk of x and y.
CUT = {"chunk_bytes": 40, "shard_bytes": 340}


def fill(address, make, commits):
    """Write commits of (id, timesteps) and return what each id holds."""
    contents, written = {}, 0
    for number, pieces in enumerate(commits):
        with ss.append(address) if number else ss.create(address, FIELDS, **CUT) as writer:
            for id, steps in pieces:
                arrays = make(FIELDS, written, steps)
                written += steps
                writer.append(id, attrs={"id": id}, **arrays)
                before = contents.get(id, make(FIELDS, 0, 0))
                contents[id] = {name: np.concatenate([before[name], arrays[name]]) for name in FIELDS}
    return contents


@pytest.fixture
def contents(address, make):
    """Rows: a 0 to 30, b to 50, c to 60; then a to 70, d to 100."""
    return fill(address, make, [[("a", 30), ("b", 20), ("c", 10)], [("a", 10), ("empty", 0), ("d", 30)]])


def flip(address, number, name, chunk):
    version = ss.open(address).snapshot
    count = -(-version.shards[number].num_timesteps // version.layout.chunk_timesteps[name])
    extent = open_chunks(ss.open(address).place, version, number, name, np.full(count, -1)).extent(chunk)
    folder = address / "shards" / version.shards[number].id
    zeros = ["0"] * (1 + len(FIELDS[name].shape))
    path = folder / f"{name}.arrow" if address.suffix == ".arrow" else folder.joinpath(name, "c", *zeros)
    content = bytearray(path.read_bytes())
    content[extent.offset + extent.num_bytes // 2] ^= 16
    path.write_bytes(content)


def check(address, same, contents, version=None):
    store = ss.open(address, version)
    assert store.ids.to_pylist() == list(contents)
    for id, arrays in contents.items():
        same(store.read(id), arrays)
        assert store.attrs(id) == {"id": id}
    assert store.verify().ok
    return store


def everything(address):
    return sorted((str(path), path.stat().st_mtime_ns) for path in address.rglob("*") if path.is_file())


def test_a_sequence_that_is_hit_is_left_out_and_the_others_are_as_they_were(address, contents, same):
    # Rows 45 to 50: the end of b.
    flip(address, 2, "y", 1)
    before = ss.open(address).snapshot
    report = ss.repair(address)
    assert (report.version, report.base, report.problems, report.ok) == (3, 2, 1, True)
    (left_out,) = report.left_out
    assert (left_out.id, left_out.timesteps) == ("b", 20)
    assert [(span.start, span.stop) for span in left_out.hit] == [(15, 20)]
    del contents["b"]
    store = check(address, same, contents)
    assert (report.sequences, report.timesteps) == (len(store), store.num_timesteps) == (4, 80)
    assert store.snapshot.operation == "repair"
    # b lay in the second shard too, whose rows of a are written anew; shards without b are kept.
    kept = {shard.id for shard in before.shards} & {shard.id for shard in store.snapshot.shards}
    assert kept == {before.shards[number].id for number in (0, 3, 4)}
    assert (report.kept, report.written) == (3, 20)
    assert store.fingerprint != before.fingerprint
    # The older version is as it was, broken.
    assert not ss.open(address, 2).verify().ok
    assert ss.open(address, 1).read("a")["y"].shape == (30,)


def test_a_repaired_store_can_be_added_to_and_compacted(address, contents, same, make):
    flip(address, 0, "x", 0)
    assert [each.id for each in ss.repair(address).left_out] == ["a"]
    del contents["a"]
    check(address, same, contents)
    again = make(FIELDS, 500, 6)
    with ss.append(address) as writer:
        writer.write("a", attrs={"id": "a"}, **again)
    with ss.append(address) as writer:
        writer.write("e", attrs={"id": "e"}, **again)
    contents |= {"a": again, "e": again}
    check(address, same, contents)
    report = ss.compact(address)
    assert (report.version, report.shards_before, report.shards) == (6, 6, 5)
    check(address, same, contents)


@pytest.mark.parametrize("dry_run", [True, False])
def test_an_intact_store_gets_no_new_version(address, contents, same, dry_run):
    before = everything(address)
    report = ss.repair(address, dry_run=dry_run)
    assert (report.version, report.problems, report.left_out, report.ok) == (None, 0, (), True)
    assert everything(address) == before
    assert "is well" in str(report)


def test_a_dry_run_says_what_would_be_left_out_and_writes_nothing(address, contents):
    flip(address, 2, "y", 1)
    before = everything(address)
    would = ss.repair(address, dry_run=True)
    assert (would.version, would.dry_run, would.ok) == (None, True, False)
    assert everything(address) == before
    did = ss.repair(address)
    assert (would.left_out, would.kept, would.written) == (did.left_out, did.kept, did.written)
    assert "would be repaired by leaving out 1 sequences, 20 timesteps; 4 sequences, 80 timesteps are left" in str(
        would
    )
    assert "left out: 'b' (20 timesteps, of which [15, 20) cannot be read)" in str(did)
    said = json.loads(json.dumps(did.as_dict()))
    assert said["left_out"] == [{"id": "b", "timesteps": 20, "hit": [[15, 20]]}]
    assert (said["ok"], said["version"]) == (True, 3)


def data_file(address, number, name):
    shard = address / "shards" / ss.open(address).snapshot.shards[number].id
    zeros = ["0"] * (1 + len(FIELDS[name].shape))
    return shard / f"{name}.arrow" if address.suffix == ".arrow" else shard.joinpath(name, "c", *zeros)


@pytest.mark.parametrize("how", ["header or index", "longer", "metadata"])
def test_intact_chunks_in_a_broken_file_are_saved(address, contents, same, how):
    path = data_file(address, 2, "y")
    content = bytearray(path.read_bytes())
    if how == "longer":
        content += b"more"
    elif how == "header or index":
        content[0 if address.suffix == ".arrow" else -3] ^= 1
    elif address.suffix == ".zarr":
        (path.parents[1] / "zarr.json").write_bytes(b"{}")
    else:
        content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ss.CorruptionError):
        ss.open(address).read("c")
    (problem,) = ss.open(address).verify().problems
    assert (problem.field, problem.chunk, problem.salvageable) == ("y", None, True)
    assert [(span.id, span.start, span.stop) for span in problem.spans] == [("b", 10, 20), ("c", 0, 10)]
    assert "until it is repaired, nobody reads" in str(problem)
    report = ss.repair(address)
    assert (report.version, report.left_out, report.written, report.ok) == (3, (), 20, True)
    assert "leaving out nothing" in str(report)
    check(address, same, contents)


def test_of_a_file_that_was_cut_off_what_is_there_is_saved(address, contents, same):
    path = data_file(address, 2, "y")
    # Of four chunks of five timesteps the last one is gone, and half of the third.
    content = path.read_bytes()
    opened = ss.open(address)
    extent = open_chunks(opened.place, opened.snapshot, 2, "y", np.full(4, -1)).extent(2)
    path.write_bytes(content[: extent.offset + extent.num_bytes // 2])
    report = ss.repair(address)
    assert [each.id for each in report.left_out] == ["c"]
    del contents["c"]
    check(address, same, contents)


def test_a_problem_that_hits_nothing_needs_no_new_version(address, contents):
    shard = address / "shards" / ss.open(address).snapshot.shards[0].id
    (shard / "notes.txt").write_text("x")
    report = ss.repair(address)
    assert (report.version, report.problems, report.left_out, report.ok) == (None, 1, (), False)
    assert "none of which hits a sequence" in str(report)


@pytest.mark.parametrize("kind", ["sequences", "pieces", "index"])
def test_broken_tables_are_refused_with_what_to_do(address, contents, kind):
    path = address / "tables" / ss.open(address).snapshot.tables[1].files[kind].name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    before = everything(address)
    with pytest.raises(
        ss.CorruptionError, match=r"Restore it from a copy, or remove versions/00000002\.json to go back"
    ):
        ss.repair(address)
    assert everything(address) == before


def test_a_broken_version_file_is_refused(address, contents):
    path = address / "versions/00000002.json"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ss.CorruptionError, match="Restore it from a copy"):
        ss.repair(address)


def test_where_every_sequence_is_hit_it_is_refused(address, contents):
    for number, shard in enumerate(ss.open(address).snapshot.shards):
        for chunk in range(-(-shard.num_timesteps // ss.open(address).chunk_timesteps["y"])):
            flip(address, number, "y", chunk)
    with pytest.raises(ss.CorruptionError, match=r"every sequence of .* that has any is hit"):
        ss.repair(address)


def test_a_version_that_is_committed_meanwhile_is_repaired(address, contents, same, make, monkeypatch):
    flip(address, 2, "y", 1)
    more = make(FIELDS, 300, 7)
    real = repair_module.carry_out

    def carry_out(*args, **more_args):
        monkeypatch.undo()
        done = real(*args, **more_args)
        with ss.append(address) as writer:
            writer.append("b", **more)
            writer.write("new", attrs={"id": "new"}, **more)
        return done

    monkeypatch.setattr(repair_module, "carry_out", carry_out)
    report = ss.repair(address)
    assert (report.base, report.version) == (3, 4)
    assert [(each.id, each.timesteps) for each in report.left_out] == [("b", 27)]
    del contents["b"]
    check(address, same, contents | {"new": more})
    assert ss.clean(address).removed == ()


def test_a_writer_of_a_sequence_that_was_left_out_meanwhile_is_told(address, contents, make):
    flip(address, 2, "y", 1)
    writer = ss.append(address).__enter__()
    writer.append("b", **make(FIELDS, 300, 7))
    ss.repair(address)
    with pytest.raises(ss.VersionConflictError, match="'b' was changed by version 3"):
        writer.__exit__(None, None, None)


def test_a_repair_that_fails_leaves_nothing(address, contents, monkeypatch):
    flip(address, 2, "y", 1)
    before = everything(address)

    def commit_version(*args, **more):
        raise OSError("no space left")

    monkeypatch.setattr(repair_module, "commit_version", commit_version)
    with pytest.raises(OSError, match="no space left"):
        ss.repair(address)
    assert everything(address) == before


COMMITS = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 33)), min_size=1, max_size=5), min_size=1, max_size=4
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=COMMITS, data=st.data())
def test_whatever_is_hit_exactly_that_is_left_out(tmp_path_factory, backend, make, same, commits, data):
    address = tmp_path_factory.mktemp("any") / f"s.{backend}"
    contents = fill(address, make, [[("z", 41)], *commits])
    store = ss.open(address)
    shards = store.snapshot.shards
    places = [
        (number, name, chunk)
        for number, shard in enumerate(shards)
        for name, steps in store.chunk_timesteps.items()
        for chunk in range(-(-shard.num_timesteps // steps))
    ]
    first = np.concatenate(([0], np.cumsum([shard.num_timesteps for shard in shards])))
    pieces = pieces_of(store)
    hit = set()
    for number, name, chunk in data.draw(st.lists(st.sampled_from(places), max_size=4, unique=True)):
        flip(address, number, name, chunk)
        low = first[number] + chunk * store.chunk_timesteps[name]
        high = min(first[number + 1], low + store.chunk_timesteps[name])
        hit |= {ids for ids, row, length in pieces.tolist() if row < high and low < row + length}
    survivors = {id: arrays for index, (id, arrays) in enumerate(contents.items()) if index not in hit}
    if not any(len(arrays["y"]) for arrays in survivors.values()):
        with pytest.raises(ss.CorruptionError, match="is hit"):
            ss.repair(address)
        return
    report = ss.repair(address)
    assert {each.id for each in report.left_out} == contents.keys() - survivors.keys()
    assert (report.version is None) == (not hit)
    check(address, same, survivors)
    assert ss.repair(address).version is None
