"""Every update is what the definition says, and the points of it that have other names are what those names say."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, make, squared_error
from support.reference import longest, reference_updates
from support.updates import assert_same, engine_updates, make_stream, sgd

import streamseq as ss


def compare(name, stream, k1, k2, **options):
    ours = make(name)
    theirs = copy.deepcopy(ours)
    source = options.pop("source", stream)
    got = engine_updates(ours, source, k1, k2, sgd(ours), **options)
    wanted = reference_updates(theirs, list(stream), k1, k2, sgd(theirs))
    assert_same(got, wanted)


@pytest.mark.parametrize("name", ["lstm", "gru", "dict"])
@pytest.mark.parametrize("n", [12, 13])
@pytest.mark.parametrize("k1", [1, 3, 4, 5, 7])
def test_every_update_is_what_the_definition_says(name, n, k1):
    stream = make_stream([n], lanes=1, window=k1)
    for k2 in range(k1, n + 1):
        compare(name, stream, k1, k2)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "k1"), [(4, 4), (4, 1), (6, 3), (3, 6), (2, 8), (12, 4)])
def test_lanes_with_sequences_that_end_at_different_times(name, window, k1):
    stream = make_stream([13, 5, 9, 1, 7, 12, 3], lanes=3, window=window)
    for k2 in (k1, k1 + 1, 2 * k1, 2 * k1 + 3, 11, 13, None):
        if k2 is None or k2 >= k1:
            compare(name, stream, k1, k2)


@st.composite
def cases(draw):
    lengths = draw(st.lists(st.integers(1, 17), min_size=1, max_size=6))
    window = draw(st.integers(1, 8))
    divisors = [k for k in range(1, window + 1) if window % k == 0]
    k1 = draw(st.sampled_from([*divisors, 2 * window, 3 * window]))
    k2 = draw(st.one_of(st.none(), st.integers(k1, max(k1, 25))))
    stream = make_stream(
        lengths,
        lanes=draw(st.integers(1, 4)),
        window=window,
        layout=draw(st.sampled_from(["sequences", "even"])),
        shuffle=draw(st.booleans()),
    )
    name = draw(st.sampled_from(list(MODELS)))
    options = {"segment": draw(st.one_of(st.none(), st.integers(1, 9)))}
    if draw(st.booleans()):
        options["source"] = ss.StreamLoader(stream)
    return name, stream, k1, k2, options


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_any_lengths_lanes_windows_and_segments(case):
    name, stream, k1, k2, options = case
    compare(name, stream, k1, k2, **options)


@pytest.mark.parametrize("k1", [1, 4, 12, None])
def test_as_is_windows_are_updates_of_their_own(k1):
    stream = make_stream([5, 9, 1, 4], lanes=2, window=None, split=ss.splits.AsIs())
    windows = list(stream)
    ours = make("gru")
    got = engine_updates(ours, stream, k1, None, segment=2)
    wanted = [u for window in windows for u in reference_updates(ours, [window], k1, None)]
    assert_same(got, wanted)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k1", [1, 3, 4, 6, 24])
def test_at_fixed_parameters_the_updates_add_up_to_full_bptt(name, k1):
    stream = make_stream([23, 24, 19], lanes=3, window=12 if k1 == 6 else min(k1, 24))
    model = make(name)
    whole = reference_updates(model, list(stream), None, None)[0]
    parts = engine_updates(model, stream, k1, 24, segment=5)
    count = sum(number for _, number, _ in parts)
    assert count == whole[1] == 23 + 24 + 19
    for index, grad in enumerate(whole[2]):
        total = sum(number * grads[index] for _, number, grads in parts)
        torch.testing.assert_close(total / count, grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("window", [1, 4, 7, 40])
@pytest.mark.parametrize("segment", [1, 3, 7, 16, 100, None])
def test_full_bptt_by_two_sweeps_is_full_bptt(window, segment):
    stream = make_stream([31, 31], lanes=2, window=window)
    model = make("lstm")
    (got,) = engine_updates(model, stream, None, None, segment=segment)
    (wanted,) = reference_updates(model, list(stream), None, None)
    assert_same([got], [wanted], 1e-12)


def test_k1_of_n_makes_an_update_of_each_cohort():
    stream = make_stream([9, 7, 8, 9, 3, 2], lanes=2, window=4)
    tokens = [window.token for window in stream]
    starts = [t for t, token in enumerate(tokens) if token.starts_anew.all()]
    assert len(starts) > 1
    assert len(starts) < len(tokens)
    model = make("gru")
    got = engine_updates(model, stream, None, None, sgd(model))
    model = make("gru")
    windows = list(stream)
    step = sgd(model)
    wanted = []
    for low, high in zip(starts, [*starts[1:], len(tokens)], strict=True):
        wanted += reference_updates(model, windows[low:high], None, None, step)
    assert_same(got, wanted)


def test_k1_of_n_without_a_common_reset_is_one_update_and_says_so():
    stream = make_stream([9, 4, 4], lanes=2, window=2)
    model = make("gru")
    with pytest.warns(UserWarning, match="one update"):
        got = engine_updates(model, stream, None, None)
    assert_same(got, reference_updates(model, list(stream), None, None))


def test_a_k1_or_k2_of_n_as_a_number_is_n():
    stream = make_stream([50], lanes=1, window=16)
    model = make("lstm")
    wanted = reference_updates(model, list(stream), None, None)
    assert_same(engine_updates(model, stream, 50, 50), wanted)
    assert_same(engine_updates(model, stream, None, 50), wanted)
    assert_same(engine_updates(model, stream, None, 1000), wanted)


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("n", [48, 53])
def test_tbptt_k_k_is_the_loop_with_detach(kind, n):
    """The loop that everybody writes, over SGD steps: the same parameters, to the last bit, ragged tail included."""
    k = 8
    stream = make_stream([n], lanes=1, window=k)
    ours = make(kind.lower())
    theirs = copy.deepcopy(ours)
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.5)
    tbptt = ss.TBPTT(ours, squared_error, k1=k, k2=k, inputs="x")
    for _ in tbptt.updates(stream):
        optimizer.step()
        optimizer.zero_grad()

    data = stream.store.read("s0")
    x, y = torch.from_numpy(data["x"])[None], torch.from_numpy(data["y"])[None]
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.5)
    state = None
    for t in range(0, n, k):
        state = torch.utils._pytree.tree_map(torch.Tensor.detach, state) if state is not None else None
        outputs, state = theirs(x[:, t : t + k], state)
        loss = (outputs - y[:, t : t + k]).square().sum() / y[:, t : t + k].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_time_first_windows_give_the_same_gradients():
    lengths = [13, 5, 9]
    stream = make_stream(lengths, lanes=2, window=4)
    other = make_stream(lengths, lanes=2, window=4, batch_first=False)
    model = make("lstm")
    turned = copy.deepcopy(model)
    turned.rnn.batch_first = False
    for k2 in (4, 8, None):
        assert_same(engine_updates(model, stream, 4, k2), engine_updates(turned, other, 4, k2), 1e-12)


def test_a_list_of_windows_and_a_data_loader_are_sources_like_a_stream():
    stream = make_stream([20, 19, 9, 3], lanes=2, window=4)
    model = make("gru")
    loader = torch.utils.data.DataLoader(stream, batch_size=None)
    for k1, k2 in ((4, 8), (4, None), (4, 19), (4, 20), (None, None)):
        wanted = engine_updates(model, stream, k1, k2)
        assert_same(engine_updates(model, list(stream), k1, k2), wanted, 0)
        assert_same(engine_updates(model, loader, k1, k2), wanted, 0)
        if k2 is not None and k2 < longest(list(stream)):
            assert_same(engine_updates(model, iter(stream), k1, k2), wanted, 0)


def test_windows_taken_one_by_one_give_the_same_updates():
    stream = make_stream([13, 5, 9, 20], lanes=2, window=4)
    for k2 in (4, 6, 8, 12):
        model = make("gru")
        wanted = engine_updates(model, stream, 4, k2, sgd(model))
        model = make("gru")
        tbptt = ss.TBPTT(model, squared_error, k1=4, k2=k2, inputs="x")
        step, got = sgd(model), []
        for window in stream:
            update = tbptt.backward(window)
            if update is not None:
                got.append((float(update.loss), update.num_timesteps, [p.grad.clone() for p in model.parameters()]))
                step()
                model.zero_grad()
        assert_same(got, wanted, 0)
