"""Windows that change their length within an epoch: the state goes on, back-propagation stops at the change."""

import numpy as np
import pytest
import torch
from torch import nn

import streamseq as ss

SCHEDULE = {0: 4, 3: 8, 5: 2, (1, 0): 8, (1, 2): 4}


@pytest.fixture
def store():
    chance = np.random.default_rng(0)
    lengths = [61, 40, 13, 27, 9]
    return ss.from_arrays({f"{i}": {"x": chance.standard_normal((n, 2))} for i, n in enumerate(lengths)})


def growing(store, **options):
    return ss.Curriculum(ss.StreamDataset(store, lanes=2, window=4, **options), SCHEDULE)


def make_model():
    torch.manual_seed(0)
    return nn.RNN(2, 5, batch_first=True).double()


def loss(outputs, window):
    return (outputs.sum(-1) - window["x"].sum(-1)).square()


def train(model, source, k1, k2, *, state=None, stop=None, rate=0.05):
    """Parameters after updates with plain steps, each update's loss, and what to resume from after update `stop`."""
    optimizer = torch.optim.SGD(model.parameters(), rate)
    tbptt = ss.TBPTT(model, loss, k1=k1, k2=k2, inputs="x")
    if state is not None:
        tbptt.load_state_dict(state["tbptt"])
    losses = []
    for number, update in enumerate(tbptt.updates(source)):
        losses.append(update.loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if number == stop:
            assert update.at_window_end
            return losses, {"tbptt": tbptt.state_dict(), "stream": update.token.state_dict()}
    return losses, None


def test_with_k1_equal_k2_it_is_the_loop_by_hand(store):
    one, other = make_model(), make_model()
    source = growing(store)
    found = [train(one, source, 2, 2)[0]]
    carry, optimizer, wanted = ss.Carry(), torch.optim.SGD(other.parameters(), 0.05), []
    for window in growing(store):
        state = carry.enter(window.token)
        for low in range(0, window.num_steps, 2):
            mask = window.mask[:, low : low + 2]
            outputs, state = other(window["x"][:, low : low + 2], None if state is None else state.detach())
            each = (outputs.sum(-1) - window["x"].sum(-1)[:, low : low + 2]).square()
            if mask.any():
                mean = each[mask].mean()
                mean.backward()
                wanted.append(mean.item())
                optimizer.step()
                optimizer.zero_grad()
        carry.leave(window.token, state)
    assert found[0] == pytest.approx(wanted, rel=1e-12)
    assert len({window.num_steps for window in growing(store)}) == 3


def gradients_by_hand(model, arrays, windows, k1, k2):
    """The definition, of one sequence from the first window on, at fixed parameters."""
    x = torch.from_numpy(arrays)[None]
    time = 0
    for length, count in windows:
        first, end = time, min(time + length * count, x.shape[1])
        for start in range(first, end, k1):
            stop = min(start + k1, end)
            back = max(first, start + k1 - k2)
            with torch.no_grad():
                state = model(x[:, :back])[1] if back else None
            model.zero_grad()
            outputs, _ = model(x[:, back:stop], state)
            target = x.sum(-1)
            number = stop - start
            total = (outputs.sum(-1)[:, start - back :] - target[:, start:stop]).square().sum() / number
            total.backward()
            yield torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).clone()
        time = end


@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 8), (2, 7), (1, 20), (4, 14)])
def test_gradients_are_those_of_the_definition_with_a_border_at_each_change(k1, k2):
    arrays = np.random.default_rng(1).standard_normal((70, 2))
    store = ss.from_arrays({"a": {"x": arrays}})
    source = ss.Curriculum(ss.StreamDataset(store, lanes=1, window=4), {0: 4, 5: 8, 7: 4, 10: 16})
    model = make_model()
    tbptt = ss.TBPTT(
        model, lambda outputs, window: (outputs.sum(-1) - window["x"].sum(-1)).square(), k1=k1, k2=k2, inputs="x"
    )
    found = []
    for _ in tbptt.updates(source):
        found.append(torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()]).clone())
        model.zero_grad()
    wanted = list(gradients_by_hand(make_model(), arrays, [(4, 5), (8, 2), (4, 3), (16, 9)], k1, k2))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-10, rtol=0)


@pytest.mark.parametrize("options", [{}, {"tail": "pack"}])
@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (2, 6), (1, 3)])
def test_stopped_after_any_window_and_resumed_is_not_stopped(store, options, k1, k2):
    whole = make_model()
    wanted, _ = train(whole, growing(store, **options), k1, k2)
    ends = []
    tbptt = ss.TBPTT(make_model(), loss, k1=k1, k2=k2, inputs="x")
    for number, update in enumerate(tbptt.updates(growing(store, **options))):
        if update.at_window_end:
            ends.append(number)
    assert len(ends) > 8
    for stop in ends[:-1]:
        model = make_model()
        before, saved = train(model, growing(store, **options), k1, k2, stop=stop)
        source = growing(store, **options)
        source.load_state_dict(saved["stream"])
        after, _ = train(model, source, k1, k2, state=saved)
        assert before + after == wanted
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 4, "k2": None}, "a number for k2"),
        ({"k1": 8, "k2": 8}, "a change after 12 timesteps"),
        ({"k1": 4, "k2": 8, "losses": "window"}, "losses='new'"),
        ({"k1": 4, "k2": None, "truncation": ss.truncation.Random(mean=8)}, "fixed truncation"),
    ],
)
def test_what_cannot_go_on_across_a_change_is_told(store, options, message):
    tbptt = ss.TBPTT(make_model(), loss, inputs="x", **options)
    with pytest.raises(ValueError, match=message):
        list(tbptt.updates(growing(store)))


def test_a_k1_that_does_not_fit_the_new_windows_is_told():
    store = ss.from_arrays({"a": {"x": np.ones((40, 2))}})
    source = ss.Curriculum(ss.StreamDataset(store, lanes=1, window=4), {0: 4, 3: 6})
    with pytest.raises(ValueError, match="k1 divides the window"):
        list(ss.TBPTT(make_model(), loss, k1=4, k2=8, inputs="x").updates(source))
