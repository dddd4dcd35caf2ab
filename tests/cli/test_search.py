"""`streamseq search`: options, progress, the table, wrong use."""

import json

import numpy as np
import pytest

import streamseq as ss

SMALL = ["--set", "lanes=2", "--set", "hidden=8", "--set", "embedding=4", "--set", "held_out=0.3", "--set", "threads=1"]


@pytest.fixture
def store(run):
    chance = np.random.default_rng(0)
    with ss.create("s.arrow", {"x": ss.Field("uint8")}) as writer:
        for number in range(6):
            writer.write(f"{number}", x=chance.integers(97, 123, 200, np.uint8))
    return "s.arrow"


def test_it_prints_a_table_and_goes_on_with_what_is_there(run, store):
    command = ["search", store, "--out", "out", "--k1", "8,16", "--k2", "k1,2*k1", "--updates", 3, *SMALL]
    code, out, err = run(*command)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].split() == ["trial", "k1", "k2", "held-out", "loss", "seconds", "peak", "MiB"]
    assert {tuple(line.split()[1:3]) for line in lines[1:5]} == {("8", "8"), ("8", "16"), ("16", "16"), ("16", "32")}
    assert lines[5].startswith("4 of 4 trials, each with 3 updates; the best one's checkpoint is ")
    assert lines[6] == f"train on with its settings: streamseq train {store} --like out --out run"
    assert err.splitlines()[0] == "search: 4 candidates"
    assert err.count("trial ") == 4
    code, again, err = run(*command, "--json")
    assert code == 0
    assert err.splitlines()[0] == "search: 4 candidates, 4 of them done before"
    assert "trial " not in err
    result = json.loads(again)
    assert [str(trial["number"]) for trial in result["trials"]] == sorted(line.split()[0] for line in lines[1:5])
    assert str(result["best"]["number"]) == lines[1].split()[0]


def test_one_value_is_the_same_for_all_and_quiet_says_nothing(run, store):
    options = ["--k1", "8", "--set", "learning-rate=1e-3", "--lanes", "2", "--updates", 2, *SMALL, "--quiet", "--json"]
    code, out, err = run("search", store, "--out", "out", *options)
    assert (code, err) == (0, "")
    assert [trial["values"] for trial in json.loads(out)["trials"]] == [{"k1": 8, "k2": 16}, {"k1": 8, "k2": 8}]


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (["--set", "hidden"], 2, "is not of the form NAME=VALUES"),
        (["--set", "hiden=3"], 2, "the trainer has no setting 'hiden'"),
        (["--k1", "8..16"], 2, "a grid has values"),
        (["--k1", "1,,2"], 2, "one of them is empty"),
        (["--set", "seed=1,2"], 2, "the same for every candidate"),
        (["--sampler", "tpe"], 2, "no end of its own"),
        (["--updates", "1", "--timesteps", "1"], 2, "give one of them"),
        (["--k1", "16", "--k2", "8"], 1, "no candidate"),
    ],
)
def test_wrong_use_is_one_line(run, store, args, code, line):
    found, out, err = run("search", store, "--out", "out", *args, "--quiet")
    assert (found, out) == (code, "")
    assert err.count("\n") == 1
    assert line in err


def test_another_search_in_the_folder_is_told(run, store):
    assert run("search", store, "--out", "out", "--k1", "8", "--updates", 2, *SMALL, "--quiet")[0] == 0
    code, _, err = run("search", store, "--out", "out", "--k1", "8", "--updates", 3, *SMALL, "--quiet")
    assert code == 1
    assert "budget updates was 2 and is 3" in err


def test_an_advice_is_printed_kept_and_searched_from(run, store):
    code, out, err = run("advise", store, "--updates", 1, "--out", "advice")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("advice for ")
    assert [line.split()[0] for line in lines[2:8]] == ["k1", "k2", "segment", "lanes", "layout", "split"]
    assert lines[-2].startswith("streamseq train s.arrow --k1 8 --k2 8 ")
    assert lines[-1].startswith("streamseq search s.arrow --k1 8,16 --k2 k1,16 ")
    assert err.splitlines()[0].startswith("advise: reading a sample of ")
    options = ["--from-advice", "advice", "--seconds", 0.05, *SMALL, "--json"]
    code, out, err = run("search", store, "--out", "out", *options)
    assert code == 0, err
    found = json.loads(out)
    tried = sorted((trial["values"]["k1"], trial["values"]["k2"]) for trial in found["trials"])
    assert tried == [(8, 8), (8, 16), (16, 16)]
    assert found["budget"] == {"seconds": 0.05}


def test_without_k1_and_k2_a_search_makes_an_advice_first(run, store, monkeypatch):
    monkeypatch.setattr("streamseq.search.start.UPDATES", 1)
    code, out, err = run("search", store, "--out", "out", "--updates", 1, "--lanes", 2, *SMALL)
    assert code == 0, err
    assert "advise: training a probe" in err
    assert "search: 3 candidates" in err
    # What is given goes before what is proposed.
    assert out.splitlines()[0].split()[:4] == ["trial", "k1", "k2", "lanes"]
    assert {line.split()[3] for line in out.splitlines()[1:4]} == {"2"}


def test_advice_is_json_too_and_says_nothing_when_quiet(run, store):
    code, out, err = run("advise", store, "--updates", 1, "--json", "--quiet", "--k1", 4, "--memory", "1GB")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["proposals"][0]["value"] == 4
    assert found["commands"]["train"].startswith("streamseq train s.arrow --memory 1GB --k1 4 ")
