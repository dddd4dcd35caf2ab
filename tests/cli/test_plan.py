"""`streamseq plan`: what a run needs, said before it runs."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

import streamseq as ss
from streamseq.training import TrainingSettings, save_checkpoint, train
from streamseq.training.plan import plan
from streamseq.training.task import LanguageTask

SMALL = ["--lanes", 2, "--hidden", 8, "--embedding", 4, "--held-out", "0.2"]


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8"), "y": ss.Field("float32")}) as writer:
        for number in range(6):
            writer.write(f"{number}", x=rng.integers(97, 123, 300, np.uint8), y=np.zeros(300, np.float32))
    return tmp_path / "s.zarr"


def found(run, *args):
    code, out, err = run("plan", *args, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_plan_is_that_of_the_run(run, store):
    """Windows, updates and timesteps are those that training on the same settings has."""
    planned = found(run, store, "--k1", 16, "--k2", 32, *SMALL)
    settings = TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, embedding=4, held_out=0.2, threads=1)
    result = train(store, "run", settings)
    assert (planned["updates"], planned["windows"]) == (result.updates, result.updates)
    # The last byte of a sequence has no next one.
    assert planned["timesteps"] == result.timesteps + 5
    assert planned["occupancy"]["busy"] == pytest.approx(5 / 6, rel=0.1)
    assert planned["memory"]["segment"] == 32
    parameters = sum(parameter.nbytes for parameter in LanguageTask(field="x").build(settings).parameters())
    assert planned["model_bytes"] == 4 * parameters


def test_a_budget_chooses_the_segment(run, store):
    options = [store, "--k1", "n", "--k2", "n", "--window", 32, *SMALL]
    free = found(run, *options, "--segment", 1000)["memory"]
    bound = found(run, *options, "--memory", free["total"] // 3)["memory"]
    assert bound["total"] <= free["total"] // 3
    assert bound["segment"] < free["segment"]
    assert bound["time_factor"] > free["time_factor"] == 1.0


def test_more_of_everything_needs_more(run, store):
    least = found(run, store, "--k1", 16, "--k2", 16, *SMALL)["memory"]
    for more in (["--lanes", 3], ["--hidden", 16], ["--layers", 2], ["--k2", 64], ["--cell", "lstm", "--k1", 32]):
        options = ["--k1", 16, "--k2", 32 if more[0] == "--cell" else 16, *SMALL, *more]
        assert found(run, store, *options)["memory"]["activations"] > least["activations"], more


def test_the_table_has_a_line_for_each_part(run, store):
    code, out, err = run("plan", store, "--k1", 16, "--k2", 32, *SMALL)
    assert (code, err) == (0, "")
    for name in ("TBPTT(16, 32)", "activations", "boundary states", "inputs", "total", "segment", "time", "an epoch: "):
        assert any(line.startswith(name) for line in out.splitlines()), name


def test_whole_sequences_and_forecasts_are_planned(run, store, tmp_path):
    whole = found(run, store, "--split", "as-is", "--k1", "n", "--k2", "n", *SMALL)
    assert (whole["window"], whole["longest"], whole["updates"]) == (None, 300, whole["windows"])
    with ss.create(tmp_path / "n.zarr", {"wind": ss.Field("float32", (2,))}) as writer:
        for number in range(4):
            writer.write(f"{number}", wind=np.random.default_rng(number).random((80, 2), np.float32))
    numbers = found(run, tmp_path / "n.zarr", "--k1", 16, "--k2", 32, "--lanes", 2, "--hidden", 8, "--horizon", 2)
    assert numbers["timesteps"] == 3 * 80
    code, out, _ = run("plan", store, "--split", "as-is", *SMALL)
    assert (code, "windows of whole sequences" in out) == (0, True)


def test_a_checkpoint_gives_model_and_settings(run, store, tmp_path):
    settings = TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, embedding=4, cell="gru", dropout=0.1, segment=16)
    save_checkpoint(tmp_path / "c.pt", settings=asdict(settings), model=LanguageTask(field="x").build(settings))
    taken = found(run, store, "--checkpoint", "c.pt")
    assert (taken["k1"], taken["k2"], taken["lanes"], taken["memory"]["segment"]) == (16, 32, 2, 16)
    described = found(
        run, store, "--k1", 16, "--k2", 32, *SMALL[:-2], "--cell", "gru", "--dropout", 0.1, "--segment", 16
    )
    assert taken["memory"]["activations"] == described["memory"]["activations"]
    assert found(run, store, "--checkpoint", "c.pt", "--k2", 64, "--memory", "1GB")["memory"]["segment"] == 64


def test_planning_leaves_the_random_generator_alone(store):
    before = torch.get_rng_state()
    plan(ss.open(store), TrainingSettings(k1=16, k2=32, lanes=2, hidden=8, dropout=0.5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["nope.zarr"], 1, "nope.zarr is not a store"),
        (["s.zarr", "--k1", 32, "--k2", 16], 2, "k2 >= k1"),
        (["s.zarr", "--k1", "half"], 2, "neither a number of timesteps nor n"),
        (["s.zarr", "--k1", 16, "--window", 24, *SMALL], 2, "k1 divides the window"),
        (["s.zarr", "--k1", "n", "--k2", 16, *SMALL], 2, "k1=n needs k2=n"),
        (["s.zarr", "--memory", "lots", *SMALL], 2, "a size is a number of bytes"),
        (["s.zarr", "--memory", "1kB", *SMALL], 2, "memory=1.0 kB is too little: the least is"),
        (["s.zarr", "--memory", "1MB", "--segment", 8, *SMALL], 2, "pass one"),
        (["s.zarr", "--segment", 0, *SMALL], 2, "segment is at least 1"),
        (["s.zarr", "--field", "y", *SMALL], 2, "a language model learns bytes"),
        (["s.zarr", "--field", "z", *SMALL], 2, "training reads the field 'z'"),
        (["s.zarr", "--hidden", 0, "--lanes", 2], 2, "hidden is at least 1"),
        (["s.zarr", "--checkpoint", "c.pt"], 1, "there is no checkpoint c.pt"),
        (["s.zarr", "--checkpoint", "c.pt", "--hidden", 8], 2, "pass one of them"),
    ],
)
def test_bad_input_is_one_line(run, store, args, code, line):
    got, out, err = run("plan", *args)
    assert (got, out) == (code, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert line in err
