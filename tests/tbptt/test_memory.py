"""The memory of an update is what was predicted, and the probe that predicts it leaves no trace."""

import gc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from support.models import DictCell, WithHead, squared_error
from torch import nn
from torch.nn import functional

import streamseq as ss
from streamseq.tbptt.memory import predict
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.probe import probe
from streamseq.tbptt.replay import Replay

LANES, FEATURES = 4, 2


class StateSpace(nn.Module):
    """A small diagonal state-space model: h_t = a h_{t-1} + B x_t, with a skip and a non-linear mixer after it."""

    def __init__(self, features=FEATURES, states=24):
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(-1, 4, states))
        self.enter, self.mix, self.head = nn.Linear(features, states), nn.Linear(states, 16), nn.Linear(16, 1)

    def forward(self, x, state):
        driven = self.enter(x)
        decay = torch.sigmoid(self.decay)
        state = x.new_zeros(len(x), len(decay)) if state is None else state
        every = []
        for step in driven.unbind(1):
            state = decay * state + step
            every.append(state)
        return self.head(functional.gelu(self.mix(torch.stack(every, 1)))).squeeze(-1), state


class Deep(nn.Module):
    """Two layers with dropout between and after, and a wide head."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(FEATURES, 20, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(20, 64), nn.Softplus(), nn.Linear(64, 1))

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return self.head(y).squeeze(-1), state


class Attentive(nn.Module):
    """A cell whose timesteps see all earlier ones of the call: what it holds grows with the square of the length."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(FEATURES, 4, batch_first=True)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return (torch.softmax(y @ y.transpose(1, 2), -1) @ y).sum(-1), state


MODELS = {
    "lstm": lambda: WithHead("LSTM", FEATURES, 16),
    "gru": lambda: WithHead("GRU", FEATURES, 16),
    "cell": lambda: DictCell(FEATURES, 12),
    "state space": StateSpace,
    "deep": Deep,
    "lambda": lambda: (lambda model: lambda x, state: model(x, state))(WithHead("LSTM", FEATURES, 16)),
}


def make(name, dtype=torch.float32):
    torch.manual_seed(0)
    model = MODELS[name]()
    if isinstance(model, nn.Module):
        return model.to(dtype)
    model.__closure__[0].cell_contents.to(dtype)
    return model


def make_windows(length, window, dtype=torch.float32, lanes=LANES):
    rng = np.random.default_rng(length)
    kind = {torch.float32: np.float32, torch.float64: np.float64}[dtype]
    arrays = {
        f"{lane}": {"x": rng.standard_normal((length, FEATURES), kind), "y": rng.standard_normal(length, kind)}
        for lane in range(lanes)
    }
    return list(ss.StreamDataset(ss.from_arrays(arrays), lanes=lanes, window=window))


def probe_of(model, windows, loss=squared_error):
    return probe(StatefulModel(model, loss, "x", None), Replay(model), windows[0])


class HeldBytes:
    """The most bytes that autograd held at once; a storage counts once, parameters and windows not at all."""

    def __init__(self, model, windows):
        module = model if isinstance(model, nn.Module) else model.__closure__[0].cell_contents
        outside = [*module.parameters(), *(w[name] for w in windows for name in w), *(w.mask for w in windows)]
        self.outside = {tensor.untyped_storage().data_ptr() for tensor in outside}
        self.times = Counter()
        self.now = self.peak = 0

    def pack(self, tensor):
        box = Box(tensor)
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self.outside:
            self.now += size * (not self.times[key])
            self.peak = max(self.peak, self.now)
            self.times[key] += 1
            weakref.finalize(box, self.free, key, size)
        return box

    def free(self, key, size):
        self.times[key] -= 1
        self.now -= size * (not self.times[key])

    @staticmethod
    def unpack(box):
        return box.tensor


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


def held_bytes(model, windows, **options):
    held = HeldBytes(model, windows)
    gc.disable()  # what is freed must be freed by leaving scope, not by luck
    try:
        with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
            for _ in ss.TBPTT(model, squared_error, **options).updates(windows):
                pass
    finally:
        gc.enable()
    assert held.now == 0
    return held.peak


CASES = [
    # length, window, k1, k2, segment
    (512, 128, 128, 128, None),
    (512, 128, 128, 256, None),
    (512, 128, 128, 256, 64),
    (512, 128, 32, 200, None),
    (512, 128, 32, 200, 50),
    (512, 64, 256, 256, 128),
    (640, 128, 128, None, 100),
    (512, 128, None, None, None),
    (512, 128, None, None, 32),
    (256, 16, 32, 96, None),
]


@pytest.mark.parametrize(("length", "window", "k1", "k2", "segment"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_as_predicted(name, length, window, k1, k2, segment):
    model, windows = make(name), make_windows(length, window)
    memory = predict(probe_of(model, windows), k1=k1, k2=k2, n=length, window=window, segment=segment)
    wanted = held_bytes(model, windows, k1=k1, k2=k2, segment=segment)
    assert memory.activations == pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_double_precision_is_predicted_too(name):
    model, windows = make(name, torch.float64), make_windows(512, 128, torch.float64)
    memory = predict(probe_of(model, windows), k1=128, k2=256, n=512, window=128)
    assert memory.activations == pytest.approx(held_bytes(model, windows, k1=128, k2=256), rel=0.1)
