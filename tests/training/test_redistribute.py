"""Another number of ranks in the middle of an epoch: the losses are those of a run without the change."""

import copy
import io

import numpy as np
import pytest
import torch
from support.models import DictCell, LearnedStart, WithHead, make, squared_error
from torch import nn

import streamseq as ss
from streamseq.training import read_checkpoint, redistribute, redistribute_checkpoints, save_checkpoint

LANES, WINDOW = 7, 4
# In the even layout lanes start, end and reset at steps of their own, and no rank is ever without a timestep.
RAGGED = [150, 31, 90, 17, 222, 44, 9, 130, 77, 66, 140]
WHOLE = [152, 32, 88, 16, 224, 44, 8, 132, 76, 68, 140, 28]


class Deep(nn.Module):
    """Two layers, so that two lanes are not told from them by their number."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 2, num_layers=2, batch_first=True)

    def forward(self, x, state):
        y, state = self.rnn(x, state)
        return y.sum(-1), state


class Clocked(nn.Module):
    """Counts its calls beside a state by lane."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(2, 3, batch_first=True)

    def forward(self, x, state):
        h, clock, calls = (None, x.new_zeros((), dtype=torch.int64), 0) if state is None else state
        y, h = self.rnn(x, h)
        return y.sum(-1), (h, clock, calls)


def make_stream(lengths, rank=0, world_size=1, lanes=LANES, layout="even", **options):
    rng = np.random.default_rng(sum(lengths))
    arrays = {f"s{i}": {"x": rng.standard_normal((n, 2)), "y": rng.standard_normal(n)} for i, n in enumerate(lengths)}
    store = ss.from_arrays(arrays)
    return ss.StreamDataset(store, lanes, WINDOW, layout=layout, rank=rank, world_size=world_size, **options)


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Ranks:
    """A run on several ranks in one process: one model, gradients weighted by the ranks' timesteps."""

    def __init__(self, model, lengths, world_size, **options):
        self.model = model
        self.lengths = lengths
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        self.options = options
        self.start(world_size)

    def start(self, world_size):
        self.streams = [make_stream(self.lengths, rank, world_size, **self.options) for rank in range(world_size)]

    def part(self, rank):
        """The summed loss and the number of timesteps of a rank in the next update, whose mean's gradient is added."""
        raise NotImplementedError

    def step(self):
        parameters = list(self.model.parameters())
        total, count, gradient = 0.0, 0, [torch.zeros_like(p) for p in parameters]
        for rank in range(len(self.streams)):
            self.model.zero_grad()
            loss, number = self.part(rank)
            total, count = total + loss, count + number
            for whole, parameter in zip(gradient, parameters, strict=True):
                if number and parameter.grad is not None:
                    whole += number * parameter.grad
        for whole, parameter in zip(gradient, parameters, strict=True):
            parameter.grad = whole / count
        self.optimizer.step()
        return total / count

    def states(self):
        return [each.state_dict() for each in self.carriers]

    def change(self, world_size, **options):
        # The order in which the old ranks are named is nothing.
        saved = through_a_file(self.states()[::-1])
        position = self.position.state_dict()
        self.start(world_size)
        for rank, (stream, carrier) in enumerate(zip(self.streams, self.carriers, strict=True)):
            stream.load_state_dict(position)
            carrier.load_state_dict(redistribute(saved, rank=rank, world_size=world_size, **options))


# As `Carry` wants it on ranks with as many lanes as hidden units.
AXES = {"lstm": 1, "dict": {"fast": 0, "more": {"slow": 1}}, "learned": 1}


class ByHand(Ranks):
    def __init__(self, model, lengths, world_size, *, lane_axis=None, **options):
        self.lane_axis = lane_axis
        super().__init__(model, lengths, world_size, **options)

    def start(self, world_size):
        super().start(world_size)
        self.carriers = [ss.Carry(getattr(self.model, "initial_state", None), self.lane_axis) for _ in self.streams]
        self.windows = [self.in_order(stream) for stream in self.streams]

    @staticmethod
    def in_order(stream):
        yield from stream  # asked for when the first window is, after the position was loaded

    def part(self, rank):
        window = next(self.windows[rank])
        outputs, state = self.model(window["x"], self.carriers[rank].enter(window.token))
        self.carriers[rank].leave(window.token, state)
        self.position = window.token
        loss = (squared_error(outputs, window) * window.mask).sum() / window.mask.sum()
        loss.backward()
        number = int(window.mask.sum())
        return number * loss.item(), number


class ByEngine(Ranks):
    def __init__(self, model, lengths, world_size, *, k1, k2, truncation=None, **options):
        self.engine = {"k1": k1, "k2": k2, "truncation": truncation}
        super().__init__(model, lengths, world_size, **options)

    def start(self, world_size):
        super().start(world_size)
        self.carriers = [ss.TBPTT(self.model, squared_error, **self.engine) for _ in self.streams]
        self.updates = [engine.updates(stream) for engine, stream in zip(self.carriers, self.streams, strict=True)]
        self.at = {}

    def part(self, rank):
        update = next(self.updates[rank])
        self.position = update.token
        self.at[rank] = (update.token.step, update.at_window_end)
        return update.num_timesteps * update.loss.item(), update.num_timesteps

    def step(self):
        loss = super().step()
        assert len(set(self.at.values())) == 1
        return loss

    def change(self, world_size, **options):
        assert not self.at or self.at[0][1]
        super().change(world_size, **options)


def losses(run, before, to=None, after=20, **options):
    first = [run.step() for _ in range(before)]
    if to is not None:
        run.change(to, **options)
    return [*first, *(run.step() for _ in range(after))]


CHANGES = [(4, 2), (4, 1), (1, 3), (3, 2)]


@pytest.mark.parametrize(("old", "new"), CHANGES)
@pytest.mark.parametrize("model", ["lstm", "dict", "learned"])
def test_a_loop_by_hand_goes_on_with_the_same_losses(model, old, new):
    def run(world_size):
        return ByHand(make(model), RAGGED, world_size, lane_axis=AXES[model])

    wanted = losses(run(old), 6)
    assert losses(run(old), 6, new) == pytest.approx(wanted, rel=0, abs=1e-9)
    assert losses(run(1), 6) == pytest.approx(wanted, rel=0, abs=1e-9)


@pytest.mark.parametrize(("old", "new"), CHANGES)
@pytest.mark.parametrize(
    ("k1", "k2", "lengths"), [(4, 4, RAGGED), (4, 10, RAGGED), (4, None, RAGGED), (2, 7, WHOLE), (8, 12, RAGGED)]
)
def test_the_engine_goes_on_with_the_same_losses(k1, k2, lengths, old, new):
    def run(world_size):
        return ByEngine(make("lstm"), lengths, world_size, k1=k1, k2=k2)

    after = 20 if k1 < 8 else 10
    wanted = losses(run(old), 6, after=after)
    assert losses(run(old), 6, new, after=after) == pytest.approx(wanted, rel=0, abs=1e-9)
    assert losses(run(1), 6, after=after) == pytest.approx(wanted, rel=0, abs=1e-9)


@pytest.mark.parametrize(("old", "new"), [(4, 2), (1, 3)])
@pytest.mark.parametrize("kind", [DictCell, LearnedStart, Clocked])
def test_states_of_any_structure_follow_their_lanes(kind, old, new):
    def run():
        torch.manual_seed(0)
        return ByEngine(kind().double(), RAGGED, old, k1=4, k2=8)

    assert losses(run(), 6, new) == pytest.approx(losses(run(), 6), rel=0, abs=1e-9)


@pytest.mark.parametrize("kind", ["engine", "random"])
@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_packed_windows_go_on_where_every_lane_stopped(old, new, kind):
    engine = {"k1": 4, "k2": 8}
    if kind == "random":
        engine = {"k1": 4, "k2": None, "truncation": ss.truncation.Random(9)}

    def run(world_size):
        return ByEngine(make("learned"), RAGGED, world_size, tail="pack", **engine)

    changed, there = run(old), run(new)
    wanted = losses(run(old), 5)
    found = losses(changed, 5, after=0)
    losses(there, 5, after=0)
    changed.change(new)
    for one, other in zip(changed.states(), there.states(), strict=True):
        assert torch.equal(one["token"]["segments"], other["token"]["segments"])
    assert [*found, *losses(changed, 20, after=0)] == pytest.approx(wanted, rel=0, abs=1e-9)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_the_states_are_those_that_the_new_ranks_would_have_had(old, new):
    """What lies where a lane began shows in no loss: too early only costs time."""
    runs = [ByEngine(make("gru"), RAGGED, world_size, k1=4, k2=8) for world_size in (old, new)]
    for run in runs:
        losses(run, 9, after=0)
    wanted = runs[1].states()
    for rank, state in enumerate(wanted):
        found = redistribute(runs[0].states(), rank=rank, world_size=new)
        assert found.keys() == state.keys()
        assert torch.equal(found["began"], state["began"])
        assert all(np.array_equal(found["token"][name], value) for name, value in state["token"].items())
        (one,), (other,) = found["history"]["kept"], state["history"]["kept"]
        assert one["time"] == other["time"]
        torch.testing.assert_close(one["state"]["leaves"], other["state"]["leaves"])


def test_a_second_change_and_one_before_any_step_are_like_none():
    wanted = losses(ByEngine(make("gru"), RAGGED, 4, k1=4, k2=8), 6)
    run = ByEngine(make("gru"), RAGGED, 4, k1=4, k2=8)
    fresh = [redistribute(run.states(), rank=rank, world_size=2) for rank in range(2)]
    run.start(2)
    for carrier, state in zip(run.carriers, fresh, strict=True):
        carrier.load_state_dict(state)
    found = [run.step() for _ in range(6)]
    run.change(3)
    found += [run.step() for _ in range(4)]
    run.change(4)
    found += [run.step() for _ in range(16)]
    assert found == pytest.approx(wanted, rel=0, abs=1e-9)


def test_the_engine_says_which_axis_counts_lanes_where_sizes_coincide():
    """Two layers of two units on two lanes a rank: no shape tells which axis is the lanes'."""

    def run():
        torch.manual_seed(0)
        return ByEngine(Deep().double(), RAGGED, 4, lanes=8, k1=4, k2=8)

    wanted = losses(run(), 6)
    assert losses(run(), 6, 2) == pytest.approx(wanted, rel=0, abs=1e-9)
    assert losses(run(), 6, 1, lane_axis=1) == pytest.approx(wanted, rel=0, abs=1e-9)
    twice = run()
    found = [twice.step() for _ in range(6)]
    twice.change(4)
    twice.change(2)  # at once again, before anything was run that would show the axis
    assert found + [twice.step() for _ in range(20)] == pytest.approx(wanted, rel=0, abs=1e-9)


def test_a_carry_asks_for_the_lane_axis_where_sizes_coincide():
    def run():
        torch.manual_seed(0)
        return ByHand(Deep().double(), [40] * 8, 4, lanes=8)

    wanted = losses(run(), 3, after=5)
    with pytest.raises(ss.ResumeError, match=r"pass lane_axis") as caught:
        losses(run(), 3, 2, after=5)
    assert "\n" not in str(caught.value)
    assert losses(run(), 3, 2, after=5, lane_axis=1) == pytest.approx(wanted, rel=0, abs=1e-9)
    assert losses(run(), 3, 2, after=5, lane_axis=-2) == pytest.approx(wanted, rel=0, abs=1e-9)


def test_a_model_for_one_number_of_lanes_is_saved_too():
    class Fixed(Deep):
        def forward(self, x, state):
            torch.rand(1)
            assert len(x) == 2
            return super().forward(x, state)

    engine = ss.TBPTT(Fixed().double(), squared_error, k1=4, k2=4)
    next(engine.updates(make_stream([40, 40], lanes=2)))
    random = torch.get_rng_state()
    assert engine.state_dict()["history"]["kept"][0]["state"]["axes"] is None
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("to", [1, 4])
def test_a_rank_whose_lanes_have_all_just_reset_holds_no_state(to):
    lengths = [80, 80, 24, 24, 56, 56]

    def run():
        return ByEngine(make("learned"), lengths, 2, lanes=4, layout="sequences", k1=4, k2=8)

    wanted = losses(run(), 7, after=10)
    changed = run()
    found = [changed.step() for _ in range(7)]
    assert [not state["history"]["kept"] for state in changed.states()] == [False, True]
    changed.change(to)
    assert found + [changed.step() for _ in range(10)] == pytest.approx(wanted, rel=0, abs=1e-9)


def test_a_state_is_let_go_of_where_no_loss_has_use_for_it():
    """Rank 1 has a window without a valid timestep, and from then on its lanes need nothing before it."""
    lengths = [60, 60, 12, 16, 8, 4, 40, 40]

    def run(change):
        model = make("gru")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        world, engines, updates, found = 2, {}, None, []
        for step in range(9):
            if change and step == 5:
                saved = [engines[rank].state_dict() for rank in range(2)]
                assert [[each["time"] for each in state["history"]["kept"]] for state in saved] == [[12], []]
                world, engines = 1, {0: ss.TBPTT(model, loss, k1=4, k2=12)}
                engines[0].load_state_dict(redistribute(saved, rank=0, world_size=1))
                stream = make_stream(lengths, lanes=4, layout="sequences", lookahead={"z": ("y", 4)})
                stream.load_state_dict(stream[4].token.state_dict())
                updates = engines[0].updates(stream)
            total, count, gradient = 0.0, 0, [torch.zeros_like(p) for p in model.parameters()]
            for rank in range(world):
                stream = make_stream(lengths, rank, world, lanes=4, layout="sequences", lookahead={"z": ("y", 4)})
                engine = engines.setdefault(rank, ss.TBPTT(model, loss, k1=4, k2=12))
                model.zero_grad()
                update = engine.backward(stream[step]) if updates is None else next(updates)
                assert (update is None) == (step == 4 and rank == 1)
                if update is not None:
                    total, count = total + update.num_timesteps * update.loss.item(), count + update.num_timesteps
                    for whole, parameter in zip(gradient, model.parameters(), strict=True):
                        whole += update.num_timesteps * parameter.grad
            for whole, parameter in zip(gradient, model.parameters(), strict=True):
                parameter.grad = whole / count
            optimizer.step()
            found.append(total / count)
        return found

    def loss(outputs, window):
        return (outputs - window["z"]).square()

    assert run(True) == pytest.approx(run(False), rel=0, abs=1e-9)


@pytest.fixture(scope="module")
def engines():
    run = ByEngine(make("lstm"), RAGGED, 3, k1=4, k2=8)
    losses(run, 6, after=0)
    return run.states()


@pytest.fixture(scope="module")
def carries():
    run = ByHand(make("lstm"), RAGGED, 3, lane_axis=1)
    losses(run, 6, after=0)
    return run.states()


def changed(states, index, *path, to):
    states = copy.deepcopy(states)
    place = states[index]
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return states


WRONG = {
    "twice": (lambda s: [*s, s[1]], r"got lane 3 twice"),
    "first missing": (lambda s: s[1:], r"got no lane 0"),
    "middle missing": (lambda s: s[::2], r"got no lane 3"),
    "last missing": (lambda s: s[:2], r"0 to 6, got no lane 5"),
    "plan": (lambda s: changed(s, 1, "token", "fingerprint", to="abc"), r"got fingerprint=\w+ and fingerprint=abc"),
    "epoch": (lambda s: changed(s, 2, "token", "epoch", to=4), r"got epoch=0 and epoch=4"),
    "step": (lambda s: changed(s, 0, "token", "step", to=3), r"got step=3 and step=5"),
    "version": (lambda s: changed(s, 0, "token", "version", to=9), r"got version=9 and version="),
    "window": (lambda s: changed(s, 0, "token", "window", to=None), r"got window=None and window=4"),
    "not started": (lambda s: changed(s, 1, "token", to=None), r"got started=True and started=False"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["engines", "carries"])
def test_states_that_do_not_belong_together_are_refused(request, kind, wrong):
    states = request.getfixturevalue(kind)
    redistribute(states, rank=0, world_size=2, lanes=LANES)
    change, match = WRONG[wrong]
    with pytest.raises(ss.ResumeError, match=match) as caught:
        redistribute(change(states), rank=0, world_size=2, lanes=LANES)
    assert "\n" not in str(caught.value)


def test_a_missing_lane_in_the_middle_shows_without_the_number_of_lanes(engines):
    with pytest.raises(ss.ResumeError, match="got no lane 3: pass"):
        redistribute(engines[::2], rank=0, world_size=1)


def test_states_of_other_engines_and_other_models_are_refused(engines, carries):
    kept = engines[1]["history"]["kept"][0]["state"]
    narrow = [leaf[..., :2] for leaf in kept["leaves"]]
    single = [leaf.float() for leaf in kept["leaves"]]
    for wrong, match in (
        (changed(engines, 1, "k1", to=2), "got k1=4 and k1=2"),
        (changed(engines, 2, "k2", to=None), "got k2=8 and k2=None"),
        (
            changed(engines, 1, "history", "kept", 0, "time", to=9),
            "each lane at timestep 9 is needed, got none for lane 0",
        ),
        (
            changed(engines, 1, "history", "kept", to=[]),
            "state of each lane at timestep 20 is needed, got none for lane 3",
        ),
        (changed(engines, 1, "history", "kept", 0, "state", "structure", to="[]"), "got structure="),
        (
            changed(engines, 1, "history", "kept", 0, "state", "leaves", to=narrow),
            r"shapes \[\(1, 3, 3\), \(1, 2, 2\), \(1, 2, 3\)\]",
        ),
        (changed(engines, 1, "history", "kept", 0, "state", "leaves", to=single), "torch.float64 and another one"),
        (
            [*engines[:2], carries[2]],
            "one kind, got began, history, k1, k2, losses, token, truncation and state, token",
        ),
        ([{"token": None}], "one kind, got token"),
        ([3], "one kind, got int"),
    ):
        with pytest.raises(ss.ResumeError, match=match) as caught:
            redistribute(wrong, rank=0, world_size=2)
        assert "\n" not in str(caught.value)
    for axis, match in ((0, "one entry a lane"), (7, "one entry a lane"), ({"h": 1}, "a tree like the state's")):
        with pytest.raises(ss.ResumeError, match=match):
            redistribute(engines, rank=0, world_size=2, lane_axis=axis)


def test_what_is_beside_the_lanes_must_agree():
    run = ByEngine(Clocked().double(), RAGGED, 3, k1=4, k2=8)
    losses(run, 6, after=0)
    states = run.states()
    for leaf, value in ((1, torch.tensor(7)), (2, 5)):
        leaves = [*states[1]["history"]["kept"][0]["state"]["leaves"]]
        leaves[leaf] = value
        with pytest.raises(ss.ResumeError, match=f"the same on all ranks, got .* in leaf {leaf}"):
            redistribute(changed(states, 1, "history", "kept", 0, "state", "leaves", to=leaves), rank=0, world_size=2)


def test_wrong_arguments_are_refused(engines):
    with pytest.raises(ValueError, match="got none"):
        redistribute([], rank=0, world_size=1)
    with pytest.raises(ValueError, match="rank is one of"):
        redistribute(engines, rank=2, world_size=2)
    with pytest.raises(ss.PlanError, match="use more lanes"):
        redistribute(engines, rank=0, world_size=8)
    with pytest.raises(ss.ResumeError, match="0 to 5, got 7 lanes"):
        redistribute(engines, rank=0, world_size=2, lanes=6)


def save(folder, run, **parts):
    paths = [folder / f"rank-{rank}.pt" for rank in range(len(run.streams))]
    for rank, path in enumerate(paths):
        torch.manual_seed(100 + rank)
        save_checkpoint(
            path,
            settings={"lanes": LANES},
            model=run.model,
            optimizer=run.optimizer,
            tbptt=run.carriers[rank],
            stream=run.position,
            **parts,
        )
    return paths


@pytest.mark.parametrize(("old", "new"), [(4, 2), (2, 3)])
def test_checkpoints_of_all_ranks_are_read_on_another_number_of_ranks(tmp_path, old, new):
    wanted = losses(ByEngine(make("lstm"), RAGGED, old, k1=4, k2=8), 6)
    run = ByEngine(make("lstm"), RAGGED, old, k1=4, k2=8)
    losses(run, 6, after=0)
    paths = save(tmp_path, run, extra={"updates": 6})
    run = ByEngine(make("lstm", seed=5), RAGGED, new, k1=4, k2=8)
    noise = []
    for rank in range(new):
        saved = redistribute_checkpoints(
            paths,
            rank=rank,
            world_size=new,
            lanes=LANES,
            settings={"lanes": LANES},
            model=run.model,
            optimizer=run.optimizer,
            tbptt=run.carriers[rank],
            stream=run.streams[rank],
        )
        noise.append(torch.rand(1).item())
        assert saved["extra"] == {"updates": 6}
        lanes = saved["tbptt"]["token"]["lane"].tolist()
        assert lanes == run.streams[rank][0].token.lane.tolist()
    assert len(set(noise)) == new
    torch.manual_seed(100)
    assert noise[0] == torch.rand(1).item()
    assert [run.step() for _ in range(20)] == pytest.approx(wanted[6:], rel=0, abs=1e-9)


def test_checkpoints_of_different_moments_or_runs_are_refused(tmp_path):
    run = ByEngine(make("lstm"), RAGGED, 2, k1=4, k2=8)
    losses(run, 3, after=0)
    paths = save(tmp_path, run)
    before = [parameter.clone() for parameter in run.model.parameters()]
    losses(run, 1, after=0)
    later = [parameter.clone() for parameter in run.model.parameters()]

    def load(**options):
        redistribute_checkpoints(paths, rank=0, world_size=1, model=run.model, tbptt=run.carriers[0], **options)

    content = read_checkpoint(paths[1])
    tokens = {"step": 7, "fingerprint": "abc"}
    for change, match in (
        ({"parts": content["parts"] | {"stream": content["parts"]["stream"] | tokens}}, "got position stream="),
        ({"parts": content["parts"] | {"more": {}}}, "got parts=model, optimizer, stream, tbptt and parts=model, more"),
        ({"settings": {"lanes": 9}}, r"got settings=\{'lanes': 7\} and settings=\{'lanes': 9\}"),
        ({"parts": content["parts"] | {"tbptt": run.carriers[1].state_dict()}}, "got step=2 and step=3"),
    ):
        torch.save(content | change, paths[1])
        with pytest.raises(ss.ResumeError, match=match):
            load()
        # Nothing was restored.
        assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), later, strict=True))
    torch.save(content, paths[1])
    with pytest.raises(ss.ResumeError, match="saved with lanes=7, this run has lanes=8"):
        load(settings={"lanes": 8})
    with pytest.raises(ss.ResumeError, match="not 'other'"):
        load(other=nn.Linear(1, 1))
    with pytest.raises(ss.ResumeError, match="got no lane 4"):
        redistribute_checkpoints(paths[:1], rank=0, world_size=1, lanes=LANES, tbptt=run.carriers[0])
    with pytest.raises(ValueError, match="got none"):
        redistribute_checkpoints([], rank=0, world_size=1)
    load()
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), before, strict=True))


def test_a_lane_that_was_forgotten_is_an_error_at_the_next_window_at_the_latest(engines):
    """Without the number of lanes the last rank's absence does not show; the windows show it."""
    assert [state["token"]["lane"].tolist() for state in engines] == [[0, 1, 2], [3, 4], [5, 6]]
    stream = make_stream(RAGGED)
    engine = ss.TBPTT(make("lstm"), squared_error, k1=4, k2=8)
    engine.load_state_dict(redistribute(engines[:2], rank=0, world_size=1))
    stream.load_state_dict(stream[5].token.state_dict())
    with pytest.raises(ss.ContinuityError, match="other lanes"):
        next(engine.updates(stream))


def test_models_here_have_the_states_that_they_are_named_for():
    x = torch.zeros(2, 1, 2)
    assert isinstance(WithHead("LSTM")(x, None)[1], tuple)
    assert set(DictCell()(x, None)[1]) == {"fast", "more"}
