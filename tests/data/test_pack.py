"""Packed streams: windows across the ends of sequences hold every timestep once, in order, for any topology."""

import io
import json
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss

FIELDS = {"x": ss.Field("int32"), "v": ss.Field("float32", (2,))}
LOOKAHEAD = {"next": ("x", 1), "far": ("x", 3), "last": ("v", -1)}

slow = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def values(sequence, n):
    """Timesteps whose every value is distinct over all sequences and timesteps, and not zero."""
    at = sequence * 1000 + np.arange(1, n + 1, dtype=np.int32)
    return {"x": at, "v": (at[:, None] + np.arange(2) / 8).astype(np.float32)}


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    made = {}

    def make(lengths, backend):
        key = (tuple(lengths), backend)
        if key not in made:
            if backend == "memory":
                made[key] = ss.from_arrays({f"s{i}": values(i, n) for i, n in enumerate(lengths)})
            else:
                uri = tmp_path_factory.mktemp("packed") / f"{len(made)}.{backend}"
                with ss.create(uri, FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
                    for i, n in enumerate(lengths):
                        writer.write(f"s{i}", **values(i, n))
                made[key] = ss.open(uri)
        return made[key]

    return make


@st.composite
def options(draw):
    """Of a packed stream."""
    layout = draw(st.sampled_from(["sequences", "even"]))
    return {
        "lanes": draw(st.integers(1, 4)),
        "window": draw(st.integers(1, 20)),
        "tail": "pack",
        "layout": layout,
        "longest": draw(st.one_of(st.none(), st.integers(1, 40))) if layout == "sequences" else None,
        "shuffle": draw(st.booleans()),
        "epoch": draw(st.integers(0, 2)),
        "batch_first": draw(st.booleans()),
        "lookahead": LOOKAHEAD,
    }


@st.composite
def stores(draw, make_store, backends=("memory", "zarr", "arrow")):
    """Stores of short and long sequences, also empty ones."""
    lengths = draw(st.lists(st.one_of(st.integers(0, 6), st.integers(1, 60)), min_size=1, max_size=9).filter(sum))
    return make_store(lengths, draw(st.sampled_from(backends)))


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


def lane_first(window, tensor):
    return (tensor if window.batch_first else tensor.transpose(0, 1)).numpy()


def assert_window_is_right(window, store, spans):
    """What a window shows is what its token says: inputs, lookaheads inside the span, mask, padding."""
    rows = {name: lane_first(window, window[name]) for name in window}
    mask = lane_first(window, window.mask)
    wanted = {name: np.zeros_like(row) for name, row in rows.items()}
    wanted_mask = np.zeros_like(mask)
    for lane, offset, sequence, start, stop, _ in window.token.segments.tolist():
        whole = store.read(sequence)
        low, high = spans[sequence]
        assert low <= start < stop <= high
        for t in range(start, stop):
            at = (lane, offset + t - start)
            wanted_mask[at] = low <= t - 1 and t + 3 < high
            for name, (field, ahead) in {"x": ("x", 0), "v": ("v", 0), **LOOKAHEAD}.items():
                if low <= t + ahead < high:
                    wanted[name][at] = whole[field][t + ahead]
    for name, row in rows.items():
        assert np.array_equal(row, wanted[name])
    assert np.array_equal(mask, wanted_mask)
    assert window.lengths.tolist() == (rows["x"] != 0).sum(1).tolist()


@slow
@given(st.data(), options())
def test_windows_hold_every_timestep_once_in_order_and_in_one_lane(make_store, data, options):
    store = data.draw(stores(make_store))
    spans = {i: (0, int(n)) for i, n in enumerate(store.lengths)}
    if data.draw(st.booleans()):
        begins = {i: data.draw(st.integers(0, n)) for i, (_, n) in spans.items()}
        parts = {i: (begin, data.draw(st.integers(begin, spans[i][1]))) for i, begin in begins.items()}
        spans = parts if sum(stop - start for start, stop in parts.values()) else spans
    chosen = [(f"s{i}", *span) for i, span in spans.items()]
    stream = ss.StreamDataset(store, sequences=chosen, **options)
    lanes = [[] for _ in range(stream.lanes)]
    padded = [False] * stream.lanes
    for window in stream:
        assert_window_is_right(window, store, spans)
        for lane, n in enumerate(window.lengths.tolist()):
            assert not (padded[lane] and n)
            padded[lane] = n < stream.window
        for lane, _, sequence, start, stop, reset in window.token.segments.tolist():
            at = lanes[lane][-1] if lanes[lane] else None
            assert reset or at == (sequence, start - 1)
            lanes[lane] += [(sequence, t) for t in range(start, stop)]
    emitted = [each for lane in lanes for each in lane]
    assert sorted(emitted) == [(i, t) for i, (start, stop) in spans.items() for t in range(start, stop)]
    assert stream.num_timesteps == len(emitted)
    assert stream.left_out == 0
    assert len(stream) == -(-max(map(len, lanes)) // stream.window)
    # Lanes get what they get with padding, which decides windows and not the order.
    padding = ss.StreamDataset(store, sequences=chosen, **{**options, "tail": "pad", "window": 100})
    wanted = [[] for _ in lanes]
    for window in padding:
        for lane, sequence in enumerate(window.token.sequence.tolist()):
            wanted[lane] += [(sequence, t) for t in range(window.token.start[lane], window.token.stop[lane])]
    assert lanes == wanted


@slow
@given(st.data(), options())
def test_any_way_to_read_gives_the_same_windows(make_store, data, options):
    stream = ss.StreamDataset(data.draw(stores(make_store)), **options)
    windows = list(stream)
    assert_same([stream[t] for t in range(len(stream))], windows)
    assert_same([stream[t] for t in reversed(range(-len(stream), 0))], windows[::-1])
    assert_same(list(ss.StreamLoader(stream, prefetch=1)), windows)
    assert_same(pickle.loads(pickle.dumps(windows)), windows)
    assert all(b.token.follows(a.token) for a, b in pairwise(windows))


@settings(slow, max_examples=6)
@given(st.data(), options())
def test_workers_change_nothing(make_store, data, options):
    stream = ss.StreamDataset(data.draw(stores(make_store, backends=("zarr", "arrow"))), **options)
    windows = list(stream)
    step = data.draw(st.integers(1, len(windows)))
    for workers in range(4):
        loader = DataLoader(stream, batch_size=None, num_workers=workers)
        assert_same(list(loader), windows)
        stream.load_state_dict(windows[step - 1].token.state_dict())
        assert_same(list(loader), windows[step:])


@settings(slow, max_examples=20)
@given(st.data(), options())
def test_resuming_at_any_step_is_like_not_stopping(make_store, data, options):
    store = data.draw(stores(make_store))
    stream = ss.StreamDataset(store, **options)
    fresh = ss.StreamDataset(store, **{**options, "epoch": 0})
    windows = list(stream)
    for source, target in ((stream, fresh), (ss.StreamLoader(stream), ss.StreamLoader(fresh))):
        for step, _ in enumerate(source):
            state = json.loads(json.dumps(source.state_dict()))
            assert state == windows[step].token.state_dict()
            target.load_state_dict(state)
            assert_same(list(target), windows[step + 1 :])
    padding = ss.StreamDataset(store, **{**options, "tail": "pad"})
    with pytest.raises(ss.ResumeError, match="tail"):
        padding.load_state_dict(windows[0].token.state_dict())


@slow
@given(st.data(), options())
def test_ranks_own_lanes_and_see_the_same_steps(make_store, data, options):
    store = data.draw(stores(make_store))
    stream = ss.StreamDataset(store, **options)
    ranks = data.draw(st.integers(1, stream.lanes))
    parts = [list(ss.StreamDataset(store, rank=rank, world_size=ranks, **options)) for rank in range(ranks)]
    assert {len(part) for part in parts} == {len(stream)}
    for window, *shares in zip(stream, *parts, strict=True):
        for name in window:
            joined = np.concatenate([lane_first(share, share[name]) for share in shares])
            assert np.array_equal(joined, lane_first(window, window[name]))
        for name in ("sequence", "start", "stop", "reset", "final", "lane", "resets", "last_sequence"):
            joined = np.concatenate([getattr(share.token, name) for share in shares])
            assert np.array_equal(joined, getattr(window.token, name))
        # A segment's lane is its place in the window.
        joined = [
            (int(share.token.lane[lane]), *rest) for share in shares for lane, *rest in share.token.segments.tolist()
        ]
        assert joined == window.token.segments.tolist()


@slow
@given(st.data(), options())
def test_a_stream_goes_on_with_windows_of_another_length(make_store, data, options):
    store = data.draw(stores(make_store))

    def emitted(windows):
        """What each lane emitted, timestep by timestep, and where it was reset."""
        lanes = [[] for _ in range(options["lanes"])]
        for window in windows:
            for lane, row in enumerate(lane_first(window, window["x"])):
                resets = window.token.resets[lane]
                lanes[lane] += [(int(x), bool(reset)) for x, reset in zip(row, resets, strict=True) if x]
        return lanes

    wanted = emitted(ss.StreamDataset(store, **{**options, "window": 7}))
    stream = ss.StreamDataset(store, **options)
    seen = []
    for _ in range(data.draw(st.integers(1, 3))):
        if not len(stream):
            break
        stop = data.draw(st.integers(1, len(stream)))
        seen += [window for window, _ in zip(stream, range(stop), strict=False)]
        stream.rewindow(data.draw(st.integers(1, 9)), after=seen[-1].token)
    fresh = ss.StreamDataset(store, **{**options, "window": stream.window})
    fresh.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    rest = list(stream)
    assert_same(list(fresh), rest)
    assert emitted(seen + rest) == wanted
    assert all(later.token.follows(earlier.token) for earlier, later in pairwise(seen + rest))


@slow
@given(st.data(), options())
def test_a_window_can_be_cut_anywhere(make_store, data, options):
    store = data.draw(stores(make_store))
    spans = {i: (0, int(n)) for i, n in enumerate(store.lengths)}
    for window in ss.StreamDataset(store, **options):
        start = data.draw(st.integers(0, window.num_steps - 1))
        cut = window.cut(start, data.draw(st.integers(start + 1, window.num_steps)))
        assert_window_is_right(cut, store, spans)
        assert cut.token.num_steps == cut.num_steps
        assert cut.token.lengths.tolist() == cut.lengths.tolist()
        assert np.array_equal(cut.token.resets, window.token.resets[:, start : start + cut.num_steps])
        assert same(pickle.loads(pickle.dumps(cut)), cut)


def test_short_sequences_share_a_window_and_a_target_is_masked_where_each_ends():
    texts = {"a": b"abc", "b": b"", "c": b"defg"}
    store = ss.from_arrays({name: {"x": np.frombuffer(text, np.uint8)} for name, text in texts.items()})
    stream = ss.StreamDataset(store, 1, 5, tail="pack", lookahead={"next": ("x", 1)})
    texts = [bytes(window["x"][0].tolist()) for window in stream]
    targets = [bytes(window["next"][0].tolist()) for window in stream]
    assert texts == [b"abcde", b"fg\0\0\0"]
    assert targets == [b"bc\0ef", b"g\0\0\0\0"]
    assert [window.mask.int().tolist() for window in stream] == [[[1, 1, 0, 1, 1]], [[1, 0, 0, 0, 0]]]
    assert stream.occupancy.filled == 0.7
    assert stream.occupancy.busy == 1


def test_whole_sequences_as_windows_are_not_packed(make_store):
    with pytest.raises(ValueError, match='tail="pack"'):
        ss.StreamDataset(make_store([3, 4], "memory"), 2, tail="pack", split=ss.splits.AsIs())


def totals(stream, carry, saved_at=None):
    """The sum of each sequence, by a model that takes what a token says of resets; a carry may be saved on the way."""
    found = {}
    for step, window in enumerate(stream):
        if step == saved_at:
            file = io.BytesIO()
            torch.save(carry.state_dict(), file)
            file.seek(0)
            carry = ss.Carry()
            carry.load_state_dict(torch.load(file, weights_only=True))
        total = carry.enter(window.token)
        total = torch.zeros(stream.lanes, dtype=torch.int64) if total is None else total
        x, resets = torch.from_numpy(lane_first(window, window["x"])), torch.from_numpy(window.token.resets)
        for lane, offset, sequence, start, stop, _ in window.token.segments.tolist():
            part = x[lane, offset : offset + stop - start].sum()
            total = total.clone()
            total[lane] = part + (0 if resets[lane, offset] else total[lane])
            found[sequence] = int(total[lane])
        carry.leave(window.token, total)
    return found


@slow
@given(st.data(), options())
def test_a_carry_goes_on_across_packed_windows_and_from_its_saved_state(make_store, data, options):
    store = data.draw(stores(make_store))
    options = {**options, "layout": "sequences", "longest": None}
    stream = ss.StreamDataset(store, **options)
    wanted = {i: int(store.read(i)["x"].sum()) for i, n in enumerate(store.lengths) if n}
    assert totals(stream, ss.Carry(lane_axis=0)) == wanted
    assert totals(stream, ss.Carry(lane_axis=0), data.draw(st.integers(0, len(stream) - 1))) == wanted


def test_a_window_that_does_not_follow_names_the_sequence_that_was_left():
    store = ss.from_arrays({"a": {"x": np.arange(3)}, "b": {"x": np.arange(20)}})
    stream = ss.StreamDataset(store, 1, 5, tail="pack")
    carry = ss.Carry()
    carry.leave(stream[0].token, torch.zeros(1))
    with pytest.raises(ss.ContinuityError, match="at 7 of sequence 1, but the carried state ends at 2 of sequence 1"):
        carry.enter(stream[2].token)
    assert carry.enter(stream[1].token) is not None
