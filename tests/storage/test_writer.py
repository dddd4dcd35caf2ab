"""What a `with ss.create(...)` block promises: all of it or nothing, and clear refusals."""

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import streamseq as ss
from streamseq.storage.layout import plan_layout
from streamseq.storage.shards.shard_writer import ShardWriter

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64")}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(address, make):
    with ss.create(address, FIELDS, chunk_bytes=40, shard_bytes=200) as writer:
        writer.write("a", attrs={"n": 1}, **make(FIELDS, 0, 30))
    return address


def test_block_with_nothing_written_is_an_empty_store(address):
    with ss.create(address, FIELDS):
        pass
    store = ss.open(address)
    assert (len(store), store.num_timesteps, store.ids.to_pylist()) == (0, 0, [])
    assert store.fields == FIELDS
    with ss.append(address) as writer:
        writer.write("a", x=np.zeros((1, 2), np.float32), y=np.zeros(1, np.int64))
    assert len(ss.open(address)) == 1


def test_append_of_nothing_is_no_version(store):
    with ss.append(store):
        pass
    assert ss.open(store).versions == [1]


def write_and_raise(writer, make, error):
    with writer:
        writer.write("b", **make(FIELDS, 0, 100))
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_in_the_block_leaves_nothing(address, make, error):
    with pytest.raises(error):
        write_and_raise(ss.create(address.parent / "deep" / address.name, FIELDS, shard_bytes=100), make, error)
    assert list(address.parent.iterdir()) == []


def test_exception_leaves_a_folder_that_was_there(address, make):
    address.mkdir()
    with pytest.raises(RuntimeError):
        write_and_raise(ss.create(address, FIELDS, shard_bytes=100), make, RuntimeError)
    assert list(address.iterdir()) == []


def test_exception_in_an_append_leaves_the_store_as_it_was(store, make):
    before = files(store)
    with pytest.raises(RuntimeError):
        write_and_raise(ss.append(store), make, RuntimeError)
    assert files(store) == before
    assert ss.open(store).versions == [1]


def test_nothing_is_visible_before_the_block_is_left(store, make):
    with ss.append(store) as writer:
        writer.write("b", **make(FIELDS, 30, 100))
        assert ss.open(store).versions == [1]
        assert len(list((store / "shards").glob("*-*"))) == len(ss.open(store).snapshot.shards)
    assert ss.open(store).versions == [1, 2]


KILLED = """
import sys, numpy as np, streamseq as ss
fields = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64")}
writer = ss.append(sys.argv[1]) if sys.argv[2] == "append" else ss.create(sys.argv[1], fields, shard_bytes=20_000)
with writer:
    for i in range(1_000_000):
        writer.append(f"s{i % 7}", x=np.full((50, 2), i, np.float32), y=np.full(50, i))
        if i == 100:
            print("writing", flush=True)
"""


def kill_while_writing(address, how):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(address), how], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert any((address / "staging").rglob("*-000000"))


def test_killed_creator_leaves_nothing_visible(address, make, same):
    kill_while_writing(address, "create")
    with pytest.raises(ss.StoreError, match="no version was ever committed"):
        ss.open(address)
    with ss.create(address, FIELDS) as writer:
        writer.write("a", **make(FIELDS, 0, 30))
    same(ss.open(address).read("a"), make(FIELDS, 0, 30))


def test_killed_appender_leaves_nothing_visible(store, make, same):
    kill_while_writing(store, "append")
    assert ss.open(store).versions == [1]
    with ss.append(store) as writer:
        writer.append("a", **make(FIELDS, 30, 5))
    same(ss.open(store).read("a"), make(FIELDS, 0, 35))


@pytest.mark.parametrize("step", ["write_durably", "publish_file", "put_if_absent", "publish_folders", "sync_file"])
def test_failure_at_any_step_of_a_commit_leaves_nothing(store, make, monkeypatch, step):
    before = files(store)

    def fail(*args):
        raise OSError(28, "No space left on device")

    for module in ("places.commit", "shards.zarr_shard", "shards.arrow_shard"):
        monkeypatch.setattr(f"streamseq.storage.{module}.{step}", fail, raising=False)
    with pytest.raises(OSError, match="No space left"), ss.append(store) as writer:
        writer.write("b", **make(FIELDS, 30, 3))
    assert files(store) == before


def test_interrupt_after_the_version_is_there_keeps_it(store, make, same, monkeypatch):
    from streamseq.storage.places import commit

    real = commit.put_if_absent

    def interrupted(path, content, staging):
        real(path, content, staging)
        if path.parent.name == "versions" and path.name != "zarr.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(commit, "put_if_absent", interrupted)
    with pytest.raises(KeyboardInterrupt), ss.append(store) as writer:
        writer.write("b", **make(FIELDS, 30, 30))
    same(ss.open(store, version=2).read("b"), make(FIELDS, 30, 30))


def write_one_in_the_other(outer, inner, make, id="c"):
    with outer:
        outer.write(id, **make(FIELDS, 60, 30))
        with inner:
            inner.write("b", **make(FIELDS, 30, 30))


def append_in_both(outer, inner, make):
    with outer:
        outer.append("a", **make(FIELDS, 60, 30))
        outer.write("c", **make(FIELDS, 90, 30))
        with inner:
            inner.append("a", **make(FIELDS, 30, 30))


def test_of_two_writers_of_one_sequence_the_second_is_told(store, make, same):
    first, second = ss.append(store), ss.append(store)
    remedy = r"'a' was changed by version 2 .* began with version 1; .*write it again with ss\.append"
    with pytest.raises(ss.VersionConflictError, match=remedy):
        append_in_both(second, first, make)
    shards = {shard.id for shard in ss.open(store).snapshot.shards}
    assert {path.name for path in (store / "shards").iterdir() if path.is_dir()} == shards
    assert {path.name.split(".")[0] for path in (store / "tables").glob("*.arrow")} == {
        entry.sequences.name.split(".")[0] for entry in ss.open(store).snapshot.tables
    }
    assert ss.open(store).ids.to_pylist() == ["a"]
    same(ss.open(store).read("a"), make(FIELDS, 0, 60))


def test_two_writers_of_one_new_sequence_are_in_conflict(store, make, same):
    first, second = ss.append(store), ss.append(store)
    with pytest.raises(ss.VersionConflictError, match="'b' was changed by version 2"):
        write_one_in_the_other(second, first, make, "b")
    same(ss.open(store).read("b"), make(FIELDS, 30, 30))


def test_writers_of_different_sequences_both_win(store, make, same):
    first, second = ss.append(store), ss.append(store)
    write_one_in_the_other(second, first, make)
    with ss.append(store) as writer:
        writer.append("a", **make(FIELDS, 90, 7))
    newest = ss.open(store)
    assert newest.versions == [1, 2, 3, 4]
    assert newest.ids.to_pylist() == ["a", "b", "c"]
    same(newest.read("a"), {name: np.concatenate(parts) for name, parts in both(make, (0, 30), (90, 7)).items()})
    same(newest.read("b"), make(FIELDS, 30, 30))
    same(newest.read("c"), make(FIELDS, 60, 30))


def both(make, *spans):
    made = [make(FIELDS, *span) for span in spans]
    return {name: [arrays[name] for arrays in made] for name in FIELDS}


def test_of_two_creators_the_second_is_told(address, make, same):
    first, second = ss.create(address, FIELDS), ss.create(address, FIELDS)
    with pytest.raises(ss.VersionConflictError):
        write_one_in_the_other(second, first, make)
    same(ss.open(address).read("b"), make(FIELDS, 30, 30))
    assert ss.open(address).ids.to_pylist() == ["b"]


def test_many_appenders_at_once_all_win(store, make, same):
    def append(number):
        with ss.append(store) as writer:
            writer.write(f"s{number}", **make(FIELDS, 30 * number, 30))
            barrier.wait()

    barrier = threading.Barrier(6)
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(append, range(1, 7)))
    newest = ss.open(store)
    assert newest.versions == list(range(1, 8))
    assert sorted(newest.ids.to_pylist()) == ["a", *(f"s{number}" for number in range(1, 7))]
    for number in range(1, 7):
        same(newest.read(f"s{number}"), make(FIELDS, 30 * number, 30))


def test_create_refuses_a_store_and_a_folder_with_files(store, tmp_path):
    with pytest.raises(ss.StoreError, match=r"is a store already: add to it with ss\.append"):
        ss.create(store, FIELDS, backend="zarr")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(ss.StoreError, match="holds files"):
        ss.create(tmp_path / "other", FIELDS, backend="zarr")
    with pytest.raises(ss.StoreError, match="is a file"):
        ss.create(tmp_path / "other" / "notes.txt", FIELDS, backend="zarr")
    assert ss.open(store).versions == [1]


def test_open_and_append_say_what_is_not_a_store(tmp_path, store):
    for call in (ss.open, ss.append):
        with pytest.raises(ss.StoreError, match="there is nothing there"):
            call(tmp_path / "nowhere")
        with pytest.raises(ss.StoreError, match="no version was ever committed"):
            call(tmp_path)
    with pytest.raises(ss.StoreError, match="has versions 1 to 1, got 7"):
        ss.open(store, version=7)
    with pytest.raises(TypeError, match="version is an int"):
        ss.open(store, version="1")


@pytest.mark.parametrize("uri", ["nobody://bucket/a.zarr", "file://host/a.zarr", ""])
def test_addresses_that_nobody_knows_are_refused(uri):
    for call in (ss.open, ss.append, lambda uri: ss.create(uri, FIELDS)):
        with pytest.raises(ValueError, match="address is a"):
            call(uri)


def test_bad_arguments_of_create(tmp_path):
    with pytest.raises(ValueError, match="say backend='zarr' or backend='arrow'"):
        ss.create(tmp_path / "s", FIELDS)
    with pytest.raises(ValueError, match="'zarr' or 'arrow', got 'hdf5'"):
        ss.create(tmp_path / "s", FIELDS, backend="hdf5")
    with pytest.raises(ValueError, match="'bitshuffle' is for zarr"):
        ss.create(tmp_path / "s.arrow", {"x": ss.Field("float32", codec="bitshuffle")})
    with pytest.raises(ValueError, match="not named 'attrs'"):
        ss.create(tmp_path / "s.zarr", {"attrs": ss.Field("float32")})
    with pytest.raises(ValueError, match="at most"):
        ss.create(tmp_path / "s.zarr", {"x": ss.Field("float32", (1 << 29,))})
    for name in ("chunk_bytes", "shard_bytes"):
        with pytest.raises(ValueError, match=f"{name} is at least 1"):
            ss.create(tmp_path / "s.zarr", FIELDS, **{name: 0})
        with pytest.raises(TypeError, match=f"{name} is an int"):
            ss.create(tmp_path / "s.zarr", FIELDS, **{name: 1e6})
    assert list(tmp_path.iterdir()) == []


GOOD = {"x": np.ones((3, 2), np.float32), "y": np.ones(3, np.int64)}
BAD_CALLS = {
    "missing field": (ValueError, "got none of y", "b", {"x": GOOD["x"]}, None),
    "unknown field": (ValueError, "got z", "b", GOOD | {"z": GOOD["y"]}, None),
    "unequal lengths": (ValueError, "same number of timesteps", "b", GOOD | {"y": np.ones(4, np.int64)}, None),
    "dtype": (TypeError, "holds int64", "b", GOOD | {"y": np.ones(3)}, None),
    "shape": (ValueError, r"has shape \[n, 2\]", "b", GOOD | {"x": np.ones((3, 3), np.float32)}, None),
    "no timesteps axis": (ValueError, "timesteps come first", "b", GOOD | {"y": np.int64(3)}, None),
    "id": (TypeError, "id is a str", 3, GOOD, None),
    "empty id": (ValueError, "at least one character", "", GOOD, None),
    "id not text": (ValueError, "UTF-8", "\ud800", GOOD, None),
    "attrs no dict": (TypeError, "dict with str keys", "b", GOOD, ["north"]),
    "attrs no str key": (TypeError, "dict with str keys", "b", GOOD, {1: 2}),
    "attrs no JSON": (TypeError, "values that JSON holds: set is none", "b", GOOD, {"a": {1}}),
    "attrs NaN": (ValueError, "use None or text", "b", GOOD, {"a": float("nan")}),
}


@pytest.mark.parametrize("how", ["write", "append"])
@pytest.mark.parametrize("case", BAD_CALLS)
def test_refused_call_leaves_nothing_behind(store, make, same, how, case):
    kind, message, id, arrays, attrs = BAD_CALLS[case]
    with ss.append(store) as writer:
        writer.append("a", **make(FIELDS, 30, 3))
        with pytest.raises(kind, match=message):
            getattr(writer, how)(id, attrs=attrs, **arrays)
        writer.append("a", **make(FIELDS, 33, 4))
    assert ss.open(store).ids.to_pylist() == ["a"]
    same(ss.open(store).read("a"), make(FIELDS, 0, 37))


def test_an_id_is_written_once(store):
    with ss.append(store) as writer:
        with pytest.raises(ValueError, match="there is 'a' already: use append"):
            writer.write("a", **GOOD)
        writer.append("b", **GOOD)
        with pytest.raises(ValueError, match="there is 'b' already: use append"):
            writer.write("b", **GOOD)
    assert ss.open(store).lengths.tolist() == [30, 3]


def test_attributes_are_set_once(store):
    with ss.append(store) as writer:
        writer.append("a", attrs={"n": 1}, **GOOD)
        with pytest.raises(ValueError, match="set once"):
            writer.append("a", attrs={"n": 2}, **GOOD)
        writer.append("b", **GOOD)
        writer.append("b", attrs={"m": np.int16(1), "l": np.arange(2)}, **GOOD)
        with pytest.raises(ValueError, match="set once"):
            writer.append("b", attrs={}, **GOOD)
    opened = ss.open(store)
    assert (opened.attrs("a"), opened.attrs("b")) == ({"n": 1}, {"m": 1, "l": [0, 1]})
    assert opened.lengths.tolist() == [33, 6]


def test_writing_outside_the_block_is_refused(address):
    writer = ss.create(address, FIELDS)
    with pytest.raises(ValueError, match="no block yet"):
        writer.write("a", **GOOD)
    with writer:
        writer.write("a", **GOOD)
    with pytest.raises(ValueError, match="its block was left"):
        writer.append("a", **GOOD)
    with pytest.raises(ValueError, match="one block"):
        writer.__enter__()


def test_a_write_that_fails_half_way_ends_the_writer(store, monkeypatch):
    from streamseq.storage.shards import shard_writer

    before = files(store)
    real = shard_writer._Column.write

    def interrupted(column, values):
        if column._field.dtype.kind == "i":
            raise KeyboardInterrupt
        real(column, values)

    def block():
        with ss.append(store) as writer:
            monkeypatch.setattr(shard_writer._Column, "write", interrupted)
            with pytest.raises(KeyboardInterrupt):
                writer.write("b", **GOOD)
            monkeypatch.undo()

    with pytest.raises(ValueError, match="this one is failed"):
        block()
    assert files(store) == before


def test_a_field_may_have_the_name_of_an_argument(address):
    with ss.create(address, {"id": ss.Field("int64"), "self": ss.Field("int64")}) as writer:
        writer.write("a", id=[1], self=[2])
    assert ss.open(address).read("a")["self"].tolist() == [2]


def test_memory_of_a_writer_does_not_grow_with_what_it_writes(address):
    # 64 MiB from a file, of which no second copy is made: the peak of Python's and numpy's memory stays far below.
    import tracemalloc

    source = np.lib.format.open_memmap(address.parent / "x.npy", "w+", np.float32, (1 << 24,))
    tracemalloc.start()
    with ss.create(address, {"x": ss.Field("float32", codec="none")}) as writer:
        writer.write("a", x=source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20
    assert os.path.getsize(address.parent / "x.npy") > 64 << 20


def test_many_sequences_at_once_are_those_one_by_one(tmp_path, backend, make):
    layout = plan_layout(FIELDS, backend, chunk_bytes=64, shard_bytes=400)
    lengths = np.array([3, 0, 17, 1, 0, 40, 2])
    ids = [f"{number}" for number in range(len(lengths))]
    whole = make(FIELDS, 0, int(lengths.sum()))
    with ShardWriter(tmp_path / "one", layout) as writer:
        for id, start, length in zip(ids, np.cumsum(lengths) - lengths, lengths, strict=True):
            writer.append(id, {name: values[start : start + length] for name, values in whole.items()})
        one = writer.finish()
    with ShardWriter(tmp_path / "many", layout) as writer:
        with pytest.raises(ValueError, match="each sequence has a length"):
            writer.append_new(ids, lengths + 1, whole)
        with pytest.raises(ValueError, match="written before"):
            writer.append_new(["a", "a"], np.array([0, int(lengths.sum())]), whole)
        writer.append_new(ids, lengths, whole)
        with pytest.raises(ValueError, match="written before"):
            writer.append_new(["6"], lengths[:1] * 0, {name: values[:0] for name, values in whole.items()})
        many = writer.finish()
    assert (many.ids, many.attrs, many.pieces.tolist()) == (one.ids, one.attrs, one.pieces.tolist())
    assert [shard.fields for shard in many.shards] == [shard.fields for shard in one.shards]
