"""Sequences start and lanes stop anywhere in a window: state and gradient are cut there and nowhere else."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, make
from support.reference import reference_updates
from support.updates import assert_same, engine_updates, make_stream, resumed, sgd
from torch import nn

import streamseq as ss

LENGTHS = [13, 5, 9, 1, 7, 12, 3, 2, 2, 1]


def compare(name, stream, k1, k2, losses="new", **options):
    ours = make(name)
    theirs = copy.deepcopy(ours)
    got = engine_updates(ours, stream, k1, k2, sgd(ours), losses=losses, **options)
    assert_same(got, reference_updates(theirs, list(stream), k1, k2, sgd(theirs), losses))


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "k1"), [(4, 4), (4, 1), (6, 3), (3, 6), (12, 4)])
def test_packed_windows_are_cut_at_the_resets(name, window, k1, losses):
    stream = make_stream(LENGTHS, lanes=2, window=window, tail="pack")
    for k2 in (k1, k1 + 1, 2 * k1, 2 * k1 + 3, 11, None):
        if k2 is None or k2 >= k1:
            compare(name, stream, k1, k2, losses)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_packed_windows_of_any_lengths(data):
    lengths = data.draw(st.lists(st.integers(1, 17), min_size=1, max_size=8))
    window = data.draw(st.integers(1, 9))
    k1 = data.draw(st.sampled_from([k for k in range(1, 3 * window + 1) if window % k == 0 or k % window == 0]))
    k2 = data.draw(st.one_of(st.none(), st.integers(k1, max(k1, 25))))
    stream = make_stream(
        lengths,
        lanes=data.draw(st.integers(1, 3)),
        window=window,
        tail="pack",
        layout=data.draw(st.sampled_from(["sequences", "even"])),
        shuffle=data.draw(st.booleans()),
    )
    losses = data.draw(st.sampled_from(["new", "window"]))
    segment = data.draw(st.one_of(st.none(), st.integers(1, 9)))
    compare(data.draw(st.sampled_from(list(MODELS))), stream, k1, k2, losses, segment=segment)


def test_full_bptt_over_packed_windows():
    stream = make_stream(LENGTHS, lanes=2, window=8, tail="pack")
    model = make("learned")
    with pytest.warns(UserWarning, match="one update"):
        got = engine_updates(model, stream, None, None, segment=3)
    assert_same(got, reference_updates(model, list(stream), None, None))


def test_packed_and_padded_windows_have_the_same_gradient_of_an_epoch():
    model = make("lstm")
    whole = []
    for tail in ("pad", "pack"):
        stream = make_stream(LENGTHS, lanes=2, window=4, tail=tail)
        parts = engine_updates(model, stream, 4, None)
        count = sum(number for _, number, _ in parts)
        assert count == sum(LENGTHS)
        whole.append([sum(n * grads[i] for _, n, grads in parts) / count for i in range(len(parts[0][2]))])
    for a, b in zip(*whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 11), (8, 12), (4, None)])
def test_a_run_over_packed_windows_resumes(k1, k2):
    def stream():
        return make_stream(LENGTHS, lanes=2, window=4, tail="pack")

    model = make("learned")
    wanted = engine_updates(model, stream(), k1, k2)
    for stop in range(1, len(wanted)):
        assert_same(resumed(model, stream, k1, k2, stop), wanted[stop:])


class Packed(nn.Module):
    """A GRU cell that resets its state itself, where a flag of the timestep says so."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(2, 3)

    def forward(self, inputs, state):
        x, resets = inputs
        state = x.new_zeros(len(x), 3) if state is None else state
        outputs = []
        for step, reset in zip(x.unbind(1), resets.unbind(1), strict=True):
            state = self.cell(step, torch.where(reset[:, None], 0.0, state))
            outputs.append(state.sum(-1))
        return torch.stack(outputs, 1), state


def with_flags(window):
    return window["x"], torch.from_numpy(window.token.resets)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (2, 7), (8, 12), (4, None)])
def test_a_model_may_take_the_resets_itself(k1, k2):
    stream = make_stream(LENGTHS, lanes=2, window=4, tail="pack")
    torch.manual_seed(0)
    model = Packed().double()
    calls = []
    model.register_forward_hook(lambda module, inputs, outputs: calls.append(inputs[0][0].shape[1]))
    cut = engine_updates(model, stream, k1, k2, inputs=with_flags)
    number = len(calls)
    calls.clear()
    itself = engine_updates(model, stream, k1, k2, inputs=with_flags, resets="model")
    assert_same(itself, cut, 1e-12)
    assert len(calls) < number


def stopping_windows(lengths, stops, window):
    """Windows of a split that ends where the data says: lanes stop inside their sequences at different timesteps.

    Args:
        lengths: Timesteps of each lane's one sequence.
        stops: For each window and lane how many timesteps it holds.
        window: Timesteps of a window.
    """
    stream = make_stream(lengths, lanes=len(lengths), window=window)
    at = np.zeros(len(lengths), np.int64)
    model = next(iter(stream)).token
    windows = []
    for step, counts in enumerate(stops):
        x, y = torch.full((len(lengths), window, 2), 7.0).double(), torch.full((len(lengths), window), 7.0).double()
        mask = torch.zeros(len(lengths), window, dtype=torch.bool)
        counts = np.minimum(counts, np.array(lengths) - at)
        for lane, count in enumerate(counts):
            data = stream.store.read(f"s{lane}", int(at[lane]), int(at[lane] + count))
            x[lane, :count], y[lane, :count] = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
            mask[lane, :count] = True
        token = replace(
            model,
            sequence=np.arange(len(lengths)),
            start=at.copy(),
            stop=at + counts,
            reset=np.full(len(lengths), step == 0),
            final=at + counts == lengths,
            step=step,
        )
        windows.append(ss.Window({"x": x, "y": y}, mask, token, lengths=torch.from_numpy(counts)))
        at += counts
    return windows


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [4, 2])
@pytest.mark.parametrize(
    "stops", [[(4, 2, 3), (1, 4, 4), (4, 3, 0), (3, 4, 2)], [(4, 4, 4), (4, 4, 0), (3, 4, 4), (1, 1, 1)]]
)
def test_lanes_that_stop_inside_their_sequences_keep_the_state_of_their_own_stop(name, k, stops):
    """Of lanes that stop at different timesteps each goes on from its own stop; the padding between is nothing."""
    lengths = [12, 13, 9]
    windows = stopping_windows(lengths, stops, 4)
    model = make(name)
    got = engine_updates(model, windows, k, None)
    count = sum(number for _, number, _ in got)
    assert count == sum(lengths)
    # The same as full BPTT over each sequence by itself.
    wanted = engine_updates(model, make_stream(lengths, lanes=3, window=20), 20, None)
    assert count * 1.0 == wanted[0][1]
    for index, grad in enumerate(wanted[0][2]):
        total = sum(number * grads[index] for _, number, grads in got) / count
        torch.testing.assert_close(total, grad, rtol=0, atol=1e-10)


def test_a_lane_that_stops_is_cut_where_back_propagation_is():
    """TBPTT(k, k) over windows that stop early is the loop with detach over each lane's own windows."""
    stops = [(4, 2), (1, 4), (4, 3), (3, 4)]
    windows = stopping_windows([12, 13], stops, 4)
    model = make("gru")
    got = engine_updates(model, windows, 4, 4)
    data = [make_stream([12, 13], lanes=2, window=4).store.read(i) for i in range(2)]
    at, state = [0, 0], [None, None]
    for (_, number, grads), counts in zip(got, stops, strict=True):
        model.zero_grad()
        total = 0
        for lane, count in enumerate(counts):
            x = torch.from_numpy(data[lane]["x"][at[lane] : at[lane] + count])[None]
            y = torch.from_numpy(data[lane]["y"][at[lane] : at[lane] + count])[None]
            outputs, after = model(x, state[lane])
            total, state[lane] = total + (outputs - y).square().sum(), after.detach()
            at[lane] += count
        (total / sum(counts)).backward()
        assert number == sum(counts)
        for grad, parameter in zip(grads, model.parameters(), strict=True):
            torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=1e-12)
