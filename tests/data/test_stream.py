"""Streams: the windows are those of the plan, for any topology, and a position is what was consumed."""

import json
import multiprocessing
import pickle
import subprocess
import sys
import threading
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss
from streamseq.data.requests import TOGETHER

FIELDS = {"x": ss.Field("int32"), "v": ss.Field("float32", (2, 3))}


def values(sequence, n):
    """Timesteps whose every value is distinct over all sequences and timesteps."""
    at = sequence * 1000 + np.arange(1, n + 1, dtype=np.int32)
    return {"x": at, "v": (at[:, None, None] + np.arange(6).reshape(2, 3) / 8).astype(np.float32)}


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    made = {}

    def make(lengths, backend):
        key = (tuple(lengths), backend)
        if key not in made:
            if backend == "memory":
                made[key] = ss.from_arrays({f"s{i}": values(i, n) for i, n in enumerate(lengths)})
            else:
                uri = tmp_path_factory.mktemp("stores") / f"{len(made)}.{backend}"
                with ss.create(uri, FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
                    for i, n in enumerate(lengths):
                        writer.write(f"s{i}", **values(i, n))
                made[key] = ss.open(uri)
        return made[key]

    return make


@st.composite
def streams(draw, make_store, backends=("memory", "zarr", "arrow")):
    lengths = draw(st.lists(st.integers(1, 70), min_size=1, max_size=7))
    store = make_store(lengths, draw(st.sampled_from(backends)))
    as_is = draw(st.booleans())
    return ss.StreamDataset(
        store,
        lanes=draw(st.integers(1, 5)),
        window=None if as_is else draw(st.integers(1, 20)),
        split=ss.splits.AsIs() if as_is else ss.splits.Naive(),
        shuffle=draw(st.booleans()),
        layout=draw(st.sampled_from(["sequences", "even"])),
        epoch=draw(st.integers(0, 2)),
        batch_first=draw(st.booleans()),
        lookahead={"next": ("x", 1), "far": ("x", 3), "last": ("v", -1)},
    )


def same(a, b):
    return (
        a.token == b.token
        and a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
        and torch.equal(a.mask, b.mask)
        and torch.equal(a.lengths, b.lengths)
    )


def assert_same(left, right):
    assert len(left) == len(right)
    assert all(same(a, b) for a, b in zip(left, right, strict=True))


slow = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@slow
@given(st.data())
def test_windows_hold_every_timestep_once_and_contiguous(make_store, data):
    stream = data.draw(streams(make_store))
    store = stream.store
    seen = []
    last = [None] * stream.lanes
    for window in stream:
        token = window.token
        assert window["x"].shape == window.mask.shape
        assert window["v"].shape == (*window.mask.shape, 2, 3)
        assert token.lane.tolist() == list(range(stream.lanes))
        for lane in range(stream.lanes):
            rows = {name: window[name] if stream.batch_first else window[name].transpose(0, 1) for name in window}
            mask = (window.mask if stream.batch_first else window.mask.T)[lane]
            n, start, stop = int(window.lengths[lane]), int(token.start[lane]), int(token.stop[lane])
            assert n == stop - start
            assert not rows["x"][lane, n:].any()
            assert not rows["v"][lane, n:].any()
            assert not mask[n:].any()
            sequence = int(token.sequence[lane])
            if sequence < 0:
                assert n == 0
                continue
            seen += [(sequence, t) for t in range(start, stop)]
            whole = store.read(sequence)
            assert np.array_equal(rows["x"][lane, :n], whole["x"][start:stop])
            assert np.array_equal(rows["v"][lane, :n], whole["v"][start:stop])
            for t in range(start, stop):
                inside = t - 1 >= 0 and t + 3 < len(whole["x"])
                assert bool(mask[t - start]) == inside
                for name, field, offset in (("next", "x", 1), ("far", "x", 3), ("last", "v", -1)):
                    if 0 <= t + offset < len(whole["x"]):
                        assert np.array_equal(rows[name][lane, t - start], whole[field][t + offset])
                    else:
                        assert not rows[name][lane, t - start].any()
            if last[lane] is not None:
                assert token.reset[lane] or last[lane] == (sequence, start)
                assert token.reset[lane] == (last[lane] == "final")
            last[lane] = "final" if token.final[lane] else (sequence, stop)
    assert sorted(seen) == [(i, t) for i, n in enumerate(store.lengths) for t in range(n)]
    assert all(each in (None, "final") for each in last)


@slow
@given(st.data())
def test_any_way_to_read_gives_the_same_windows(make_store, data):
    stream = data.draw(streams(make_store))
    windows = list(stream)
    assert len(stream) == len(windows)
    assert_same([stream[t] for t in range(len(stream))], windows)
    assert_same([stream[t] for t in reversed(range(-len(stream), 0))], windows[::-1])
    assert_same(list(stream), windows)
    assert_same(list(ss.StreamLoader(stream, prefetch=1)), windows)
    assert all(b.token.follows(a.token) for a, b in pairwise(windows))


@settings(slow, max_examples=8)
@given(st.data())
def test_workers_change_nothing(make_store, data):
    stream = data.draw(streams(make_store, backends=("zarr", "arrow")))
    windows = list(stream)
    step = data.draw(st.integers(0, len(windows)))
    for workers in range(4):
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        assert_same(list(loader), windows)
        if step:
            stream.load_state_dict(windows[step - 1].token.state_dict())
            assert_same(list(loader), windows[step:])
            assert_same(list(loader), windows)


@settings(slow, max_examples=25)
@given(st.data())
def test_resuming_at_any_step_is_like_not_stopping(make_store, data):
    stream = data.draw(streams(make_store))
    windows = list(stream)
    fresh = ss.StreamDataset(
        stream.store,
        stream.lanes,
        stream.window,
        split=ss.splits.AsIs() if stream.window is None else None,
        shuffle=stream._settings.shuffle,
        layout=stream._settings.layout,
        batch_first=stream.batch_first,
        lookahead={"next": ("x", 1), "far": ("x", 3), "last": ("v", -1)},
    )
    for source, target in ((stream, fresh), (ss.StreamLoader(stream), ss.StreamLoader(fresh))):
        for step, _ in enumerate(source):
            state = source.state_dict()
            assert state == windows[step].token.state_dict()
            target.load_state_dict(pickle.loads(pickle.dumps(state)))
            assert target.state_dict() == state
            assert_same(list(target), windows[step + 1 :])
            assert fresh.epoch == stream.epoch
        target.load_state_dict(source.state_dict())
        assert list(target) == []
        assert_same(list(target), windows)


@slow
@given(st.data())
def test_ranks_own_lanes_and_see_the_same_steps(make_store, data):
    stream = data.draw(streams(make_store))
    ranks = data.draw(st.integers(1, stream.lanes))
    parts = [
        list(
            ss.StreamDataset(
                stream.store,
                stream.lanes,
                stream.window,
                split=ss.splits.AsIs() if stream.window is None else None,
                shuffle=stream._settings.shuffle,
                layout=stream._settings.layout,
                epoch=stream.epoch,
                batch_first=stream.batch_first,
                rank=rank,
                world_size=ranks,
            )
        )
        for rank in range(ranks)
    ]
    for t, window in enumerate(stream):
        axis = 0 if stream.batch_first else 1
        for name in ("x", "v"):
            assert torch.equal(torch.cat([part[t][name] for part in parts], axis), window[name])
        for name in ("sequence", "start", "stop", "reset", "final", "lane"):
            joined = np.concatenate([getattr(part[t].token, name) for part in parts])
            assert np.array_equal(joined, getattr(window.token, name))
        assert {part[t].token.fingerprint for part in parts} == {window.token.fingerprint}
    assert {len(part) for part in parts} == {len(stream)}


def test_hundred_sequences_of_50000_come_out_as_100_windows_of_500():
    data = np.arange(100 * 50_000, dtype=np.float32).reshape(100, 50_000, 1)
    stream = ss.StreamDataset(ss.from_arrays({str(i): {"x": data[i]} for i in range(100)}), lanes=100, window=500)
    windows = list(stream)
    assert len(windows) == len(stream) == 100
    resets = np.zeros(100, int)
    for t, window in enumerate(windows):
        assert window["x"].shape == (100, 500, 1)
        assert torch.equal(window["x"], torch.from_numpy(data[:, 500 * t : 500 * (t + 1)]))
        assert window.mask.all()
        resets += window.token.reset
    assert (resets == 1).all()


def test_a_span_shows_nothing_outside_it():
    store = ss.from_arrays({"a": {"x": np.arange(1, 21)}, "b": {"x": np.arange(101, 111)}})
    train = ss.StreamDataset(store, 1, 4, sequences=[("a", 3, 12), "b"], lookahead={"y": ("x", 1), "z": ("x", -1)})
    rows = {name: torch.cat([w[name][0] for w in train]).tolist() for name in ("x", "y", "z")}
    mask = torch.cat([w.mask[0] for w in train]).tolist()
    assert rows["x"] == [*range(4, 13), 0, 0, 0, *range(101, 111), 0, 0]
    assert rows["y"] == [*range(5, 13), 0, 0, 0, 0, *range(102, 111), 0, 0, 0]
    assert rows["z"] == [0, *range(4, 12), 0, 0, 0, 0, *range(101, 110), 0, 0]
    assert mask == [False, *[True] * 7, False, *[False] * 3, False, *[True] * 8, False, False, False]
    assert [w.token.start[0] for w in train] == [3, 7, 11, 0, 4, 8]
    assert train.num_timesteps == 19


def test_a_lookahead_crosses_the_cuts_of_the_even_layout():
    store = ss.from_arrays({"a": {"x": np.arange(10)}})
    stream = ss.StreamDataset(store, 2, 5, layout="even", lookahead={"y": ("x", 1)})
    (window,) = stream
    assert window["y"].tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    assert window.mask.tolist() == [[True] * 5, [True] * 4 + [False]]
    assert window.token.reset.all()
    assert window.token.final.all()


def test_dropped_tails_are_counted():
    store = ss.from_arrays({"a": {"x": np.arange(10)}, "b": {"x": np.arange(3)}, "c": {"x": np.arange(8)}})
    stream = ss.StreamDataset(store, 1, 4, tail="drop", lookahead={"y": ("x", 1)})
    assert [w["x"].tolist() for w in stream] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert stream.left_out == 2 + 3
    assert stream[1]["y"].tolist() == [[5, 6, 7, 8]]
    assert [w.mask.all().item() for w in stream] == [True, True, True, False]


def test_an_epoch_moves_only_by_set_epoch_and_shuffling_goes_with_it():
    store = ss.from_arrays({str(i): {"x": np.full(3, i)} for i in range(20)})
    stream = ss.StreamDataset(store, 2, 3, shuffle=True)
    first = list(stream)
    assert_same(list(stream), first)
    stream.set_epoch(1)
    second = list(stream)
    assert not all(torch.equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))
    stream.set_epoch(0)
    assert_same(list(stream), first)
    stream.load_state_dict(first[3].token.state_dict())
    stream.set_epoch(0)  # the epoch that it is in: the position stays
    assert_same(list(stream), first[4:])
    stream.load_state_dict(first[3].token.state_dict())
    stream.set_epoch(1)
    assert_same(list(stream), second)
    stream.load_state_dict(first[3].token.state_dict())
    assert stream.epoch == 0


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_persistent_workers_see_a_new_epoch_and_a_loaded_position(make_store, method):
    store = make_store([9, 4, 7, 8], "zarr")
    stream = ss.StreamDataset(store, 2, 3, shuffle=True)
    epochs = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        epochs.append(list(stream))
    stream.set_epoch(0)
    context = multiprocessing.get_context(method)
    loader = DataLoader(
        stream, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=context
    )
    assert_same(list(loader), epochs[0])
    stream.set_epoch(1)
    assert_same(list(loader), epochs[1])
    stream.load_state_dict(epochs[0][1].token.state_dict())
    assert_same(list(loader), epochs[0][2:])
    assert_same(list(loader), epochs[0])


def test_a_position_of_something_else_is_refused(make_store):
    store = make_store([9, 4, 7], "memory")
    stream = ss.StreamDataset(store, 2, 3)
    state = stream[1].token.state_dict()
    for other, match in (
        (ss.StreamDataset(store, 3, 3), "lanes"),
        (ss.StreamDataset(store, 2, 3, shuffle=True), "shuffle"),
        (ss.StreamDataset(store, 2, 3, sequences=["s0", "s2"]), "sequences"),
        (ss.StreamDataset(make_store([9, 4, 8], "memory"), 2, 3), "plan"),
        (ss.StreamDataset(store, 2, 4), "window=3"),
    ):
        with pytest.raises(ss.ResumeError, match=match):
            other.load_state_dict(state)
    for wrong in ({}, {"step": 1}, {**state, "step": -1}, {**state, "step": 10**6}, {**state, "step": "1"}, 3):
        with pytest.raises(ss.ResumeError):
            stream.load_state_dict(wrong)
    assert stream.state_dict()["step"] == 0
    assert stream.epoch == 0


def test_a_position_of_another_store_version_names_both(tmp_path):
    uri = tmp_path / "s.zarr"
    with ss.create(uri, {"x": ss.Field("int64")}) as writer:
        writer.write("a", x=np.arange(9))
    state = ss.StreamDataset(ss.open(uri), 1, 3)[1].token.state_dict()
    with ss.append(uri) as writer:
        writer.write("b", x=np.arange(9))
    with pytest.raises(ss.ResumeError, match=r"version 1 of the store, this is version 2.*version=1"):
        ss.StreamDataset(ss.open(uri), 1, 3).load_state_dict(state)
    old = ss.StreamDataset(ss.open(uri, version=1), 1, 3)
    old.load_state_dict(state)
    assert [w["x"].tolist() for w in old] == [[[6, 7, 8]]]


def test_a_loader_counts_what_was_handed_out_and_not_what_was_read_ahead():
    store = ss.from_arrays({"a": {"x": np.arange(1000)}})
    stream = ss.StreamDataset(store, 1, 2)
    loader = ss.StreamLoader(stream, prefetch=8)
    iterator = iter(loader)
    for step in range(5):
        next(iterator)
        assert loader.state_dict()["step"] == step + 1
    iterator.close()
    assert loader.state_dict()["step"] == 5
    assert next(iter(loader))["x"].tolist() == [[0, 1]]


def test_a_loader_s_thread_ends_with_the_loop_and_raises_where_windows_are_asked_for():
    def readers():
        return [t for t in threading.enumerate() if t.name.startswith("streamseq-reader")]

    store = ss.from_arrays({"a": {"x": np.arange(100_000)}})
    loader = ss.StreamLoader(ss.StreamDataset(store, 1, 2), prefetch=1)
    for _ in loader:
        assert readers()
        break
    assert not readers()

    stream = ss.StreamDataset(store, 1, 2)
    stream.open_reader = lambda ahead: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(ss.StreamLoader(stream))
    assert not readers()


def test_a_program_that_leaves_a_loop_half_way_ends_well():
    program = """
import numpy as np, streamseq as ss
stream = ss.StreamDataset(ss.from_arrays({"a": {"x": np.arange(10_000_000)}}), 4, 100, layout="even")
iterator = iter(ss.StreamLoader(stream, prefetch=64))
next(iterator)
"""
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


def test_windows_that_are_held_keep_their_values(make_store):
    stream = ss.StreamDataset(make_store([70, 33], "zarr"), 2, 3)
    held = list(ss.StreamLoader(stream))
    copies = [window["v"].clone() for window in held]
    list(ss.StreamLoader(stream))
    assert all(torch.equal(window["v"], copy) for window, copy in zip(held, copies, strict=True))


def test_masks_of_many_windows_are_right_and_stay_as_somebody_left_them(make_store):
    stream = ss.StreamDataset(make_store([70, 3, 640, 1, 64], "arrow"), 2, 2, lookahead={"y": ("x", 1)})
    held = list(ss.StreamLoader(stream))
    # More windows than tensors are made of at a time, several times, and not a multiple.
    assert 3 * TOGETHER < len(held) != len(held) // TOGETHER * TOGETHER
    for window in held[::3]:
        window.mask.logical_not_()
    for number, (old, new) in enumerate(zip(held, ss.StreamLoader(stream), strict=True)):
        # The last timestep of a sequence has no next one.
        lengths = torch.from_numpy(new.token.stop - new.token.start - new.token.final)
        there = torch.arange(2) < lengths[:, None]
        assert torch.equal(new.mask, there)
        assert torch.equal(old.mask, ~there if number % 3 == 0 else there)


def test_a_window_can_be_cut_moved_and_pickled():
    store = ss.from_arrays({"a": {"x": np.arange(7)}, "b": {"x": np.arange(10, 13)}})
    for batch_first in (True, False):
        window = ss.StreamDataset(store, 2, 5, batch_first=batch_first)[0]
        part = window.cut(2, 5)
        x = part["x"] if batch_first else part["x"].T
        assert x.tolist() == [[2, 3, 4], [12, 0, 0]]
        assert part.lengths.tolist() == [3, 1]
        assert part.token.start.tolist() == [2, 2]
        assert part.token.stop.tolist() == [5, 3]
        assert part.token.final.tolist() == [False, True]
        assert not part.token.reset.any()
        assert part.num_steps == 3
        assert part.num_lanes == 2
        assert window.cut(0, 2).token.final.tolist() == [False, False]
        assert window.cut(0, 2).token.reset.tolist() == [True, True]
        assert same(pickle.loads(pickle.dumps(window)), window)
        assert same(window.to("cpu"), window)
        assert list(window) == window.keys() == ["x"]
        assert "x" in window
        with pytest.raises(KeyError, match="x, not 'y'"):
            window["y"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"window": 0}, ValueError, "window is at least 1"),
        ({"window": None}, ValueError, "window=None"),
        ({"lanes": 0}, ValueError, "lanes is at least 1"),
        ({"fields": "x"}, TypeError, r"\['x'\]"),
        ({"fields": []}, ValueError, "at least one field"),
        ({"fields": ["y"]}, KeyError, "x, v"),
        ({"lookahead": {"y": ("z", 1)}}, KeyError, "x, v"),
        ({"lookahead": {"x": ("x", 1)}}, ValueError, "name of its own"),
        ({"lookahead": {"y": "x"}}, TypeError, "field, offset"),
        ({"lookahead": {"y": ("x", 1.5)}}, TypeError, "integer"),
        ({"sequences": []}, ss.PlanError, "empty subset"),
        ({"sequences": "s0"}, TypeError, r"\['s0'\]"),
        ({"sequences": ["s9"]}, KeyError, "s9"),
        ({"sequences": [("s0", 1)]}, ValueError, "id, start, stop"),
        ({"sequences": [("s0", 3, 99)]}, ValueError, r"\[3, 99\)"),
        ({"epoch": -1}, ValueError, "epoch"),
        ({"epoch": 0.5}, TypeError, "epoch"),
        ({"rank": 2, "world_size": 2}, ValueError, "rank"),
        ({"rank": 0, "world_size": 3}, ss.PlanError, "lanes=2"),
        ({"tail": "drop", "window": 100}, ss.PlanError, "whole windows"),
    ],
)
def test_wrong_arguments_are_refused(make_store, options, error, match):
    with pytest.raises(error, match=match):
        ss.StreamDataset(make_store([9, 4], "memory"), **{"lanes": 2, "window": 3, **options})


def test_things_that_are_no_store_or_stream_are_refused(make_store):
    with pytest.raises(TypeError, match="pass ss"):
        ss.StreamDataset("a.zarr", 2, 3)
    stream = ss.StreamDataset(make_store([9, 4], "memory"), 2, 3)
    with pytest.raises(TypeError, match="StreamDataset"):
        ss.StreamLoader([1])
    with pytest.raises(ValueError, match="prefetch"):
        ss.StreamLoader(stream, prefetch=0)
    with pytest.raises(IndexError, match="windows 0 to 2"):
        stream[3]


def test_a_block_s_memory_is_used_again_only_when_nobody_looks_at_it():
    store = ss.from_arrays({"a": {"x": np.arange(100_000)}})
    stream = ss.StreamDataset(store, 1, 1000)
    reader = stream.open_reader()

    def read(step):
        (window,) = reader.read(reader.request(step)).windows()
        return window

    # One that is looked at, and one that is filled.
    places = {read(step)["x"].data_ptr() for step in range(2)}
    assert len(places) == 2
    assert {read(step)["x"].data_ptr() for step in range(2, 20)} <= places
    for hold in (lambda w: w, lambda w: w["x"], lambda w: w["x"][0, 3:4], lambda w: w["x"].numpy()[0, 5:]):
        held = hold(read(2))
        for step in range(3, 20):
            read(step)
        values = held["x"] if isinstance(held, ss.Window) else held
        assert 2000 <= int(values.flatten()[0]) < 2006
        del held, values
    assert len({read(step)["x"].data_ptr() for step in range(20)}) <= 2


def test_a_chunk_that_did_not_decode_is_tried_again(tmp_path):
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("int64", codec="zstd")}) as writer:
        writer.write("a", x=np.arange(20))
    (path,) = tmp_path.glob("s.zarr/shards/*/x/c/0")
    good = path.read_bytes()
    stream = ss.StreamDataset(ss.open(tmp_path / "s.zarr"), 1, 20)
    with path.open("r+b") as file:
        file.write(bytes([good[0] ^ 1]))
    for _ in range(2):
        with pytest.raises(ss.CorruptionError):
            stream[0]
    with path.open("r+b") as file:
        file.write(good[:1])
    assert stream[0]["x"].tolist() == [list(range(20))]


@slow
@given(st.data())
def test_a_stream_goes_on_with_windows_of_another_length(make_store, data):
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=3, max_size=9))
    backend = data.draw(st.sampled_from(["memory", "zarr", "arrow"]))
    options = {
        "lanes": data.draw(st.integers(1, 3)),
        "layout": data.draw(st.sampled_from(["sequences", "even"])),
        "shuffle": data.draw(st.booleans()),
        "seed": data.draw(st.integers(0, 3)),
    }
    store = make_store(lengths, backend)

    def values(windows):
        """What each lane emitted, one timestep after the other, and where it was reset."""
        lanes = [[] for _ in range(options["lanes"])]
        for window in windows:
            for lane, (row, length, reset) in enumerate(
                zip(window["x"].tolist(), window.lengths.tolist(), window.token.reset.tolist(), strict=True)
            ):
                lanes[lane] += ["reset"] * reset + row[:length]
        return lanes

    wanted = values(ss.StreamDataset(store, window=7, **options))
    stream = ss.StreamDataset(store, window=data.draw(st.integers(1, 9)), **options)
    seen = []
    for _ in range(data.draw(st.integers(1, 3))):
        source = ss.StreamLoader(stream) if data.draw(st.booleans()) else stream
        stop = data.draw(st.integers(0, len(stream) - 1)) if len(stream) else None
        if stop is None:
            break
        part = [window for window, _ in zip(source, range(stop + 1), strict=False)]
        seen += part
        for earlier, later in pairwise(seen):
            assert later.token.follows(earlier.token)
        stream.rewindow(data.draw(st.integers(1, 9)), after=seen[-1].token)
    # A stream that was made anew goes on from a position after the changes.
    fresh = ss.StreamDataset(store, window=stream.window, **options)
    state = json.loads(json.dumps(stream.state_dict()))
    fresh.load_state_dict(state)
    assert fresh.state_dict() == stream.state_dict()
    rest = list(stream)
    assert_same(list(fresh), rest)
    assert values(seen + rest) == wanted
    # The next epoch begins with the new window, and knows of no change.
    stream.set_epoch(1)
    assert "switches" not in stream.state_dict()
    assert stream.num_timesteps == sum(lengths)


def test_a_stream_does_not_go_on_after_a_token_of_another(make_store):
    store = make_store([20, 30], "memory")
    stream = ss.StreamDataset(store, 2, 5)
    token = stream[1].token
    other = ss.StreamDataset(store, 2, 5, layout="even")
    with pytest.raises(ss.ResumeError, match="fingerprint"):
        other.rewindow(3, after=token)
    stream.rewindow(3, after=token)
    with pytest.raises(ss.ResumeError):
        stream.rewindow(3, after=token)
    with pytest.raises(ss.ResumeError, match="window"):
        ss.StreamDataset(store, 2, 5).load_state_dict(stream.state_dict())
    dropping = ss.StreamDataset(store, 2, 5, tail="drop")
    with pytest.raises(ValueError, match="drop"):
        dropping.rewindow(3, after=dropping[1].token)


def test_long_sequences_are_cut_so_that_no_lane_is_idle(make_store):
    store = make_store([64, 4, 4], "memory")
    whole = ss.StreamDataset(store, 4, 4)
    assert whole.occupancy.busy == 18 / 64
    assert whole.occupancy.filled == 1
    cut = ss.StreamDataset(store, 4, 4, longest=16)
    assert cut.occupancy.busy == 18 / (4 * len(cut)) > 0.8
    assert sum(int(window.token.reset.sum()) for window in cut) == 6
    assert sum(int(window.lengths.sum()) for window in cut) == 72
    with pytest.raises(ss.ResumeError, match="longest"):
        cut.load_state_dict(whole.state_dict())


def test_occupancy_counts_idle_lanes_and_padding_apart(make_store):
    stream = ss.StreamDataset(make_store([9, 4], "zarr"), 2, 4)
    cells = [(w.token.idle.sum(), w.lengths.sum().item()) for w in stream]
    found = stream.occupancy
    assert found.lane_windows == 2 * len(stream)
    assert found.idle_lane_windows == sum(idle for idle, _ in cells)
    assert found.timesteps == sum(count for _, count in cells) == 13
    assert found.padding_timesteps == 4 * (found.lane_windows - found.idle_lane_windows) - 13
