"""An evaluation is the mean over all valid timesteps, with states carried, and has no other effect."""

import numpy as np
import pytest
import torch
from corpus import make_store
from torch import nn

import streamseq as ss
from streamseq.training import ByteLanguageModel, evaluate, next_byte_loss

TARGET = {"target": ("x", 1)}


def whole_mean(model, store):
    """Every sequence alone and at once: the definition."""
    total, count = 0.0, 0
    with torch.no_grad():
        for index in range(len(store)):
            x = torch.from_numpy(store.read(index)["x"])[None]
            logits, _ = model(x[:, :-1], None)
            losses = nn.functional.cross_entropy(logits[0], x[0, 1:].long(), reduction="sum")
            total, count = total + float(losses), count + x.shape[1] - 1
    return total / count, count


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize(("lanes", "window"), [(1, 7), (3, 16), (5, 200)])
def test_the_mean_is_over_timesteps_whatever_the_windows(cell, lanes, window):
    torch.manual_seed(0)
    model = ByteLanguageModel(cell=cell, hidden=10, embedding=5).eval()
    with torch.no_grad():
        model.head.weight.mul_(5)  # so that a state that is not carried shows
    store = make_store()
    stream = ss.StreamDataset(store, lanes, window, lookahead=TARGET)
    loss, count = whole_mean(model, store)
    for windows in (stream, ss.StreamLoader(stream)):
        result = evaluate(model, next_byte_loss, windows)
        assert result.num_timesteps == count
        assert result.loss == pytest.approx(loss, rel=1e-5)
        assert result.bits == pytest.approx(loss / np.log(2), rel=1e-5)


def test_a_model_starts_from_its_own_initial_state():
    class Counter(nn.Module):
        def initial_state(self, lanes):
            return torch.full((lanes,), 100.0)

        def forward(self, x, state):
            steps = state[:, None] + torch.arange(x.shape[1])
            return steps, steps[:, -1] + 1

    store = ss.from_arrays({"a": {"x": np.zeros(4)}, "b": {"x": np.zeros(2)}})
    stream = ss.StreamDataset(store, lanes=1, window=3)
    result = evaluate(Counter(), lambda outputs, window: outputs, stream)
    assert result.loss == pytest.approx(np.mean([100, 101, 102, 103, 100, 101]))


def test_modes_and_random_generators_stay_as_they_were():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.frozen = nn.Dropout(0.5).eval()
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, state):
            assert not self.training
            assert not self.dropout.training
            torch.rand(3)
            return self.dropout(x.float()), None

    model = Noisy()
    model.frozen.eval()
    store = ss.from_arrays({"a": {"x": np.ones(4)}})
    before = torch.get_rng_state()
    result = evaluate(model, lambda outputs, window: outputs, ss.StreamDataset(store, lanes=1, window=2))
    assert result.loss == 1.0
    assert torch.equal(torch.get_rng_state(), before)
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_modes_come_back_after_an_error():
    model = ByteLanguageModel(hidden=4, embedding=2)

    def fail(outputs, window):
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, fail, ss.StreamDataset(make_store(), 2, 8, lookahead=TARGET))
    assert all(module.training for module in model.modules())


def test_what_stands_in_the_padding_does_not_count():
    store = ss.from_arrays({"a": {"x": np.ones(3)}})
    stream = ss.StreamDataset(store, lanes=1, window=4)
    result = evaluate(_Inverse(), lambda outputs, window: outputs, stream)
    assert result.loss == 1.0


class _Inverse(nn.Module):
    def forward(self, x, state):
        return 1 / x, None


def test_nothing_to_average_is_an_error():
    store = ss.from_arrays({"a": {"x": np.zeros(1, np.uint8)}})
    stream = ss.StreamDataset(store, lanes=1, window=4, lookahead=TARGET)
    with pytest.raises(ValueError, match="at least one timestep with a target"):
        evaluate(ByteLanguageModel(hidden=4), next_byte_loss, stream)


def test_no_gradient_is_left():
    model = ByteLanguageModel(hidden=4)
    evaluate(model, next_byte_loss, ss.StreamDataset(make_store(), 2, 8, lookahead=TARGET))
    assert all(parameter.grad is None for parameter in model.parameters())
