"""TBPTT over windows that end where the data says: each lane's state at its own stop, gradients cut at breaks only."""

import copy
from contextlib import nullcontext
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, make
from support.reference import reference_updates
from support.updates import assert_same, engine_updates, make_stream, resumed, sgd

import streamseq as ss
from streamseq.training.evaluate import evaluate

LENGTHS = [13, 5, 30, 1, 7, 12, 22]
POSITIONS = {"s0": [2, 3, 9], "s2": [1, 11, 12, 25], "s4": [6], "s6": [7, 14]}
BREAKS = {"s0": [5], "s2": [12, 20], "s6": [14]}


def domain(positions=POSITIONS, breaks=BREAKS, number=7):
    """Of the first so many sequences."""
    ids = [f"s{i}" for i in range(number)]
    given, broken = ({id: each[id] for id in ids if id in each} for each in (positions, breaks))
    return ss.splits.Domain([ss.splits.At(given), ss.splits.At(broken, reset=True)])


def domain_stream(lengths=LENGTHS, split=None, **options):
    return make_stream(lengths, split=domain() if split is None else split, **{"lanes": 2, "window": 4, **options})


def compare(name, stream, k1, k2, losses="new", **options):
    ours = make(name)
    theirs = copy.deepcopy(ours)
    got = engine_updates(ours, stream, k1, k2, sgd(ours, 0.005), losses=losses, **options)
    assert_same(got, reference_updates(theirs, list(stream), k1, k2, sgd(theirs, 0.005), losses))


@pytest.mark.parametrize("losses", ["new", "window"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "k1", "breaks"), [(4, 4, BREAKS), (4, 1, BREAKS), (6, 3, {}), (3, 6, {})])
def test_updates_are_those_of_every_lane_alone(name, window, k1, losses, breaks):
    stream = domain_stream(LENGTHS[:3], window=window, split=domain(breaks=breaks, number=3))
    for k2 in (k1, 2 * k1 + 3, None):
        compare(name, stream, k1, k2, losses)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_updates_of_any_boundaries(data):
    lengths = data.draw(st.lists(st.integers(1, 15), min_size=1, max_size=5))
    each = [st.lists(st.integers(0, n), max_size=6) for n in lengths]
    split = domain(*({f"s{i}": data.draw(positions) for i, positions in enumerate(each)} for _ in range(2)))
    window = data.draw(st.integers(1, 9))
    k1 = data.draw(st.sampled_from([k for k in range(1, 3 * window + 1) if window % k == 0 or k % window == 0]))
    k2 = data.draw(st.one_of(st.none(), st.integers(k1, max(k1, 25))))
    stream = domain_stream(
        lengths,
        split,
        lanes=data.draw(st.integers(1, 3)),
        window=window,
        layout=data.draw(st.sampled_from(["sequences", "even"])),
        shuffle=data.draw(st.booleans()),
    )
    losses = data.draw(st.sampled_from(["new", "window"]))
    segment = data.draw(st.one_of(st.none(), st.integers(1, 9)))
    compare(data.draw(st.sampled_from(list(MODELS))), stream, k1, k2, losses, segment=segment)


@pytest.mark.parametrize("breaks", [{}, BREAKS])
def test_full_bptt_is_that_of_what_lies_between_breaks_alone(breaks):
    stream, model = domain_stream(split=domain(breaks=breaks)), make("learned")
    with pytest.warns(UserWarning, match="one update") if not breaks else nullcontext():
        got = engine_updates(model, stream, None, None, segment=3)
    model.zero_grad()
    for index, n in enumerate(LENGTHS):
        borders = [0, *breaks.get(f"s{index}", []), n]
        for low, high in pairwise(borders):
            data = {name: torch.from_numpy(x)[None] for name, x in stream.store.read(index, low, high).items()}
            outputs, _ = model(data["x"], model.initial_state(1))
            ((outputs - data["y"]).square().sum() / sum(LENGTHS)).backward()
    assert sum(number for _, number, _ in got) == sum(LENGTHS)
    for index, parameter in enumerate(model.parameters()):
        grad = sum(number * grads[index] for _, number, grads in got) / sum(LENGTHS)
        torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (2, 7), (8, 12), (4, None)])
def test_a_run_resumes_at_every_update(k1, k2):
    model = make("learned")
    wanted = engine_updates(model, domain_stream(), k1, k2)
    whole = [update.at_window_end for update in ss.TBPTT(model, loss, k1=k1, k2=k2).updates(domain_stream())]
    assert sum(whole) > 3
    for stop in range(1, len(wanted)):
        if whole[stop - 1]:
            assert_same(resumed(model, domain_stream, k1, k2, stop), wanted[stop:])


def loss(outputs, window):
    return (outputs - window["y"]).square()


@pytest.mark.parametrize(("k1", "k2"), [(4, 8), (4, None)])
def test_ranks_together_make_the_gradient_of_one_process(k1, k2):
    """Without a process group each rank has its own lanes' part of the sum."""
    model = make("gru")
    whole = engine_updates(model, domain_stream(), k1, k2)
    parts = [engine_updates(model, domain_stream(rank=rank, world_size=2), k1, k2) for rank in range(2)]
    total = [sum(n * grads[i] for _, n, grads in whole) for i in range(len(whole[0][2]))]
    split = [sum(n * grads[i] for part in parts for _, n, grads in part) for i in range(len(total))]
    for a, b in zip(total, split, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_a_window_alone_is_an_update_too():
    stream, model = domain_stream(), make("lstm")
    tbptt = ss.TBPTT(model, loss, k1=4, k2=8)
    got = []
    for window in stream:
        model.zero_grad()
        update = tbptt.backward(window)
        got.append((float(update.loss), update.num_timesteps, [p.grad.clone() for p in model.parameters()]))
    assert_same(got, reference_updates(model, list(stream), 4, 8))


@pytest.mark.parametrize("name", MODELS)
def test_an_evaluation_is_not_changed_by_boundaries_without_breaks(name):
    model, split = make(name), domain(breaks={})
    plain = evaluate(model, loss, domain_stream(split=ss.splits.Naive()))
    cut = evaluate(model, loss, domain_stream(split=split))
    assert cut.num_timesteps == plain.num_timesteps == sum(LENGTHS)
    assert cut.loss == pytest.approx(plain.loss, abs=1e-12)
    assert evaluate(model, loss, domain_stream()).loss != pytest.approx(plain.loss, abs=1e-6)


@pytest.mark.parametrize("truncation", [ss.truncation.Random(8.0), ss.truncation.Adaptive(0.5)])
def test_other_truncations_count_every_timestep_once(truncation):
    k2 = None if isinstance(truncation, ss.truncation.Random) else 12
    got = engine_updates(make("gru"), domain_stream(), 4, k2, truncation=truncation)
    assert sum(number for _, number, _ in got) == sum(LENGTHS)


@pytest.mark.parametrize("name", ["gru", "learned"])
def test_burn_in_does_not_reach_over_a_break(name):
    stream, model = domain_stream(layout="even", lanes=3), make(name)
    for step in range(len(stream)):
        window = stream[step]
        state = ss.burn_in(model, stream, window, 1000)
        state = state if state is None else state[0]
        for lane, (sequence, start) in enumerate(zip(window.token.sequence, window.token.start, strict=True)):
            if sequence < 0:
                continue
            begin = max([0, *(p for p in BREAKS.get(f"s{sequence}", []) if p <= start)])
            initial = model.initial_state(1) if hasattr(model, "initial_state") else torch.zeros(1, 1, 3).double()
            if start > begin:
                before = torch.from_numpy(stream.store.read(int(sequence), begin, int(start))["x"])[None]
                initial = model(before, initial)[1] if name == "learned" else model.rnn(before)[1]
            if state is None:
                assert start == begin
                assert name == "gru"
            else:
                torch.testing.assert_close(state[lane], initial[0, 0], rtol=0, atol=1e-12)


def test_the_predicted_memory_counts_padding_in_the_middle_of_a_sequence():
    naive = domain_stream([400], ss.splits.Naive(), lanes=1, window=40)
    cut = domain_stream([400], domain({"s0": list(range(2, 400, 2))}, {}), lanes=1, window=40)
    assert cut.plan.longest == naive.plan.longest == naive.plan.reach == 400
    assert cut.plan.reach == 40 * len(cut) == 40 * 200
    predicted = [ss.TBPTT(make("gru"), loss, k1=40, k2=None).memory(each) for each in (naive, cut)]
    assert predicted[1].total > predicted[0].total


def test_plans_know_how_far_a_state_reaches():
    for layout in ("sequences", "even"):
        stream = domain_stream(layout=layout)
        best, since = 0, np.zeros(2, np.int64)
        for window in stream:
            since = np.where(window.token.reset, 0, since) + 4 * ~window.token.idle
            best = max(best, int(since.max()))
        assert stream.plan.reach == best
        rest = stream.plan.rewindowed(3, step=0)
        assert rest.reach % 3 == 0
