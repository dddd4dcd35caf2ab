"""Models that keep their state in caches train under TBPTT as they are."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from support.models import squared_error
from support.updates import assert_same, engine_updates, make_stream, sgd
from torch import nn

import streamseq as ss
from streamseq.integrations.adapt import check_state
from streamseq.integrations.cache import take_apart

from . import linear_attention


def full_gradients(model, stream):
    """Of the mean loss over all valid timesteps: each sequence whole, through plain autograd, without a cache."""
    model.zero_grad()
    total, count = 0.0, 0
    for name in stream.store.ids.to_pylist():
        fields = stream.store.read(name)
        x, y = (torch.from_numpy(np.asarray(fields[each])) for each in "xy")
        total = total + (model(x[None]).logits[0] - y).square().sum()
        count += len(y)
    (total / count).backward()
    return [parameter.grad.clone() for parameter in model.parameters()], count


@pytest.mark.filterwarnings("ignore:k1=n makes one update of sequences that start together:UserWarning")
@pytest.mark.parametrize(("k1", "segment"), [(6, None), (6, 5), (3, 7), (12, 12), (None, 9)])
def test_with_k2_of_n_the_gradient_is_that_of_plain_autograd(k1, segment):
    model = linear_attention.make()
    stream = make_stream([25, 13, 18], lanes=2, window=6)
    wanted, number = full_gradients(model, stream)
    updates = engine_updates(ss.adapt(model), stream, k1, None, segment=segment)
    assert sum(count for _, count, _ in updates) == number
    for index, gradient in enumerate(wanted):
        mine = sum(grads[index] * count for _, count, grads in updates if grads[index] is not None) / number
        assert (mine - gradient).abs().max() < 1e-10


@pytest.mark.parametrize(("k1", "k2", "window"), [(4, 4, 4), (4, 10, 4), (2, 9, 4), (8, 8, 4)])
def test_updates_are_those_of_the_same_model_with_plain_tensors(k1, k2, window):
    """While parameters change too: what is carried is what the model returned, and no update changes it."""

    class Replaced(linear_attention.Cache):
        def update(self, layer, timesteps=0, **tensors):
            self.states[layer : layer + 1] = [tensors]

    class Plain(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x, state):
            cache = Replaced()
            if state is not None:
                cache.states = [{"recurrent": a.clone(), "conv": b.clone()} for a, b in state]
            found = self.model(x, cache, True)
            return found.logits, [(each["recurrent"], each["conv"]) for each in found.past_key_values.states]

    results = []
    for wrap in (ss.adapt, Plain):
        model = linear_attention.make()
        stream = make_stream([23, 9, 14], lanes=2, window=window)
        results.append(engine_updates(wrap(model), stream, k1, k2, sgd(model)))
    assert_same(*results)


def test_an_engine_with_an_adapted_model_resumes_in_another_process_with_the_same_updates():
    def stream():
        return make_stream([23, 9, 14], lanes=2, window=4)

    straight = engine_updates(ss.adapt(linear_attention.make()), stream(), 4, 10)
    # As in another process the adapted model has not seen a cache when it gets its first state.
    model = linear_attention.make()
    tbptt = ss.TBPTT(ss.adapt(model), squared_error, k1=4, k2=10)
    updates = tbptt.updates(stream())
    position = [next(updates) for _ in range(3)][-1].token.state_dict()
    again = stream()
    again.load_state_dict(position)
    model = linear_attention.make()
    fresh = ss.TBPTT(ss.adapt(model), squared_error, k1=4, k2=10)
    fresh.load_state_dict(tbptt.state_dict())
    rest = []
    for update in fresh.updates(again):
        rest.append((float(update.loss), update.num_timesteps, [p.grad.clone() for p in model.parameters()]))
        model.zero_grad()
    assert_same(straight[3:], rest, tolerance=0)


def test_a_carry_takes_adapted_states_and_starts_lanes_anew():
    model = ss.adapt(linear_attention.make())
    stream, carry = make_stream([9, 5, 7], lanes=2, window=4), ss.Carry(lane_axis=0)
    found = {name: [] for name in range(3)}
    for window in stream:
        y, state = model(window["x"], carry.enter(window.token))
        carry.leave(window.token, state)
        for lane, sequence in enumerate(window.token.sequence):
            if sequence >= 0:
                found[int(sequence)].append(y[lane, : window.lengths[lane]])
    for index in range(3):
        whole = model.model(torch.from_numpy(stream.store.read(index)["x"])[None]).logits[0]
        assert torch.allclose(torch.cat(found[index]), whole, atol=1e-12)


def test_the_tensors_of_a_state_are_not_changed_by_a_model_that_changes_its_cache_in_place():
    model = ss.adapt(linear_attention.make())
    x = torch.randn(2, 8, 2, dtype=torch.float64)
    _, state = model(x, None)
    before = [leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in state]
    model(x, state)
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(state, before, strict=True))


def test_a_tuple_with_a_final_state_is_understood():
    def gla(q, k, v, g, scale=1.0, initial_state=None, output_final_state=False):
        return linear_attention.chunked_scan(q * scale, k, v, g, initial_state, output_final_state)

    qkvg = [torch.randn(1, 8, 3) for _ in range(4)]
    qkvg[3] = -qkvg[3].abs()
    model = ss.adapt(gla, scale=0.5)
    whole, _ = model(tuple(qkvg), None)
    first, state = model(tuple(each[:, :4] for each in qkvg), None)
    second, _ = model(tuple(each[:, 4:] for each in qkvg), state)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)


class Mamba(nn.Module):
    """`cache_params`, asked for by `use_cache`; its cache is a named tuple of lists."""

    Params = namedtuple("Params", ["ssm", "conv"])

    def __init__(self, detach=False):
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.9))
        self.detach = detach

    def forward(self, x, cache_params=None, use_cache=False):
        state = torch.zeros_like(x[:, 0]) if cache_params is None else cache_params.ssm[0]
        outputs = []
        for step in x.unbind(1):
            state = self.decay * state + step
            outputs.append(state)
        state = state.detach() if self.detach else state
        cache = self.Params([state], []) if use_cache else None
        return {"last_hidden_state": torch.stack(outputs, 1), "cache_params": cache}


def test_cache_params_and_results_that_are_dicts_are_understood():
    model = ss.adapt(Mamba())
    check_state(model, torch.randn(2, 6, 3))
    _, state = model(torch.ones(1, 2, 1), None)
    assert [round(leaf.item(), 4) for leaf in state] == [1.9]


def test_an_initial_state_of_ones_is_that_of_every_sequence():
    def model(x, cache=None):
        y = x.cumsum(1) + cache["sum"][:, None]
        return y, {"sum": y[:, -1]}

    adapted = ss.adapt(model, new_state=lambda lanes: {"sum": torch.ones(lanes, 2)})
    store = ss.from_arrays({name: {"x": np.ones((length, 2), np.float32)} for name, length in (("a", 5), ("b", 3))})
    tbptt = ss.TBPTT(adapted, lambda y, w: y[..., 0] * torch.ones((), requires_grad=True), k1=2, k2=2)
    stream = ss.StreamDataset(store, lanes=1, window=2)
    assert [update.loss.item() for update in tbptt.updates(stream)] == [2.5, 4.5, 6, 2.5, 4]


def test_a_cache_that_grows_is_an_error():
    def attention(x, past_key_values=None, use_cache=False):
        keys = x if past_key_values is None else torch.cat([past_key_values[0], x], 1)
        return x, (keys,)

    model = ss.adapt(attention)
    _, state = model(torch.ones(1, 2, 1), None)
    with pytest.raises(ValueError, match=r"\(1, 2, 1\) became \(1, 4, 1\): the keys and values of attention grow"):
        model(torch.ones(1, 2, 1), state)


def test_a_model_without_a_known_argument_is_an_error():
    with pytest.raises(TypeError, match=r"takes its state as one of past_key_values, .*, got the arguments x, memory"):
        ss.adapt(lambda x, memory: x)


def test_a_model_that_returns_no_state_is_an_error():
    with pytest.raises(TypeError, match="returns its state as cache_params, or last in a tuple, got a Tensor without"):
        ss.adapt(lambda x, cache_params=None, use_cache=False: x)(torch.ones(1, 2, 1), None)


def test_a_state_that_is_detached_is_found():
    with pytest.raises(ValueError, match="gradients pass through a state, and none reached"):
        check_state(ss.adapt(Mamba(detach=True)), torch.randn(2, 6, 3))


def test_a_model_that_is_whole_passes_the_check():
    check_state(ss.adapt(linear_attention.make()), torch.randn(2, 9, 2, dtype=torch.float64), tolerance=1e-12)
    check_state(nn.LSTM(2, 3, batch_first=True), torch.randn(2, 9, 2))


def test_no_graph_outlives_a_call():
    model = ss.adapt(linear_attention.make())
    outputs, state = model(torch.randn(1, 4, 2, dtype=torch.float64), None)
    node = outputs.grad_fn
    freed = []
    node.metadata["mark"] = type("Mark", (), {"__del__": lambda self: freed.append(True)})()
    del outputs, state, node
    assert freed


class Slotted:
    __slots__ = ("held",)

    def __init__(self, held):
        self.held = held


def test_a_cache_of_slots_and_modules_without_parameters_is_put_together_again():
    holder = nn.Module()
    holder.register_buffer("conv", torch.ones(2))
    linear = nn.Linear(1, 1)
    leaves, skeleton = take_apart({"a": Slotted(torch.zeros(1)), "b": holder, "c": linear, "d": len})
    again = skeleton.put_together([leaf + 1 if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves])
    assert again["a"].held.tolist() == [1]
    assert again["b"].conv.tolist() == [2, 2]
    assert again["b"] is not holder
    assert again["c"] is linear
    assert again["d"] is len


def test_a_cache_that_contains_itself_is_an_error():
    loop = {}
    loop["loop"] = loop
    with pytest.raises(ValueError, match="got a dict that contains itself"):
        take_apart(loop)
