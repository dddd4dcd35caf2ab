"""What users do between the lines: other sources, errors in the middle, models without a state, options together."""

import tempfile

import numpy as np
import pytest
import torch
import torch.distributed as dist
from support.models import make, squared_error
from support.updates import assert_same, collect, engine_updates, make_stream
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import streamseq as ss
from streamseq.training import evaluate


def test_a_cohort_without_a_loss_leaves_no_states_for_the_next():
    """Its states were in files already."""
    stream = make_stream([8, 8, 12, 12], lanes=2, window=2, lookahead={"z": ("y", 9)})
    wanted = engine_updates(make("lstm"), stream, None, None, segment=2)
    for memory in (0, 5110, 5200):
        got = engine_updates(make("lstm"), stream, None, None, segment=2, boundary_memory=memory)
        assert_same(got, wanted, 0)


def test_an_error_in_the_middle_of_an_update_leaves_no_states_for_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    stream = make_stream([40], lanes=1, window=8)
    model = make("lstm")
    wanted = engine_updates(model, stream, 8, 16, segment=2)
    calls = 0

    def failing(outputs, window):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError
        return squared_error(outputs, window)

    tbptt = ss.TBPTT(model, failing, k1=8, k2=16, segment=2, boundary_memory=0)
    with pytest.raises(InterruptedError):
        tbptt.backward(stream[0])
    assert not any(tmp_path.iterdir())
    assert_same(collect(model, map(tbptt.backward, stream)), wanted, 0)
    assert not any(tmp_path.iterdir())


def test_windows_one_by_one_after_another_source_are_those_that_are_passed():
    model = make("gru")
    first, second = make_stream([64, 64], lanes=2, window=8), make_stream([120], lanes=1, window=8)
    tbptt = ss.TBPTT(model, squared_error, k1=8, k2=32)
    list(tbptt.updates(first))
    got = collect(model, map(tbptt.backward, second))
    assert_same(got, engine_updates(model, second, 8, 32), 0)
    # And the other way round.
    assert_same(collect(model, tbptt.updates(first)), engine_updates(model, first, 8, 32), 0)


def test_whole_and_cut_sequences_one_by_one_with_every_loss():
    stream = make_stream([8, 4, 8], lanes=1, window=4)
    model = make("gru")
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8, losses="window")
    assert [tbptt.backward(window).num_timesteps for window in stream] == [4, 8, 8, 8, 8]
    adaptive = ss.TBPTT(model, squared_error, k1=4, k2=8, truncation=ss.truncation.Adaptive(0.1))
    assert len([adaptive.backward(window) for window in make_stream([4, 4, 8], lanes=1, window=4)]) == 4


def test_a_list_that_begins_in_the_middle_of_an_epoch_counts_every_loss_from_there():
    windows = list(make_stream([8, 8], lanes=1, window=4))[2:]
    model = make("gru")
    got = engine_updates(model, windows, 4, 6, losses="window")
    assert [count for _, count, _ in got] == [4, 6]


def test_a_list_of_packed_windows_is_the_stream():
    stream = make_stream([3, 7, 5], lanes=1, window=5, tail="pack")
    model = make("lstm")
    for k2 in (7, 10):
        for losses in ("new", "window"):
            wanted = engine_updates(model, stream, 5, k2, losses=losses)
            assert_same(engine_updates(model, list(stream), 5, k2, losses=losses), wanted, 1e-14)


class Stateless(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 1)

    def forward(self, x, state):
        return self.head(x).squeeze(-1), None


@pytest.mark.parametrize("losses", ["new", "window"])
def test_a_model_without_a_state_is_saved_and_goes_on(losses):
    stream = make_stream([40], lanes=1, window=4)
    model = Stateless().double()
    wanted = engine_updates(model, stream, 4, 8, losses=losses)
    tbptt = ss.TBPTT(model, squared_error, k1=4, k2=8, losses=losses)
    updates = tbptt.updates(stream)
    position = [next(updates) for _ in range(3)][-1].token.state_dict()
    again = ss.TBPTT(model, squared_error, k1=4, k2=8, losses=losses)
    again.load_state_dict(tbptt.state_dict())
    stream.load_state_dict(position)
    assert_same(collect(model, again.updates(stream)), wanted[3:], 0)


def test_parameters_that_are_thawed_later_are_put_together_too():
    stream = make_stream([10], lanes=1, window=2)
    model = make("gru")
    wanted = engine_updates(model, stream, 2, 4, accumulate=3)
    model.head.weight.requires_grad_(False)
    tbptt = ss.TBPTT(model, squared_error, k1=2, k2=4, accumulate=3)
    model.head.weight.requires_grad_(True)
    assert_same(collect(model, tbptt.updates(stream)), wanted, 0)


def test_an_error_in_an_accumulated_update_gives_the_gradients_back():
    model = make("gru")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    calls = 0

    def failing(outputs, window):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise InterruptedError
        return squared_error(outputs, window)

    tbptt = ss.TBPTT(model, failing, k1=4, k2=4, accumulate=3)
    with pytest.raises(InterruptedError):
        next(tbptt.updates(make_stream([40], lanes=1, window=4)))
    assert all((parameter.grad == 1).all() for parameter in model.parameters())


def test_evaluation_and_burn_in_take_a_wrapped_model(tmp_path):
    stream = make_stream([30, 12], lanes=2, window=4)
    model = make("learned")
    wanted = evaluate(model, squared_error, stream).loss
    state = ss.burn_in(model, stream, stream[3], 5, lane_axis=1)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        assert evaluate(wrapped, squared_error, stream).loss == wanted
        assert torch.equal(ss.burn_in(wrapped, stream, stream[3], 5, lane_axis=1), state)
    finally:
        dist.destroy_process_group()


def test_sequences_of_the_as_is_split_are_cut_at_places_of_their_own():
    stream = make_stream([20] * 6, lanes=1, window=None, split=ss.splits.AsIs())
    cuts = []
    tbptt = ss.TBPTT(make("gru"), squared_error, k1=1, k2=None, truncation=ss.truncation.Random(4))
    draw = tbptt._history._draw_cuts

    def spy(moment, *rest):
        found = draw(moment, *rest)
        if moment.time == 0:
            cuts.append([])
        cuts[-1].extend(found.cuts)
        return found

    tbptt._history._draw_cuts = spy
    list(tbptt.updates(stream))
    assert len(cuts) == 6
    assert len({tuple(each) for each in cuts}) > 3


def test_sequences_of_the_as_is_split_are_measured_once_an_epoch():
    stream = make_stream([40] * 6, lanes=1, window=None, split=ss.splits.AsIs())
    tbptt = ss.TBPTT(
        make("gru"), squared_error, k1=4, k2=8, truncation=ss.truncation.Adaptive(0.1, probe=16), lane_axis=1
    )
    for _ in range(2):
        seen = [tbptt.influence for _ in tbptt.updates(stream)]
        assert len({id(each) for each in seen if each is not None}) <= 2
        assert seen[-1] is seen[8] is not None


def test_an_influence_is_measured_in_the_precision_of_training():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(5, 3), nn.Linear(3, 1)

        def forward(self, x, state):
            state = x.new_zeros(len(x), 3) if state is None else state
            outputs = []
            for step in x.unbind(1):
                state = torch.tanh(self.inner(torch.cat([step.to(state.dtype), state], -1)))
                outputs.append(self.head(state).squeeze(-1))
            return torch.stack(outputs, 1), state

    stream = make_stream([60], lanes=1, window=4)
    torch.manual_seed(0)
    tbptt = ss.TBPTT(
        Cell(),
        lambda y, window: (y.float() - window["y"].float()).square(),
        k1=4,
        k2=8,
        inputs=lambda window: window["x"].float(),
        truncation=ss.truncation.Adaptive(0.1, probe=16, every=2),
        autocast=torch.bfloat16,
        lane_axis=0,
    )
    assert len(list(tbptt.updates(stream))) == 15
    assert tbptt.influence is not None


def test_many_losses_of_16_bits_are_added_up_in_32():
    store = ss.from_arrays({"a": {"x": np.ones((4096, 1), np.float32)}})
    stream = ss.StreamDataset(store, 1, 4096)
    weight = nn.Parameter(torch.ones(()))
    tbptt = ss.TBPTT(
        lambda x, state: (weight * x[..., 0], None), lambda y, w: (30 * y).half(), k1=4096, k2=4096, inputs="x"
    )
    (update,) = tbptt.updates(stream)
    assert update.loss.item() == pytest.approx(30)
    assert weight.grad.item() == pytest.approx(30, rel=1e-2)
