"""Burn-in: a state in the middle of a sequence, found from the timesteps before it."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, DictCell, make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream, resumed
from torch import nn

import streamseq as ss
from streamseq.data import state as states
from streamseq.data.before import read_before


def alone(model, stream, sequence, start, stop):
    """The state of one lane after the timesteps `[start, stop)` of a sequence, from the initial one."""
    x = torch.from_numpy(stream.store.read(sequence, start, stop)["x"])[None]
    state = model.initial_state(1) if hasattr(model, "initial_state") else None
    with torch.no_grad():
        return model(x, state)[1]


AXES = {"lstm": 1, "gru": 1, "learned": 1, "dict": {"fast": 0, "more": {"slow": 1}}}


def lane_of(state, lane, axis):
    axes = states.lane_axes(state, states.leaves(state)[0].shape[axis if isinstance(axis, int) else 0], axis)
    return [leaf.select(a, lane) for leaf, a in zip(states.leaves(state), axes, strict=True)]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_window_gets_the_state_of_the_timesteps_before_it(data):
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=2, max_size=6))
    tail = data.draw(st.sampled_from(["pad", "pack"]))
    layout = data.draw(st.sampled_from(["sequences", "even"]))
    lanes = data.draw(st.integers(2, min(5, len(lengths))))
    stream = make_stream(lengths, lanes=lanes, window=data.draw(st.integers(1, 6)), layout=layout, tail=tail)
    timesteps = data.draw(st.integers(1, 12))
    name = data.draw(st.sampled_from(list(MODELS)))
    model = make(name)
    window = stream[data.draw(st.integers(0, len(stream) - 1))]
    found = ss.burn_in(model, stream, window, timesteps, lane_axis=AXES[name])
    token = window.token
    for lane in range(lanes):
        if token.idle[lane]:
            continue
        sequence, start = int(token.sequence[lane]), int(token.start[lane])
        if not start:
            assert (
                found is None or not any(leaf.any() for leaf in lane_of(found, lane, AXES[name])) or name == "learned"
            )
            continue
        wanted = alone(model, stream, sequence, max(0, start - timesteps), start)
        for a, b in zip(lane_of(found, lane, AXES[name]), lane_of(wanted, 0, AXES[name]), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_a_burn_in_over_everything_before_is_the_carried_state():
    stream = make_stream([40, 33], lanes=2, window=5)
    model = make("lstm")
    carry, windows = ss.Carry(lane_axis=1), list(stream)
    for window in windows[:5]:
        with torch.no_grad():
            _, state = model(window["x"], carry.enter(window.token))
        carry.leave(window.token, state)
    found = ss.burn_in(model, stream, stream[5], 1000)
    for a, b in zip(states.leaves(found), states.leaves(carry.enter(windows[5].token)), strict=True):
        torch.testing.assert_close(a, b)


def test_what_lies_before_is_read_with_lookaheads_and_either_order_of_axes():
    store = ss.from_arrays({"a": {"x": np.arange(20.0)}, "b": {"x": 100 + np.arange(7.0)}})
    for batch_first in (True, False):
        stream = ss.StreamDataset(
            store, 2, 4, lookahead={"next": ("x", 1), "last": ("x", -2)}, layout="even", batch_first=batch_first
        )
        before = read_before(stream, stream[1], 5)
        x, ahead, back = (before[name] if batch_first else before[name].T for name in ("x", "next", "last"))
        assert x.tolist() == [[0, 0, 1, 2, 3], [13, 14, 15, 16, 17]]
        assert ahead.tolist() == [[0, 1, 2, 3, 4], [14, 15, 16, 17, 18]]
        assert back.tolist() == [[0, 0, 0, 0, 1], [11, 12, 13, 14, 15]]
        assert before.token.stop.tolist() == stream[1].token.start.tolist() == [4, 18]
        assert not before.mask.any()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("k1", "k2", "segment"), [(4, 4, None), (4, 8, 3), (4, None, 5), (None, None, 4)])
def test_lanes_of_the_even_layout_start_from_a_burnt_in_state(name, k1, k2, segment):
    """With enough of it, each lane's first update is that of the sequence which goes on there."""
    stream = make_stream([60], lanes=3, window=4, layout="even")
    model = make(name)
    got = engine_updates(model, stream, k1, k2, segment=segment, burn_in=100)
    without = engine_updates(model, stream, k1, k2, segment=segment)
    assert abs(got[0][0] - without[0][0]) > 1e-6
    # By hand: each lane's window from a constant state.
    model.zero_grad()
    total, stop = 0, 20 if k1 is None else 4
    for lane in range(3):
        data = stream.store.read("s0")
        x, y = torch.from_numpy(data["x"])[None], torch.from_numpy(data["y"])[None]
        start = 20 * lane
        state = alone(model, stream, 0, 0, start) if lane else None
        if not lane and hasattr(model, "initial_state"):
            state = model.initial_state(1)
        outputs, _ = model(x[:, start : start + stop], state)
        total = total + (outputs - y[:, start : start + stop]).square().sum()
    (total / (3 * stop)).backward()
    wanted = [(total.item() / (3 * stop), 3 * stop, [p.grad.clone() for p in model.parameters()])]
    assert_same(got[:1], wanted, 1e-9)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, state):
        self.seen += x.shape[1]
        y, state = self.rnn(self.drop(x), state)
        return y.sum(-1), state


def test_it_leaves_no_trace_in_buffers_and_noise():
    stream = make_stream([48], lanes=2, window=4, layout="even")
    seen = []
    for burn_in in (0, 9):
        torch.manual_seed(0)
        model = Noisy().double()
        engine_updates(model, stream, 4, 8, segment=3, burn_in=burn_in)
        seen.append((int(model.seen), torch.get_rng_state().tolist()))
    assert seen[0] == seen[1]
    assert seen[0][0] == 24


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 12), (4, None)])
def test_a_resumed_run_burns_in_alike(k1, k2):
    def stream():
        return make_stream([30, 22, 9], lanes=3, window=4, layout="even")

    model = make("gru")
    wanted = engine_updates(model, stream(), k1, k2, burn_in=6)
    for stop in range(1, len(wanted)):
        assert_same(resumed(model, stream, k1, k2, stop, burn_in=6), wanted[stop:], 1e-12)


def test_pieces_of_long_sequences_are_burnt_in():
    stream = make_stream([40, 9], lanes=2, window=4, longest=10)
    model = make("gru")
    pieces = [step for step, window in enumerate(stream) if (window.token.reset & (window.token.start > 0)).any()]
    assert pieces
    got = engine_updates(model, stream, 4, 4, burn_in=100)
    without = engine_updates(model, stream, 4, 4)
    different = [i for i, (a, b) in enumerate(zip(got, without, strict=True)) if abs(a[0] - b[0]) > 1e-9]
    assert set(pieces) <= set(different)


def test_it_needs_a_stream():
    stream = make_stream([40], lanes=2, window=4, layout="even")
    model = make("gru")
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8, burn_in=4)
    with pytest.raises(ValueError, match="a stream is needed"):
        next(tbptt.updates(list(stream)))
    with pytest.raises(ValueError, match="a stream is needed"):
        tbptt.backward(stream[0])
    assert (
        len(collect(model, ss.TBPTT(model, squared_error, k1=4, k2=8, burn_in=4).updates(ss.StreamLoader(stream)))) == 5
    )
    with pytest.raises(ValueError, match="burn_in is at least 0"):
        ss.TBPTT(model, squared_error, k1=4, k2=8, burn_in=-1)
    with pytest.raises(ValueError, match="timesteps is at least 1"):
        ss.burn_in(model, stream, stream[1], 0)


def test_evaluating_a_slice_starts_from_a_burnt_in_state():
    from streamseq.training import evaluate

    stream = make_stream([60], lanes=1, window=4)
    model = DictCell().double()
    whole = ss.StreamDataset(stream.store, 1, 60)[0]
    with torch.no_grad():
        losses = squared_error(model(whole["x"], None)[0], whole)[0, 40:52]
    part = ss.StreamDataset(stream.store, 1, 5, sequences=[("s0", 40, 52)])
    result = evaluate(model, squared_error, part, burn_in=100)
    assert result.loss == pytest.approx(float(losses.mean()), abs=1e-9)
    assert evaluate(model, squared_error, part).loss != pytest.approx(result.loss, abs=1e-6)
