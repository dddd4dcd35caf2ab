"""Shard writers in many tasks, and the commit of their receipts."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import streamseq as ss
from streamseq.storage.layout import plan_layout
from streamseq.storage.shards.shard_writer import ShardWriter
from streamseq.storage.versions.receipts import abandon_receipts, commit_receipts

FIELDS = {"x": ss.Field("float32", (2,)), "y": ss.Field("int64")}


@pytest.fixture
def layout(backend):
    return plan_layout(FIELDS, backend, chunk_bytes=80, shard_bytes=400)


def run_task(root, layout, pieces):
    with ShardWriter(root, layout) as writer:
        for id, arrays, attrs in pieces:
            writer.append(id, arrays, attrs)
        return writer.finish()


def test_tasks_in_other_processes_write_one_version(address, layout, make, same):
    tasks = [
        [("a", make(FIELDS, 0, 30), {"n": 1}), ("b", make(FIELDS, 30, 5), None)],
        [("b", make(FIELDS, 35, 50), {"n": 2}), ("a", make(FIELDS, 85, 3), {"n": 1})],
        [],
        [("b", make(FIELDS, 88, 12), None), ("c", make(FIELDS, 0, 0), None)],
    ]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        receipts = list(pool.map(run_task, [str(address)] * 4, [layout] * 4, tasks))
    assert commit_receipts(address, layout, receipts) == 1
    store = ss.open(address)
    assert store.ids.to_pylist() == ["a", "b", "c"]
    assert store.lengths.tolist() == [33, 67, 0]
    assert [store.attrs(id) for id in "abc"] == [{"n": 1}, {"n": 2}, {}]
    assert store.read("b")["y"].tolist() == list(range(30, 85)) + list(range(88, 100))
    assert store.read("a")["y"].tolist() == list(range(30)) + list(range(85, 88))
    assert store.layout == layout
    more = run_task(address, store.layout, [("c", make(FIELDS, 100, 10), None), ("d", make(FIELDS, 110, 1), None)])
    assert commit_receipts(address, layout, [more], base_version=1) == 2
    same(ss.open(address).read("c"), make(FIELDS, 100, 10))
    assert len(ss.open(address, version=1)) == 3


def test_order_of_receipts_is_the_order_of_timesteps(address, layout, make):
    receipts = [run_task(address, layout, [("a", make(FIELDS, 10 * i, 10), None)]) for i in range(3)]
    commit_receipts(address, layout, [receipts[i] for i in (2, 0, 1)])
    assert ss.open(address).read("a")["y"].tolist() == [*range(20, 30), *range(20)]
    assert [entry.pieces.num_rows for entry in ss.open(address).snapshot.tables] == [1]


def test_receipt_has_one_piece_for_what_is_contiguous(address, layout, make):
    receipt = run_task(address, layout, [(id, make(FIELDS, i, 1), None) for i, id in enumerate("aaabba")])
    assert receipt.pieces.tolist() == [[0, 0, 3], [1, 3, 2], [0, 5, 1]]


def test_same_tasks_give_the_same_fingerprint_as_a_block(tmp_path, backend, layout, make):
    receipt = run_task(tmp_path / "tasks", layout, [("a", make(FIELDS, 0, 100), {"n": 1})])
    commit_receipts(tmp_path / "tasks", layout, [pickle.loads(pickle.dumps(receipt))])
    with ss.create(tmp_path / "block", FIELDS, backend, chunk_bytes=80, shard_bytes=400) as writer:
        writer.write("a", attrs={"n": 1}, **make(FIELDS, 0, 100))
    assert ss.open(tmp_path / "tasks").fingerprint == ss.open(tmp_path / "block").fingerprint


def test_task_that_raises_leaves_nothing(address, layout, make):
    def failing_task():
        with ShardWriter(address, layout) as writer:
            writer.append("a", make(FIELDS, 0, 100))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        failing_task()
    assert [path for path in address.rglob("*") if path.is_file()] == []


def test_abandoned_receipts_leave_nothing_and_committed_ones_stay(address, layout, make, same):
    receipts = [run_task(address, layout, [(id, make(FIELDS, 0, 100), None)]) for id in "ab"]
    commit_receipts(address, layout, receipts[:1])
    abandon_receipts(address, receipts)
    assert len([path for path in (address / "shards").iterdir() if path.is_dir()]) == len(receipts[0].shards)
    same(ss.open(address).read("a"), make(FIELDS, 0, 100))


def test_bad_receipts_are_refused(address, layout, backend, make):
    receipts = [run_task(address, layout, [("a", make(FIELDS, 0, 10), {"n": n})]) for n in range(2)]
    with pytest.raises(ValueError, match="got one twice"):
        commit_receipts(address, layout, [receipts[0], receipts[0]])
    with pytest.raises(ValueError, match="set once"):
        commit_receipts(address, layout, receipts)
    commit_receipts(address, layout, receipts[:1])
    with pytest.raises(ValueError, match="has its layout"):
        commit_receipts(address, plan_layout(FIELDS, backend), receipts[1:], base_version=1)
    with pytest.raises(ValueError, match="set once"):
        commit_receipts(address, layout, receipts[1:], base_version=1)
    with pytest.raises(ss.VersionConflictError):
        commit_receipts(address, layout, receipts[1:])
    with pytest.raises(ss.StoreError, match="got 7"):
        commit_receipts(address, layout, receipts[1:], base_version=7)
    abandon_receipts(address, receipts[1:])
    with pytest.raises(ss.StoreError, match="write it again"):
        commit_receipts(address, layout, receipts[1:])
    assert ss.open(address).versions == [1]


def test_finished_writer_writes_no_more(address, layout, make):
    with ShardWriter(address, layout) as writer:
        writer.finish()
        with pytest.raises(ValueError, match="finished"):
            writer.append("a", make(FIELDS, 0, 1))
        with pytest.raises(ValueError, match="finished once"):
            writer.finish()
        with pytest.raises(ValueError, match="abandon_receipts"):
            writer.abandon()


def test_layout_keeps_to_the_wished_sizes():
    layout = plan_layout(FIELDS, "zarr")
    assert layout.codecs == {"x": "bitshuffle", "y": "zstd"}
    assert layout.chunk_timesteps == {"x": 1 << 17, "y": 1 << 17}
    assert layout.shard_timesteps == 1 << 22
    assert plan_layout(FIELDS, "arrow").codecs == {"x": "lz4", "y": "zstd"}
    tiny = plan_layout(FIELDS, "arrow", chunk_bytes=1, shard_bytes=1)
    assert (tiny.chunk_timesteps, tiny.shard_timesteps) == ({"x": 1, "y": 1}, 1)
