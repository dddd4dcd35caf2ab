"""What the engine does around its gradients: memory, noise, buffers, resume, refusals."""

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from support.models import MODELS, DictCell, make, squared_error
from torch import nn

import streamseq as ss


def make_stream(lengths, *, lanes, window, **options):
    rng = np.random.default_rng(sum(lengths))
    arrays = {f"s{i}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for i, n in enumerate(lengths)}
    return ss.StreamDataset(ss.from_arrays(arrays), lanes=lanes, window=window, **options)


def gradients(model):
    return [parameter.grad.clone() for parameter in model.parameters()]


class HeldBytes:
    """The most bytes that autograd held at once, by saved-tensor hooks; a storage counts once."""

    def __init__(self, model):
        self.now = self.peak = 0
        self.parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.alive = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        box = Box(tensor)
        if storage.data_ptr() not in self.parameters:
            self.now += tensor.nbytes
            self.peak = max(self.peak, self.now)
            weakref.finalize(box, self.free, tensor.nbytes)
        return box

    def free(self, nbytes):
        self.now -= nbytes

    @staticmethod
    def unpack(box):
        return box.tensor


class Box:
    def __init__(self, tensor):
        # An output knows its operation, which holds this box: a cycle where a graph is not freed by a backward pass.
        self.tensor = tensor.detach()


def held_bytes(n, k1, k2, segment=None, lengths=None, layout="sequences", tail="pad", **options):
    lengths = [n, n] if lengths is None else lengths * (2 * n // sum(lengths))
    stream = make_stream(lengths, lanes=2, window=32, layout=layout, tail=tail)
    model = make("gru")
    held = HeldBytes(model)
    gc.disable()  # what is freed must be freed by leaving scope, not by luck
    try:
        with torch.autograd.graph.saved_tensors_hooks(held.pack, held.unpack):
            tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2, segment=segment, **options)
            updates = sum(1 for _ in tbptt.updates(stream))
    finally:
        gc.enable()
    assert updates == (1 if k1 is None else -(-n // (k1 * options.get("accumulate", 1))))
    assert held.now == 0
    return held.peak


@pytest.mark.parametrize(
    ("k1", "k2", "segment"), [(32, 32, None), (32, 64, None), (64, 128, 32), (None, None, 32), (None, None, 8)]
)
def test_autograd_holds_the_same_bytes_for_any_length(k1, k2, segment):
    short, long = held_bytes(256, k1, k2, segment), held_bytes(8192, k1, k2, segment)
    assert short > 0
    assert long == pytest.approx(short, rel=0.05)


MODES = {
    "every loss": ((32, 64), {"losses": "window"}),
    "random": ((32, None), {"segment": 32, "truncation": ss.truncation.Random(64)}),
    "adaptive": ((32, 96), {"truncation": ss.truncation.Adaptive(1e-9, probe=128)}),
    "accumulated": ((32, 64), {"accumulate": 4}),
    "packed": ((32, 64), {"tail": "pack", "lengths": [50, 64, 14]}),
    "burnt in": ((32, 64), {"layout": "even", "lengths": [128], "burn_in": 16}),
    "states in files": ((None, None), {"segment": 8, "boundary_memory": 0}),
    "n in segments": ((64, None), {"segment": 16}),
}


@pytest.mark.parametrize("mode", MODES)
def test_autograd_holds_the_same_bytes_for_any_length_in_every_mode(mode):
    (k1, k2), options = MODES[mode]
    lengths = (256, 1024) if mode == "n in segments" else (512, 4096)
    short, long = (held_bytes(n, k1, k2, **options) for n in lengths)
    assert short > 0
    # In a longer stream there are more kinds of update: packed windows are cut at other places.
    assert long <= 1.05 * short
    if mode in ("every loss", "accumulated", "states in files", "n in segments"):
        stream = make_stream([lengths[1]] * 2, lanes=2, window=32)
        tbptt = ss.TBPTT(make("gru"), squared_error, k1=k1, k2=k2, **options)
        # Here a view counts beside its storage.
        assert long <= 1.15 * tbptt.memory(stream).activations


def test_a_segment_bounds_what_autograd_holds():
    whole, segmented = held_bytes(1024, None, None, 1024), held_bytes(1024, None, None, 32)
    assert segmented < whole / 16


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x, state):
        y, state = self.rnn(self.drop(x), state)
        return self.drop(y).sum(-1), state


class Counting(nn.Module):
    """Its buffer counts timesteps and scales the outputs, so that a wrong replay shows in the gradient."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 4, batch_first=True)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        self.seen += x.shape[1]
        return y.sum(-1) / (1 + self.seen / 100), state


def test_dropout_is_the_same_in_both_sweeps():
    """Segments must see one noise, so the gradient is that of the loss which the forward sweep had."""
    stream = make_stream([40], lanes=1, window=8)
    torch.manual_seed(0)
    model = Noisy().double()
    torch.manual_seed(1)
    (update,) = ss.TBPTT(model, squared_error, k1=None, k2=None).updates(stream)
    after = torch.get_rng_state()
    segmented = gradients(model)
    model.zero_grad()
    torch.manual_seed(1)
    state, total = None, 0
    for window in stream:
        outputs, state = model(window["x"], state)
        total = total + squared_error(outputs, window).sum()
    assert torch.equal(after, torch.get_rng_state())
    (total / 40).backward()
    assert update.loss.item() == pytest.approx(total.item() / 40)
    for a, b in zip(segmented, gradients(model), strict=True):
        torch.testing.assert_close(a, b)


def test_a_new_update_draws_new_noise():
    stream = make_stream([16, 16], lanes=2, window=8)
    torch.manual_seed(0)
    model = Noisy().double()
    tbptt = ss.TBPTT(model, squared_error, k1=8, k2=16)
    states = [torch.get_rng_state() for _ in tbptt.updates(stream)]
    assert not torch.equal(*states)


@pytest.mark.parametrize(("k1", "k2", "segment"), [(8, 8, None), (8, 16, None), (8, 24, 4), (None, None, 8), (4, 6, 3)])
def test_buffers_see_each_timestep_once(k1, k2, segment):
    stream = make_stream([40], lanes=1, window=8)
    torch.manual_seed(0)
    model = Counting().double()
    seen = [int(model.seen) for _ in ss.TBPTT(model, squared_error, k1=k1, k2=k2, segment=segment).updates(stream)]
    assert seen == list(range(k1 or 40, 41, k1 or 40))


def test_buffers_are_replayed_as_they_were():
    stream = make_stream([40], lanes=1, window=8)
    torch.manual_seed(0)
    model = Counting().double()
    (update,) = ss.TBPTT(model, squared_error, k1=None, k2=None).updates(stream)
    segmented = gradients(model)
    model.zero_grad()
    model.seen.zero_()
    state, total = None, 0
    for window in stream:
        outputs, state = model(window["x"], state)
        total = total + squared_error(outputs, window).sum()
    (total / 40).backward()
    assert update.loss.item() == pytest.approx(total.item() / 40)
    for a, b in zip(segmented, gradients(model), strict=True):
        torch.testing.assert_close(a, b)


def train(model, stream, k1, k2, *, stop_after=None, resume=None, epochs=2, source=None):
    """Train, and save everything at a window end; the parameters, and what was saved."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    tbptt = ss.TBPTT(model, squared_error, k1=k1, k2=k2)
    source = stream if source is None else source(stream)
    first = 0
    if resume is not None:
        for name, part in (("model", model), ("optimizer", optimizer), ("tbptt", tbptt), ("stream", source)):
            part.load_state_dict(resume[name])
        first = stream.epoch
    done = 0
    for epoch in range(first, epochs):
        stream.set_epoch(epoch)
        for update in tbptt.updates(source):
            optimizer.step()
            optimizer.zero_grad()
            done += 1
            if done == stop_after:
                assert update.at_window_end
                parts = {"model": model, "optimizer": optimizer, "tbptt": tbptt, "stream": source}
                return {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
    return list(model.parameters())


@pytest.mark.parametrize("source", [None, ss.StreamLoader])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("k1", "k2"), [(4, 4), (4, 8), (4, 11), (8, 12), (4, None)])
def test_a_resumed_run_ends_in_the_same_parameters(name, k1, k2, source, tmp_path):
    def stream():
        return make_stream([13, 5, 9, 20, 3, 8], lanes=2, window=4, shuffle=True)

    model = make(name)
    fresh = copy.deepcopy(model)
    wanted = train(copy.deepcopy(model), stream(), k1, k2)
    updates = sum(1 for _ in ss.TBPTT(fresh, squared_error, k1=k1, k2=k2).updates(stream()))
    for stop in range(1, 2 * updates, 3):
        saved = train(copy.deepcopy(model), stream(), k1, k2, stop_after=stop, source=source)
        torch.save(saved, tmp_path / "checkpoint")
        saved = torch.load(tmp_path / "checkpoint", weights_only=True)
        got = train(make(name, seed=9), stream(), k1, k2, resume=saved, source=source)
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


def test_several_updates_a_window_say_when_the_window_is_done():
    stream = make_stream([13, 5], lanes=2, window=6)
    tbptt = ss.TBPTT(make("gru"), squared_error, k1=2, k2=4)
    ends = [(u.token.step, u.at_window_end) for u in tbptt.updates(stream)]
    assert ends == [(0, False), (0, False), (0, True), (1, False), (1, False), (1, True), (2, True)]


def test_the_state_is_taken_on_where_no_timestep_counts():
    """A stretch without a loss in the middle of a window changes nothing of the later gradients' definition."""
    arrays = {"a": {"x": np.random.default_rng(0).standard_normal((24, 2)), "y": np.zeros(24)}}
    stream = ss.StreamDataset(ss.from_arrays(arrays), lanes=1, window=12)
    windows = list(stream)
    for window in windows:
        window.mask[:, 3:9] = False
    model = make("gru")
    got = []
    for update in ss.TBPTT(model, squared_error, k1=3, k2=3).updates(windows):
        got.append((update.num_timesteps, gradients(model)))
        model.zero_grad()
    assert [count for count, _ in got] == [3, 3, 3, 3]
    x = torch.from_numpy(arrays["a"]["x"])[None]
    for (_, grads), start in zip(got, (0, 9, 12, 21), strict=True):
        model.zero_grad()
        with torch.no_grad():
            state = model(x[:, :start], None)[1] if start else None
        outputs, _ = model(x[:, start : start + 3], state)
        outputs.square().mean().backward()
        for a, b in zip(grads, gradients(model), strict=True):
            torch.testing.assert_close(a, b)


def test_padding_may_hold_anything():
    stream = make_stream([9, 4], lanes=2, window=6)
    windows = list(stream)
    model = make("gru")

    def loss(outputs, window):
        spoiled = torch.where(window.mask, 0.0, float("inf"))
        return squared_error(outputs, window) + spoiled

    for update in ss.TBPTT(model, loss, k1=6, k2=12).updates(windows):
        assert torch.isfinite(update.loss)
        assert all(torch.isfinite(grad).all() for grad in gradients(model))


@pytest.mark.parametrize("lanes", [2, 3])
def test_the_lane_axis_is_found_where_sizes_coincide(lanes):
    """Two layers or a hidden size of three beside as many lanes: which axis counts lanes shows in a probe."""
    stream = make_stream([7, 3, 9, 5, 4], lanes=lanes, window=4)

    def run(**options):
        torch.manual_seed(0)
        model = DictCell(hidden=3).double() if lanes == 3 else Deep().double()
        model.register_buffer("touched", torch.zeros(()))
        state = torch.get_rng_state()
        grads = []
        for _ in ss.TBPTT(model, squared_error, k1=4, k2=8, **options).updates(stream):
            grads += gradients(model)
        assert torch.equal(state, torch.get_rng_state())
        return grads

    axis = 1 if lanes == 2 else {"fast": 0, "more": {"slow": 1}}
    for a, b in zip(run(), run(lane_axis=axis), strict=True):
        assert torch.equal(a, b)


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 2, num_layers=2, batch_first=True)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return y.sum(-1), state


def test_losses_of_several_parts_are_summed():
    stream = make_stream([9], lanes=1, window=9)
    model = make("gru")
    (one,) = ss.TBPTT(model, squared_error, k1=9, k2=9).updates(stream)
    grads = gradients(model)
    model.zero_grad()
    parts = lambda y, w: squared_error(y, w)[..., None, None].expand(*y.shape, 2, 2) / 4  # noqa: E731
    (two,) = ss.TBPTT(model, parts, k1=9, k2=9).updates(stream)
    assert one.loss.item() == pytest.approx(two.loss.item())
    for a, b in zip(grads, gradients(model), strict=True):
        torch.testing.assert_close(a, b)


def test_inputs_are_a_field_several_or_a_function():
    stream = make_stream([9], lanes=1, window=9)
    model = make("gru")
    losses = [
        next(iter(ss.TBPTT(call, squared_error, k1=9, k2=9, inputs=inputs).updates(stream))).loss
        for call, inputs in (
            (model, "x"),
            (lambda xy, state: model(xy[0], state), ["x", "y"]),
            (model, lambda window: window["x"]),
        )
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"k1": 4, "k2": 3}, ValueError, "k2 >= k1"),
        ({"k1": 0, "k2": 3}, ValueError, "k1 is at least 1"),
        ({"k1": 2.0, "k2": 3}, TypeError, "k1 is an integer"),
        ({"k1": True, "k2": 3}, TypeError, "k1 is an integer"),
        ({"k1": 2, "k2": 3, "segment": 0}, ValueError, "segment"),
        ({"k1": 2, "k2": 3, "segment": "a"}, TypeError, "segment"),
        ({"k1": 2}, TypeError, "k2"),
    ],
)
def test_wrong_numbers_are_refused_at_once(options, error, match):
    with pytest.raises(error, match=match):
        ss.TBPTT(make("gru"), squared_error, **options)


@pytest.mark.parametrize(
    ("k1", "k2", "match"),
    [
        (5, 8, "1, 2, 3, 4, 6, 12, a multiple of 12, or None"),
        (18, 18, "a multiple of 12"),
        (None, 12, "k2=None"),
    ],
)
def test_numbers_that_do_not_fit_the_windows_are_refused(k1, k2, match):
    stream = make_stream([40], lanes=1, window=12)
    with pytest.raises(ValueError, match=match):
        next(ss.TBPTT(make("gru"), squared_error, k1=k1, k2=k2).updates(stream))


def test_a_source_without_random_access_cannot_have_k2_of_n():
    stream = make_stream([40], lanes=1, window=12)
    for k1 in (12, None):
        with pytest.raises(ValueError, match="random access"):
            next(ss.TBPTT(make("gru"), squared_error, k1=k1, k2=None).updates(iter(stream)))


def test_backward_takes_windows_of_k1_timesteps():
    stream = make_stream([40], lanes=1, window=12)
    for k1, k2 in ((6, 12), (24, 24), (12, None), (None, None)):
        with pytest.raises(ValueError, match="backward"):
            ss.TBPTT(make("gru"), squared_error, k1=k1, k2=k2).backward(stream[0])
    whole = make_stream([12], lanes=1, window=12)
    assert ss.TBPTT(make("gru"), squared_error, k1=None, k2=None).backward(whole[0]).num_timesteps == 12


@pytest.mark.parametrize("k2", [4, 8])
def test_windows_out_of_order_are_refused(k2):
    stream = make_stream([40], lanes=1, window=4)
    windows = list(stream)
    for wrong in ([0, 2], [0, 1, 1], [0, 1, 0], [3]):
        tbptt = ss.TBPTT(make("gru"), squared_error, k1=4, k2=k2)
        if wrong == [0, 1, 0]:  # a lane that resets may follow anything
            assert len(list(tbptt.updates([windows[i] for i in wrong]))) == 3
            continue
        with pytest.raises(ss.ContinuityError, match="stream order"):
            list(tbptt.updates([windows[i] for i in wrong]))


def test_a_resumed_stream_without_the_engine_s_state_is_refused():
    stream = make_stream([40], lanes=1, window=4)
    stream.load_state_dict(stream[3].token.state_dict())
    with pytest.raises(ss.ContinuityError, match="no state is carried"):
        next(ss.TBPTT(make("gru"), squared_error, k1=4, k2=4).updates(stream))


def test_a_state_of_another_engine_is_refused():
    state = ss.TBPTT(make("gru"), squared_error, k1=4, k2=8).state_dict()
    with pytest.raises(ss.ResumeError, match=r"k1=4, k2=8.*k1=4, k2=4"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4).load_state_dict(state)
    with pytest.raises(ss.ResumeError, match="holds"):
        ss.TBPTT(make("gru"), squared_error, k1=4, k2=4).load_state_dict({"a": 1})


@pytest.mark.parametrize(
    ("model", "loss", "error", "match"),
    [
        (lambda x, s: x, squared_error, TypeError, r"\(outputs, state\)"),
        (lambda x, s: (x.sum(-1), s), lambda y, w: y.mean(), ValueError, "reduction='none'"),
        (lambda x, s: (x.sum(-1), s), lambda y, w: 0.0, TypeError, "float"),
        (lambda x, s: (x.sum(-1), s), lambda y, w: w["z"].sum(), KeyError, "x, y"),
    ],
)
def test_what_a_model_and_loss_return_is_checked(model, loss, error, match):
    stream = make_stream([8], lanes=1, window=4)
    with pytest.raises(error, match=match):
        next(ss.TBPTT(model, loss, k1=4, k2=4).updates(stream))


def test_gradients_are_added_to_those_that_are_there():
    stream = make_stream([8], lanes=1, window=8)
    model = make("gru")
    list(ss.TBPTT(model, squared_error, k1=8, k2=8).updates(stream))
    once = gradients(model)
    list(ss.TBPTT(model, squared_error, k1=8, k2=8).updates(stream))
    for a, b in zip(once, gradients(model), strict=True):
        torch.testing.assert_close(2 * a, b)


def test_no_window_no_update():
    assert list(ss.TBPTT(make("gru"), squared_error, k1=4, k2=4).updates([])) == []


def test_an_integer_and_a_plain_number_in_the_state_are_carried():
    class Clocked(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)

        def forward(self, x, state):
            h, clock, calls = (None, x.new_zeros(len(x), dtype=torch.int64), 0) if state is None else state
            y, h = self.rnn(x, h)
            return y.sum(-1) * (1 + clock[:, None]), (h, clock + x.shape[1], calls + 1)

    stream = make_stream([12, 12], lanes=2, window=4)
    torch.manual_seed(0)
    model = Clocked().double()
    for k1, k2, segment in ((4, 4, None), (4, 8, 4), (None, None, 4)):
        losses = [float(u.loss) for u in ss.TBPTT(model, squared_error, k1=k1, k2=k2, segment=segment).updates(stream)]
        assert len(losses) == (1 if k1 is None else 3)
        if k1 == 4:
            state, wanted = None, []
            for window in stream:
                outputs, state = model(window["x"], state)
                wanted.append(squared_error(outputs, window).mean().item())
            assert losses == pytest.approx(wanted)


def test_the_grid_of_updates_does_not_go_on_across_a_rewindow():
    store = ss.from_arrays({"a": {"x": np.ones((40, 1), np.float32)}})
    stream = ss.StreamDataset(store, 1, 4)
    cell = nn.RNN(1, 3, batch_first=True)
    tbptt = ss.TBPTT(cell, lambda y, window: y.square().sum(-1), k1=4, k2=8, inputs="x")
    token = next(iter(tbptt.updates(stream))).token
    stream.rewindow(2, after=token)
    with pytest.raises(ValueError, match="windows changed to 2 timesteps within an epoch"):
        next(iter(tbptt.updates(stream)))
