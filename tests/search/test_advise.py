"""Advice is what data and probes of known depth ask for, says how sure it is, and is bounded in what it reads."""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.copies import copied, store_of
from torch import nn

import streamseq as ss
from streamseq.search.advice import read_advice
from streamseq.search.memoryless import memoryless_loss
from streamseq.search.probe_training import ProbeTraining
from streamseq.search.propose import FAIR, GOOD, WEAK, find_depth, fit_k, propose_lanes, propose_split
from streamseq.search.sample import draw_sample
from streamseq.training import TrainingSettings
from streamseq.training.choose_task import find_task

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def short_probes(monkeypatch):
    """The bias is measured on fewer timesteps, which is faster."""
    monkeypatch.setattr("streamseq.search.probed.USUAL_SPAN", 64)


def noise(length=20_000, values=24, seed=0):
    return np.random.default_rng(seed).integers(0, values, length).astype(np.uint8)


@pytest.mark.parametrize("lag", [12, 24, 48])
def test_k2_is_within_a_factor_of_two_of_what_a_copy_task_needs(lag):
    advice = ss.advise(store_of(copied(lag, 0.8, length=30_000)), updates=10)
    needed = lag + 1
    assert needed <= advice.k2 <= 2 * needed
    # Every loss looks back far enough.
    assert advice.k2 - advice.k1 + 1 >= lag
    assert f"x depends on {lag} timesteps before" in advice["k2"].why


def balance():
    """The task of influence balancing: only TBPTT(1, 41) and deeper lead the right way."""
    from balancing import Balance

    return Balance(), lambda first, window: (first - 1) ** 2 / 2


# The least k2 that leads the right way; see docs/truncation.md.
@pytest.mark.parametrize(("k1", "least"), [(1, 41), (17, 50), (33, 60)])
def test_k2_is_within_a_factor_of_two_of_what_leads_the_right_way(k1, least):
    model, loss = balance()
    store = ss.from_arrays({"a": {"x": np.zeros(300, np.uint8)}})
    advice = ss.advise(store, model=model, loss=loss, lane_axis=0, k1=k1)
    assert least <= advice.k2 <= 2 * least
    assert next(each.cosine for each in advice.truncations if each.k2 == advice.k2) > 0.99
    assert advice.probe is None
    assert advice.commands() == {}
    assert str(advice).endswith(f"ss.TBPTT(model, loss, k1={k1}, k2={advice.k2})")


def test_k1_is_chosen_for_a_model_of_the_user_s_too():
    model, loss = balance()
    store = ss.from_arrays({"a": {"x": np.zeros(300, np.uint8)}})
    before = model.theta.item()
    advice = ss.advise(store, model=model, loss=loss, lane_axis=0)
    # Sum of c(d) over the depths of an update, with c(40) the last above 0: k2 - k1 + 1 of 41 is enough.
    assert advice.k2 - advice.k1 + 1 >= 41
    assert advice.k2 <= 82
    assert model.theta.item() == before
    assert model.theta.grad is None


def test_noise_needs_no_memory():
    advice = ss.advise(store_of(noise()), updates=10)
    assert (advice.k1, advice.k2) == (8, 8)
    assert "no dependence" in advice["k2"].why
    assert not advice.dependences[0].reach
    assert not advice.probe.learnt
    # What pairs cannot see is said.
    assert any("three" in note for note in advice.notes)


def test_what_three_timesteps_tell_together_is_not_seen_and_that_is_said():
    x = noise(20_000, 2)
    for at in range(9, len(x)):
        x[at] = x[at - 1] ^ x[at - 9] if at % 8 else x[at]
    advice = ss.advise(store_of(x), updates=2)
    assert advice["k2"].sure != GOOD
    assert any("pairs" in note for note in advice.notes)


def test_numbers_are_forecast_by_the_probe():
    random = np.random.default_rng(0)
    x = np.zeros((20_000, 2), np.float32)
    for at in range(20, len(x)):
        x[at] = 0.9 * x[at - 20] + random.standard_normal(2)
    advice = ss.advise(store_of(x), updates=5)
    assert advice.dependences[0].kind == "autocorrelation"
    assert advice.dependences[0].memory == 20
    assert 21 <= advice.k2 <= 42
    assert advice.probe.unit == "mse"


class Remembers(nn.Module):
    """A sum that forgets so much at each timestep."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, state):
        state = x.new_zeros(len(x)) if state is None else state
        outputs = []
        for step in range(x.shape[1]):
            state = self.kept * state + self.scale * x[:, step]
            outputs.append(state)
        return torch.stack(outputs, 1), state


def test_a_model_that_does_not_forget_is_told():
    store = ss.from_arrays({"a": {"x": np.random.default_rng(0).standard_normal(200).astype(np.float32)}})
    advice = ss.advise(store, model=Remembers(1.0), loss=lambda y, window: y**2, lane_axis=0)
    assert advice["k2"].sure == WEAK
    assert "does not fade" in advice["k2"].why
    assert advice.k2 >= 100
    json.dumps(advice.as_dict(), allow_nan=False)


def test_data_raises_what_a_probe_asks_for_and_only_a_probe_that_has_learnt_counts():
    from streamseq.search.dependence import measure_dependence
    from streamseq.tbptt.influence import measure_influence

    far = measure_dependence(store_of(copied(30, 0.8, length=20_000)), "x", longest=100)
    none = measure_dependence(store_of(noise()), "x", longest=100)
    store = ss.from_arrays({"a": {"x": np.ones(200, np.float32)}})
    window = next(iter(ss.StreamDataset(store, lanes=1, window=200)))
    influence = measure_influence(Remembers(0.9), lambda y, window: y, window, lane_axis=0)
    deep = influence.smallest(0.1)
    assert 10 < deep < 31
    probe = {"k1": 16, "k2": 32, "updates": 9, "timesteps": 9, "seconds": 1.0, "unit": "nats", "without": 3.0}
    learnt, not_learnt = ProbeTraining(loss=2.0, **probe), ProbeTraining(loss=2.99, **probe)
    assert find_depth([far], influence, learnt, bias=0.1).timesteps == 31
    assert find_depth([none], influence, learnt, bias=0.1).timesteps == deep
    assert find_depth([none], influence, not_learnt, bias=0.1).timesteps == 1
    assert find_depth([far], None, None, bias=0.1).timesteps == 31
    assert find_depth([far], influence, learnt, bias=0.1).sure == (GOOD if deep >= 15.5 else FAIR)


def test_every_loss_looks_back_so_far():
    for depth in (1, 2, 9, 40, 1000):
        for k1 in (None, 1, 64):
            first, second = fit_k(depth, 5000, k1)
            assert second >= first
            assert second - first + 1 >= depth or depth == 1
            assert k1 is None or first == k1
    assert fit_k(1000, 90)[1] == 90
    assert fit_k(5, 3) == (3, 3)


def test_lanes_and_layout_follow_the_lengths():
    def proposed(*lengths, k1=8):
        found = propose_lanes(ss.from_arrays({f"{i}": {"x": np.zeros(n, np.uint8)} for i, n in enumerate(lengths)}), k1)
        return tuple(each.value for each in found)

    assert proposed(*[1000] * 64) == (32, "sequences")
    assert proposed(100_000) == (32, "even")
    assert proposed(50_000, *[1000] * 64) == (32, "even")
    assert proposed(800) == (5, "even")
    # No warning of lanes that stay idle.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        proposed(10, 2000)


def test_stored_boundaries_are_proposed(tmp_path):
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("uint8"), "time": ss.Field("int64")}) as writer:
        writer.write("a", x=noise(400), time=np.arange(400) + 1000 * (np.arange(400) // 100))
    assert propose_split(ss.open(tmp_path / "s.arrow")).value == "naive"
    ss.mark(tmp_path / "s.arrow", "hundreds", ss.splits.At({"a": [100, 200, 300]}))
    marked = propose_split(ss.open(tmp_path / "s.arrow"))
    assert (marked.value, marked.others) == ("naive", ("domain:hundreds",))
    advice = ss.advise(tmp_path / "s.arrow", updates=2)
    assert advice.space["split"] == ["naive", "domain:hundreds"]
    ss.mark(tmp_path / "s.arrow", "gaps", ss.splits.Gap("time", longer_than=10))
    assert propose_split(ss.open(tmp_path / "s.arrow")).value == "domain:gaps"


def test_a_sample_is_bounded_and_of_all_the_store():
    arrays = {f"{i}": {"x": np.full(1000, i % 256, np.uint8), "y": np.zeros((1000, 9))} for i in range(256)}
    store = ss.from_arrays(arrays)
    sample = draw_sample(store, ["x"], timesteps=12_800)
    assert sample.store.num_timesteps == 12_800
    assert not sample.whole
    assert len({int(sample.store.read(id)["x"][0]) for id in sample.store.ids.to_pylist()}) == 64
    assert draw_sample(store, ["y"], max_bytes=720_000).store.num_timesteps <= 10_000
    together = {span[0] for span in sample.train} & {span[0] for span in sample.held_out}
    assert not together
    alone = draw_sample(ss.from_arrays({"a": {"x": np.zeros(80, np.uint8)}}), ["x"])
    assert [stop - start for _, start, stop in (*alone.train, *alone.held_out)] == [70, 10]
    assert alone.whole
    with pytest.raises(ValueError, match="at least 2 timesteps"):
        draw_sample(ss.from_arrays({"a": {"x": np.zeros(1, np.uint8)}}), ["x"])


def test_what_a_timestep_alone_tells_is_the_entropy_of_pairs():
    random = np.random.default_rng(0)
    chain = np.zeros(40_000, np.int64)
    for at, stays in enumerate(random.random(len(chain))):
        chain[at] = chain[at - 1] if stays < 0.9 else 1 - chain[at - 1]
    for store, wanted in (
        (store_of(chain.astype(np.uint8)), -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))),
        (store_of(noise(40_000, 8)), np.log(8)),
    ):
        sample = draw_sample(store, ["x"])
        task = find_task(sample.store, TrainingSettings())
        found = memoryless_loss(task, sample, list(sample.train), list(sample.held_out))
        assert found == pytest.approx(wanted, rel=0.06)


def test_of_numbers_it_is_the_error_of_a_linear_forecast():
    random = np.random.default_rng(0)
    x = np.zeros(30_000, np.float32)
    for at, each in enumerate(random.standard_normal(len(x))):
        x[at] = 0.8 * x[at - 1] + each
    x[::50] = np.nan
    sample = draw_sample(store_of(x), ["x"])
    task = find_task(sample.store, TrainingSettings())
    found = memoryless_loss(task, sample, list(sample.train), list(sample.held_out))
    assert found == pytest.approx(1 - 0.8**2, rel=0.1)


def test_a_budget_chooses_the_segment_and_goes_into_the_commands():
    store = store_of(copied(40, 0.8, length=20_000))
    usual = ss.advise(store, updates=1)
    assert usual["segment"].value is None
    small = ss.advise(store, updates=1, memory=usual.memory.total // 2)
    assert small["segment"].value < small.k2
    assert small.memory.total <= usual.memory.total // 2
    assert f"--memory {usual.memory.total // 2}" in small.commands()["train"]
    assert "--segment" not in small.commands()["train"]
    with pytest.raises(ValueError, match="too little"):
        ss.advise(store, updates=1, memory="1kB")


def test_it_is_the_same_again():
    store = store_of(copied(12, 0.8, length=5000))
    one, two = (ss.advise(store, updates=3).as_dict() | {"seconds": 0} for _ in range(2))
    assert one["probe"].pop("seconds")
    assert two["probe"].pop("seconds")
    for each in (one, two):
        each["memory"] = None  # has times in it
    assert one == two


def test_random_numbers_and_gradients_are_left_alone():
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    ss.advise(store_of(noise(2000)), updates=2)
    assert torch.rand(1) == wanted


def test_a_folder_gets_the_advice_and_its_pictures(tmp_path):
    advice = ss.advise(store_of(copied(6, 0.8, length=5000)), updates=2, out=tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["advice.json", "bias.png", "dependence.png"]
    assert all(Path(plot).read_bytes().startswith(b"\x89PNG") for plot in advice.plots)
    kept = read_advice(tmp_path / "a")
    assert kept == json.loads(json.dumps(advice.as_dict()))
    assert kept["space"]["k1"][0] == advice.k1
    assert [each["name"] for each in kept["proposals"]] == ["k1", "k2", "segment", "lanes", "layout", "split"]
    (tmp_path / "a/advice.json").write_text("{}")
    with pytest.raises(ss.ResumeError, match="no advice of this version"):
        read_advice(tmp_path / "a")


def test_a_time_that_is_over_ends_the_training():
    advice = ss.advise(store_of(noise(3000)), seconds=1e-3, updates=500)
    assert advice.probe.updates < 500


def test_very_short_sequences_have_advice():
    advice = ss.advise(store_of(*noise(400).reshape(-1, 4)), updates=2)
    assert advice.k2 <= 4
    assert any("too short" in note for note in advice.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": nn.Linear(1, 1)}, "comes with its loss"),
        ({"k1": 0}, "k1 is at least 1"),
        ({"bias": 0}, "above 0"),
        ({"seconds": 0}, "seconds is a finite number above 0"),
        ({"updates": 0}, "updates is at least 1"),
        ({"settings": TrainingSettings(field="y")}, "the field 'y'"),
    ],
)
def test_wrong_use_is_told(options, message):
    with pytest.raises(ValueError, match=message):
        ss.advise(store_of(noise(100)), **options)
