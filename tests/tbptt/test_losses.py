"""Every loss since the start of back-propagation counts in each update; timesteps that only carry the state."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, WithHead, make, squared_error
from support.reference import reference_updates
from support.updates import assert_same, engine_updates, make_stream, resumed, sgd

import streamseq as ss


def compare(name, stream, k1, k2, **options):
    ours = make(name)
    theirs = copy.deepcopy(ours)
    got = engine_updates(ours, stream, k1, k2, sgd(ours), losses="window", **options)
    assert_same(got, reference_updates(theirs, list(stream), k1, k2, sgd(theirs), losses="window"))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "k1"), [(4, 4), (4, 1), (6, 3), (3, 6)])
def test_every_loss_since_the_start_counts(name, window, k1):
    stream = make_stream([13, 5, 9, 1, 7, 12, 3], lanes=3, window=window)
    for k2 in (k1, k1 + 1, 2 * k1 + 3, 11, None):
        if k2 is None or k2 >= k1:
            compare(name, stream, k1, k2)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_for_any_lengths_lanes_and_segments(data):
    lengths = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=6))
    window = data.draw(st.integers(1, 8))
    k1 = data.draw(st.sampled_from([k for k in range(1, 3 * window + 1) if window % k == 0 or k % window == 0]))
    k2 = data.draw(st.one_of(st.none(), st.integers(k1, max(k1, 25))))
    layout = data.draw(st.sampled_from(["sequences", "even"]))
    stream = make_stream(lengths, lanes=data.draw(st.integers(1, 4)), window=window, layout=layout)
    compare(data.draw(st.sampled_from(list(MODELS))), stream, k1, k2, segment=data.draw(st.integers(1, 9)))


def test_each_loss_counts_k2_over_k1_times():
    stream = make_stream([24], lanes=1, window=4)
    counts = [
        u.num_timesteps for u in ss.TBPTT(make("gru"), squared_error, k1=4, k2=12, losses="window").updates(stream)
    ]
    assert counts == [4, 8, 12, 12, 12, 12]


@pytest.mark.parametrize(("k1", "k2"), [(4, 10), (4, 12), (4, None), (8, 12)])
def test_a_resumed_run_counts_the_same_losses(k1, k2):
    def stream():
        return make_stream([33, 20, 40, 9], lanes=2, window=4)

    wanted = engine_updates(make("gru"), stream(), k1, k2, losses="window")
    for stop in (1, 3, 5):
        assert_same(resumed(make("gru"), stream, k1, k2, stop, losses="window"), wanted[stop:])


def test_states_of_the_other_convention_are_refused():
    saved = ss.TBPTT(make("gru"), squared_error, k1=4, k2=8).state_dict()
    with pytest.raises(ss.ResumeError, match=r"losses=new.* this engine has .*losses=window"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=8, losses="window").load_state_dict(saved)


class Advancing(WithHead):
    """Says how often its head was run, and on how many timesteps."""

    def __init__(self):
        super().__init__("GRU")
        self.with_head, self.without = 0, 0

    def forward(self, x, state):
        self.with_head += x.shape[1]
        return super().forward(x, state)

    def advance(self, x, state):
        self.without += x.shape[1]
        return self.rnn(x, state)[1]


@pytest.mark.parametrize(("k1", "k2", "segment"), [(4, 8, None), (4, 11, None), (2, 16, 5)])
def test_timesteps_that_only_carry_the_state_need_no_head(k1, k2, segment):
    stream = make_stream([40, 31], lanes=2, window=4)
    torch.manual_seed(0)
    model = Advancing().double()
    plain = WithHead("GRU").double()
    plain.load_state_dict(model.state_dict())
    got = engine_updates(model, stream, k1, k2, segment=segment)
    assert_same(got, engine_updates(plain, stream, k1, k2, segment=segment), 1e-12)
    assert model.without > 0
    if segment is None:
        # The head sees each timestep once.
        assert model.with_head == 40


@pytest.mark.parametrize("k2", [30, 64])
def test_short_windows_of_the_past_are_one_call(k2):
    """A kernel that runs over many timesteps at once gets them at once, whatever the window is."""
    stream = make_stream([200, 200], lanes=2, window=2)
    torch.manual_seed(0)
    model = WithHead("LSTM").double()
    calls = []
    model.register_forward_hook(lambda module, inputs, outputs: calls.append(inputs[0].shape[1]))
    got = engine_updates(model, stream, 2, k2)
    # The first window apart, after which the next update's start is kept, and the new one.
    assert max(calls) == k2 - 4
    assert len(calls) <= 3 * len(got)
    whole = make_stream([200, 200], lanes=2, window=200)
    assert_same(got, engine_updates(model, whole, 2, k2))


def test_full_bptt_over_short_windows_runs_whole_segments():
    stream = make_stream([96, 90], lanes=2, window=4)
    torch.manual_seed(0)
    model = WithHead("LSTM").double()
    calls = []
    hook = model.register_forward_hook(lambda module, inputs, outputs: calls.append(inputs[0].shape[1]))
    got = engine_updates(model, stream, None, None, segment=32)
    assert len(calls) == 5
    hook.remove()
    assert_same(got, engine_updates(model, make_stream([96, 90], lanes=2, window=96), None, None))


def test_the_loss_sees_one_window_of_what_was_joined():
    stream = make_stream([30, 19], lanes=2, window=4)
    seen = []

    def loss(outputs, window):
        seen.append((window.token.start.copy(), window.token.stop.copy(), window.lengths.numpy().copy()))
        return squared_error(outputs, window)

    list(ss.TBPTT(make("gru"), loss, k1=None, k2=None, segment=16).updates(stream))
    for start, stop, lengths in seen:
        np.testing.assert_array_equal(stop - start, lengths)
    # Of the sweep without gradients only the first call has a loss, to see whether it draws random numbers.
    assert [int(lengths.sum()) for _, _, lengths in seen] == [32, 17, 32]


@pytest.mark.parametrize(
    ("options", "match"), [({"losses": "all"}, "one of new, window"), ({"resets": "x"}, "cut, model")]
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4, **options)
