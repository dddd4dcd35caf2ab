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
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, inputs="x", **options)
    results = []
    model.zero_grad()
    for update in tbptt.updates(source):
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        results.append((float(update.loss), update.num_timesteps, grads))
        if step is not None:
            step()
        model.zero_grad()
    return results


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
