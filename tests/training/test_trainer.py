"""A run trains, logs, evaluates and saves what it says, and refuses what it cannot do."""

import json
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpus import Recorder, make_settings, make_store

import streamseq as ss
from streamseq.training import (
    ByteLanguageModel,
    NonFiniteLossError,
    ProgressBar,
    evaluate,
    load_model,
    next_byte_loss,
    read_checkpoint,
    train,
)
from streamseq.training.build import build_streams
from streamseq.training.threads import available_cores


def rows(folder, event):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["event"] == event]


def test_a_model_learns_what_it_has_not_seen(tmp_path):
    store = make_store([400] * 12)
    settings = make_settings(k1=16, k2=32, lanes=4, hidden=48, dropout=0.0, epochs=6, learning_rate=2e-2, held_out=0.2)
    result = train(store, tmp_path / "out", settings)
    assert result.finished
    assert result.held_out_bits_per_byte < 3.0  # 4.0 from the frequencies of bytes alone, 8 at the start
    assert rows(tmp_path / "out", "evaluate")[0]["bits"] > result.held_out_bits_per_byte


def test_every_timestep_with_a_next_one_is_trained_on_once_an_epoch(tmp_path):
    store, settings = make_store(), make_settings(epochs=3)
    result = train(store, tmp_path / "out", settings)
    spans = build_streams(store, settings).split.train
    assert result.timesteps == 3 * sum(stop - start - 1 for _, start, stop in spans)


def test_the_result_is_what_the_checkpoint_and_the_log_say(tmp_path):
    store, settings = make_store(), make_settings()
    recorder = Recorder()
    result = train(store, tmp_path / "out", settings, reporter=recorder)
    model, saved = load_model(result.checkpoint)
    assert saved == replace(settings, task="language")
    again = evaluate(model, next_byte_loss, build_streams(store, settings).held_out)
    assert again.loss == pytest.approx(result.held_out_loss, rel=1e-6)
    assert rows(tmp_path / "out", "evaluate")[-1]["loss"] == result.held_out_loss
    assert rows(tmp_path / "out", "train")[-1]["loss"] == result.loss
    assert result.bits_per_byte == pytest.approx(result.loss / np.log(2))
    assert result.updates == len(recorder.shown) == read_checkpoint(result.checkpoint)["parts"]["run"]["updates"]
    plain = json.loads(json.dumps(result.as_dict()))
    assert plain["timesteps_per_second"] > 0
    assert 0 <= plain["data_wait_fraction"] <= 1
    assert plain["peak_rss_bytes"] > 1 << 20
    assert result.exit_code == 0


def test_rows_are_means_over_timesteps_since_the_row_before(tmp_path):
    settings = make_settings(lanes=5, shuffle=False)
    for every in (1, 4):
        train(make_store(), tmp_path / str(every), replace(settings, log_every=every))
    each, fours = (rows(tmp_path / str(every), "train") for every in (1, 4))
    counts = np.diff([0, *(row["timesteps"] for row in each)])
    sums = counts * [row["loss"] for row in each]
    assert len(set(counts)) > 2
    assert each[0]["loss"] == pytest.approx(np.log(256), abs=0.3)
    assert [row["update"] for row in fours[:-1]] == list(range(4, len(each), 4))
    for row, last in zip(fours, [*range(4, len(each), 4), len(each)], strict=True):
        part = slice((last - 1) // 4 * 4, last)
        assert row["loss"] == pytest.approx(sums[part].sum() / counts[part].sum())
        assert row["timesteps"] == counts[:last].sum()


def test_the_trainer_does_what_a_loop_of_the_same_parts_does(tmp_path):
    settings = make_settings(updates=12, clip=0.5, held_out=0)
    result = train(make_store(), tmp_path / "out", settings)
    torch.manual_seed(settings.seed)
    model = ByteLanguageModel(hidden=12, embedding=6, dropout=0.2)
    optimizer = torch.optim.Adam(model.parameters(), betas=(0.9, 0.99))
    stream = ss.StreamDataset(make_store(), lanes=3, window=8, lookahead={"target": ("x", 1)}, shuffle=True)
    tbptt = ss.TBPTT(model, next_byte_loss, k1=8, k2=16)
    for number, _ in zip(range(12), tbptt.updates(stream), strict=False):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = settings.learning_rate_at(number, 12)
        optimizer.step()
        optimizer.zero_grad()
    trained = load_model(result.checkpoint)[0].state_dict()
    assert all(torch.equal(trained[name], value) for name, value in model.state_dict().items())


def test_a_budget_and_a_burn_in_reach_the_engine(tmp_path):
    store = make_store([400] * 3)
    plain = make_settings(k1=16, k2=64, lanes=4, layout="even", epochs=1)
    results = [
        train(store, tmp_path / name, replace(plain, **change))
        for name, change in (("plain", {}), ("memory", {"memory": "1MB"}), ("burnt", {"burn_in": 24}))
    ]
    assert results[1].loss == pytest.approx(results[0].loss, rel=1e-4)
    assert results[2].loss != pytest.approx(results[0].loss, rel=1e-5)
    with pytest.raises(ValueError, match="too little"):
        train(store, tmp_path / "little", replace(plain, memory="1kB"))


def test_evaluations_come_at_their_updates_and_at_the_end(tmp_path):
    result = train(make_store(), tmp_path / "out", make_settings(updates=12, evaluate_every=5))
    assert [row["update"] for row in rows(tmp_path / "out", "evaluate")] == [5, 10, 12]
    assert result.updates == 12
    train(make_store(), tmp_path / "even", make_settings(updates=10, evaluate_every=5))
    assert [row["update"] for row in rows(tmp_path / "even", "evaluate")] == [5, 10]


def test_evaluating_and_saving_change_nothing(tmp_path):
    often = make_settings(evaluate_every=1, checkpoint_every=1, log_every=1)
    seldom = make_settings(evaluate_every=1000, checkpoint_every=1000)
    states = []
    for name, settings in (("often", often), ("seldom", seldom)):
        states.append(load_model(train(make_store(), tmp_path / name, settings).checkpoint)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_callers_random_generators_and_threads_stay_as_they_were(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    train(make_store(), tmp_path / "out", make_settings(updates=2, threads=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_the_probe_changes_nothing_but_the_number_of_threads(tmp_path, monkeypatch):
    def probe(work):
        work()
        return 1

    monkeypatch.setattr("streamseq.training.trainer.choose_threads", probe)
    states = []
    for threads in (None, 1):
        result = train(make_store(), tmp_path / str(threads), make_settings(updates=4, threads=threads))
        states.append(load_model(result.checkpoint)[0].state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_the_number_of_threads_is_probed_where_none_is_given(tmp_path):
    assert (
        1 <= train(make_store(), tmp_path / "out", make_settings(updates=1, threads=None)).threads <= available_cores()
    )


def test_no_updates_give_an_evaluation_and_no_loss(tmp_path):
    result = train(make_store(), tmp_path / "out", make_settings(updates=0))
    assert (result.updates, result.timesteps, result.loss) == (0, 0, None)
    assert result.held_out_bits_per_byte == pytest.approx(8, abs=0.5)
    assert result.finished


def test_nothing_is_evaluated_where_nothing_is_held_out(tmp_path):
    result = train(make_store(), tmp_path / "out", make_settings(updates=3, held_out=0))
    assert result.held_out_loss is None
    assert rows(tmp_path / "out", "evaluate") == []


def test_the_gradient_is_clipped(tmp_path):
    result = train(make_store(), tmp_path / "out", make_settings(updates=3, clip=1e-15, log_every=1))
    start = train(make_store(), tmp_path / "start", make_settings(updates=0))
    state, before = (load_model(each.checkpoint)[0].state_dict() for each in (result, start))
    # Adam divides by the gradient's own size, but for 1e-8.
    assert max((state[name] - before[name]).abs().max() for name in state) < 1e-6
    assert rows(tmp_path / "out", "train")[0]["gradient_norm"] > 1e-3


@pytest.mark.parametrize(
    ("lengths", "changes"),
    [
        ([300], {}),
        ([30, 40], {"lanes": 8}),
        ([5, 4], {"lanes": 8, "k1": 4, "k2": 8}),
        ([90, 61, 130, 40], {"k1": None, "k2": None}),
        ([90, 61, 130, 40], {"cell": "gru", "layers": 2}),
        ([90, 61, 130, 40], {"window": 32}),
        ([90, 61, 130, 40], {"window": 4, "segment": 3}),
    ],
    ids=["one sequence", "fewer than lanes", "tiny", "whole", "gru", "long windows", "short windows"],
)
def test_runs_of_many_shapes_end(tmp_path, lengths, changes):
    result = train(make_store(lengths), tmp_path / "out", make_settings(**changes))
    assert result.finished
    assert result.updates > 0
    assert result.held_out_loss is not None


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    settings = make_settings(learning_rate=1e37, warmup=0, checkpoint_every=1)
    with pytest.raises(NonFiniteLossError, match=r"update \d+ has loss .* holds the run after update (\d+)") as caught:
        train(make_store([9000] * 8), tmp_path / "out", settings)
    assert "\n" not in str(caught.value)
    # The exception is still held here, with its frames.
    assert not [thread for thread in threading.enumerate() if thread.name == "streamseq-reader"]
    saved = read_checkpoint(tmp_path / "out" / "checkpoint.pt")["parts"]
    assert f"after update {saved['run']['updates']}" in str(caught.value)
    assert all(torch.isfinite(value).all() for value in saved["model"].values())


def test_a_second_run_in_the_same_folder_is_refused_and_changes_nothing(tmp_path):
    train(make_store(), tmp_path / "out", make_settings(updates=2))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(
        ValueError, match=r"holds a run already: resume=True \(--resume\) goes on with it, or take another"
    ):
        train(make_store(), tmp_path / "out", make_settings(updates=2))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_store_that_cannot_be_trained_on_leaves_no_folder(tmp_path):
    store = ss.from_arrays({"a": {"x": np.zeros(1, np.uint8)}})
    with pytest.raises(ValueError, match="a sequence of at least 2"):
        train(store, tmp_path / "out", make_settings())
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_the_run_ends_well_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recorder = Recorder()
    result = train(make_store(), tmp_path / "out", make_settings(updates=2), reporter=recorder)
    assert result.finished
    assert result.curves is None
    assert any("pip install streamseq[plot]" in note for note in recorder.notes)


def test_the_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    result = train(make_store(), tmp_path / "out", make_settings(updates=6))
    assert result.curves == str(tmp_path / "out" / "curves.png")
    assert (tmp_path / "out" / "curves.png").stat().st_size > 5000


def test_a_bar_shows_bits_speed_and_memory(tmp_path, capsys):
    with ProgressBar() as bar:
        train(make_store(), tmp_path / "out", make_settings(updates=6), reporter=bar)
    output = capsys.readouterr()
    assert output.out == ""
    for text in ("training on", "6/6", "bits/byte", "timesteps/s", "MiB"):
        assert text in output.err
