"""Streams whose windows end where the data says, from rules to tensors, for any topology."""

import io
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

import streamseq as ss
from streamseq.core.selection import select_all
from streamseq.core.splits import At, Calendar, Change, Domain, Gap, Marker, Silence, Where
from streamseq.storage.boundaries import find as finding
from streamseq.storage.boundaries.find import find_boundaries

FIELDS = {name: ss.Field("int64") for name in ("x", "time", "event")}
LOOKAHEAD = {"next": ("x", 1), "before": ("x", -1)}
NEVER = {"none": 0}

slow = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def values(index, steps, events):
    """`x` is distinct over all sequences and timesteps, and not zero."""
    n = len(steps)
    return {
        "x": 1000 * index + np.arange(1, n + 1),
        "time": np.cumsum(steps, dtype=np.int64),
        "event": np.array(events, np.int64),
    }


@st.composite
def contents(draw):
    """For each sequence the steps of its clock, of which those of more than 1 are gaps, and its events."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(sum))
    return [
        (
            draw(st.lists(st.sampled_from([1, 1, 1, 1, 1, 9]), min_size=n, max_size=n)),
            draw(st.lists(st.sampled_from([0, 0, 0, 0, 1]), min_size=n, max_size=n)),
        )
        for n in lengths
    ]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory):
    made = {}

    def make(content, backend="memory"):
        key = (repr(content), backend)
        if key not in made:
            arrays = {f"s{i}": values(i, *each) for i, each in enumerate(content)}
            if backend == "memory":
                made[key] = ss.from_arrays(arrays, FIELDS)
            else:
                uri = tmp_path_factory.mktemp("domain") / f"{len(made)}.{backend}"
                with ss.create(uri, FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
                    for id, each in arrays.items():
                        writer.write(id, **each)
                made[key] = ss.open(uri)
        return made[key]

    return make


RULES = [Marker("event"), Gap("time", longer_than=1)]


def borders_of(content):
    """The boundaries and the breaks of each sequence under `RULES`."""
    gaps = [{t for t in range(1, len(steps)) if steps[t] > 1} for steps, _ in content]
    marks = [{t for t in range(1, len(events)) if events[t]} for _, events in content]
    return [a | b for a, b in zip(gaps, marks, strict=True)], gaps


@st.composite
def options(draw):
    return {
        "lanes": draw(st.integers(1, 4)),
        "window": draw(st.integers(1, 20)),
        "layout": draw(st.sampled_from(["sequences", "even"])),
        "shuffle": draw(st.booleans()),
        "epoch": draw(st.integers(0, 2)),
        "batch_first": draw(st.booleans()),
        "lookahead": LOOKAHEAD,
        "split": Domain(RULES),
    }


def same(a, b):
    tensors = all(torch.equal(a[name], b[name]) for name in a)
    return a.token == b.token and tensors and torch.equal(a.mask, b.mask) and torch.equal(a.lengths, b.lengths)


def assert_same(left, right):
    assert len(left) == len(right)
    assert all(same(a, b) for a, b in zip(left, right, strict=True))


@slow
@given(st.data(), contents(), options())
def test_windows_show_what_their_tokens_say(make_store, data, content, options):
    store = make_store(content, data.draw(st.sampled_from(["memory", "zarr", "arrow"])))
    stream = ss.StreamDataset(store, **options)
    positions, breaks = borders_of(content)
    emitted, states = [], [None] * stream.lanes
    for window in stream:
        token = window.token
        rows = {name: (window[name] if stream.batch_first else window[name].T).numpy() for name in window}
        mask = (window.mask if stream.batch_first else window.mask.T).numpy()
        for lane in range(stream.lanes):
            sequence, start, stop = (int(getattr(token, name)[lane]) for name in ("sequence", "start", "stop"))
            n = stop - start
            assert int(window.lengths[lane]) == n
            for name in rows:
                assert not rows[name][lane, n:].any()
            assert not mask[lane, n:].any()
            if sequence < 0:
                assert states[lane] is None
                continue
            assert token.reset[lane] == (states[lane] is None)
            assert states[lane] in (None, (sequence, start))
            states[lane] = None if token.final[lane] else (sequence, stop)
            x = store.read(sequence)["x"]
            assert not any(start < p < stop for p in positions[sequence])
            low = max(p for p in {0, *breaks[sequence]} if p <= start)
            high = min(p for p in {len(x), *breaks[sequence]} if p >= stop)
            for t in range(start, stop):
                assert rows["x"][lane, t - start] == x[t]
                assert rows["next"][lane, t - start] == (x[t + 1] if t + 1 < high else 0)
                assert rows["before"][lane, t - start] == (x[t - 1] if t > low else 0)
                assert mask[lane, t - start] == (low < t < high - 1)
            emitted += [(sequence, t) for t in range(start, stop)]
    assert states == [None] * stream.lanes
    assert sorted(emitted) == [(i, t) for i, (steps, _) in enumerate(content) for t in range(len(steps))]


@slow
@given(st.data(), contents(), options())
def test_the_stream_is_the_same_in_any_order_and_for_any_topology(make_store, data, content, options):
    stream = ss.StreamDataset(make_store(content, data.draw(st.sampled_from(["memory", "arrow"]))), **options)
    windows = list(stream)
    assert_same(windows, [stream[t] for t in range(len(stream))])
    assert_same(windows, list(ss.StreamLoader(stream, prefetch=2)))
    ranks = data.draw(st.integers(1, stream.lanes))
    parts = [list(ss.StreamDataset(stream.store, rank=r, world_size=ranks, **options)) for r in range(ranks)]
    for window, *each in zip(windows, *parts, strict=True):
        axis = 1 - window.time_axis
        for name in window:
            assert torch.equal(window[name], torch.cat([part[name] for part in each], axis))
        assert np.array_equal(window.token.stop, np.concatenate([part.token.stop for part in each]))
    step = data.draw(st.integers(0, len(stream)))
    for again in (stream, pickle.loads(pickle.dumps(stream)), ss.StreamDataset(stream.store, **options)):
        again.load_state_dict(windows[step - 1].token.state_dict() if step else stream._position(0).state_dict())
        assert_same(windows[step:], list(again))
    if step:
        length = data.draw(st.integers(1, 25))
        stream.rewindow(length, after=windows[step - 1].token)
        rest = list(stream)
        tokens = [[(s, t) for w in part for s, t in emitted(w)] for part in (windows[step:], rest)]
        assert sorted(tokens[0]) == sorted(tokens[1])
        if rest:
            assert rest[0].token.follows(windows[step - 1].token)


def emitted(window):
    for sequence, start, stop in zip(window.token.sequence, window.token.start, window.token.stop, strict=True):
        yield from ((int(sequence), t) for t in range(start, stop))


CONTENT = [([1, 1, 9] * 20, [0, 0, 0, 1, 0] * 12), ([1] * 35, [0, 1] * 17 + [0]), ([1] * 9, [0] * 9)]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_have_the_boundaries_and_need_no_rule(make_store, method):
    # A lambda cannot be pickled, and what is pickled has been found already.
    split = Domain([*RULES, lambda arrays: [len(arrays["x"]) // 2]])
    stream = ss.StreamDataset(make_store(CONTENT, "zarr"), lanes=2, window=6, split=split)
    windows = list(stream)
    loader = DataLoader(stream, batch_size=None, num_workers=2, multiprocessing_context=method)
    assert_same(windows, list(loader))
    other = pickle.loads(pickle.dumps(stream))
    assert other.plan.fingerprint == stream.plan.fingerprint
    with pytest.raises(TypeError, match="cannot be pickled"):
        find_boundaries(stream.store, other._settings.split, select_all(stream.store.lengths))
    named = pickle.loads(pickle.dumps(Where(len, ["x"], reset=True)))
    assert named == Where(len, ["x"], reset=True)


def found(store, rules, sequences=None):
    stream = ss.StreamDataset(store, lanes=1, window=5, split=Domain(rules), sequences=sequences)
    boundaries, lists = stream.plan.boundaries, {}
    for slot, sequence in enumerate(boundaries.sequence.tolist()):
        part = slice(boundaries.first[slot], boundaries.first[slot + 1])
        lists[f"s{sequence}"] = list(
            zip(boundaries.position[part].tolist(), boundaries.breaks[part].tolist(), strict=True)
        )
    return lists


def test_rules_together_are_sorted_and_a_break_of_one_is_a_break(make_store):
    store = make_store([([1, 1, 9, 1, 9, 1], [0, 0, 1, 1, 0, 0]), ([1] * 4, [0] * 4), ([1, 9], [1, 1])])
    assert found(store, RULES) == {"s0": [(2, True), (3, False), (4, True)], "s2": [(1, True)]}
    assert found(store, [Marker("event"), {"s1": [3, 1, 3, 0, 4], "s0": []}]) == {
        "s0": [(2, False), (3, False)],
        "s1": [(1, False), (3, False)],
        "s2": [(1, False)],
    }
    assert found(store, [At({"s0": [3]}, reset=True), Marker("event")], ["s0"]) == {"s0": [(2, False), (3, True)]}
    assert found(store, [Silence("event", below=1, at_least=2), Change("time")]) == {
        "s0": [(p, False) for p in range(1, 6)],
        "s1": [(p, False) for p in range(1, 4)],
        "s2": [(1, False)],
    }
    assert found(store, NEVER_MARKED) == {}


NEVER_MARKED = Marker("event", 7)


def test_functions_get_arrays_or_pieces_of_one_sequence(make_store, monkeypatch):
    monkeypatch.setattr(finding, "_PIECE_TIMESTEPS", 2)
    store = make_store(CONTENT)
    seen = []

    def by_pieces(pieces):
        at = 0
        for piece in pieces:
            seen.append(len(piece["event"]))
            yield from at + np.flatnonzero(piece["event"])
            at += len(piece["event"])

    whole = Where(lambda arrays: np.flatnonzero(arrays["event"]), reset=True)
    wanted = found(store, Marker("event", reset=True))
    assert found(store, whole) == wanted
    assert found(store, Where(by_pieces, ["event"], pieces=True, reset=True)) == wanted
    assert set(seen) == {1, 2}


@pytest.mark.parametrize("piece", [1, 3, 50])
def test_gaps_and_changes_between_pieces_are_found_and_none_between_sequences(make_store, monkeypatch, piece):
    wanted = found(make_store(CONTENT, "arrow"), RULES)
    monkeypatch.setattr(finding, "_PIECE_TIMESTEPS", piece)
    for backend in ("memory", "arrow"):
        assert found(make_store(CONTENT, backend), RULES) == wanted
    positions, breaks = borders_of(CONTENT)
    assert wanted == {f"s{i}": [(p, p in breaks[i]) for p in sorted(each)] for i, each in enumerate(positions) if each}


def test_only_the_fields_of_rules_and_the_chosen_sequences_are_read(make_store, monkeypatch):
    store = make_store(CONTENT, "zarr")
    asked, read = [], []
    reader = type(store).reader
    monkeypatch.setattr(
        type(store), "reader", lambda self, names, *rest: asked.append(names) or reader(self, names, *rest)
    )
    through = finding._read_through

    def spy(store, timeline, names):
        for first, arrays, begins in through(store, timeline, names):
            read.append(sum(map(len, arrays.values())))
            yield first, arrays, begins

    monkeypatch.setattr(finding, "_read_through", spy)
    chosen = [("s1", 3, 10), ("s1", 20, 25), ("s0", 5, 30)]
    stream = ss.StreamDataset(store, lanes=1, window=5, split=Domain([*RULES, Change("time")]), sequences=chosen)
    assert [set(names) for names in asked] == [{"time", "event"}]
    # Up to the end of the last span of each, each field once.
    assert sum(read) == 2 * (25 + 30)
    list(stream)
    stream.set_epoch(1)
    list(stream)
    assert len(read) == 1
    starts = {(int(s), int(t)) for w in stream for s, t in zip(w.token.sequence, w.token.start, strict=True)}
    assert {(1, 3), (1, 5), (1, 20), (1, 21), (0, 6), (0, 8)} <= starts


def test_a_calendar_of_a_stream():
    hours = np.arange(50) + 472_224  # from midnight UTC on
    store = ss.from_arrays({"s0": {"time": hours, "x": np.arange(50)}})
    assert found(store, Calendar("time", every="day", unit="h")) == {"s0": [(24, False), (48, False)]}
    vienna = Calendar("time", every="day", unit="h", timezone="Europe/Vienna", reset=True)
    assert found(store, vienna) == {"s0": [(23, True), (47, True)]}


@pytest.mark.parametrize(
    ("rules", "error", "match"),
    [
        (Marker("speed"), KeyError, "x, time, event, not 'speed'"),
        (Where(len, ["speed"]), KeyError, "'speed'"),
        ({"s9": [3]}, KeyError, "'s9'"),
        ({"s2": [10]}, ValueError, "from 0 to 9, .* 's2' have 10"),
        ({"s2": [-1, 3]}, ValueError, "have -1"),
        ({"s2": [1.5]}, TypeError, "float64"),
        (lambda arrays: [[1]], TypeError, r"shape \[1, 1\]"),
        (lambda arrays: [99], ValueError, "lambda.* of 's0' have 99"),
    ],
)
def test_rules_that_do_not_fit_the_store_are_refused(make_store, rules, error, match):
    with pytest.raises(error, match=match):
        ss.StreamDataset(make_store(CONTENT), lanes=1, window=5, split=Domain(rules))


def test_a_missing_timestamp_is_named():
    store = ss.from_arrays({"a": {"time": np.arange(9.0)}, "b": {"time": np.array([0.0, 1.0, np.nan])}})
    with pytest.raises(ValueError, match=r"Gap .*'time' has none at 2 of 'b'"):
        ss.StreamDataset(store, lanes=1, window=5, split=Domain(Gap("time", longer_than=1)))


def test_a_store_without_boundaries_streams_like_the_naive_split(make_store):
    store = make_store(CONTENT)
    for options in ({}, {"layout": "even"}, {"shuffle": True}):
        pair = [ss.StreamDataset(store, 2, 7, split=s, **options) for s in (Domain(NEVER_MARKED), ss.splits.Naive())]
        assert pair[0].occupancy == pair[1].occupancy
        for left, right in zip(*pair, strict=True):
            assert all(torch.equal(left[name], right[name]) for name in left)
            assert np.array_equal(left.token.reset, right.token.reset)
            assert np.array_equal(left.token.stop, right.token.stop)


def test_positions_of_other_boundaries_are_refused(make_store):
    store = make_store(CONTENT)
    streams = [ss.StreamDataset(store, 2, 7, split=Domain(rules)) for rules in (RULES, RULES[:1], RULES[1])]
    assert len({stream.plan.fingerprint for stream in streams}) == 3
    with pytest.raises(ss.StreamseqError, match="boundaries"):
        streams[0].load_state_dict(streams[1].state_dict())


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")  # a DataLoader asks for it once
def test_boundaries_are_found_anew_in_a_store_that_has_grown(tmp_path):
    with ss.create(tmp_path / "s.arrow", FIELDS) as writer:
        writer.write("s0", **values(0, [1, 1, 9], [0, 0, 0]))
    stream = ss.StreamDataset(ss.open(tmp_path / "s.arrow"), lanes=1, window=5, split=Domain(RULES))
    loader = DataLoader(stream, batch_size=None, num_workers=1, persistent_workers=True)
    assert len(list(loader)) == 2
    with ss.append(tmp_path / "s.arrow") as writer:
        writer.append("s0", x=np.arange(4, 8), time=np.array([12, 30, 31, 32]), event=np.array([0, 0, 0, 1]))
    assert stream.refresh()
    assert stream.plan.boundaries.position.tolist() == [2, 4, 6]
    assert stream.plan.boundaries.breaks.tolist() == [True, True, False]
    assert_same(list(stream), list(loader))
    before = stream.plan.fingerprint
    with ss.append(tmp_path / "s.arrow") as writer:
        writer.write("s1", **values(1, [1], [0]))
    assert stream.refresh()
    assert stream.plan.fingerprint != before


# By hand


def ends_by_hand(stream, run):
    """What `run` gives at each lane's own stop, by (sequence, stop)."""
    ends = {}
    for window in stream:
        ends.update(run(window))
    return ends


def wanted_ends(stream, model, content):
    """The state at each stop, of running what lies between breaks alone."""
    _, breaks = borders_of(content)
    ends = {}
    for window in stream:
        for sequence, stop in zip(window.token.sequence.tolist(), window.token.stop.tolist(), strict=True):
            if sequence >= 0:
                begin = max(p for p in {0, *breaks[sequence]} if p < stop)
                x = torch.from_numpy(stream.store.read(sequence, begin, stop)["x"]).double()[None, :, None] / 1000
                ends[sequence, stop] = model(x)[1][0, 0]
    return ends


def assert_ends(got, wanted):
    assert got.keys() == wanted.keys()
    for key, state in wanted.items():
        torch.testing.assert_close(got[key], state, rtol=0, atol=1e-12)


@slow
@given(contents(), st.integers(1, 3), st.integers(2, 9))
def test_a_carry_by_hand_keeps_the_state_of_each_lane_s_own_stop(make_store, content, lanes, window):
    stream = ss.StreamDataset(make_store(content), lanes, window, split=Domain(RULES))
    torch.manual_seed(0)
    model = torch.nn.GRU(1, 4, batch_first=True).double()
    wanted = wanted_ends(stream, model, content)
    carry = ss.Carry(lane_axis=1)

    def in_parts(window):
        for part in window.parts():
            _, state = model(part["x"].double()[..., None] / 1000, carry.enter(part.token))
            carry.leave(part.token, state)
            for lane in np.flatnonzero(part.token.lengths > 0).tolist():
                if part.token.stop[lane] == window.token.stop[lane]:
                    own = part.token.lengths[lane]
                    if own == part.num_steps:
                        yield (int(part.token.sequence[lane]), int(part.token.stop[lane])), state[0, lane]

    got = ends_by_hand(stream, in_parts)
    # A sequence that ends within a part has no state after it, and nobody needs one.
    assert_ends(got, {key: wanted[key] for key in got})
    stops = {
        (int(s), int(t))
        for w in stream
        for s, t, f in zip(w.token.sequence, w.token.stop, w.token.final, strict=True)
        if not f and s >= 0
    }
    assert stops <= got.keys()

    packing = ss.Carry(lane_axis=1, stops="model")

    def packed(window):
        lengths = window.lengths.clamp(min=1)  # an idle lane holds nothing
        x = pack_padded_sequence(
            window["x"].double()[..., None] / 1000, lengths, batch_first=True, enforce_sorted=False
        )
        y, state = model(x, packing.enter(window.token))
        packing.leave(window.token, state)
        y, _ = pad_packed_sequence(y, batch_first=True, total_length=window.num_steps)
        for lane in np.flatnonzero(window.token.lengths > 0).tolist():
            key = int(window.token.sequence[lane]), int(window.token.stop[lane])
            assert torch.equal(y[lane, window.lengths[lane] - 1], state[0, lane])
            yield key, state[0, lane]

    assert_ends(ends_by_hand(stream, packed), wanted)


def test_padding_is_not_fed_into_a_carried_state(make_store):
    stream = ss.StreamDataset(make_store(CONTENT), 1, 7, split=Domain(RULES))
    carry = ss.Carry()
    carry.enter(stream[0].token)
    carry.leave(stream[0].token, torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"lane 0 stops after 1 of 7 .* of window 1 .*parts\(\).*pack_padded_sequence"):
        carry.enter(stream[1].token)
    with pytest.raises(ValueError, match="refuse, model"):
        ss.Carry(stops="pad")


def test_parts_of_packed_windows_start_sequences_and_end_them(make_store):
    content = [([1] * n, [0] * n) for n in (5, 3, 9, 1, 1, 4)]
    stream = ss.StreamDataset(make_store(content), lanes=2, window=6, tail="pack")
    carry, sums = ss.Carry(), {}
    for window in stream:
        for part in window.parts():
            state = carry.enter(part.token)
            total = part["x"].double().sum(1) + (0 if state is None else state)
            carry.leave(part.token, total)
            for lane in np.flatnonzero(part.token.final).tolist():
                sums[int(part.token.last_sequence[lane])] = float(total[lane])
    assert sums == {i: sum(range(1, n + 1)) + 1000 * i * n for i, n in enumerate([5, 3, 9, 1, 1, 4])}


def test_windows_with_nothing_to_cut_are_their_own_part(make_store):
    stream = ss.StreamDataset(make_store(CONTENT), lanes=2, window=7)
    for window in stream:
        assert list(window.parts()) == [window]


def test_a_carry_is_saved_between_windows(make_store):
    stream = ss.StreamDataset(make_store(CONTENT), 2, 6, split=Domain(RULES))

    def run(carry, windows):
        totals = []
        for window in windows:
            for part in window.parts():
                state = carry.enter(part.token)
                total = part["x"].double().sum(1) + (0 if state is None else state)
                carry.leave(part.token, total)
                totals.append(total.tolist())
        return totals

    windows = list(stream)
    whole = run(ss.Carry(), windows)
    for step in range(1, len(windows)):
        first = ss.Carry()
        done = run(first, windows[:step])
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = ss.Carry()
        second.load_state_dict(torch.load(file, weights_only=True))
        assert done + run(second, windows[step:]) == whole
