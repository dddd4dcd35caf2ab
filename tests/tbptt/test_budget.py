"""A budget of bytes instead of a guess: the engine chooses the segment, says so, and keeps within it."""

import logging

import pytest
import torch
from support.models import make, squared_error
from support.updates import assert_same, engine_updates, make_stream
from torch import nn

import streamseq as ss


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(2, 64, batch_first=True)
        self.head = nn.Linear(64, 1)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state


@pytest.mark.parametrize(("k1", "k2"), [(None, None), (32, 256), (32, None)])
def test_a_budget_chooses_the_segment_and_says_so(k1, k2, caplog):
    stream = make_stream([512] * 4, lanes=4, window=32)
    torch.manual_seed(0)
    model = Wide().double()
    free = ss.TBPTT(model, squared_error, k1=k1, k2=k2, segment=512 if k2 is None else 256)
    whole = free.memory(stream)
    limit = whole.total // 3
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, memory=limit)
    assert tbptt.segment is None
    expected = tbptt.memory(stream)
    with caplog.at_level(logging.INFO, "streamseq.tbptt"):
        got = [update.num_timesteps for update in tbptt.updates(stream)]
    assert got
    assert expected.total <= limit < whole.total
    assert tbptt.segment == expected.segment < whole.segment
    assert f"segments of {tbptt.segment} timesteps keep within" in caplog.text
    assert expected.activations < whole.activations
    assert set(expected.as_dict()) >= {"activations", "boundary_states", "inputs", "time_factor", "segment", "total"}


def test_the_gradient_is_that_of_any_other_segment():
    stream = make_stream([256] * 2, lanes=2, window=32)
    torch.manual_seed(0)
    model = Wide().double()
    least = ss.TBPTT(model, squared_error, k1=None, k2=None, segment=16).memory(stream).total
    got = engine_updates(model, stream, None, None, memory=least)
    assert_same(got, engine_updates(model, stream, None, None))


def test_asking_leaves_no_trace():
    stream = make_stream([64] * 2, lanes=2, window=32)
    model = make("lstm")
    random = torch.get_rng_state()
    ss.TBPTT(model, squared_error, k1=None, k2=None).memory(stream)
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert stream.state_dict()["step"] == 0


def test_too_little_says_what_is_enough():
    stream = make_stream([64] * 2, lanes=2, window=32)
    tbptt = ss.TBPTT(make("lstm"), squared_error, k1=None, k2=None, memory="1kB")
    with pytest.raises(ValueError, match=r"memory=1.0 kB is too little: .* pass memory=\d+"):
        next(tbptt.updates(stream))
    with pytest.raises(ValueError, match="too little"):
        tbptt.memory(stream)


def test_a_segment_and_a_budget_are_one_too_many():
    with pytest.raises(ValueError, match="pass one"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4, segment=4, memory="1MB")
    with pytest.raises(ValueError, match="a size is"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4, memory="much")


def test_a_source_must_show_its_first_window():
    stream = make_stream([128] * 2, lanes=2, window=32)
    tbptt = ss.TBPTT(make("gru"), squared_error, k1=32, k2=64)
    assert tbptt.memory(list(stream)).total == tbptt.memory(stream).total
    assert tbptt.memory(ss.StreamLoader(stream)).segment == 64
    for source in (iter(stream), []):
        with pytest.raises(ValueError, match="first window"):
            tbptt.memory(source)
