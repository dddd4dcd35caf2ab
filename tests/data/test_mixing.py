"""Several stores in one stream, buckets and balance: the windows are the plan's, in any topology, at any position."""

import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss

FIELDS = {"x": ss.Field("int32"), "v": ss.Field("float32", (2,)), "time": ss.Field("int64")}


def values(store, sequence, n):
    """Timesteps whose every value is distinct over all stores, sequences and timesteps."""
    at = 100_000 * (store + 1) + 1000 * sequence + np.arange(n, dtype=np.int32)
    # With a gap after every seven timesteps.
    time = np.arange(n, dtype=np.int64) + 100 * (np.arange(n) // 7)
    return {"x": at, "v": np.stack([at, -at], 1).astype(np.float32), "time": time}


@pytest.fixture(scope="session")
def make_stores(tmp_path_factory):
    made = {}

    def make(parts, backend):
        key = (tuple(map(tuple, parts)), backend)
        if key not in made:
            stores = []
            for number, lengths in enumerate(parts):
                attrs = [{"kind": "even" if i % 2 == 0 else "odd"} for i in range(len(lengths))]
                arrays = {f"s{i}": values(number, i, n) for i, n in enumerate(lengths)}
                if backend == "memory":
                    stores.append(ss.from_arrays(arrays, attrs=dict(zip(arrays, attrs, strict=True))))
                    continue
                uri = tmp_path_factory.mktemp("stores") / f"{number}.{backend}"
                with ss.create(uri, FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
                    for (id, each), about in zip(arrays.items(), attrs, strict=True):
                        writer.write(id, attrs=about, **each)
                stores.append(ss.open(uri))
            made[key] = stores
        return made[key]

    return make


@st.composite
def streams(draw, make_stores, backends=("memory", "zarr", "arrow"), **options):
    parts = draw(st.lists(st.lists(st.integers(1, 25), min_size=1, max_size=4), min_size=1, max_size=3))
    stores = make_stores(parts, draw(st.sampled_from(backends)))
    how = draw(st.sampled_from(["naive", "pack", "domain", "as-is", "buckets"]))
    lanes = draw(st.integers(len(parts), 5))
    weights = draw(st.sampled_from([None, [1] * len(parts), [5, 2, 1][: len(parts)]]))
    splits = {"as-is": ss.splits.AsIs(), "buckets": ss.splits.AsIs(buckets=2)}
    if how == "domain":
        splits["domain"] = ss.splits.Domain(ss.splits.Gap("time", longer_than=10, reset=draw(st.booleans())))
    settings_ = {
        "window": None if how in ("as-is", "buckets") else draw(st.integers(1, 12)),
        "split": splits.get(how),
        "tail": "pack" if how == "pack" else "pad",
        "shuffle": draw(st.booleans()),
        "layout": "sequences" if how in ("as-is", "buckets") else draw(st.sampled_from(["sequences", "even"])),
        "weights": weights,
        "until": "all" if weights is None else draw(st.sampled_from(["all", "first", "repeat"])),
        "balance": draw(st.sampled_from([None, "kind"])),
        "epoch": draw(st.integers(0, 2)),
        "lookahead": {"next": ("x", 1)},
        **options,
    }
    return ss.StreamDataset(stores, lanes, **settings_)


def contents(window):
    return ({name: window[name].tolist() for name in window}, window.mask.tolist(), window.token)


quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
ignored = pytest.mark.filterwarnings("ignore:fewer sequences than lanes")


@ignored
@quick
@given(st.data())
def test_windows_hold_what_the_joined_catalogue_has(make_stores, data):
    stream = data.draw(streams(make_stores))
    store, seen = stream.store, Counter()
    carry = ss.Carry()
    for window in stream:
        for part in window.parts():
            token = part.token
            entered = carry.enter(token)
            state = torch.full((stream.lanes, 1), -1.0) if entered is None else entered.clone()
            for lane, n in enumerate(part.lengths.tolist()):
                if not n:
                    continue
                x, sequence, start = part["x"][lane, :n], int(token.sequence[lane]), int(token.start[lane])
                assert x.tolist() == store.read(sequence, start, start + n)["x"].tolist()
                # The carried state is the last value of this lane, and of no other.
                assert token.reset[lane] or state[lane] == x[0] - 1
                seen.update(x.tolist())
                state[lane] = x[-1]
            carry.leave(token, state)
    uses = stream.uses
    per_sequence = Counter()
    for value, count in seen.items():
        per_sequence[value // 1000] += count
    assert sorted(per_sequence.values()) == sorted(uses.timesteps[uses.timesteps > 0].tolist())
    assert seen.total() == stream.num_timesteps
    assert stream.repeated == seen.total() - len(seen)
    assert stream.left_out == store.num_timesteps - len(seen)
    if stream._wanted.balance is None and stream._wanted.until == "all":
        assert set(seen.values()) == {1}
        assert stream.left_out == 0


@ignored
@quick
@given(st.data())
def test_any_way_to_read_and_any_position_gives_the_same_windows(make_stores, data):
    stream = data.draw(streams(make_stores))
    wanted = [contents(window) for window in stream]
    assert [contents(stream[t]) for t in range(len(stream))] == wanted
    assert [contents(window) for window in ss.StreamLoader(stream, prefetch=2)] == wanted
    copy = pickle.loads(pickle.dumps(stream))
    assert [contents(window) for window in copy] == wanted
    for step in range(0, len(stream), 3):
        stream.load_state_dict(stream[step].token.state_dict())
        assert [contents(window) for window in stream] == wanted[step + 1 :]


PARTS = [[30, 11, 26, 5], [9, 40], [17, 3, 22]]


@pytest.mark.alone
@pytest.mark.parametrize("options", [{"weights": [2, 1, 1], "until": "repeat"}, {"balance": "kind"}])
def test_workers_change_nothing(make_stores, options):
    stream = ss.StreamDataset(make_stores(PARTS, "zarr"), 4, 5, shuffle=True, **options)
    wanted = [contents(window) for window in stream]
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    assert [contents(window) for window in loader] == wanted
    stream.load_state_dict(stream[2].token.state_dict())
    assert [contents(window) for window in loader] == wanted[3:]


@pytest.mark.parametrize(
    "options",
    [
        {"window": 6, "weights": [3, 1, 1], "until": "first", "shuffle": True},
        {"window": 6, "weights": [1, 1, 3], "until": "repeat", "layout": "even"},
        {"window": None, "split": ss.splits.AsIs(buckets=2), "weights": [1, 1, 1]},
        {"window": 9, "balance": "kind", "tail": "pack"},
    ],
)
def test_ranks_are_those_of_the_one_stream(make_stores, options):
    stores, options = make_stores(PARTS, "arrow"), {"lanes": 5, **options}
    whole = ss.StreamDataset(stores, **options)
    ranks = [ss.StreamDataset(stores, rank=rank, world_size=2, **options) for rank in range(2)]
    assert {len(each) for each in ranks} == {len(whole)}
    for t, window in enumerate(whole):
        assert torch.equal(torch.cat([rank[t]["v"] for rank in ranks]), window["v"])
        assert torch.equal(torch.cat([rank[t].mask for rank in ranks]), window.mask)
    ranks[1].load_state_dict(whole[0].token.state_dict())
    assert next(iter(ranks[1])).token.step == 1


def test_stores_have_lanes_by_weight_number_and_name(make_stores):
    a, b, c = make_stores(PARTS, "memory")
    by_weight = ss.StreamDataset([a, b, c], 8, 5, weights=[0.5, 0.25, 0.25])
    assert by_weight.store_lanes == {"0": range(4), "1": range(4, 6), "2": range(6, 8)}
    by_name = {"one": a, "two": b, "three": c}
    named = ss.StreamDataset(by_name, {"two": 2, "one": 4, "three": 2}, 5)
    assert named.lanes == 8
    assert named.store_lanes == {"one": range(4), "two": range(4, 6), "three": range(6, 8)}
    assert [w["x"].tolist() for w in named] == [w["x"].tolist() for w in by_weight]
    assert [w["x"].tolist() for w in ss.StreamDataset([a, b, c], [4, 2, 2], 5)] == [w["x"].tolist() for w in named]
    for window in named:
        for lane, sequence in enumerate(window.token.sequence.tolist()):
            if sequence >= 0:
                name, index = named.store.member(sequence)
                assert lane in named.store_lanes[name]
                assert named.store.id_of(sequence) == f"{name}/{by_name[name].id_of(index)}"
    assert ss.StreamDataset([a, b], 2, 5).store_lanes == {}
    assert ss.StreamDataset(a, 2, 5).store_lanes == {}


def test_sequences_and_spans_of_a_mix_are_chosen_by_joined_ids(make_stores):
    a, b, _ = make_stores(PARTS, "zarr")
    chosen = ["two/s1", ("one/s0", 3, 20), ("two/s0", 0, 4), "one/s3"]
    for weights in (None, [1, 1]):
        stream = ss.StreamDataset({"one": a, "two": b}, 2, 6, sequences=chosen, weights=weights)
        seen = sorted(
            v for window in stream for row, n in zip(window["x"], window.lengths, strict=True) for v in row[:n]
        )
        wanted = [b.read("s1")["x"], a.read("s0", 3, 20)["x"], b.read("s0", 0, 4)["x"], a.read("s3")["x"]]
        assert seen == sorted(np.concatenate(wanted).tolist())
    with pytest.raises(ss.PlanError, match="none of 'two' was chosen"):
        ss.StreamDataset({"one": a, "two": b}, 2, 6, sequences=["one/s0"], weights=[1, 1])
    with pytest.raises(KeyError, match="three/s0"):
        ss.StreamDataset({"one": a, "two": b}, 2, 6, sequences=["three/s0"])


def test_classes_given_as_an_array_go_with_the_sequences_that_were_named(make_stores):
    a, b, _ = make_stores(PARTS, "memory")
    chosen = ["1/s1", "0/s1", "1/s0", "0/s0"]
    # Of store 0 only s0, of store 1 only s1.
    balance = ss.Balance([7, 8, 8, 7], {7: 1, 8: 0})
    stream = ss.StreamDataset([a, b], 2, 6, sequences=chosen, weights=[1, 1], balance=balance)
    assert stream.uses.sequence.tolist() == [1, 0, 5, 4]
    assert stream.uses.times.tolist() == [0, 2, 2, 0]
    with pytest.raises(ValueError, match="for each of the 4 chosen sequences, got 3"):
        ss.StreamDataset([a, b], 2, 6, sequences=chosen, balance=ss.Balance([1, 2, 3]))


@pytest.mark.filterwarnings("ignore:fewer sequences than lanes")
def test_balance_over_epochs_uses_every_sequence_of_a_class_equally_often():
    arrays = {f"s{i}": {"x": np.full(4, i)} for i in range(24)}
    attrs = {id: {"label": "rare" if i < 3 else "usual"} for i, id in enumerate(arrays)}
    stream = ss.StreamDataset(ss.from_arrays(arrays, attrs=attrs), 2, 4, balance="label")
    times = np.zeros(24)
    for epoch in range(7):
        stream.set_epoch(epoch)
        held = [int(x[0]) for window in stream for x in window["x"]]
        assert len(held) == 24
        assert sum(each < 3 for each in held) == 12
        assert stream.uses.times.tolist() == np.bincount(held, minlength=24).tolist()
        assert stream.left_out == 4 * (24 - len(set(held)))
        times += stream.uses.times
    assert set(times[:3]) == {28.0}
    assert set(times[3:]) == {4.0}


def test_domain_rules_and_stored_boundaries_are_of_all_stores(tmp_path, make_stores):
    stores = []
    for number, lengths in enumerate(PARTS):
        with ss.create(tmp_path / f"{number}.arrow", FIELDS) as writer:
            for i, n in enumerate(lengths):
                writer.write(f"s{i}", **values(number, i, n))
        gap = ss.splits.Gap("time", longer_than=10)
        ss.mark(tmp_path / f"{number}.arrow", "gaps", gap)
        stores.append(ss.open(tmp_path / f"{number}.arrow"))
    scanned = ss.StreamDataset(stores, 4, 5, split=ss.splits.Domain(gap), weights=[1, 1, 1])
    stored = ss.StreamDataset(stores, 4, 5, split=ss.splits.Domain("gaps"), weights=[1, 1, 1])
    assert [contents(window) for window in stored] == [contents(window) for window in scanned]
    assert stored.store.boundary_names == ["gaps"]
    assert stored.store.boundaries("gaps")["2/s0"].positions.tolist() == [7, 14]


def test_statistics_of_joined_stores_are_those_of_all_timesteps(make_stores):
    stores = make_stores(PARTS, "zarr")
    joined = ss.join(stores)
    every = np.concatenate([store.read(i)["v"] for store in stores for i in range(len(store))]).astype(np.float64)
    np.testing.assert_allclose(joined.statistics["v"].mean, every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(joined.statistics["v"].std, every.std(0), rtol=1e-9)
    stream = ss.StreamDataset(stores, 3, 4, weights=[1, 1, 1], normalize=["v"], fields=["v"])
    first = stores[1].read(0, 0, 4)["v"]
    np.testing.assert_allclose(stream[0]["v"][1], (first - every.mean(0)) / every.std(0), rtol=1e-5)
    assert ss.join([stores[0], ss.from_arrays({"a": values(9, 0, 5)})]).statistics is None


def test_joined_stores_are_a_store(make_stores):
    a, b, _ = make_stores(PARTS, "zarr")
    joined = ss.join({"a": a, "b": b})
    assert joined.ids.to_pylist() == ["a/s0", "a/s1", "a/s2", "a/s3", "b/s0", "b/s1"]
    assert joined.lengths.tolist() == [*PARTS[0], *PARTS[1]]
    assert not joined.lengths.flags.writeable
    assert len(joined) == 6
    assert joined.indices(["b/s1", "a/s2", "b/s0"]).tolist() == [5, 2, 4]
    assert joined.attrs("b/s1") == {"kind": "odd"}
    assert joined.read(5, 2, 6)["x"].tolist() == b.read("s1", 2, 6)["x"].tolist()
    assert joined.to_arrow(["a/s1", "b/s0"], ["x"])["x"].to_pylist() == [*a.read(1)["x"], *b.read(0)["x"]]
    assert joined.verify().ok
    assert joined.at_version() is joined
    assert joined.fingerprint == ss.join({"a": a, "b": b}).fingerprint
    fingerprints = {ss.join(each).fingerprint for each in ([a, b], [b, a], {"a": a, "b": b}, {"c": a, "b": b})}
    assert len(fingerprints) == 4
    for missing in ("s0", "c/s0", "a/s9"):
        with pytest.raises(KeyError, match=missing):
            joined.index(missing)
        with pytest.raises(KeyError, match=missing[-2:]):
            joined.indices(["a/s0", missing])


def test_a_reader_of_joined_stores_finds_spans_of_all_in_order(make_stores):
    stores = make_stores(PARTS, "zarr")
    joined = ss.join(stores)
    sequence = np.array([8, 0, 4, 1, 5, 0])
    start, stop = np.array([0, 3, 2, 0, 1, 9]), np.array([22, 30, 9, 11, 39, 10])
    with joined.reader(["x"], 2, ahead=2) as reader:
        parts = reader.locate("x", (sequence, start, stop))
        assert (np.diff(parts.span) >= 0).all()
        found = [[] for _ in sequence]
        for span, values_ in zip(parts.span.tolist(), reader.arrays(parts), strict=True):
            found[span] += values_.tolist()
        chunks = list(dict.fromkeys(parts.chunk.tolist()))
        reader.prefetch("x", chunks)
        assert reader.counts.loaded > 0
    assert found == [joined.read(*each)["x"].tolist() for each in zip(sequence.tolist(), start, stop, strict=True)]


def test_memory_says_what_readers_of_all_stores_hold(make_stores):
    stores = make_stores(PARTS, "zarr")
    joined = ss.join(stores)
    assert joined.decoded_chunk_bytes["x"] == sum(store.decoded_chunk_bytes["x"] for store in stores)
    stream = ss.StreamDataset(stores, 3, 5, weights=[1, 1, 1], memory=60_000)
    wanted = [contents(window) for window in ss.StreamDataset(stores, 3, 5, weights=[1, 1, 1])]
    loader = ss.StreamLoader(stream, prefetch=1)
    assert [contents(window) for window in loader] == wanted
    assert loader.stats.memory_bytes <= 60_000


def test_stores_that_do_not_go_together_are_refused(make_stores):
    a = make_stores(PARTS, "memory")[0]
    other = ss.from_arrays({"s": {"x": np.zeros(3, np.int64), "v": np.zeros((3, 2), np.float32)}})
    with pytest.raises(ValueError, match=r"'x' store 'one' has int32\[\] and store 'two' has int64\[\]"):
        ss.StreamDataset({"one": a, "two": other}, 2, 4)
    with pytest.raises(ValueError, match=r"'time' store '0' has int64.* and store '1' has none"):
        ss.StreamDataset([a, other], 2, 4, fields=["v"], lookahead={"t": ("time", 1)})
    assert ss.StreamDataset([a, other], 2, 4, fields=["v"])[0].keys() == ["v"]
    with pytest.raises(KeyError, match="not 'y'"):
        ss.StreamDataset([a, other], 2, 4, fields=["y"])
    with pytest.raises(ValueError, match="fields that they share"):
        ss.join([ss.from_arrays({"s": {"x": np.zeros(3)}}), ss.from_arrays({"s": {"y": np.zeros(3)}})])
    for wrong, error in (([], ValueError), ([a, "b"], TypeError), ({"a/b": a}, ValueError), ({1: a}, TypeError)):
        with pytest.raises(error):
            ss.join(wrong)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": [1]}, "weights has one number for each"),
        ({"weights": {"0": 1, "b": 2}}, "by the names of the stores, 0, 1"),
        ({"weights": [1, -1]}, "above 0"),
        ({"lanes": [1, 2], "weights": [1, 2]}, "pass one"),
        ({"lanes": [1, 0]}, "lanes of a store"),
        ({"until": "first"}, "pass weights"),
        ({"weights": [1, 1], "until": "never"}, "until is one of"),
        ({"balance": "species"}, "'species', which sequence '0/s0' does not have, it has kind"),
        ({"balance": ss.Balance("kind", {"even": 1})}, "'odd' has none"),
        ({"balance": ss.Balance("kind", {"even": 1, "odd": 1, "prime": 1})}, "there is no 'prime'"),
    ],
)
def test_wrong_options_are_refused(make_stores, options, message):
    stores = make_stores(PARTS, "memory")[:2]
    with pytest.raises(ValueError, match=message):
        ss.StreamDataset(stores, **{"lanes": 3, "window": 4, **options})


def test_more_wrong_options_are_refused(make_stores):
    a, b, _ = make_stores(PARTS, "memory")
    with pytest.raises(ss.PlanError, match="lanes=1 for 2 stores"):
        ss.StreamDataset([a, b], 1, 4, weights=[1, 1])
    with pytest.raises(ValueError, match="this is one store"):
        ss.StreamDataset(a, 2, 4, weights=[1])
    with pytest.raises(TypeError, match="attribute"):
        ss.Balance([0.5, 1.5])
    for wrong in ({"a": -1}, {"a": 0, "b": 0}, {"a": float("inf")}):
        with pytest.raises(ValueError, match="weight"):
            ss.Balance("kind", wrong)
    with pytest.warns(UserWarning, match="2 for 3 of store '1'"):
        ss.StreamDataset([a, b], [2, 3], 4)


def test_a_position_of_another_mix_is_refused(make_stores):
    a, b, c = make_stores(PARTS, "memory")
    saved = ss.StreamDataset([a, b], 4, 4, weights=[1, 1])[0].token.state_dict()
    ss.StreamDataset([a, b], 4, 6 - 2, weights=[2, 2]).load_state_dict(saved)
    for other in (
        ss.StreamDataset([a, b], 4, 4, weights=[3, 1]),
        ss.StreamDataset([a, b], 4, 4),
        ss.StreamDataset([a, c], 4, 4, weights=[1, 1]),
        ss.StreamDataset([a, b], 4, 4, weights=[1, 1], until="first"),
        ss.StreamDataset([a, b], 4, 4, weights=[1, 1], balance="kind"),
    ):
        with pytest.raises(ss.ResumeError, match=r"lanes \(of each store\)"):
            other.load_state_dict(saved)


def test_full_back_propagation_runs_over_a_mix(make_stores):
    stores = make_stores(PARTS, "memory")
    torch.manual_seed(0)
    cell = torch.nn.GRU(2, 3, batch_first=True).double()

    def gradient(k1, k2, window):
        stream = ss.StreamDataset(stores, 3, window, fields=["v"], weights=[1, 1, 1], until="repeat")
        cell.zero_grad()
        tbptt = ss.TBPTT(
            lambda x, s: cell(x / 1e5, s),
            lambda y, w: y.square().sum(-1),
            k1=k1,
            k2=k2,
            inputs=lambda w: w["v"].double(),
        )
        total = None
        for update in tbptt.updates(stream):
            part = torch.cat([p.grad.flatten() for p in cell.parameters()]) * update.num_timesteps
            total = part if total is None else total + part
            cell.zero_grad()
        return total

    whole = gradient(None, None, 8)
    torch.testing.assert_close(gradient(4, None, 8), whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient(5, None, 5), whole, rtol=1e-9, atol=1e-12)
