"""Forecasts: missing values teach nothing, losses are counted exactly, and a run beats what is simple."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from corpus import Recorder, make_settings
from hypothesis import given, settings
from hypothesis import strategies as st
from test_resume import assert_same, interrupt, outcome

import streamseq as ss
from streamseq.training import TrainingSettings, load_model, train
from streamseq.training.build import build_streams, load_run
from streamseq.training.choose_task import find_task
from streamseq.training.end import RunEnd
from streamseq.training.forecast_baselines import forecast_baselines
from streamseq.training.plan import plan
from streamseq.training.predict_checkpoint import predict_checkpoint

pytestmark = pytest.mark.usefixtures("undrawn")

LENGTHS = (200, 150, 180, 220, 160)


def sines(lengths=LENGTHS, missing=0.0, noise=0.1, unit=1.0):
    """Noisy sines of two periods, in some unit, and a channel that never changes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for number, length in enumerate(lengths):
        t = np.arange(length) + rng.uniform(0, 100)
        waves = np.stack([np.sin(2 * np.pi * t / 12), 5 + 3 * np.cos(2 * np.pi * t / 31), np.full(length, 0.5)], 1)
        waves[:, :2] += noise * rng.standard_normal((length, 2))
        waves[rng.random(waves.shape) < missing] = np.nan
        arrays[f"s{number}"] = {"time": np.arange(length), "x": (unit * waves).astype(np.float32)}
    return ss.from_arrays(arrays)


def forecasts(**changes):
    base = {"hidden": 16, "dropout": 0.0, "lanes": 4, "k1": 16, "k2": 32, "learning_rate": 2e-2, "updates": 150}
    return make_settings(**(base | {"epochs": None, "evaluate_every": 50} | changes))


def rows(folder, event):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in lines if row["event"] == event]


def test_a_forecast_of_noisy_sines_beats_the_last_value_and_the_mean(tmp_path):
    recorder = Recorder()
    result = train(sines(), tmp_path / "run", forecasts(), reporter=recorder)
    assert (result.task, result.unit, result.bits_per_byte) == ("forecast", "mse", None)
    assert result.held_out_loss < 0.5 * result.baselines["last value"]
    assert result.held_out_loss < 0.1 * result.baselines["mean"]
    assert recorder.notes[0].startswith("forecasting 2 channels of x one timestep ahead (1 never change: not forecast)")
    assert f"{100 - 100 * result.held_out_loss / result.baselines['last value']:.1f} % below the last value" in str(
        result
    )
    row = rows(tmp_path / "run", "evaluate")[-1]
    assert (row["loss"], row["unit"], row["baselines"]) == (result.held_out_loss, "mse", result.baselines)
    assert "bits" not in row
    assert recorder.shown[-1].unit == "mse"


def test_before_it_has_learnt_anything_a_forecast_is_that_the_last_value_stays(tmp_path):
    result = train(sines(), tmp_path / "run", forecasts(updates=1, warmup=1000))
    assert result.held_out_loss == pytest.approx(result.baselines["last value"], rel=0.05)
    assert "no better than" in str(replace(result, held_out_loss=2.0))


def test_what_lies_behind_missing_values_has_no_influence():
    task = find_task(sines(missing=0.2), make_settings())
    torch.manual_seed(0)
    model = task.build(make_settings(dropout=0.0))
    with torch.no_grad():
        model.head.weight.normal_()
    target = torch.randn(2, 6, 3)
    target[0, 2, 0] = target[1, 4, 1] = math.nan
    gradients = []
    for missing in (math.nan, math.inf, -math.inf):
        target[~target.isfinite()] = missing
        inputs = torch.cat([torch.zeros(2, 1, 3), target[:, :-1]], 1)
        mask = torch.ones(2, 6, dtype=torch.bool)
        model.zero_grad()
        outputs, _ = model([inputs], None)
        outputs.retain_grad()
        loss = task.loss(outputs, ss.Window({"x+1": target}, mask, token=None))
        loss.sum().backward()
        assert outputs.grad[0, 2, 0] == outputs.grad[1, 4, 1] == 0
        assert (outputs.grad[..., 2] == 0).all()  # never changes
        assert outputs.grad[0, 3, :2].all()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    assert all(gradient.isfinite().all() for gradient in gradients[0])
    for other in gradients[1:]:
        assert_same(gradients[0], other)


@settings(max_examples=25, deadline=None)
@given(missing=st.floats(0, 0.9), horizon=st.integers(1, 4), lanes=st.integers(1, 6), seed=st.integers(0, 99))
def test_losses_and_baselines_are_those_of_the_values_that_are_there(missing, horizon, lanes, seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for number, length in enumerate(rng.integers(horizon + 1, 40, 4)):
        values = rng.standard_normal((length, 2)) * 7 + 30
        values[rng.random(values.shape) < missing] = np.nan
        arrays[f"s{number}"] = {"x": values}
    arrays["whole"] = {"x": np.arange(60.0).reshape(30, 2)}
    store = ss.from_arrays(arrays)
    task = find_task(store, make_settings(horizon=horizon))
    channels = task.channels["x"]
    last, mean = [], []
    for each in arrays.values():
        x = (each["x"] - channels.offset) / channels.scale
        filled = np.zeros(2)
        for t in range(len(x) - horizon):
            filled = np.where(np.isnan(x[t]), filled, x[t])
            there = ~np.isnan(x[t + horizon])
            last += ((x[t + horizon] - filled)[there] ** 2).tolist()
            mean += (x[t + horizon][there] ** 2).tolist()
    stream = ss.StreamDataset(store, lanes, 8, **task.stream_options())
    simple = forecast_baselines(task, stream)
    assert simple["last value"] == pytest.approx(np.mean(last), rel=1e-4)
    assert simple["mean"] == pytest.approx(np.mean(mean), rel=1e-4)

    class Mean(torch.nn.Module):
        def forward(self, fields, state):
            return torch.zeros(*fields[0].shape[:2], 2), torch.zeros(len(fields[0]), 1)

    assert task.evaluate(Mean(), stream).loss == pytest.approx(np.mean(mean), rel=1e-4)


def test_the_training_loss_is_the_mean_squared_error_where_values_are_missing_too():
    store = sines(missing=0.4)
    task = find_task(store, make_settings())
    total = count = 0
    for window in ss.StreamDataset(store, 4, 16, **task.stream_options()):
        losses = task.loss(torch.zeros(4, 16, 3), window)
        total += float(losses[window.mask].sum())
        count += int(window.mask.sum())
    assert total / count == pytest.approx(1.0, rel=0.02)  # the mean is forecast, so it is the variance


def test_several_fields_are_one_input_and_targets_need_not_be_inputs(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for number in range(5):
        cause = rng.standard_normal((120, 2))
        effect = np.concatenate([[0.0], cause[:-1, 1] * 40 + 1000])
        arrays[f"s{number}"] = {"cause": cause, "effect": effect, "other": rng.random(120)}
    settings = forecasts(inputs=["cause", "other"], targets=["effect"], updates=120)
    result = train(ss.from_arrays(arrays), tmp_path / "run", settings)
    assert result.held_out_loss < 0.1 * min(result.baselines.values())
    model, saved = load_model(result.checkpoint)
    assert saved.inputs == ("cause", "other")
    assert [each.in_features for each in (model.last,)] == [6]


@pytest.mark.parametrize("changes", [{}, {"horizon": 3, "cell": "gru", "dropout": 0.2}, {"k1": None, "k2": None}])
def test_stopping_and_resuming_changes_nothing(tmp_path, changes):
    settings, store = forecasts(updates=12, checkpoint_every=4, **changes), sines(missing=0.1)
    train(store, tmp_path / "whole", settings)
    stopped = train(store, tmp_path / "parts", settings, reporter=Recorder({5: interrupt()}))
    assert not stopped.finished
    result = train(store, tmp_path / "parts", resume=True)
    assert (result.finished, result.baselines) == (True, stopped.baselines)
    assert_same(outcome(tmp_path / "parts"), outcome(tmp_path / "whole"))


def test_small_tables_are_seen_often_enough_and_many_updates_are_one_epoch():
    store = sines()
    settings = TrainingSettings(k1=16, k2=32, lanes=4)
    streams = build_streams(store, settings)
    end = RunEnd.of(streams.train, settings, streams.task)
    assert end.epochs > 10
    assert 400 <= end.planned < 400 + len(streams.train)
    assert RunEnd.of(streams.train, replace(settings, epochs=2), streams.task).planned == 2 * len(streams.train)
    assert RunEnd.of(streams.train, replace(settings, seconds=9.0), streams.task).epochs is None


def test_tokens_are_learnt(tmp_path):
    rng = np.random.default_rng(0)
    # The next token is the last one and 3, or 5: half a bit more than nothing to be known.
    arrays = {f"s{i}": {"x": (np.cumsum(rng.choice([3, 5], 200)) % 300).astype(np.int16)} for i in range(6)}
    settings = forecasts(embedding=32, hidden=32, updates=150)
    result = train(ss.from_arrays(arrays), tmp_path / "run", settings)
    assert (result.task, result.unit) == ("language", "bits/token")
    assert 0.9 < result.held_out_bits_per_byte < 6.0  # of log2(300) = 8.2
    assert load_run(result.checkpoint).task.vocabulary == 300


def test_a_forecast_is_planned(tmp_path):
    found = plan(sines(), forecasts(hidden=8))
    assert found.model_bytes > 4 * 4 * 8 * 6
    assert found.memory.total > 0


@pytest.mark.parametrize("horizon", [1, 3])
def test_forecasts_are_written_in_the_unit_of_their_field(tmp_path, horizon):
    """The same data in another unit gives the same forecasts in that unit; and they are near what came."""
    read = {}
    for unit in (1.0, 1000.0):
        store = sines(unit=unit, missing=0.05)
        out = tmp_path / str(unit)
        run = train(store, out, forecasts(updates=60, horizon=horizon))
        report = predict_checkpoint(
            store, run.checkpoint, out / "f.zarr", what=("forecast", "error"), lanes=2, window=32, threads=1
        )
        assert report.fields == {"x_forecast": "float32[3]", "x_error": "float32[3]"}
        read[unit] = [ss.open(out / "f.zarr").read(id) for id in store.ids.to_pylist()]
    total = count = 0.0
    for index, (one, thousand) in enumerate(zip(read[1.0], read[1000.0], strict=True)):
        np.testing.assert_allclose(thousand["x_forecast"], 1000 * one["x_forecast"], rtol=2e-2, atol=20)
        x = sines(missing=0.05).read(index)["x"]
        forecast, error = one["x_forecast"], one["x_error"]
        np.testing.assert_allclose(error[:-horizon], forecast[:-horizon] - x[horizon:], atol=1e-5)
        assert np.isnan(error[-horizon:]).all()
        assert np.isfinite(forecast).all()
        total += np.nansum(error[:, 1] ** 2)
        count += np.isfinite(error[:, 1]).sum()
    assert total / count < 0.3 * 4.5  # the variance of a cosine of amplitude 3


def test_a_model_runs_over_a_store_normalised_as_in_training(tmp_path):
    store = ss.from_arrays({"a": {"x": np.float32([10, 20, 30, 40])}, "b": {"x": np.float32([30, 20])}})
    stream = ss.StreamDataset(store, 2, 4, normalize={"x": (10.0, 5.0)})

    class Same(torch.nn.Module):
        def forward(self, x, state):
            return x, torch.zeros(len(x), 1)

    given = {"lanes": 2, "window": 3}
    report = ss.predict(Same(), store, tmp_path / "n.zarr", normalize=stream.normalization, **given)
    assert ss.open(report.store).read("a")["y"].tolist() == [0.0, 2.0, 4.0, 6.0]
    with pytest.raises(ss.ResumeError, match="prediction with normalize"):
        ss.predict(Same(), store, tmp_path / "n.zarr", **given)
