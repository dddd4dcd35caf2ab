"""Random truncation: every update against the definition, and no bias."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.models import MODELS, make, squared_error
from support.reference import emitted
from support.updates import assert_same, collect, engine_updates, make_stream, resumed, sgd
from torch.utils import _pytree as pytree

import streamseq as ss

LENGTHS = [33, 5, 29, 1, 17, 22, 13]


def weighed(state, weight):
    """The same values; their gradient times a weight."""
    return pytree.tree_map(lambda x: x.detach() + weight * (x - x.detach()), state)


def reference(model, windows, k1, policy, step=None):
    """Lane by lane and timestep by timestep; a lane starts at its last cut or reset."""
    policy = policy.with_unit(k1)
    lanes = emitted(windows)
    end = len(lanes[0])
    known = [{} for _ in lanes]
    start = [(0, False)] * len(lanes)  # the last cut (True) or reset (False)
    results = []
    for begin in range(0, end, k1):
        stop, count, total = min(begin + k1, end), 0, torch.zeros((), dtype=torch.float64)
        for lane, steps in enumerate(lanes):
            at, is_cut = start[lane]
            state, since = known[lane][at] if is_cut else None, at
            for t in range(at, stop):
                x, y, valid, resets, _ = steps[t]
                if resets:
                    state, since = None, t
                    start[lane] = (t, False) if t >= begin else start[lane]
                elif t % policy.every == 0 and t > since:
                    age = -(-(t - since) // policy.every)
                    (cut,), (weight,) = policy.cuts(0, [lane], t // policy.every, [age])
                    if cut:
                        assert t >= begin
                        state, since = pytree.tree_map(torch.Tensor.detach, state), t
                        start[lane], known[lane][t] = (t, True), state
                    else:
                        state = weighed(state, weight)
                if state is None and hasattr(model, "initial_state"):
                    state = model.initial_state(1)
                out, state = model(x.view(1, 1, -1), state)
                if valid and t >= begin:
                    total, count = total + (out.view(()) - y).square(), count + 1
            # What lies after the last timestep is drawn with the next one, which starts there if it is a cut.
            if stop % policy.every == 0 and stop > since and stop < end and not steps[stop][3]:
                (cut,), _ = policy.cuts(0, [lane], stop // policy.every, [-(-(stop - since) // policy.every)])
                if cut:
                    start[lane], known[lane][stop] = (stop, True), pytree.tree_map(torch.Tensor.detach, state)
        if count:
            model.zero_grad()
            (total / count).backward()
            grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
            results.append((float((total / count).detach()), count, grads))
            if step is not None:
                step()
    return results


def compare(name, stream, k1, policy, lr=0.05, **options):
    ours = make(name)
    theirs = copy.deepcopy(ours)
    got = engine_updates(ours, stream, k1, None, sgd(ours, lr), truncation=policy, **options)
    assert_same(got, reference(theirs, list(stream), k1, policy, sgd(theirs, lr)))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("window", "k1", "every"), [(4, 4, None), (4, 4, 1), (4, 2, 4), (3, 6, 2), (6, 2, 5)])
def test_every_update_is_what_the_definition_says(name, window, k1, every):
    stream = make_stream(LENGTHS, lanes=3, window=window)
    compare(name, stream, k1, ss.truncation.Random(7, every=every, seed=3))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_lengths_tails_and_segments(data):
    lengths = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    window = data.draw(st.integers(1, 8))
    k1 = data.draw(st.sampled_from([k for k in range(1, 2 * window + 1) if window % k == 0 or k % window == 0]))
    tail = data.draw(st.sampled_from(["pad", "pack"]))
    stream = make_stream(lengths, lanes=data.draw(st.integers(1, 3)), window=window, tail=tail)
    every = data.draw(st.one_of(st.none(), st.integers(1, 7)))
    policy = ss.truncation.Random((every or k1) * 3, alpha=4.0, every=every, seed=data.draw(st.integers(0, 9)))
    name = data.draw(st.sampled_from(list(MODELS)))
    # Small steps: the weights of many units make large gradients.
    compare(name, stream, k1, policy, lr=1e-4, segment=data.draw(st.one_of(st.none(), st.integers(1, 9))))


def test_the_mean_over_many_seeds_is_the_gradient():
    stream = make_stream([24, 17], lanes=2, window=4)
    model = make("gru")
    exact = engine_updates(model, stream, 4, None)
    exact = sum(n * torch.cat([g.flatten() for g in grads]) for _, n, grads in exact)
    draws = []
    for seed in range(150):
        parts = engine_updates(model, stream, 4, None, truncation=ss.truncation.Random(8, seed=seed))
        draws.append(sum(n * torch.cat([g.flatten() for g in grads]) for _, n, grads in parts))
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    assert (draws.std(0) > 1e-6).any()
    # In units of its standard error the mean is off by a normal number.
    off = ((draws.mean(0) - exact) / error.clamp_min(1e-12)).abs()
    assert off.max() < 4.5
    biased = engine_updates(model, stream, 4, 4)
    biased = sum(n * torch.cat([g.flatten() for g in grads]) for _, n, grads in biased)
    assert ((biased - exact) / error.clamp_min(1e-12)).abs().max() > 4.5


@pytest.mark.parametrize(("k1", "every"), [(4, None), (2, 1), (8, 4)])
def test_a_resumed_run_cuts_at_the_same_places(k1, every):
    def stream():
        return make_stream(LENGTHS, lanes=3, window=4)

    options = {"truncation": ss.truncation.Random(9, every=every)}
    for name in ("lstm", "learned"):
        model = make(name)
        wanted = engine_updates(model, stream(), k1, None, **options)
        for stop in range(4 // min(k1, 4), len(wanted), 4):
            assert_same(resumed(model, stream, k1, None, stop, **options), wanted[stop:], 1e-12)


def test_cuts_do_not_depend_on_the_other_lanes():
    """A rank that has some of the lanes cuts them where one process with all of them does."""
    model, policy = make("gru"), ss.truncation.Random(6)
    whole = engine_updates(model, make_stream(LENGTHS, lanes=4, window=4), 4, None, truncation=policy)
    parts = [
        engine_updates(model, make_stream(LENGTHS, lanes=4, window=4, rank=r, world_size=2), 4, None, truncation=policy)
        for r in range(2)
    ]
    for index in range(len(whole[0][2])):
        sums = [sum(n * grads[index] for _, n, grads in updates) for updates in (whole, *parts)]
        torch.testing.assert_close(sums[0], sums[1] + sums[2], rtol=0, atol=1e-10)


def test_windows_that_cannot_be_read_again_are_kept_until_a_cut():
    stream = make_stream([400], lanes=1, window=4)
    model = make("gru")
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=None, truncation=ss.truncation.Random(8))
    kept = []
    for _ in tbptt.updates(iter(stream)):
        kept.append(len(tbptt._past._kept))
    assert_same(
        collect(
            model, ss.TBPTT(model, squared_error, k1=4, k2=None, truncation=ss.truncation.Random(8)).updates(stream)
        ),
        engine_updates(model, list(stream), 4, None, truncation=ss.truncation.Random(8)),
        0,
    )
    assert np.mean(kept) < 10


@pytest.mark.parametrize(
    "options", [{"k1": None, "k2": None}, {"k1": 4, "k2": 8}, {"k1": 4, "k2": None, "losses": "window"}]
)
def test_what_random_cuts_do_not_go_with_is_refused(options):
    with pytest.raises(ValueError, match="cuts instead of k2"):
        ss.TBPTT(make("gru"), squared_error, truncation=ss.truncation.Random(8), **options)


def test_another_truncation_is_refused():
    with pytest.raises(TypeError, match="truncation is"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=None, truncation=8)
    saved = ss.TBPTT(make("gru"), squared_error, k1=4, k2=None).state_dict()
    with pytest.raises(ss.ResumeError, match=r"truncation=Fixed\(\), this engine has .*Random\(mean=8"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=None, truncation=ss.truncation.Random(8)).load_state_dict(saved)
