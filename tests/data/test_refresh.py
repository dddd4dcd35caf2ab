"""A store that grows: a stream moves to the newest version between epochs."""

import tempfile
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import streamseq as ss
from streamseq.core.errors import ContinuityError, PlanError, ResumeError, StoreError

FIELDS = {"x": ss.Field("int64")}


def grow(address, lengths):
    """Commit a version that adds so many timesteps to each sequence; every value is distinct."""
    first = 0
    if Path(address).exists():
        writer = ss.append(address)
        first = ss.open(address).num_timesteps
    else:
        writer = ss.create(address, FIELDS, chunk_bytes=64)
    with writer:
        for id, length in lengths.items():
            writer.append(id, x=np.arange(first, first + length))
            first += length


@pytest.fixture
def address(tmp_path):
    address = tmp_path / "store.arrow"
    grow(address, {"a": 9, "b": 5, "c": 14})
    return address


def stream_of(address, version=None, **options):
    return ss.StreamDataset(ss.open(address, version), **{"lanes": 2, "window": 4, **options})


def shown(source):
    return [(window["x"].tolist(), window.mask.tolist(), window.token) for window in source]


OPTIONS = st.fixed_dictionaries(
    {
        "sequences": st.sampled_from([None, ["b", "a"], [("a", 1, 4), "b"], [("b", 0, None)]]),
        "tail": st.sampled_from(["pad", "drop", "pack"]),
        "shuffle": st.booleans(),
    }
)
LAYOUTS = st.sampled_from([{}, {"layout": "even"}, {"longest": 6}])
GROWTH = st.dictionaries(st.sampled_from("abcde"), st.integers(0, 20), max_size=4)


@settings(max_examples=40, deadline=None)
@given(options=OPTIONS, layout=LAYOUTS, growth=st.lists(GROWTH, min_size=1, max_size=3), move=st.booleans())
def test_a_refreshed_stream_is_a_new_stream_over_the_newest_version(options, layout, growth, move):
    options |= layout
    with tempfile.TemporaryDirectory() as folder:
        address = Path(folder, "store.zarr")
        grow(address, {"a": 9, "b": 9})
        stream = stream_of(address, **options)
        assert len(shown(stream)) == len(stream)
        before = stream.store.version, stream.plan.fingerprint
        for lengths in growth:
            grow(address, lengths)
        if move:
            stream.set_epoch(1)
        newest = ss.open(address)
        assert stream.refresh() is (newest.version > before[0])
        assert stream.refresh() is False
        assert stream.store.version == newest.version
        fresh = stream_of(address, **options, epoch=int(move))
        assert shown(stream) == shown(fresh)
        assert shown(ss.StreamLoader(stream)) == shown(fresh)
        assert stream.plan.fingerprint == fresh.plan.fingerprint
        assert (stream.plan.fingerprint == before[1]) is (newest.version == before[0])
        assert stream.state_dict() == fresh.state_dict()


def test_sequences_are_chosen_anew_even_from_what_can_be_gone_through_once(address):
    stream = stream_of(address, sequences=(id for id in ["c", "a"]))
    grow(address, {"a": 3, "new": 8})
    assert stream.refresh()
    assert {id for window in stream for id in window.token.sequence.tolist()} - {-1} == {0, 2}
    assert stream.num_timesteps == 14 + 12


def test_where_there_is_no_other_version_nothing_changes(address):
    for stream in (stream_of(address), ss.StreamDataset(ss.from_arrays({"a": {"x": [1, 2]}}), lanes=1, window=1)):
        plan = stream.plan
        assert stream.refresh() is False
        assert stream.refresh(version=1) is False
        assert stream.plan is plan
        with pytest.raises(StoreError, match="got 2"):
            stream.refresh(version=2)


def test_ranks_move_to_a_version_that_is_named(address):
    stream = stream_of(address)
    for length in (1, 2, 3):
        grow(address, {"a": length})
    assert stream.refresh(version=2)
    assert stream.num_timesteps == 28 + 1
    with pytest.raises(ValueError, match="moves to newer versions, got 1 on version 2"):
        stream.refresh(version=1)
    with pytest.raises(StoreError, match="versions 1 to 4, got 9"):
        stream.refresh(version=9)
    assert stream.store.version == 2
    assert stream.refresh()
    assert stream.store.version == 4


@pytest.mark.parametrize("loader", [iter, lambda stream: iter(ss.StreamLoader(stream))])
def test_within_an_epoch_it_is_refused(address, loader):
    stream = stream_of(address)
    grow(address, {"a": 3})
    windows = loader(stream)
    next(windows)
    with pytest.raises(ResumeError, match=r"goes on at window 1 of 6 of epoch 0: finish the epoch, or call set_epoch"):
        stream.refresh()
    rest = list(windows)
    assert len(rest) == 5
    assert {window.token.version for window in rest} == {1}
    assert stream.refresh()


def test_a_new_epoch_forgets_where_the_stream_was(address):
    stream = stream_of(address)
    grow(address, {"a": 3})
    windows = iter(stream)
    next(windows)
    stream.set_epoch(1)
    assert stream.refresh()
    assert shown(stream) == shown(stream_of(address, epoch=1))


def test_a_loaded_position_is_kept(address):
    stream = stream_of(address)
    for step in (1, 6):
        stream.load_state_dict(stream[step - 1].token.state_dict())
        grow(address, {"a": 3})
        with pytest.raises(ResumeError, match=f"goes on at window {step} of 6"):
            stream.refresh()
        assert [window.token.step for window in stream] == list(range(step, 6))
    stream.load_state_dict(stream[0].token.state_dict())
    stream.set_epoch(1)
    assert stream.refresh()
    assert [window.token.step for window in stream][:2] == [0, 1]


def test_an_epoch_whose_windows_changed_length_ends_first(address):
    stream = stream_of(address)
    grow(address, {"a": 3})
    stream.rewindow(3, after=stream[0].token)
    with pytest.raises(ResumeError, match="between epochs"):
        stream.refresh()
    assert len(list(stream)) == len(stream)
    assert stream.refresh()
    assert shown(stream) == shown(stream_of(address, window=3))


def test_positions_name_the_version_they_are_of(address):
    stream = stream_of(address)
    old = stream[1].token.state_dict()
    grow(address, {"a": 3})
    stream.refresh()
    with pytest.raises(ResumeError, match=r"saved on version 1 of the store, this is version 2: open it with ss.open"):
        stream.load_state_dict(old)
    new = stream[1].token.state_dict()
    resumed = stream_of(address, new["version"])
    resumed.load_state_dict(new)
    assert shown(resumed) == shown(stream_of(address))[2:]


def test_a_version_that_does_not_fit_leaves_the_stream_as_it_is(address, tmp_path, monkeypatch):
    other = tmp_path / "other.arrow"
    grow(other, {"c": 3})
    grow(other, {"c": 5})
    stream = stream_of(address, sequences=["a"], memory="100 kB")
    wanted, plan = shown(stream), stream.plan
    monkeypatch.setattr(stream.store, "at_version", lambda version=None: ss.open(other))
    with pytest.raises(KeyError, match="no sequence 'a'"):
        stream.refresh()
    huge = tmp_path / "huge.arrow"
    for _ in range(2):
        with ss.append(huge) if huge.exists() else ss.create(huge, FIELDS) as writer:
            writer.append("a", x=np.arange(20000))
    whole = ss.StreamDataset(
        stream.store, lanes=1, split=ss.splits.AsIs(), window=None, sequences=["a"], memory="100 kB"
    )
    monkeypatch.setattr(stream.store, "at_version", lambda version=None: ss.open(huge))
    with pytest.raises(PlanError, match="memory"):
        whole.refresh()
    assert len(list(whole)) == 1
    assert stream.store.version == 1
    assert stream.plan is plan
    assert shown(stream) == wanted


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_persistent_workers_see_it(address, method):
    stream = stream_of(address, shuffle=True)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=method)
    assert shown(loader) == shown(stream_of(address, shuffle=True))
    grow(address, {"a": 30, "d": 7})
    grow(address, {"e": 7})
    stream.set_epoch(1)
    assert stream.refresh(version=2)
    grow(address, {"f": 7})
    assert shown(loader) == shown(stream_of(address, 2, shuffle=True, epoch=1))
    assert stream.refresh()
    assert shown(loader) == shown(stream_of(address, shuffle=True, epoch=1))


def test_an_iteration_of_workers_ends_on_the_version_it_began_with(address):
    grow(address, {"a": 200})
    stream = stream_of(address)
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
    windows = iter(loader)
    first = shown(islice(windows, 3))
    grow(address, {"a": 3})
    assert stream.refresh()  # the parent process does not know where they are
    assert first + shown(windows) == shown(stream_of(address, 2))
    assert shown(loader) == shown(stream_of(address))


def test_a_carry_goes_on_with_initial_states(address):
    stream, carry = stream_of(address), ss.Carry()
    for window in stream:
        carry.enter(window.token)
        carry.leave(window.token, torch.ones(2, 3))
    grow(address, {"a": 30, "b": 30})
    stream.set_epoch(1)
    stream.refresh()
    with pytest.raises(ContinuityError):
        carry.enter(stream[1].token)
    state = carry.enter(stream[0].token)
    assert state is None or not state.any()
    carry.leave(stream[0].token, torch.ones(2, 3))
    assert carry.enter(stream[1].token).all()


@pytest.mark.filterwarnings("ignore:k1=n makes one update")
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 8), (2, None), (None, None)])
def test_updates_after_it_are_those_of_the_newest_version(address, k1, k2):
    torch.manual_seed(0)
    model = torch.nn.GRU(1, 3, batch_first=True, dtype=torch.float64)

    def engine():
        return ss.TBPTT(
            model,
            lambda outputs, window: outputs.square().sum(-1),
            k1=k1,
            k2=k2,
            inputs=lambda window: window["x"][..., None].double() / 100,
        )

    def gradients(tbptt, source):
        found = []
        for update in tbptt.updates(source):
            found.append((update.num_timesteps, [parameter.grad.clone() for parameter in model.parameters()]))
            model.zero_grad()
        return found

    stream, tbptt = stream_of(address), engine()
    gradients(tbptt, stream)
    grow(address, {"b": 30, "d": 11})
    stream.set_epoch(1)
    assert stream.refresh()
    found, wanted = gradients(tbptt, stream), gradients(engine(), stream_of(address, epoch=1))
    assert [count for count, _ in found] == [count for count, _ in wanted]
    for (_, one), (_, other) in zip(found, wanted, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def test_a_store_finds_its_other_versions(address):
    store = ss.open(address)
    grow(address, {"a": 1})
    assert store.at_version(1) is store
    assert store.at_version().version == 2
    assert store.at_version().at_version(1).fingerprint == store.fingerprint
    with pytest.raises(StoreError, match="versions 1 to 2, got 3"):
        store.at_version(3)
    memory = ss.from_arrays({"a": {"x": [1]}})
    with pytest.raises(StoreError, match="version 1 alone, got 2"):
        memory.at_version(2)


def test_a_compacted_version_shows_the_same_windows(address):
    grow(address, {"a": 5, "b": 3})
    stream = stream_of(address)
    wanted = [(window["x"].tolist(), window.mask.tolist()) for window in stream]
    fingerprint = stream.plan.fingerprint
    assert ss.compact(address).version == 3
    assert stream.refresh()
    assert stream.plan.fingerprint == fingerprint
    assert [(window["x"].tolist(), window.mask.tolist()) for window in stream] == wanted


def test_a_repaired_version_shows_what_is_left(tmp_path):
    address = tmp_path / "store.arrow"
    with ss.create(address, FIELDS, chunk_bytes=64, shard_bytes=64) as writer:
        for id in "abc":
            writer.write(id, x=np.arange(8))
    every, named = stream_of(address), stream_of(address, sequences=["a", "b"])
    path = sorted(address.glob("shards/*/x.arrow"))[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert [each.id for each in ss.repair(address).left_out] == ["b"]
    assert every.refresh()
    assert every.num_timesteps == len(list(every)) * 8 == 16
    with pytest.raises(KeyError, match="no sequence 'b'"):
        named.refresh()
    assert named.store.version == 1
