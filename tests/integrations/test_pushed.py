"""Updates of windows that are handed over one by one are those of the engine that takes them itself."""

import numpy as np
import pytest
import torch
from support.models import make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream, sgd

import streamseq as ss
from streamseq.integrations.across_ranks import AcrossRanks
from streamseq.integrations.epochs import Epochs
from streamseq.integrations.lightning_data import LazyLoader
from streamseq.integrations.pushed import PushedUpdates
from streamseq.integrations.streamed_loss import StreamedLoss
from streamseq.training import evaluate


def pushed(tbptt, stream, windows=None):
    updates = PushedUpdates(tbptt, stream)
    for window in stream if windows is None else windows:
        yield from updates.take(window)


OPTIONS = {
    "k1 is the window": ({"k1": 4, "k2": 4}, {}),
    "k2 reaches back": ({"k1": 4, "k2": 11}, {}),
    "several updates a window": ({"k1": 2, "k2": 5}, {}),
    "several windows an update": ({"k1": 8, "k2": 12}, {}),
    "k2 is n": ({"k1": 4, "k2": None}, {}),
    "full": ({"k1": None, "k2": None}, {}),
    "losses of the window": ({"k1": 4, "k2": 8, "losses": "window"}, {}),
    "accumulated": ({"k1": 2, "k2": 2, "accumulate": 3}, {}),
    "random": ({"k1": 4, "k2": None, "truncation": ss.truncation.Random(8)}, {}),
    "adaptive": ({"k1": 4, "k2": 12, "truncation": ss.truncation.Adaptive(0.5, probe=16)}, {}),
    "packed": ({"k1": 4, "k2": 8}, {"tail": "pack"}),
    "domain": ({"k1": 4, "k2": 8}, {"split": ss.splits.Domain({"s0": [3, 11], "s2": [6]})}),
    "as it is": ({"k1": 5, "k2": 9}, {"split": ss.splits.AsIs(), "window": None}),
    "burn-in": ({"k1": 4, "k2": 8, "burn_in": 3}, {"layout": "even"}),
}


@pytest.mark.filterwarnings("ignore:k1=n makes one update of sequences that start together:UserWarning")
@pytest.mark.parametrize("name", OPTIONS)
def test_updates_are_those_of_the_engine_bit_for_bit(name):
    options, stream_options = OPTIONS[name]
    results = []
    for drive in (pushed, lambda tbptt, stream: tbptt.updates(stream)):
        model = make("lstm")
        stream = make_stream([24, 24, 17, 9], lanes=2, **{"window": 4, **stream_options})
        tbptt = ss.TBPTT(model, squared_error, **options)
        results.append(collect(model, drive(tbptt, stream), sgd(model)))
    assert_same(*results, tolerance=0)


@pytest.mark.parametrize("options", [{"k1": 4, "k2": 11}, {"k1": 8, "k2": 12}, {"k1": 2, "k2": 2, "accumulate": 3}])
@pytest.mark.parametrize("stop", [3, 4, 5])
def test_updates_go_on_after_any_window(options, stop):
    def stream():
        return make_stream([24, 24, 17, 9], lanes=2, window=4)

    straight = engine_updates(make("gru"), stream(), **options)
    model, source = make("gru"), stream()
    first = PushedUpdates(ss.TBPTT(model, squared_error, **options), source)
    windows = [source[step] for step in range(stop)]
    found = collect(model, (update for window in windows for update in first.take(window))) if stop else []
    saved, position = first.state_dict(), windows[-1].token.state_dict()
    model, source = make("gru"), stream()
    second = PushedUpdates(ss.TBPTT(model, squared_error, **options), source)
    second.load_state_dict(saved)
    source.load_state_dict(position)
    found += collect(model, (update for window in source for update in second.take(window)))
    assert_same(straight, found, tolerance=0)


def test_an_epoch_that_ends_early_gives_a_ragged_update():
    stream = make_stream([24, 24], lanes=2, window=4)
    updates = PushedUpdates(ss.TBPTT(make("gru"), squared_error, k1=8, k2=8), stream)
    assert not list(updates.take(stream[0]))
    assert updates.pending
    assert [update.num_timesteps for update in updates.take(stream[1])] == [16]
    assert [update.num_timesteps for update in updates.take(stream[2], last=True)] == [8]
    assert not updates.pending
    assert [update.num_timesteps for step in (0, 1) for update in updates.take(stream[step])] == [16]


def test_windows_in_a_wrong_order_are_an_error():
    stream = make_stream([24, 24], lanes=2, window=4)
    updates = PushedUpdates(ss.TBPTT(make("gru"), squared_error, k1=4, k2=4), stream)
    list(updates.take(stream[0]))
    with pytest.raises(ss.ContinuityError):
        list(updates.take(stream[2]))


def test_accumulated_updates_of_whole_sequences_are_an_error():
    stream = make_stream([24, 20], lanes=2, window=None, split=ss.splits.AsIs())
    with pytest.raises(ValueError, match="got accumulate=2: iterate updates"):
        PushedUpdates(ss.TBPTT(make("gru"), squared_error, k1=4, k2=4, accumulate=2), stream)


def test_a_state_of_something_else_is_an_error():
    stream = make_stream([24, 20], lanes=2, window=4)
    with pytest.raises(ss.ResumeError, match="engines and first"):
        PushedUpdates(ss.TBPTT(make("gru"), squared_error, k1=4, k2=4), stream).load_state_dict({"engine": 1})
    with pytest.raises(ss.ResumeError, match="dict with ranks"):
        AcrossRanks(ss.Carry()).load_state_dict({})


@pytest.mark.parametrize("options", [{}, {"tail": "pack"}, {"split": ss.splits.Domain({"s0": [3, 11]})}])
def test_a_streamed_loss_is_that_of_an_evaluation(options):
    model, stream = make("lstm"), make_stream([24, 17, 9], lanes=2, window=4, **options)
    mean = StreamedLoss(model, squared_error)
    for _ in range(2):
        mean.reset()
        for window in stream:
            mean.take(window)
        assert mean.result() == evaluate(model, squared_error, stream)
    mean.reset()
    for part, outputs in mean.outputs(stream[0]):
        assert outputs.shape == part.mask.shape
        assert not outputs.requires_grad


def test_a_streamed_loss_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="needs at least one timestep with a target"):
        StreamedLoss(make("lstm"), squared_error).result()


def test_states_of_two_ranks_are_put_together_for_one():
    def states(rank):
        store = ss.from_arrays({f"{i}": {"x": np.full(4, i)} for i in range(3)})
        window = ss.StreamDataset(store, lanes=3, window=2, rank=rank, world_size=2)[0]
        carry = ss.Carry()
        carry.leave(window.token, window["x"].sum(1))
        return carry.state_dict()

    carry = ss.Carry()
    AcrossRanks(carry).load_state_dict({"ranks": [states(0), states(1)]})
    store = ss.from_arrays({f"{i}": {"x": np.full(4, i)} for i in range(3)})
    token = ss.StreamDataset(store, lanes=3, window=2)[1].token
    assert torch.equal(carry.enter(token), torch.tensor([0, 2, 4]))


@pytest.mark.parametrize("kind", [LazyLoader, Epochs])
def test_a_position_holds_until_a_window_is_taken_however_often_iterations_are_begun(kind):
    stream = make_stream([24, 24], lanes=2, window=4)
    loader = kind(stream)
    loader.load_state_dict(stream[2].token.state_dict())
    begun = [iter(loader) for _ in range(3)]
    assert loader.state_dict()["step"] == 3
    assert next(begun[-1]).token.step == 3
    assert loader.state_dict()["step"] == 4
