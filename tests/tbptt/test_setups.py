"""The rest of a training set-up: mixed precision, compiled and functional models, and states of many kinds."""

import collections
import copy
import dataclasses
from typing import Any

import pytest
import torch
from support.models import WithHead, make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream
from torch import nn
from torch.func import functional_call

import streamseq as ss

CASES = [(4, 4, None), (4, 8, None), (4, 12, 5), (None, None, 5)]
LENGTHS = [32, 29]


def stream_of(**options):
    return make_stream(LENGTHS, **{"lanes": 2, "window": 4, **options})


@pytest.mark.parametrize(("k1", "k2", "segment"), CASES)
def test_the_loss_scale_covers_all_segments_of_an_update(k1, k2, segment):
    stream = stream_of()
    wanted = engine_updates(make("lstm"), stream, k1, k2, segment=segment)
    model = make("lstm")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    got = engine_updates(model, stream, k1, k2, segment=segment, scaler=scaler)
    # The reported loss is not scaled, the gradient is, once.
    scaled = [(loss, count, [None if g is None else g / 1024 for g in grads]) for loss, count, grads in got]
    assert_same(scaled, wanted, 1e-12)


def test_a_scaler_skips_an_update_that_overflowed_and_goes_on():
    stream = stream_of()
    model = make("gru").float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    scales, moved = [], []

    def large(outputs, window):
        return 100 * (outputs - window["y"].float()).square()

    tbptt = ss.TBPTT(model, large, k1=4, k2=12, segment=4, scaler=scaler, inputs=lambda w: w["x"].float())
    for _ in tbptt.updates(stream):
        before = model.head.weight.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        moved.append(not torch.equal(before, model.head.weight))
    assert moved[0] is False
    assert scales[0] == 2.0**126
    assert moved[-1] is True
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_another_scaler_is_refused():
    with pytest.raises(TypeError, match="GradScaler"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4, scaler=1024.0)


@pytest.mark.parametrize(("k1", "k2", "segment"), CASES)
def test_autocast_is_that_of_the_same_model_run_by_hand(k1, k2, segment):
    stream = stream_of()
    torch.manual_seed(0)
    model = WithHead("GRU", hidden=8).float()
    dtypes = set()
    model.head.register_forward_hook(lambda module, inputs, outputs: dtypes.add(outputs.dtype))

    def inputs(window):
        return window["x"].float()

    got = engine_updates(model, stream, k1, k2, segment=segment, inputs=inputs, autocast=torch.bfloat16)
    assert dtypes == {torch.bfloat16}

    class ByHand(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x, state):
            with torch.autocast("cpu", torch.bfloat16):
                return self.inner(x, state)

    wanted = engine_updates(ByHand(), stream, k1, k2, segment=segment, inputs=inputs)
    assert_same(got, wanted, 1e-6)
    exact = engine_updates(copy.deepcopy(model), stream, k1, k2, segment=segment, inputs=inputs)
    assert got[0][0] == pytest.approx(exact[0][0], rel=0.02)


# Dynamo itself looks at the gradients of its inputs.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize(("k1", "k2", "segment"), CASES)
def test_a_compiled_model_is_the_model(k1, k2, segment):
    stream = stream_of()
    wanted = engine_updates(make("dict"), stream, k1, k2, segment=segment)
    torch._dynamo.reset()
    compiled = torch.compile(make("dict"), backend="aot_eager", dynamic=True)
    assert_same(engine_updates(compiled, stream, k1, k2, segment=segment), wanted)


@pytest.mark.parametrize(("k1", "k2", "segment"), CASES)
def test_a_functional_model_has_its_gradients_in_the_parameters_it_is_called_with(k1, k2, segment):
    stream = stream_of()
    wanted = engine_updates(make("lstm"), stream, k1, k2, segment=segment)
    module = make("lstm")
    parameters = {name: value.detach().clone().requires_grad_() for name, value in module.named_parameters()}

    def model(x, state):
        return functional_call(module, parameters, (x, state))

    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, segment=segment)
    got = []
    for update in tbptt.updates(stream):
        got.append((float(update.loss), update.num_timesteps, [p.grad.clone() for p in parameters.values()]))
        for parameter in parameters.values():
            parameter.grad = None
    assert_same(got, wanted)
    assert all(parameter.grad is None for parameter in module.parameters())


@dataclasses.dataclass
class Memory:
    """What a layer keeps: two tensors and something that is none."""

    fast: torch.Tensor
    slow: torch.Tensor
    calls: int


@dataclasses.dataclass(frozen=True, slots=True)
class Nested:
    layers: list[Memory]
    name: str


Named = collections.namedtuple("Named", ["h", "extra"])


class Kinds(nn.Module):
    """A cell whose state is packed and unpacked by two functions."""

    def __init__(self, pack, unpack):
        super().__init__()
        self.cell = nn.GRUCell(2, 3)
        self.pack, self.unpack = pack, unpack

    def forward(self, x, state):
        fast, slow, calls = (x.new_zeros(len(x), 3), x.new_zeros(2, len(x)), 0) if state is None else self.unpack(state)
        outputs = []
        for step in x.unbind(1):
            fast = self.cell(step, fast)
            slow = 0.9 * slow + fast.T[:2]
            outputs.append(fast.sum(-1) + slow.sum(0))
        return torch.stack(outputs, 1), self.pack(fast, slow, calls + 1)


KINDS: dict[str, tuple[Any, Any]] = {
    "tuple": (lambda f, s, c: (f, s, c), lambda state: state),
    "list": (lambda f, s, c: [f, [s, c]], lambda state: (state[0], *state[1])),
    "dict": (lambda f, s, c: {"a": f, "b": {"c": s, "d": c}}, lambda st: (st["a"], st["b"]["c"], st["b"]["d"])),
    "namedtuple": (lambda f, s, c: Named(f, (s, c)), lambda state: (state.h, *state.extra)),
    "dataclass": (lambda f, s, c: Memory(f, s, c), lambda state: (state.fast, state.slow, state.calls)),
    "nested": (
        lambda f, s, c: Nested([Memory(f, s, c)], "x"),
        lambda state: (state.layers[0].fast, state.layers[0].slow, state.layers[0].calls),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("k1", "k2", "segment"), CASES)
def test_a_state_may_be_any_kind_of_tree(kind, k1, k2, segment):
    stream = make_stream([30, 9, 17], lanes=2, window=4)

    def updates(name):
        torch.manual_seed(0)
        return engine_updates(Kinds(*KINDS[name]).double(), stream, k1, k2, segment=segment)

    if k1 is None:
        with pytest.warns(UserWarning, match="one update"):
            got = updates(kind)
        with pytest.warns(UserWarning, match="one update"):
            assert_same(got, updates("tuple"), 0)
    else:
        assert_same(updates(kind), updates("tuple"), 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_of_any_kind_is_saved(kind, tmp_path):
    torch.manual_seed(0)
    model = Kinds(*KINDS[kind]).double()
    stream = stream_of()
    wanted = engine_updates(model, stream, 4, 8)
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8)
    updates = tbptt.updates(stream)
    position = [next(updates) for _ in range(3)][-1].token.state_dict()
    torch.save(tbptt.state_dict(), tmp_path / "engine.pt")
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8)
    tbptt.load_state_dict(torch.load(tmp_path / "engine.pt", weights_only=True))
    stream.load_state_dict(position)
    assert_same(collect(model, tbptt.updates(stream)), wanted[3:], 0)


class Remembering(nn.Module):
    """As Transformer-XL does, it attends to the last inputs of the window before; the state is that memory.

    A mask beside the memory says how much of it there is: a memory of zeros is not none.
    """

    def __init__(self, size=6):
        super().__init__()
        self.size = size
        self.embed = nn.Linear(2, 4)
        self.query, self.key, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x, state):
        h = self.embed(x)
        if state is None:
            state = {"memory": h.new_zeros(len(h), self.size, 4), "there": h.new_zeros(len(h), self.size)}
        seen = torch.cat([state["memory"], h], 1)
        there = torch.cat([state["there"], h.new_ones(h.shape[:2])], 1)
        causal = torch.arange(seen.shape[1])[None, :] <= torch.arange(h.shape[1])[:, None] + self.size
        allowed = causal[None] & (there[:, None] > 0)
        weights = (self.query(h) @ self.key(seen).transpose(1, 2)).masked_fill(~allowed, -1e9).softmax(-1)
        return self.head(weights @ seen).squeeze(-1), {"memory": seen[:, -self.size :], "there": there[:, -self.size :]}


def test_a_memory_of_the_windows_before_is_a_state_like_another():
    stream = make_stream([30, 9, 17, 5], lanes=2, window=6)
    torch.manual_seed(0)
    model = Remembering().double()
    got = engine_updates(model, stream, 6, 12)
    # By hand: each update runs the window before without a loss, from a memory that is a constant.
    windows, kept, wanted = list(stream), {}, []
    for number, window in enumerate(windows):
        model.zero_grad()
        carry, first = ss.Carry(), max(0, number - 1)
        state = kept.get(first)
        for each in windows[first : number + 1]:
            if state is not None:
                carry._token, carry._state = windows[each.token.step - 1].token, state
                state = carry.enter(each.token)
            outputs, state = model(each["x"], state)
            if each.token.step + 1 not in kept:
                kept[each.token.step + 1] = torch.utils._pytree.tree_map(torch.Tensor.detach, state)
        loss = (squared_error(outputs, window) * window.mask).sum() / window.mask.sum()
        loss.backward()
        wanted.append((loss.item(), int(window.mask.sum()), [p.grad.clone() for p in model.parameters()]))
    assert_same(got, wanted)


def test_a_state_that_is_saved_holds_what_can_be_saved():
    model = Kinds(lambda f, s, c: (f, s, object()), lambda state: (*state[:2], 0)).double()
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=4)
    next(tbptt.updates(stream_of()))
    with pytest.raises(TypeError, match="tensors and plain numbers, got a object"):
        tbptt.state_dict()
