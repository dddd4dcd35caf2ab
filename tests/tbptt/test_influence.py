"""Influence: what is measured is ‖∂L_s/∂s_{s-k}‖, lane by lane, and nothing of it is left behind."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support import models
from torch import nn

import streamseq as ss
from streamseq.core.truncation import decay, excess, relative_bias
from streamseq.tbptt.influence import measure_influence

LENGTHS = (23, 40, 9, 31)


def make_windows(lengths=LENGTHS, lanes=3, window=8, **options):
    rng = np.random.default_rng(0)
    store = ss.from_arrays(
        {f"{i}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for i, n in enumerate(lengths)}
    )
    return list(ss.StreamDataset(store, lanes=lanes, window=window, **options))


def flat(state, lane):
    """The state of one lane (of one) as a list of tensors."""
    return [leaf for leaf in torch.utils._pytree.tree_leaves(state) if isinstance(leaf, torch.Tensor)]


def by_definition(model, windows, end, lane, most):
    """The gradients of one lane's loss at the emitted timestep `end` with respect to its states 1, 2, … before it.

    Each lag by itself: the state is computed up to there, taken out of its graph, and run on to the loss.
    """
    steps = [(w, t) for w in windows for t in range(w.num_steps)]
    resets = [bool(w.token.reset[lane]) and t == 0 for w, t in steps]
    gradients = []
    for lag in range(1, most + 1):
        begin = end + 1 - lag
        if begin <= max(t for t in range(end + 1) if resets[t]):
            break
        state = None
        for at in range(end + 1):
            window, t = steps[at]
            if resets[at]:
                state = None
            if state is None and hasattr(model, "initial_state"):
                state = model.initial_state(1)
            if at == begin:
                state = torch.utils._pytree.tree_map(lambda leaf: leaf.detach().requires_grad_(), state)
                wanted = flat(state, lane)
            index = (lane, t) if window.batch_first else (t, lane)
            output, state = model(window["x"][index].view(1, 1, -1), state)
        loss = (output.view(()) - window["y"][index]).square()
        gradients.append(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, wanted)]))
    return gradients


def expected(model, windows, ends, lanes, most):
    """φ, ‖g_K‖ and the numbers of losses by definition."""
    phi, norms = [[] for _ in range(most)], [[] for _ in range(most)]
    masks = torch.cat([window.mask if window.batch_first else window.mask.T for window in windows], 1)
    for end in ends:
        for lane in range(lanes):
            if not masks[lane, end]:
                continue
            total = 0
            for index, gradient in enumerate(by_definition(model, windows, end, lane, most)):
                phi[index].append(float(gradient.norm()))
                norms[index].append(float(torch.as_tensor(total).norm()) if index else 0.0)
                total = total + gradient
    seen = [index for index in range(most) if phi[index]]
    return [[np.mean(values[i]) for i in seen] for values in (phi, norms)] + [[len(phi[i]) for i in seen]]


@pytest.mark.parametrize("name", models.MODELS)
def test_influence_is_the_norm_of_the_gradient_at_each_state(name):
    model = models.make(name)
    windows = make_windows()[:4]  # with a reset, a sequence's end and padding
    measured = measure_influence(model, models.squared_error, windows, lags=12, ends=3)
    ends = np.linspace(11, 31, 3).round().astype(int)
    phi, norms, count = expected(model, windows, ends, 3, 12)
    assert measured.lags.tolist() == list(range(1, len(phi) + 1))
    assert measured.phi == pytest.approx(phi, rel=1e-9)
    assert measured.gradient_norms == pytest.approx(norms, rel=1e-9)
    assert measured.num_losses.tolist() == count
    assert measured.num_timesteps == 32


def test_windows_with_time_first_give_the_same():
    model, other = models.WithHead("LSTM").double(), models.WithHead("LSTM", batch_first=False).double()
    other.load_state_dict(model.state_dict())
    for stride in (1, 4):
        first = measure_influence(model, models.squared_error, make_windows(), stride=stride)
        second = measure_influence(other, models.squared_error, make_windows(batch_first=False), stride=stride)
        assert first.phi == pytest.approx(second.phi, rel=1e-12)


def test_a_stride_takes_every_so_manieth_lag():
    model = models.make("lstm")
    windows = make_windows(lengths=(64, 64), lanes=2)
    fine = measure_influence(model, models.squared_error, windows, lags=32, ends=1)
    coarse = measure_influence(model, models.squared_error, windows, lags=32, ends=1, stride=4)
    assert coarse.lags.tolist() == [4, 8, 12, 16, 20, 24, 28, 32]
    assert coarse.phi == pytest.approx(fine.phi[3::4], rel=1e-9)
    assert coarse.tau == 20
    assert coarse.beta == pytest.approx(decay(fine.phi[3::4], tau=4))


def test_a_probe_goes_on_from_a_state():
    model = models.make("gru")
    windows = make_windows(lengths=(48, 48), lanes=2)
    _, state = model(torch.cat([window["x"] for window in windows[:2]], 1), None)
    later = measure_influence(model, models.squared_error, windows[2:], lags=32, ends=1, state=state)
    whole = measure_influence(model, models.squared_error, windows, lags=32, ends=1)
    assert later.num_losses.tolist() == [2] * 32
    assert later.phi == pytest.approx(whole.phi, rel=1e-9)


def test_sequences_that_start_inside_a_window_are_kept_apart():
    model = models.make("lstm")
    rng = np.random.default_rng(1)
    arrays = {f"{n}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for n in (13, 27)}
    packed = ss.StreamDataset(ss.from_arrays(arrays), lanes=1, window=8, tail="pack")
    together = measure_influence(model, models.squared_error, packed, lags=40, ends=1)
    alone = ss.StreamDataset(ss.from_arrays({"27": arrays["27"]}), lanes=1, window=27)
    wanted = measure_influence(model, models.squared_error, alone, lags=27, ends=1)
    assert len(wanted.lags) == 26  # the state before the first timestep is the initial one
    assert together.phi == pytest.approx(wanted.phi, rel=1e-9)
    with pytest.raises(ValueError, match="where sequences begin or stop inside them, got 4 for 5, 8"):
        measure_influence(model, models.squared_error, packed, stride=4)


def test_the_bounds_are_those_of_the_mathematics():
    measured = measure_influence(
        models.make("lstm"), models.squared_error, make_windows(lengths=(80,), lanes=1), tau=10
    )
    assert measured.tau == 10
    assert measured.beta == decay(measured.phi, tau=9)
    assert np.array_equal(measured.excess, excess(measured.phi, measured.beta, tau=9))
    assert np.array_equal(measured.delta, relative_bias(measured.phi, measured.gradient_norms, measured.beta, tau=9))
    assert measured.decays
    assert measured.smallest(1e-9) is None
    for bias in (2.0, 0.3, 0.01):
        depth = measured.smallest(bias)
        assert depth is not None
        assert measured.delta[measured.lags == depth] < bias
        assert (measured.delta[measured.lags < depth] >= bias).all()


def test_a_depth_between_two_lags_counts_as_the_smaller():
    model = models.make("gru")
    measured = measure_influence(model, models.squared_error, make_windows(lengths=(64,), lanes=1), stride=4)
    assert [measured.index(depth) for depth in (1, 4, 7, 8, 1000)] == [0, 0, 0, 1, len(measured.lags) - 1]


class Remembers(nn.Module):
    """The state is the sum of all that was seen: its influence never fades."""

    def forward(self, x, state):
        sums = x.sum(-1).cumsum(1) + (0 if state is None else state[:, None])
        return sums, sums[:, -1]


def test_no_decay_is_said():
    measured = measure_influence(Remembers(), lambda y, w: y, make_windows(lengths=(64,), lanes=1))
    assert not measured.decays
    assert measured.beta == 1
    assert measured.smallest(1e9) is None


def test_states_that_do_not_matter_have_no_influence():
    class Forgets(nn.Module):
        def forward(self, x, state):
            return x.sum(-1), {"seen": x[:, -1], "number": 3}

    measured = measure_influence(Forgets(), lambda y, w: y, make_windows(lengths=(64, 60), lanes=2))
    assert not measured.phi.any()
    assert measured.smallest(0.1) == 1


def test_complex_states_count_both_parts():
    class Spiral(nn.Module):
        def forward(self, x, state):
            outputs = []
            for step in x.unbind(1):
                state = step[:, 0] + (0 if state is None else (0.3 + 0.4j) * state)
                state = state.to(torch.complex128)
                outputs.append(state.real + state.imag)
            return torch.stack(outputs, 1), state

    measured = measure_influence(Spiral(), lambda y, w: y, make_windows(lengths=(64, 60), lanes=2))
    assert measured.phi == pytest.approx(np.sqrt(2) * 0.5 ** np.arange(1, 33))


def test_nothing_is_left_behind():
    class Counting(models.WithHead):
        def __init__(self):
            super().__init__("GRU")
            self.register_buffer("calls", torch.zeros(()))
            self.dropout = nn.Dropout(0.5)

        def forward(self, x, state):
            self.calls += 1
            return super().forward(self.dropout(x), state)

    model = Counting().double()
    random = torch.get_rng_state()
    with torch.no_grad():
        measure_influence(model, models.squared_error, make_windows())
    assert model.calls == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"stride": 3}, ValueError, "stride divides the windows, .* got 3 for 8"),
        ({"stride": 0}, ValueError, "got 0"),
        ({"stride": 1.0}, TypeError, "stride is an integer"),
        ({"lags": 1}, ValueError, "at least two lags"),
        ({"lags": 1000}, ValueError, "got lags=1000 of 64"),
        ({"ends": 0}, ValueError, "at least one loss"),
        ({"tau": 0}, ValueError, "tau is a lag with another one after it, in \\[1, 31\\] here, got 0"),
        ({"tau": 32}, ValueError, "got 32"),
    ],
)
def test_what_does_not_fit_is_told(options, error, message):
    with pytest.raises(error, match=message):
        measure_influence(models.make("gru"), models.squared_error, make_windows(lengths=(64,), lanes=1), **options)


def test_probes_without_anything_to_measure_are_refused():
    model = models.make("gru")
    with pytest.raises(ValueError, match="at least one window"):
        measure_influence(model, models.squared_error, [])
    with pytest.raises(ValueError, match="pass longer sequences"):
        measure_influence(model, models.squared_error, make_windows(lengths=(2, 2), lanes=2))
    windows = make_windows(lengths=(64,), lanes=1)
    with pytest.raises(ss.ContinuityError):
        measure_influence(model, models.squared_error, [windows[0], windows[2]])


def test_the_page_s_code_runs():
    page = (Path(__file__).parents[2] / "docs/truncation.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {}
    exec(compile(block, "truncation.md", "exec"), names)
    assert names["bias"].relative < 0.1
