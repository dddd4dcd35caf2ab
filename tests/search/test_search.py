"""A search tries every candidate once, with one budget, goes on where it was killed, and finds the best."""

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from support.copies import copied

import streamseq as ss
from streamseq.search.space import Range
from streamseq.search.trial import Pruned
from streamseq.training import TrainingSettings, load_model

SMALL = TrainingSettings(lanes=2, hidden=8, embedding=4, warmup=1, threads=1, held_out=0.3)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Bytes that repeat 12 timesteps later."""
    uri = tmp_path_factory.mktemp("search") / "store.arrow"
    chance = np.random.default_rng(0)
    with ss.create(uri, {"x": ss.Field("uint8")}) as writer:
        for number in range(12):
            writer.write(f"{number}", x=np.tile(chance.integers(0, 256, 12, dtype=np.uint8), 40))
    return uri


def quadratic(candidate):
    loss = float((candidate.values["k2"] - 48) ** 2 + candidate.values["k1"])
    for step in range(1, 4):
        candidate.report(step, loss + 3 - step)
    return loss


GRID = {"k1": [16, 32], "k2": ["k1", "2*k1", 48]}


def test_every_candidate_of_a_grid_is_tried_once(tmp_path):
    heard = []
    result = ss.search(quadratic, tmp_path, GRID, progress=lambda so_far: heard.append(len(so_far.trials)))
    assert sorted((trial.values["k1"], trial.values["k2"]) for trial in result.trials) == [
        (16, 16),
        (16, 32),
        (16, 48),
        (32, 32),
        (32, 48),
        (32, 64),
    ]
    assert heard == list(range(7))
    assert (result.best.values, result.best.loss) == ({"k1": 16, "k2": 48}, 16.0)
    assert [trial.loss for trial in result.ranking] == sorted(trial.loss for trial in result.trials)
    assert result.best.curve == {1: 18.0, 2: 17.0, 3: 16.0}
    assert json.loads(json.dumps(result.as_dict()))["best"]["chosen"] == {"k1": 16, "k2": 48}
    assert "6 of 6 trials" in str(result)


def test_a_search_that_is_done_does_nothing_again(tmp_path):
    first = ss.search(quadratic, tmp_path, GRID)

    def never(candidate):
        raise AssertionError

    never.__qualname__ = quadratic.__qualname__
    again = ss.search(never, tmp_path, GRID)
    assert again.as_dict() == first.as_dict()


def test_optuna_reads_the_study(tmp_path):
    ss.search(quadratic, tmp_path, GRID)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.log"))
    study = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="streamseq")
    assert study.best_value == 16.0
    assert len(study.trials) == 6


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_ranges_are_sampled_and_a_seed_repeats_them(tmp_path, sampler):
    space = {"k1": Range(low=4, high=64), "k2": ["2*k1", "4*k1"]}
    results = [
        ss.search(quadratic, tmp_path / f"{number}", space, sampler=sampler, trials=12, seed=seed)
        for number, seed in enumerate((1, 1, 2))
    ]
    tried = [[trial.values for trial in result.trials] for result in results]
    assert len(tried[0]) == 12
    assert all(4 <= values["k1"] <= 64 and values["k2"] in (2 * values["k1"], 4 * values["k1"]) for values in tried[0])
    assert tried[0] == tried[1] != tried[2]


def test_those_that_fall_behind_are_stopped(tmp_path):
    steps = []

    def train(candidate):
        for step in range(1, 10):
            steps.append(candidate.number)
            candidate.report(step, float(candidate.values["k1"]))
        return float(candidate.values["k1"])

    result = ss.search(train, tmp_path, {"k1": list(range(1, 10))}, prune=True)
    states = {trial.values["k1"]: trial.state for trial in result.trials}
    assert states[1] == "complete"
    assert sum(state == "pruned" for state in states.values()) >= 6
    assert len(steps) < 9 * 9 / 2
    assert result.best.values == {"k1": 1}
    # The one that came farther stands before others, whatever they lost.
    assert result.ranking[0].state == "complete"


def test_a_candidate_that_cannot_be_trained_is_told_and_the_others_go_on(tmp_path, store):
    result = ss.search(store, tmp_path, {"k1": [16, 8], "k2": [8, 16]}, settings=SMALL, updates=3)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert [trial.values for trial in failed] == [{"k1": 16, "k2": 8}]
    assert "k2" in failed[0].reason
    assert len(result.ranking) == 3
    assert failed[0].reason in str(result)
    with pytest.raises(ss.StreamseqError, match=r"no candidate of .* could be trained: .*k2"):
        ss.search(store, tmp_path / "none", {"k1": [16], "k2": [8]}, settings=SMALL, updates=3)


def test_the_trainer_gives_each_the_same_budget_and_the_best_model_is_kept(tmp_path, store):
    result = ss.search(store, tmp_path, {"k1": [8, 16], "k2": "k1,2*k1"}, settings=SMALL, timesteps=640, evaluations=4)
    assert result.budget == {"timesteps": 640}
    for trial in result.trials:
        assert trial.state == "complete"
        assert sorted(trial.curve) == [1, 2, 3]
        rows = (tmp_path / "trials" / f"{trial.number:04d}" / "metrics.jsonl").read_text().splitlines()
        last = json.loads(rows[-1])
        assert (last["event"], last["loss"]) == ("evaluate", trial.loss)
        assert last["update"] == 640 // (2 * trial.values["k1"])
        assert trial.peak_rss_bytes > 1 << 20
        assert not (tmp_path / "trials" / f"{trial.number:04d}" / "curves.png").exists()
    # What takes longest is begun first.
    assert [tuple(trial.values.values()) for trial in sorted(result.trials, key=lambda trial: trial.number)] == [
        (8, 16),
        (16, 32),
        (8, 8),
        (16, 16),
    ]
    model, settings = load_model(result.checkpoint)
    assert (settings.k1, settings.k2) == tuple(result.best.values.values())
    assert sum(parameter.numel() for parameter in model.parameters())


def test_another_search_is_refused_in_the_folder(tmp_path, store):
    ss.search(store, tmp_path, {"k1": [8]}, settings=SMALL, updates=2)
    with pytest.raises(ss.ResumeError, match="space k1 was"):
        ss.search(store, tmp_path, {"k1": [16]}, settings=SMALL, updates=2)
    with pytest.raises(ss.ResumeError, match="budget updates was 2 and is 3"):
        ss.search(store, tmp_path, {"k1": [8]}, settings=SMALL, updates=3)


def test_truncations_that_reach_the_dependence_are_ranked_first(tmp_path):
    """Bits that are mostly those of 5 timesteps before: k2 = 4 cannot learn it, 8 and 16 can."""
    lag = 5
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("uint8")}) as writer:
        for number in range(16):
            writer.write(f"{number}", x=copied(lag, 0.95, length=4000, values=2, seed=number))
    settings = replace(
        SMALL, cell="gru", lanes=32, hidden=24, embedding=8, warmup=10, learning_rate=2e-2, layout="even", held_out=0.1
    )
    settings = replace(settings, held_out_timesteps=4000)
    options = {"settings": settings, "updates": 400, "evaluations": 1}
    result = ss.search(tmp_path / "s.arrow", tmp_path / "out", {"k1": [4], "k2": [4, 8, 16]}, **options)
    losses = {trial.values["k2"]: trial.loss for trial in result.ranking}
    assert all(losses[k2] < losses[4] - 0.08 for k2 in (8, 16))
    assert list(losses)[-1] == 4
    # Who cannot look back so far learns nothing at all: a bit is ln 2.
    assert losses[4] > 0.95 * np.log(2)


@pytest.fixture
def advised(tmp_path, store):
    """The folder of an advice that was quickly made."""
    ss.advise(store, settings=SMALL, updates=1, out=tmp_path / "advice")
    return tmp_path / "advice"


def test_a_search_without_a_space_tries_what_lies_around_an_advice(tmp_path, store, advised):
    advice = json.loads((advised / "advice.json").read_text())
    result = ss.search(store, tmp_path / "out", advice=advised, settings=SMALL, updates=1)
    tried = {(trial.values["k1"], trial.values["k2"]) for trial in result.trials}
    k1, k2 = (next(each["value"] for each in advice["proposals"] if each["name"] == name) for name in ("k1", "k2"))
    assert {(k1, k1), (k1, k2), (k1, 2 * k2), (2 * k1, 2 * k1), (2 * k1, 2 * k2)} <= tried
    assert (tmp_path / "out/advice.json").read_text() == (advised / "advice.json").read_text()
    # What is proposed beside k1 and k2 is taken where the settings say nothing: these say 2 lanes.
    _, settings = load_model(result.checkpoint)
    assert settings.lanes == 2
    assert settings.layout == next(each["value"] for each in advice["proposals"] if each["name"] == "layout")


def test_the_advice_is_made_once_and_a_space_stands_beside_it(tmp_path, store, monkeypatch):
    monkeypatch.setattr("streamseq.search.start.UPDATES", 1)
    said = []
    options = {"advice": True, "updates": 1, "say": said.append}
    space = {"k2": ["k1"], "lanes": [2], "layout": ["sequences"]}
    first = ss.search(store, tmp_path / "out", space, settings=SMALL, **options)
    assert [trial.values["k2"] / trial.values["k1"] for trial in first.trials] == [1, 1]
    assert said
    monkeypatch.setattr("streamseq.search.start.advise", None)
    again = ss.search(store, tmp_path / "out", space, settings=SMALL, **options)
    assert again.as_dict() == first.as_dict()


def test_an_advice_for_another_store_is_refused(tmp_path, store, advised):
    with ss.create(tmp_path / "other.arrow", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.arange(100, dtype=np.uint8))
    with pytest.raises(ss.ResumeError, match="with other contents"):
        ss.search(tmp_path / "other.arrow", tmp_path / "out", advice=advised, settings=SMALL, updates=1)
    with pytest.raises(FileNotFoundError, match="there is no advice"):
        ss.search(store, tmp_path / "out2", advice=tmp_path / "nowhere", settings=SMALL, updates=1)
    with pytest.raises(ValueError, match="got a function"):
        ss.search(quadratic, tmp_path / "out3", advice=advised)


def test_a_budget_in_seconds_is_the_same_for_all(tmp_path, store, monkeypatch):
    """A clock that goes on by a second whenever it is looked at: an update takes one."""
    ticks = itertools.count()
    monkeypatch.setattr("streamseq.training.trainer.perf_counter", lambda: float(next(ticks)))
    result = ss.search(store, tmp_path, {"k1": [8, 16], "k2": ["k1"]}, settings=SMALL, seconds=6, evaluations=3)
    assert result.budget == {"seconds": 6}
    assert "each with 6 seconds" in str(result)
    for trial in result.trials:
        text = (tmp_path / f"trials/{trial.number:04d}/metrics.jsonl").read_text()
        rows = [json.loads(row) for row in text.splitlines()]
        assert [row["update"] for row in rows if row["event"] == "evaluate"] == [2, 4, 6]
        assert sorted(trial.curve) == [1, 2]
    with pytest.raises(ss.ResumeError, match="budget seconds was 6 and is 7"):
        ss.search(store, tmp_path, {"k1": [8, 16], "k2": ["k1"]}, settings=SMALL, seconds=7, evaluations=3)


def test_splits_are_searched(tmp_path):
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("uint8")}) as writer:
        for number in range(6):
            writer.write(f"{number}", x=np.tile(np.arange(10, dtype=np.uint8), 8))
    ss.mark(tmp_path / "s.arrow", "tens", ss.splits.Marker("x", 0))
    space = {"k1": [16], "k2": ["k1"], "split": ["naive", "as-is", "domain:tens"]}
    result = ss.search(tmp_path / "s.arrow", tmp_path / "out", space, settings=SMALL, updates=2)
    assert {trial.values["split"]: trial.state for trial in result.trials} == {
        "naive": "complete",
        "as-is": "complete",
        "domain:tens": "complete",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"space": {"k3": [1]}}, "got 'k3'"),
        ({"space": {"updates": [1]}}, "the same for every candidate"),
        ({"space": {}}, "at least one setting"),
        ({"sampler": "magic"}, "magic"),
        ({"sampler": "tpe"}, "no end of its own"),
        ({"trials": 0}, "at least 1 trial"),
        ({"updates": 3, "timesteps": 3}, "one of them"),
        ({"updates": 0}, "updates is at least 1"),
        ({"seconds": 0}, "seconds is at least 0.001"),
        ({"seconds": 3, "updates": 3}, "one of them"),
        ({"settings": TrainingSettings(held_out=0)}, "hold some out"),
    ],
)
def test_wrong_use_is_told_before_anything_is_trained(tmp_path, store, options, message):
    options = {"space": {"k1": [8]}} | options
    with pytest.raises(ValueError, match=message):
        ss.search(store, tmp_path / "out", options.pop("space"), **options)
    assert not (tmp_path / "out" / "trials").exists()


KILLED = """
    import sys, time
    from pathlib import Path
    import streamseq as ss

    def train(candidate):
        with open(Path(sys.argv[1]) / "begun", "a") as file:
            file.write(f"{candidate.number}\\n")
        time.sleep(0.15)
        return float(candidate.values["k1"])

    if __name__ == "__main__":
        result = ss.search(train, sys.argv[1], {"k1": list(range(8))}, workers=int(sys.argv[2]))
        print([(trial.number, trial.values["k1"]) for trial in result.trials])
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_search_that_is_killed_goes_on_with_what_it_had(tmp_path, workers):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(KILLED))
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, str(script), str(out), workers]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = out / "begun"
    while process.poll() is None and not (begun.exists() and begun.read_text().count("\n") >= 4):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = begun.read_text().split()
    again = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0, again.stderr
    trials = eval(again.stdout)
    assert sorted(trials) == [(number, number) for number in range(8)]
    after = begun.read_text().split()[len(before) :]
    # Only what was not finished when it was killed is run again.
    assert len(set(before) & set(after)) <= int(workers)
    assert sorted(set(before) | set(after)) == [f"{number}" for number in range(8)]


def test_a_pruned_trial_passes_through_a_function_that_cleans_up(tmp_path):
    cleaned = []

    def train(candidate):
        try:
            for step in range(1, 4):
                candidate.report(step, float(candidate.values["k1"]))
        except Pruned:
            cleaned.append(candidate.number)
            raise
        return float(candidate.values["k1"])

    ss.search(train, tmp_path, {"k1": [1, 2, 3, 4, 5, 6]}, prune=True)
    assert cleaned


def test_a_search_by_workers_ranks_like_one_without(tmp_path, store):
    space = {"k1": [8, 16], "k2": ["k1"]}
    one = ss.search(store, tmp_path / "one", space, settings=SMALL, updates=4)
    two = ss.search(store, tmp_path / "two", space, settings=SMALL, updates=4, workers=2)
    assert [(trial.values, trial.loss) for trial in one.ranking] == [
        (trial.values, trial.loss) for trial in two.ranking
    ]


def test_workers_of_a_scheduler_run_the_trials(tmp_path):
    from distributed import LocalCluster

    options = {"processes": False, "protocol": "tcp", "dashboard_address": None, "host": "127.0.0.1"}
    with LocalCluster(n_workers=1, threads_per_worker=1, **options) as cluster:
        result = ss.search(quadratic, tmp_path, GRID, scheduler=cluster.scheduler_address)
    assert len(result.trials) == 6
    assert result.best.values == {"k1": 16, "k2": 48}


def test_workers_with_more_than_one_thread_are_refused(tmp_path):
    """torch has one random generator in a process."""
    from distributed import LocalCluster

    options = {"processes": False, "protocol": "tcp", "dashboard_address": None, "host": "127.0.0.1"}
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, **options) as cluster,
        pytest.raises(ValueError, match="--nthreads 1"),
    ):
        ss.search(quadratic, tmp_path, GRID, scheduler=cluster.scheduler_address)
    assert not (tmp_path / "trials").exists()


def test_ctrl_c_stops_a_search_that_then_goes_on(tmp_path, store, monkeypatch):
    whole = ss.search(store, tmp_path / "whole", {"k1": [8, 16]}, settings=SMALL, updates=6)
    from streamseq.search import trial as module

    shown = module._Watcher.show

    def once(self, progress):
        if progress.update == 3 and not (tmp_path / "sent").exists():
            (tmp_path / "sent").touch()
            os.kill(os.getpid(), signal.SIGINT)
        shown(self, progress)

    monkeypatch.setattr(module._Watcher, "show", once)
    with pytest.raises(KeyboardInterrupt):
        ss.search(store, tmp_path / "out", {"k1": [8, 16]}, settings=SMALL, updates=6)
    result = ss.search(store, tmp_path / "out", {"k1": [8, 16]}, settings=SMALL, updates=6)
    assert [(trial.values, trial.loss, trial.curve) for trial in result.trials] == [
        (trial.values, trial.loss, trial.curve) for trial in whole.trials
    ]
    assert torch.load(result.checkpoint, weights_only=True).keys()
