"""The bias report: its figures are those of model and store, the k2 follows from them, errors are one line."""

import json
import math
import sys

import numpy as np
import pytest
import torch
from corpus import make_settings, make_store, text

import streamseq as ss
from streamseq import cli
from streamseq.tbptt.bias import measure_bias
from streamseq.tbptt.influence import measure_influence
from streamseq.training import load_model, next_byte_loss, save_checkpoint, train
from streamseq.training.bias_report import choose_spans, report_bias

# Of the ids below, by a hash of seed and id.
HELD_OUT = ["doc-1", "doc-6"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store on the disk, and the folder of a short run on it."""
    folder = tmp_path_factory.mktemp("advise")
    with ss.create(folder / "s.arrow", {"x": ss.Field("uint8")}) as writer:
        for number in range(10):
            writer.write(f"doc-{number}", x=text(260 + number, number))
    settings = make_settings(k1=8, k2=16, dropout=0.2, updates=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamseq.training.trainer.draw_curves", lambda rows, path: path.touch())
        train(ss.open(folder / "s.arrow"), folder / "run", settings)
    return folder


def test_the_figures_are_those_of_the_probe(trained):
    store = ss.open(trained / "s.arrow")
    advice = report_bias(store, trained / "run", probe=96, k2=[16, 32, 64], bias=0.05)
    model, settings = load_model(trained / "run/checkpoint.pt")
    spans = [(id, 96 * part, 96 * part + 96) for part in range(2) for id in HELD_OUT]
    assert advice.sequences == len(spans)
    stream = ss.StreamDataset(store, len(spans), 8, sequences=spans, lookahead={"target": ("x", 1)})
    wanted = measure_bias(model, next_byte_loss, stream, k1=8, k2=[16, 32, 64])
    assert [each.relative for each in advice.truncations] == pytest.approx([each.relative for each in wanted])
    assert [each.cosine for each in advice.truncations] == pytest.approx([each.cosine for each in wanted])
    influence = measure_influence(model, next_byte_loss, list(stream), lags=57, lane_axis=1)
    assert advice.influence.phi == pytest.approx(influence.phi, rel=1e-4)
    assert [each.depth for each in advice.truncations] == [9, 25, 57]
    assert [each.delta for each in advice.truncations] == pytest.approx(influence.delta[[8, 24, 56]], rel=1e-3)
    assert advice.k2 == influence.smallest(0.05) + 7
    assert advice.measured_k2 == next((each.k2 for each in wanted if each.relative < 0.05), None)
    assert settings.k1 == advice.k1 == 8


def test_the_checkpoint_s_own_k1_and_powers_of_two_are_taken(trained):
    advice = report_bias(trained / "s.arrow", trained / "run/checkpoint.pt", lanes=2)
    assert (advice.k1, advice.sequences) == (8, 2)
    assert [each.k2 for each in advice.truncations] == [8, 16, 32, 64, 128]
    assert advice.probe >= 256
    assert advice.curve is None
    relative = [each.relative for each in advice.truncations]
    assert relative[0] > relative[1] > relative[2] > relative[3]  # from there on it is rounding


def test_a_model_that_does_not_forget_gets_no_k2(trained, tmp_path):
    """An LSTM with its forget gate open and its input gate all but shut."""
    model, _ = load_model(trained / "run/checkpoint.pt")
    hidden = model.rnn.hidden_size
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            if name.startswith("weight_hh"):
                parameter.zero_()
            if name.startswith("bias_ih"):
                parameter[hidden : 2 * hidden] = 40.0
    settings = torch.load(trained / "run/checkpoint.pt", weights_only=True)["settings"]
    save_checkpoint(tmp_path / "c.pt", settings=settings, model=model)
    advice = report_bias(trained / "s.arrow", tmp_path / "c.pt", probe=128)
    assert advice.k2 is None
    assert advice.influence.beta == pytest.approx(1, abs=0.02)
    assert json.loads(json.dumps(advice.as_dict(), allow_nan=False))["k2"] is None


def test_spans_are_of_held_out_sequences_where_those_are_long_enough():
    held, rest = [("a", 0, 100), ("b", 50, 90)], [("c", 0, 300), ("d", 0, 20)]
    assert choose_spans([held, rest], 40, 0, 3) == ([("a", 0, 40), ("b", 50, 90), ("a", 40, 80)], 40)
    assert choose_spans([held, rest], 40, 0, 1) == ([("a", 0, 40)], 40)
    assert choose_spans([held, rest], 120, 0, 8) == ([("c", 0, 120), ("c", 120, 240)], 120)
    assert choose_spans([[], rest], None, 1000, 4) == ([("c", 0, 300)], 300)
    assert choose_spans([[("a", 0, 80), ("b", 0, 70), ("e", 0, 60)], []], None, 1000, 8)[1] == 60
    assert choose_spans([[("a", 0, 80), ("b", 0, 70), ("e", 0, 60)], []], None, 32, 2) == (
        [("a", 0, 32), ("b", 0, 32)],
        32,
    )
    with pytest.raises(ValueError, match="the longest has 300 timesteps"):
        choose_spans([held, rest], 301, 0, 8)
    with pytest.raises(ValueError, match="at least 1"):
        choose_spans([held, rest], 0, 0, 8)


@pytest.fixture
def run(capsys, monkeypatch, trained):
    monkeypatch.chdir(trained)

    def call(*args):
        with pytest.raises(SystemExit) as exit:
            cli.main(["advise", *map(str, args)])
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    return call


def test_the_command_prints_a_table_and_draws_a_curve(run, tmp_path):
    picture = tmp_path / "a.png"
    code, out, err = run("s.arrow", "--checkpoint", "run", "--probe", 64, "--k2", "8,32", "--out", picture)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1].split() == ["k2", "depth", "phi", "delta", "measured", "cosine"]
    assert [line.split()[0] for line in lines[2:4]] == ["8", "32"]
    assert lines[4].startswith(("the bound: k2 = ", "no depth up to", "no decay seen"))
    assert lines[5].startswith("measured: ")
    assert lines[6] == f"the curve is in {picture}"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_command_s_json_is_the_advice(run):
    code, out, err = run("s.arrow", "--checkpoint", "run/checkpoint.pt", "--probe", 64, "--k2", "32,8", "--json")
    assert (code, err) == (0, "")
    got = json.loads(out)
    assert [each["k2"] for each in got["truncations"]] == [8, 32]
    assert (got["k1"], got["probe"], got["wish"]) == (8, 64, 0.1)
    assert len(got["lags"]) == len(got["phi"]) == len(got["delta"])
    assert all(isinstance(each["relative"], float) for each in got["truncations"])


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["--k2", "8"], 2, "--k2 goes with --checkpoint"),
        (["--checkpoint", "run", "--seconds", "8"], 2, "--seconds is chosen by the run"),
        (["--checkpoint", "nope"], 1, "there is no checkpoint nope: name the checkpoint.pt of a run"),
        (["--checkpoint", "s.arrow"], 1, "there is no checkpoint s.arrow/checkpoint.pt"),
        (["--checkpoint", "run/metrics.jsonl"], 1, "not a whole checkpoint"),
        (["--checkpoint", "run", "--bias", "0"], 2, "above 0, got 0"),
        (["--checkpoint", "run", "--lanes", "0"], 2, "lanes is at least 1"),
        (["--checkpoint", "run", "--k2", "a,b"], 2, "'a,b' is not a list of numbers"),
        (["--checkpoint", "run", "--k2", "4"], 2, "k2 >= k1, got k1=8, k2=4"),
        (["--checkpoint", "run", "--probe", "0"], 2, "got probe=0"),
        (["--checkpoint", "run", "--probe", "8"], 2, "longer than k1"),
        (["--checkpoint", "run", "--probe", "99999"], 2, "the longest has"),
        (["--checkpoint", "run", "--probe", "64", "--k2", "100"], 2, "got k2=100 and 64"),
        (["--checkpoint", "run", "--out", "no/such/a.png", "--probe", "32"], 1, "No such file"),
    ],
)
def test_bad_input_is_one_line(run, args, code, line):
    got, out, err = run("s.arrow", *args)
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert line in err
    assert (got, out) == (code, "")


def test_a_store_of_something_else_is_refused(run, trained, tmp_path):
    with ss.create(tmp_path / "f.arrow", {"x": ss.Field("float32")}) as writer:
        writer.write("a", x=np.zeros(100, np.float32))
    code, _, err = run(tmp_path / "f.arrow", "--checkpoint", "run")
    assert code == 2
    assert "learns bytes" in err


def test_a_curve_without_matplotlib_is_refused_before_anything_is_measured(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, out, err = run("s.arrow", "--checkpoint", "run", "--out", "a.png")
    assert (code, out, err) == (1, "", "error: curves need matplotlib: pip install streamseq[plot]\n")


def test_infinite_bounds_are_null(trained):
    store = make_store(lengths=(40, 40))
    advice = report_bias(store, trained / "run", probe=16, k1=1, k2=[1, 8])
    advice.influence.delta[0] = math.inf
    assert advice.as_dict()["delta"][0] is None
