"""Figures of the algorithms that the engine must reproduce: identities at full length, and what a kept state costs."""

import numpy as np
import pytest
import torch
from support.models import WithHead, squared_error
from support.updates import engine_updates
from torch import nn
from torch.func import functional_call

import streamseq as ss

N = 1024


def long_stream(window, n=N):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)}
    return ss.StreamDataset(ss.from_arrays({"a": arrays}), lanes=1, window=window)


def lstm(hidden):
    torch.manual_seed(0)
    return WithHead("LSTM", hidden=hidden).double()


@pytest.mark.parametrize("k1", [128, 100])
def test_updates_over_1024_timesteps_add_up_to_full_bptt(k1):
    model = lstm(8)
    parts = engine_updates(model, long_stream(k1), k1, N)
    (whole,) = engine_updates(model, long_stream(N), N, N)
    for index, grad in enumerate(whole[2]):
        total = sum(number * grads[index] for _, number, grads in parts) / N
        assert (total - grad).abs().max() < 1e-13


def flat(gradients):
    return torch.cat([gradient.flatten() for gradient in gradients])


def deviations(lr, k1=16, k2=64, n=512):
    """How far the gradients of a run are from those with states that are recomputed from the start, at their worst.

    Of the engine, which runs k2 timesteps again from a state that it kept; and of kept graphs, whose old timesteps
    were run under the parameters of their time.
    """
    model = lstm(24)
    stream = long_stream(k1, n)
    data = stream.store.read("a")
    x, y = torch.from_numpy(data["x"])[None], torch.from_numpy(data["y"])[None]
    parameters = dict(model.named_parameters())
    snapshots, state, kept, again = [], None, [], []
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2)
    for number, _ in enumerate(tbptt.updates(stream)):
        begin, stop = k1 * number, k1 * (number + 1)
        engine = flat([parameter.grad for parameter in model.parameters()])
        # Recomputed.
        start = max(0, stop - k2)
        with torch.no_grad():
            fresh = model(x[:, :start], None)[1] if start else None
        past = model(x[:, start:begin], fresh)[1] if begin > start else fresh
        outputs, _ = model(x[:, begin:stop], past)
        exact = flat(torch.autograd.grad((outputs - y[:, begin:stop]).square().mean(), list(parameters.values())))
        # Kept.
        snapshots.append({name: value.detach().clone().requires_grad_() for name, value in parameters.items()})
        outputs, state = functional_call(model, snapshots[-1], (x[:, begin:stop], state))
        loss = (outputs - y[:, begin:stop]).square().mean()
        old = [each for snapshot in snapshots[-(k2 // k1) :] for each in snapshot.values()]
        grads = torch.autograd.grad(loss, old, retain_graph=True, allow_unused=True)
        sums = [torch.zeros_like(value) for value in parameters.values()]
        for place, grad in enumerate(grads):
            if grad is not None:
                sums[place % len(sums)] += grad
        again.append(float((engine - exact).norm() / exact.norm()))
        kept.append(float((flat(sums) - exact).norm() / exact.norm()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
        model.zero_grad()
    return max(again), max(kept)


@pytest.mark.parametrize(("lr", "most"), [(1e-3, 1e-6), (1e-2, 1e-4)])
def test_running_again_from_a_kept_state_deviates_far_less_than_kept_graphs(lr, most):
    again, kept = deviations(lr)
    assert again < most
    assert kept > 100 * again


def test_gradients_of_states_do_not_pile_up_from_update_to_update():
    """What a published recipe for k1 < k2 forgets: the gradient at a state is that of one update only."""
    stream = long_stream(8, 64)
    model = lstm(8)
    once = engine_updates(model, stream, 8, 24, segment=8)
    tbptt = ss.TBPTT(model, squared_error, k1=8, k2=24, segment=8)
    for _ in range(3):
        model.zero_grad()
        for update, (loss, _, grads) in zip(tbptt.updates(stream), once, strict=True):
            assert update.loss.item() == pytest.approx(loss)
            for grad, parameter in zip(grads, model.parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=1e-14)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            model.zero_grad()
