"""`streamseq predict`: what a trained byte model says of each byte, from the command line."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import streamseq as ss
from streamseq.training import ByteLanguageModel, TrainingSettings, evaluate, next_byte_loss, save_checkpoint
from streamseq.training.build import load_model
from streamseq.training.task import LanguageTask

STREAMSEQ = [sys.executable, "-W", "error", "-m", "streamseq"]
LENGTHS = (90, 0, 61, 130, 1, 40, 2)
FEW = ["--lanes", 3, "--window", 16, "--threads", 1]


@pytest.fixture(autouse=True)
def without_a_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def write_checkpoint(path, hidden=6):
    torch.manual_seed(hidden)
    settings = TrainingSettings(hidden=hidden, embedding=4, cell="gru")
    save_checkpoint(path, settings=asdict(settings), model=LanguageTask(field="x").build(settings))


@pytest.fixture
def command(tmp_path):
    """A store, a checkpoint, and the command that goes with them."""
    rng = np.random.default_rng(0)
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8")}) as writer:
        for number, n in enumerate(LENGTHS):
            writer.write(f"d{number}", x=rng.integers(0, 256, n, np.uint8), attrs={"n": number})
    write_checkpoint(tmp_path / "c.pt")
    return ["predict", "s.zarr", "--checkpoint", "c.pt", "--to", "o.zarr", *FEW]


def test_the_loss_of_the_next_byte_is_aligned_and_nan_at_the_end(run, command):
    code, out, err = run(*command)
    assert code == 0
    assert out.startswith(f"wrote {Path('o.zarr').absolute()} version 1: nll float32 of 7 sequences, 324 timesteps\n")
    assert err.splitlines()[0] == "predict: 324 timesteps"
    assert err.splitlines()[1].startswith("predict: done in")
    store, found = ss.open("s.zarr"), ss.open("o.zarr")
    assert found.ids.to_pylist() == store.ids.to_pylist()
    assert found.lengths.tolist() == list(LENGTHS)
    assert found.attrs("d3") == {"n": 3}
    model, _ = load_model("c.pt")
    everything = []
    for index in np.flatnonzero(LENGTHS).tolist():
        nll = found.read(index)["nll"]
        assert np.isnan(nll[-1])
        x = torch.from_numpy(store.read(index)["x"])
        with torch.no_grad():
            logits = model(x[None], None)[0][0]
        wanted = functional.cross_entropy(logits[:-1], x[1:].long(), reduction="none")
        np.testing.assert_allclose(nll[:-1], wanted.numpy(), rtol=1e-5)
        everything.append(nll[:-1])
    stream = ss.StreamDataset(store, 2, 16, lookahead={"target": ("x", 1)})
    result = evaluate(model, next_byte_loss, stream)
    values = np.concatenate(everything)
    assert (result.num_timesteps, result.loss) == (len(values), pytest.approx(values.mean(), rel=1e-5))


def test_every_quantity_is_what_it_says(run, command):
    what = ["--what", "logits", "--what", "entropy", "--what", "likeliest", "--what", "nll"]
    code, out, err = run(*command, *what, "--backend", "arrow", "--json", "--quiet")
    assert (code, err) == (0, "")
    report = json.loads(out)
    fields = {"logits": "float32[256]", "entropy": "float32", "likeliest": "uint8", "nll": "float32"}
    assert report["fields"] == fields
    assert (report["sequences"], report["timesteps"], report["finished_before"]) == (7, 324, False)
    store, found = ss.open("s.zarr"), ss.open("o.zarr")
    assert found.backend == "arrow"
    x, read = store.read("d3")["x"], found.read("d3")
    chances = torch.softmax(torch.from_numpy(read["logits"]).double(), -1).numpy()
    np.testing.assert_allclose(read["entropy"], -(chances * np.log(chances)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(read["nll"][:-1], -np.log(chances[np.arange(129), x[1:]]), rtol=1e-5)
    assert read["likeliest"].tolist() == chances.argmax(-1).tolist()


def test_finished_already_is_said_and_other_settings_are_refused(run, command):
    assert run(*command)[0] == 0
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert out.startswith("finished already: ")
    assert json.loads(run(*command, "--json")[1])["finished_before"]
    code, out, err = run(*command, "--what", "entropy")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "choose another address" in err


def to(*args, checkpoint="c.pt", uri="new/o.zarr", store="s.zarr"):
    return ["predict", store, "--checkpoint", checkpoint, "--to", uri, *FEW, *args]


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (to(store="nowhere"), 1, "is not a store"),
        (to(checkpoint="nowhere.pt"), 1, "there is no checkpoint"),
        (to(checkpoint="s.zarr/zarr.json"), 1, "is not a whole checkpoint"),
        (to(uri="s.zarr"), 1, "is a store already"),
        (to(uri="full.zarr"), 1, "new or empty folder"),
        (to(uri="new/o"), 2, "neither .zarr nor .arrow"),
        (to(uri="s3://bucket/o.zarr"), 2, "local path"),
        (to(store="f.zarr"), 2, "reads the field 'x' of uint8"),
        (to(store="e.zarr"), 2, "no timestep"),
        (to("--what", "mood"), 2, "--what"),
        (to("--what", "nll", "--what", "nll"), 2, "each once"),
        (to("--lanes", "0"), 2, "--lanes"),
        (to("--workers", "-1"), 2, "--workers"),
        (["predict", "s.zarr", "--to", "o.zarr"], 2, "--checkpoint"),
        (["predict", "s.zarr", "--checkpoint", "c.pt"], 2, "--to"),
        (["predict", "--checkpoint", "c.pt", "--to", "o.zarr"], 2, "STORE"),
    ],
)
def test_what_is_wrong_is_one_line(run, command, tmp_path, args, code, line):
    with ss.create("f.zarr", {"x": ss.Field("float32")}) as writer:
        writer.write("a", x=np.ones(3, np.float32))
    with ss.create("e.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.zeros(0, np.uint8))
    Path("full.zarr").mkdir()
    Path("full.zarr/file").touch()
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    found, out, err = run(*args)
    assert (found, out, len(err.splitlines())) == (code, "", 1), err
    assert err.startswith("error: ")
    assert line in err
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_ctrl_c_says_how_to_go_on(run, command, monkeypatch):
    calls = []
    forward = ByteLanguageModel.forward

    def interrupted(self, x, state=None):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return forward(self, x, state)

    monkeypatch.setattr(ByteLanguageModel, "forward", interrupted)
    code, out, err = run(*command, "--quiet")
    assert (code, out) == (130, "")
    assert err == "error: interrupted: the same command goes on with what is done\n"
    assert run(*command, "--quiet")[0] == 0


@pytest.fixture
def heeds_ctrl_c():
    """A test run in the background may ignore Ctrl-C, and what it starts would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_is_one_line_from_the_first_moment_of_workers(run, command, tmp_path):
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    job = subprocess.Popen(
        [*STREAMSEQ, *map(str, command), "--workers", "2"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 100
    while not (tmp_path / "o.zarr/staging/predict/running").exists() and time.monotonic() < deadline:
        assert job.poll() is None
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert [line for line in err.splitlines()[1:] if line] == [
        "error: interrupted: the same command goes on with what is done"
    ]
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    assert run(*command)[0] == 0
