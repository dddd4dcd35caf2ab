"""Streams of a few random sequences, and the updates that the engine makes of them."""

import numpy as np
import pytest
import torch

import streamseq as ss
from support.models import squared_error


def make_stream(lengths, *, lanes, window, **options):
    rng = np.random.default_rng(sum(lengths))
    arrays = {f"s{i}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for i, n in enumerate(lengths)}
    return ss.StreamDataset(ss.from_arrays(arrays), lanes=lanes, window=window, **options)


def engine_updates(model, source, k1, k2, step=None, **options):
    options = {"inputs": "x", **options}
    return collect(model, ss.TBPTT(model, squared_error, k1=k1, k2=k2, **options).updates(source), step)


def collect(model, updates, step=None):
    """The loss, count and gradients of each update; `step()` changes the parameters in between."""
    results = []
    model.zero_grad()
    for update in updates:
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        results.append((float(update.loss), update.num_timesteps, grads))
        if step is not None:
            step()
        model.zero_grad()
    return results


def resumed(model, stream, k1, k2, after, **options):
    """The updates after the first `after` ones, of an engine and a stream that were stopped there."""
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, **options)
    updates = tbptt.updates(stream())
    position = [next(updates) for _ in range(after)][-1].token.state_dict()
    saved, source = tbptt.state_dict(), stream()
    source.load_state_dict(position)
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, **options)
    tbptt.load_state_dict(saved)
    return collect(model, tbptt.updates(source))


def sgd(model, lr=0.05):
    def step():
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad

    return step


def assert_same(left, right, tolerance=1e-9):
    assert len(left) == len(right) > 0
    for (loss, count, grads), (loss_, count_, grads_) in zip(left, right, strict=True):
        assert count == count_
        assert loss == pytest.approx(loss_, abs=tolerance)
        for grad, grad_ in zip(grads, grads_, strict=True):
            # No gradient is one of zero.
            grad = torch.zeros(1) if grad is None else grad
            grad_ = torch.zeros(1) if grad_ is None else grad_
            assert (grad - grad_).abs().max() <= tolerance
