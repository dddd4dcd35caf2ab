"""The memory of an update is what was predicted, and the probe that predicts it leaves no trace."""

import copy
import gc
import weakref
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import DictCell, WithHead, squared_error
from torch import nn
from torch.nn import functional

import streamseq as ss
from streamseq.tbptt.boundaries import MEMORY_BYTES
from streamseq.tbptt.memory import choose_segment, longest_cohort, predict
from streamseq.tbptt.model import StatefulModel
from streamseq.tbptt.probe import LENGTHS, Cost, Growth, Probe, probe
from streamseq.tbptt.replay import Replay
from streamseq.tbptt.tally import LiveBytes

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
    (500, 100, 100, None, 160),
    (512, 128, None, None, None),
    (512, 128, None, None, 32),
    (256, 16, 32, 96, None),
    (256, 32, 32, 64, None),
    (640, 64, 128, 320, None),
]


@pytest.mark.parametrize(("length", "window", "k1", "k2", "segment"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_activations_are_as_predicted(name, length, window, k1, k2, segment):
    model, windows = make(name), make_windows(length, window)
    memory = predict(probe_of(model, windows), k1=k1, k2=k2, n=length, window=window, segment=segment)
    wanted = held_bytes(model, windows, k1=k1, k2=k2, segment=segment)
    # Short windows are joined, and autograd may hold what they were copied to, which is counted as inputs.
    assert memory.activations == pytest.approx(wanted, rel=0.05 if window >= 64 else 0.1)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_double_precision_is_predicted_too(name):
    model, windows = make(name, torch.float64), make_windows(512, 128, torch.float64)
    memory = predict(probe_of(model, windows), k1=128, k2=256, n=512, window=128)
    assert memory.activations == pytest.approx(held_bytes(model, windows, k1=128, k2=256), rel=0.1)


def test_a_longer_segment_than_was_probed_is_on_the_line_or_is_probed():
    torch.manual_seed(0)
    windows = make_windows(256, 256)
    model = Attentive()
    found = probe_of(model, windows)
    assert found.new.held.lengths[-1] == 256
    memory = predict(found, k1=256, k2=256, n=256, window=256)
    assert memory.activations == pytest.approx(held_bytes(model, windows, k1=256, k2=256), rel=0.1)
    assert probe_of(make("gru"), windows).new.held.lengths == LENGTHS


@pytest.mark.parametrize("name", ["gru", "deep", "cell"])
def test_activations_graph_and_workspace_cover_what_lives_at_the_peak(name):
    """All storages that operations make during an update, whoever holds them."""
    model, windows = make(name), make_windows(512, 128)
    shapes = {tuple(sorted(parameter.shape)) for parameter in model.parameters()}
    found = probe_of(model, windows)
    with LiveBytes(shapes) as live:
        for _ in ss.TBPTT(model, squared_error, k1=128, k2=256).updates(windows):
            pass
    memory = predict(found, k1=128, k2=256, n=None, window=128)
    assert memory.activations < live.peak
    assert memory.activations + memory.workspace == pytest.approx(live.peak, rel=0.1)


class Touchy(nn.Module):
    """It draws noise, and counts in a buffer."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(FEATURES, 4, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, state):
        self.seen += x.shape[1]
        y, state = self.rnn(self.drop(x), state)
        return y.sum(-1), state


def test_a_probe_leaves_no_trace():
    model, windows = Touchy(), make_windows(64, 16)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before = copy.deepcopy(dict(model.state_dict()))
    buffer = model.seen
    noise = torch.get_rng_state()
    with torch.no_grad():
        found = probe_of(model, windows)
        assert not torch.is_grad_enabled()
    assert torch.equal(noise, torch.get_rng_state())
    assert model.seen is buffer
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all((parameter.grad == 7.0).all() for parameter in model.parameters())
    assert found.moment_bytes == noise.nbytes + buffer.nbytes
    assert probe_of(make("gru"), windows).moment_bytes == 0


def test_a_probe_frees_what_it_measured():
    model, windows = make("cell"), make_windows(64, 64)
    live = LiveBytes(())
    with live:
        probe_of(model, windows)
    gc.collect()
    assert live.peak > 0
    assert live.now == 0


def test_a_model_with_nothing_to_learn_or_no_state_is_probed():
    model = make("gru").requires_grad_(False)
    windows = make_windows(64, 64)
    assert predict(probe_of(model, windows), k1=64, k2=64, n=64, window=64).time_factor == pytest.approx(1, rel=0.5)
    head = nn.Linear(FEATURES, 1)
    found = probe(StatefulModel(lambda x, _: (head(x)[..., 0], ()), squared_error, "x", None), Replay(head), windows[0])
    assert found.state_bytes == 0
    assert found.past.kept.at(100) == 0
    assert found.new.held.at(100) > 0


# A model of which every figure is known: 100 bytes a new timestep, 40 a past one, 30 a state; forward 1, backward 2.
def line(slope, constant=0):
    return Growth(lengths=(8, 16), sizes=(8 * slope + constant, 16 * slope + constant))


def cost(slope, constant=0):
    grown = line(slope, constant)
    return Cost(held=grown, kept=grown, graph=line(0), workspace=line(0, 5), forward=1.0, gradient=3.0)


KNOWN = Probe(new=cost(100), past=cost(40), state_bytes=30, moment_bytes=0, input_bytes=0.0)


@pytest.mark.parametrize(
    ("k1", "k2", "n", "segment", "expected", "factor"),
    [
        (100, 100, None, None, 100 * 100, 1),
        (100, 200, None, None, 100 * 100 + 100 * 40, 2),
        (100, 200, None, 100, 100 * 100, 2 + 1 / 3),
        (1, 100, None, None, 100 + 99 * 40, 100),
        (None, None, 1000, None, 100 * 100, (3 + 0.9) / 3),
        (None, None, 1000, 1000, 1000 * 100, 1),
        (None, None, 1000, 1, 100, (3 + 0.999) / 3),
        (100, None, 1000, None, 100 * 100, 5.5 + 4.5 / 3),
        (100, 1000, 1000, None, 100 * 100, 5.5 + 4.5 / 3),
        (100, 1000, 300, None, 100 * 100, 2 + 1 / 3),
    ],
)
def test_the_arithmetic_is_that_of_the_algorithm(k1, k2, n, segment, expected, factor):
    memory = predict(KNOWN, k1=k1, k2=k2, n=n, window=100, segment=segment)
    assert memory.activations == expected
    assert memory.time_factor == pytest.approx(factor)
    assert memory.total == sum([memory.activations, memory.graph, memory.workspace, memory.boundary_states])
    assert memory.workspace == 5


def test_full_bptt_takes_two_forwards_and_a_backward():
    memory = predict(KNOWN, k1=None, k2=None, n=10**6, window=100)
    assert memory.time_factor == pytest.approx((2 * 1 + 2) / (1 + 2), rel=1e-3)
    assert memory.segments == 10**4
    assert memory.boundary_states == 10**4 * 30


def test_boundary_states_past_the_threshold_lie_on_disk():
    memory = predict(KNOWN, k1=None, k2=None, n=10**6, window=100, spill_threshold=1000)
    assert memory.boundary_states == 1000 + 30
    assert memory.boundary_states + memory.spilled == 10**4 * 30
    assert "on disk" in memory.as_table()
    assert predict(KNOWN, k1=None, k2=None, n=10**9, window=100).boundary_states == MEMORY_BYTES + 30


def test_inputs_are_bounded_where_they_can_be_read_again():
    found = Probe(new=cost(100), past=cost(40), state_bytes=30, moment_bytes=0, input_bytes=1000.0)
    kept = predict(found, k1=None, k2=None, n=10**6, window=100).inputs
    assert kept < 20e6
    assert predict(found, k1=None, k2=None, n=10**7, window=100).inputs == kept
    assert predict(found, k1=100, k2=200, n=None, window=100, reads_again=False).inputs == 300 * 1000


SHAPES = st.tuples(st.integers(1, 200), st.integers(1, 600), st.sampled_from([None, 64, 100, 128]))


@settings(deadline=None, max_examples=25)
@given(
    shape=SHAPES,
    whole=st.booleans(),
    constant=st.integers(0, 3000),
    state=st.integers(0, 5000),
    share=st.floats(0.0, 1.0),
)
def test_the_chosen_segment_is_the_fastest_within_the_budget(shape, whole, constant, state, share):
    n, k1, window = shape
    k1 = min(k1, n)
    k2 = None if whole else min(n, 2 * k1)
    found = Probe(new=cost(100, constant), past=cost(40, constant), state_bytes=state, moment_bytes=0, input_bytes=0.0)
    options = {"k1": k1, "k2": k2, "n": n, "window": window, "spill_threshold": 40 * state}
    every = [predict(found, **options, segment=segment) for segment in range(1, 2 * n + 1)]
    low, high = min(memory.total for memory in every), max(memory.total for memory in every)
    budget = int(low + share * (high - low))
    chosen = predict(found, **options, segment=choose_segment(found, budget, **options))
    assert chosen.total <= budget
    assert chosen.segments == min(memory.segments for memory in every if memory.total <= budget)


def test_a_budget_that_no_segment_keeps_within_names_the_least_that_works():
    options = {"k1": None, "k2": None, "n": 1000, "window": 100}
    with pytest.raises(ValueError, match=r"memory=100 B is too little: the least is [\d,]+ bytes") as caught:
        choose_segment(KNOWN, 100, **options)
    least = int(str(caught.value).rsplit("memory=", 1)[1].split(",")[0])
    segment = choose_segment(KNOWN, least, **options)
    assert predict(KNOWN, **options, segment=segment).total == least
    with pytest.raises(ValueError, match="too little"):
        choose_segment(KNOWN, least - 1, **options)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"k1": 4, "k2": 2}, "k2 >= k1"),
        ({"k1": None, "k2": 2}, "k1=n needs k2=n"),
        ({"k1": 4, "k2": None}, "pass n"),
        ({"window": None}, "pass n"),
        ({"n": 0}, "n is at least 1"),
        ({"segment": 0}, "segment is at least 1"),
    ],
)
def test_wrong_numbers_are_refused(wrong, match):
    with pytest.raises(ValueError, match=match):
        predict(KNOWN, **({"k1": 4, "k2": 8, "n": None, "window": 4} | wrong))


@pytest.mark.parametrize(
    ("lengths", "lanes", "window", "expected"),
    [
        ([12, 12], 2, 4, 12),
        ([12, 7], 2, 4, 12),
        ([8, 8, 20, 20], 2, 4, 20),
        ([12, 5, 9, 9], 2, 4, 24),
        ([30], 1, 4, 32),
        ([9, 5], 2, None, 9),
    ],
)
def test_the_longest_cohort_is_what_an_update_of_whole_sequences_runs_through(lengths, lanes, window, expected):
    store = ss.from_arrays({f"{i}": {"x": np.zeros(n)} for i, n in enumerate(lengths)})
    split = ss.splits.AsIs() if window is None else ss.splits.Naive()
    plan = ss.StreamDataset(store, lanes=lanes, window=window, split=split).plan
    assert longest_cohort(plan) == expected


def test_figures_for_people_and_programs_agree():
    memory = predict(KNOWN, k1=100, k2=200, n=None, window=100)
    assert memory.as_dict()["total"] == memory.total
    assert [row.split("  ")[0] for row in memory.as_table().splitlines()] == [
        *("activations", "graph", "workspace", "boundary states", "inputs", "total", "segment", "time"),
    ]
    assert str(memory).startswith("14.1 kB: activations 14.0 kB")
