"""The bias of a truncation is what its updates at fixed parameters are off from full back-propagation."""

import numpy as np
import pytest
import torch
from support import models
from support.reference import reference_updates
from torch import nn

import streamseq as ss
from streamseq.tbptt.bias import measure_bias


def make_stream(lengths=(40, 37, 25), lanes=3, window=8):
    rng = np.random.default_rng(0)
    store = ss.from_arrays(
        {f"{i}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for i, n in enumerate(lengths)}
    )
    return ss.StreamDataset(store, lanes=lanes, window=window)


def total(model, windows, k1, k2):
    parameters = list(model.parameters())
    found = 0
    for _, count, grads in reference_updates(model, windows, k1, k2):
        whole = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(parameters, grads, strict=True)]
        found = found + count * torch.cat([grad.flatten() for grad in whole])
    return found


@pytest.mark.parametrize("name", ["lstm", "dict", "learned"])
def test_bias_is_that_of_the_definition(name):
    model, stream = models.make(name), make_stream()
    found = measure_bias(model, models.squared_error, stream, k1=4, k2=[4, 9, 40])
    exact = total(model, list(stream), None, None)
    for bias, k2 in zip(found, (4, 9, 40), strict=True):
        truncated = total(model, list(stream), 4, k2)
        assert (bias.k1, bias.k2) == (4, k2)
        assert bias.relative == pytest.approx(float((truncated - exact).norm() / exact.norm()), rel=1e-6, abs=1e-9)
        assert bias.cosine == pytest.approx(float(torch.cosine_similarity(truncated, exact, 0)), rel=1e-9)
    assert found[0].relative > 1e-3
    assert found[2].relative < 1e-12


def test_nothing_is_left_behind():
    model = models.make("lstm")
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    windows = list(make_stream())
    first = measure_bias(model, models.squared_error, windows, k1=8, k2=[16])
    assert measure_bias(model, models.squared_error, iter(windows), k1=8, k2=[16]) == first
    assert torch.equal(torch.get_rng_state(), random)
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)
        assert (parameter.grad == 7).all()


def test_frozen_parameters_do_not_count():
    model = models.make("lstm")
    model.head.requires_grad_(False)
    (bias,) = measure_bias(model, models.squared_error, make_stream(), k1=8, k2=[8])
    assert bias.relative > 0
    with pytest.raises(ValueError, match="the model has none"):
        measure_bias(model.requires_grad_(False), models.squared_error, make_stream(), k1=8, k2=[8])


def test_what_cannot_be_compared_is_told():
    model = models.make("gru")
    with pytest.raises(ValueError, match="k2 >= k1"):
        measure_bias(model, models.squared_error, make_stream(), k1=8, k2=[16, 4])
    with pytest.raises(ValueError, match="whose norm is 0"):
        measure_bias(model, lambda y, w: 0 * y, make_stream(), k1=8, k2=[8])
    with pytest.raises(ValueError, match="whose norm is nan"):
        measure_bias(model, lambda y, w: y * torch.nan, make_stream(), k1=8, k2=[8])


def test_a_truncation_without_a_gradient_is_off_by_all_of_it():
    class Late(nn.Module):
        """The only parameter acts at the start of a sequence, and its effect is seen from the second window on."""

        def __init__(self):
            super().__init__()
            self.start = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def initial_state(self, lanes):
            return self.start.expand(lanes)

        def forward(self, x, state):
            return state[:, None].expand(-1, x.shape[1]), state.clone()

    def late(outputs, window):
        start = torch.from_numpy(window.token.start)
        return torch.where(start[:, None] >= 8, outputs, outputs.detach())

    (bias,) = measure_bias(Late(), late, make_stream((40, 40), 2), k1=8, k2=[8])
    assert (bias.relative, bias.cosine) == (1.0, 0.0)
