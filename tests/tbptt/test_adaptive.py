"""Adaptive truncation: k2 follows the measured influence, is reproducible, and is never beyond its largest."""

import logging

import numpy as np
import pytest
import torch
from support.models import make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream, resumed
from torch import nn

import streamseq as ss


class Leaky(nn.Module):
    """A state that forgets by a known factor a timestep: φ_k is the factor to the power of k."""

    def __init__(self, keep):
        super().__init__()
        self.keep = keep
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, state):
        state = x.new_zeros(len(x)) if state is None else state
        outputs = []
        for step in x[..., 0].unbind(1):
            state = self.keep * state + self.weight * step
            outputs.append(state)
        return torch.stack(outputs, 1), state


def plain(outputs, window):
    return outputs


def run(model, stream, loss=plain, k1=4, k2=64, **options):
    policy = ss.truncation.Adaptive(**{"bias": 0.1, "probe": 96, **options})
    tbptt = ss.TBPTT(model, loss, k1=k1, k2=k2, truncation=policy)
    return [update.k2 for update in tbptt.updates(stream)], tbptt


def test_k2_becomes_the_smallest_with_a_bias_below_the_wish():
    stream = make_stream([400, 380], lanes=2, window=8)
    reached, tbptt = run(Leaky(0.8).double(), stream)
    # δ(K) is 0.8^(K - 1), below 0.1 from K = 12 on; the multiple of k1 from 12 + k1 - 1 on is 16.
    assert reached[:24] == [64] * 24
    assert set(reached[24:]) == {16}
    influence = tbptt.influence
    np.testing.assert_allclose(influence.phi, 0.8**influence.lags, rtol=1e-6)
    assert influence.beta == pytest.approx(0.8, abs=1e-6)
    assert influence.smallest(0.1) == 12


def test_a_state_that_does_not_forget_takes_the_largest():
    reached, tbptt = run(Leaky(1.0).double(), make_stream([400], lanes=1, window=8))
    assert set(reached) == {64}
    assert not tbptt.influence.decays


def test_a_faster_decay_gives_a_shorter_k2():
    stream = make_stream([400], lanes=1, window=8)
    assert [run(Leaky(keep).double(), stream)[0][-1] for keep in (0.3, 0.7, 0.9)] == [8, 12, 28]


@pytest.mark.parametrize("k1", [2, 4, 8])
def test_until_it_is_measured_and_after_it_updates_are_those_of_a_fixed_k2(k1):
    stream = make_stream([200, 160], lanes=2, window=8)
    model = make("gru")
    policy = ss.truncation.Adaptive(0.5, probe=48)
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=32, truncation=policy)
    got, reached = [], []
    model.zero_grad()
    for update in tbptt.updates(stream):
        got.append((float(update.loss), update.num_timesteps, [p.grad.clone() for p in model.parameters()]))
        reached.append(update.k2)
        model.zero_grad()
    assert len(set(reached)) == 2
    fixed = {k2: engine_updates(model, stream, k1, k2) for k2 in set(reached)}
    assert_same(got, [fixed[k2][number] for number, k2 in enumerate(reached)], 1e-12)


def test_k2_may_grow_again(caplog):
    """A model that comes to remember for longer gets a longer reach, from states that were kept for it."""
    stream = make_stream([800], lanes=1, window=8)
    model = Leaky(0.3).double()
    tbptt = ss.TBPTT(model, plain, k1=4, k2=64, truncation=ss.truncation.Adaptive(0.1, probe=96, every=20))
    reached = []
    with caplog.at_level(logging.INFO, "streamseq.tbptt"):
        for number, update in enumerate(tbptt.updates(stream)):
            reached.append(update.k2)
            model.keep = 0.3 if number < 100 else 0.9
    assert reached[50] == 8
    assert reached[-1] == 28
    assert len(caplog.records) == len([r for r in caplog.records if "relative bias" in r.getMessage()]) >= 8


def test_each_epoch_is_measured_once():
    stream = make_stream([200], lanes=1, window=8)
    model = Leaky(0.5).double()
    tbptt = ss.TBPTT(model, plain, k1=4, k2=64, truncation=ss.truncation.Adaptive(0.1, probe=96))
    measured = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        for _ in tbptt.updates(stream):
            measured.append(tbptt.influence)
    assert len({id(each) for each in measured if each is not None}) == 2


def test_measuring_leaves_no_trace():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 4, batch_first=True)
            self.drop = nn.Dropout(0.3)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x, state):
            self.calls += x.shape[1]
            y, state = self.rnn(self.drop(x), state)
            return y.sum(-1), state

    stream = make_stream([160], lanes=1, window=8)
    results = []
    # A wish that is never met: the largest k2 as ever, but it is measured.
    for policy in (ss.truncation.Fixed(), ss.truncation.Adaptive(1e-12, probe=32, every=4)):
        torch.manual_seed(0)
        model = Noisy().double()
        tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8, truncation=policy)
        results.append(collect(model, tbptt.updates(stream)))
        assert int(model.calls) == 160
    assert_same(*results, 0)


@pytest.mark.parametrize("every", [None, 5])
def test_a_resumed_run_reaches_as_far(every):
    def stream():
        return make_stream([300, 200, 90], lanes=2, window=8)

    model = make("gru")
    options = {"truncation": ss.truncation.Adaptive(0.5, probe=40, every=every)}
    wanted = engine_updates(model, stream(), 4, 24, **options)
    for stop in (2, 8, 20, 32):
        assert_same(resumed(model, stream, 4, 24, stop, **options), wanted[stop:], 1e-12)


def test_the_largest_is_that_of_the_sequences_where_k2_is_n():
    stream = make_stream([50, 45, 60, 30] * 4, lanes=2, window=8)
    reached, _ = run(Leaky(1.0).double(), stream, k2=None)
    assert set(reached) == {60}
    with pytest.raises(ValueError, match="a number for k2"):
        run(Leaky(1.0).double(), iter(stream), k2=None)


def test_what_cannot_be_measured_is_said_and_changes_nothing(caplog):
    stream = make_stream([4] * 60, lanes=2, window=4)
    with caplog.at_level(logging.WARNING, "streamseq.tbptt"):
        reached, _ = run(Leaky(0.5).double(), stream, probe=8, k1=4, k2=4)
    assert set(reached) == {4}
    assert "k2 stays 4" in caplog.text or not caplog.records


def test_an_epoch_that_is_shorter_than_the_probe_says_so(caplog):
    with caplog.at_level(logging.WARNING, "streamseq.tbptt"):
        reached, _ = run(Leaky(0.5).double(), make_stream([80], lanes=1, window=8))
    assert set(reached) == {64}
    assert "nothing was measured" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "streamseq.tbptt"):
        run(Leaky(0.5).double(), make_stream([120], lanes=1, window=8))
    assert not caplog.records


@pytest.mark.parametrize("options", [{"k1": None, "k2": None}, {"k1": 4, "k2": 8, "losses": "window"}])
def test_what_it_does_not_go_with_is_refused(options):
    with pytest.raises(ValueError, match="adaptive truncation chooses k2"):
        ss.TBPTT(make("gru"), squared_error, truncation=ss.truncation.Adaptive(0.1), **options)
