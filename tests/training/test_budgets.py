"""A run ends when its time is over, in one part or in several, and its windows are those of its split."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpus import Recorder, make_settings, make_store, text
from test_resume import assert_same, interrupt, outcome

import streamseq as ss
from streamseq.training import read_checkpoint, train
from streamseq.training.build import build_streams

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def clock(monkeypatch):
    """Every update takes a second."""
    ticks = iter(range(1_000_000))
    monkeypatch.setattr("streamseq.training.trainer.perf_counter", lambda: next(ticks))


def rates(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["learning_rate"] for row in lines if row["event"] == "train"]


@pytest.mark.usefixtures("clock")
def test_a_run_ends_when_its_seconds_are_over(tmp_path):
    settings = make_settings(epochs=1, seconds=50.0, log_every=1, warmup=0)
    recorder = Recorder()
    result = train(make_store(), tmp_path / "run", settings, reporter=recorder)
    assert (result.updates, result.seconds, result.finished) == (50, 50.0, True)
    assert recorder.shown[-1].planned == 50
    assert "50 s" in recorder.notes[0]
    # It falls as in a run of 50 updates, without anybody having said how many there will be.
    assert rates(tmp_path / "run") == pytest.approx([settings.learning_rate_at(update, 50) for update in range(50)])


@pytest.mark.usefixtures("clock")
def test_updates_and_seconds_are_both_limits(tmp_path):
    for seconds, updates in ((9.0, 9), (30.0, 12)):
        settings = make_settings(seconds=seconds, updates=12)
        assert train(make_store(), tmp_path / str(seconds), settings).updates == updates


@pytest.mark.usefixtures("clock")
def test_seconds_before_a_stop_count(tmp_path):
    settings = make_settings(seconds=20.0)
    train(make_store(), tmp_path / "whole", settings)
    stopped = train(make_store(), tmp_path / "parts", settings, reporter=Recorder({7: interrupt()}))
    assert (stopped.finished, stopped.updates) == (False, 7)
    result = train(make_store(), tmp_path / "parts", resume=True)
    assert (result.finished, result.updates, result.seconds) == (True, 20, 20.0)
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


def test_windows_end_at_stored_boundaries(tmp_path):
    lengths = [90, 61, 130, 40]
    with ss.create(tmp_path / "texts.zarr", {"x": ss.Field("uint8")}) as writer:
        for number, length in enumerate(lengths):
            writer.write(f"doc-{number}", x=text(length, number))
    ss.mark(tmp_path / "texts.zarr", "words", ss.splits.Marker("x", ord(" "), after=True))
    store = ss.open(tmp_path / "texts.zarr")
    settings = make_settings(split="domain:words", layout="sequences", k1=8, k2=16, held_out=0.3, updates=6)
    streams = build_streams(store, settings)
    ends = {name: set(store.boundaries("words")[name].positions.tolist()) for name in store.ids.to_pylist()}
    inside = 0
    for window in streams.train:
        token = window.token
        for sequence, stop, final in zip(token.sequence, token.stop, token.final, strict=True):
            if sequence >= 0 and not final and stop % 8:
                assert stop in ends[store.id_of(int(sequence))]
                inside += 1
    assert inside > 5
    # What is held out is the same for every split.
    naive = build_streams(store, replace(settings, split="naive")).held_out
    assert streams.held_out.plan.fingerprint == naive.plan.fingerprint
    assert train(store, tmp_path / "run", settings).updates == 6
    with pytest.raises(KeyError, match="sentences"):
        build_streams(store, replace(settings, split="domain:sentences"))


def test_as_they_are_sequences_are_read_whole(tmp_path):
    store = make_store()
    settings = make_settings(split="as-is", k1=None, k2=None, lanes=2, epochs=1)
    stream = build_streams(store, settings).train
    assert stream.window is None
    updates = [window.token for window in stream]
    assert all(np.all(token.reset[token.sequence >= 0]) for token in updates)
    assert train(store, tmp_path / "run", settings).updates == len(updates)
    short = replace(settings, k1=16, k2=32)
    recorder = Recorder()
    result = train(store, tmp_path / "short", short, reporter=recorder)
    assert result.updates == recorder.shown[0].planned > len(updates)


def test_what_is_held_out_is_gone_through_in_the_same_way_whatever_the_settings(tmp_path):
    store, settings = make_store([9000, 40, 60]), make_settings(held_out_timesteps=1 << 20)
    one = build_streams(store, settings).held_out
    for changes in ({"lanes": 7}, {"layout": "even"}, {"k1": 16, "k2": 32, "window": 64}, {"split": "as-is"}):
        other = build_streams(store, replace(settings, **changes)).held_out
        assert other.plan.fingerprint == one.plan.fingerprint, changes
        assert other.window == one.window, changes


def test_a_run_from_before_there_were_tasks_splits_and_seconds_goes_on(tmp_path):
    settings = make_settings()
    train(make_store(), tmp_path / "whole", settings)
    train(make_store(), tmp_path / "old", settings, reporter=Recorder({7: interrupt()}))
    saved = read_checkpoint(tmp_path / "old/checkpoint.pt")
    for name in ("task", "inputs", "targets", "horizon", "split", "seconds", "evaluate_seconds"):
        del saved["settings"][name]
    saved["settings"]["epochs"] = settings.epochs
    del saved["parts"]["task"], saved["parts"]["run"]["baselines"]
    torch.save(saved, tmp_path / "old/checkpoint.pt")
    train(make_store(), tmp_path / "old", settings, resume=True)
    assert_same(outcome(tmp_path / "old"), outcome(tmp_path / "whole"))
