"""The report of a run shows what was logged, however much or little that is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.report_sources import held_row, train_row, write_run

import streamseq as ss
from streamseq.report.curves import MOST_POINTS, thinned
from streamseq.training import TrainingSettings, train

SETTINGS = {"k1": 8, "k2": None, "lanes": 4, "store_version": 1, "store_fingerprint": "ab" * 32}


def chart(page, place=0, view=0):
    """The traces of a chart by name."""
    return {trace["name"]: trace for trace in page.charts[place]["views"][view]["traces"]}


def test_losses_settings_and_totals_are_shown(tmp_path, read):
    rows = [*(train_row(update, 3 / update) for update in range(1, 9)), held_row(4, 1.25), held_row(8, 1.5)]
    totals = {"updates": 8, "timesteps": 800, "seconds": 4.0, "waited": 1.0, "threads": 2, "finished": True}
    page, made = read(write_run(tmp_path / "run", rows, settings=SETTINGS, run=totals))
    assert made.kind == "run"
    shown = {
        "state": "finished", "updates": "8", "timesteps": "800", "training loss": "0.375", "held-out loss": "1.5",
        "timesteps a second": "200", "waiting for data": "25.0 %", "k1": "8", "k2": "n",
    }  # fmt: skip
    assert shown.items() <= page.facts.items()
    assert chart(page)["training"]["y"] == pytest.approx([3 / update for update in range(1, 9)], rel=1e-5)
    assert chart(page)["held out"]["x"] == [4, 8]
    assert chart(page, view=1)["held out"]["y"] == pytest.approx([1.25 / math.log(2), 1.5 / math.log(2)], rel=1e-5)
    assert "The lowest held-out loss is 1.25, after update 4." in page.said


def test_losses_that_are_no_numbers_are_gaps_and_told(tmp_path, read):
    rows = [train_row(1, 2.0), train_row(2, math.nan), train_row(3, math.inf), held_row(3, math.nan), train_row(4, 1.0)]
    page, _ = read(write_run(tmp_path / "run", rows))
    assert chart(page)["training"]["y"] == [2, None, None, 1]
    assert "3 losses are not finite: after update 2, 3, 3." in page.said


def test_what_the_run_says_of_itself_is_shown(tmp_path, read):
    about = {"store": str(tmp_path / "gone.zarr"), "peak_rss_bytes": 512_000_000, "resumed": 2}
    totals = {"updates": 1, "seconds": 1.0, "waited": 0.0}
    page, _ = read(write_run(tmp_path / "run", [train_row(1, 2.0)], settings=SETTINGS, run=totals, about=about))
    assert page.facts["resumed"] == "2 times"
    assert page.facts["measured: most memory of the process"] == "512.0 MB"
    assert "gone.zarr" in page.said


@pytest.mark.parametrize("rows", [[], [train_row(1, 2.0)], [held_row(1, 2.0)], [{"event": "train", "update": 1}]])
def test_runs_with_next_to_nothing_logged_are_reported(tmp_path, read, rows):
    page, _ = read(write_run(tmp_path / "run", rows, settings=SETTINGS))
    assert page.facts["state"] == "not finished"
    assert ("Nothing was logged yet." in page.said) == (not rows)


def test_ten_thousand_lines_are_thinned_out(tmp_path, read):
    losses = np.random.default_rng(0).random(10_000)
    losses[7777] = 9.5
    page, _ = read(write_run(tmp_path / "run", [train_row(at + 1, loss) for at, loss in enumerate(losses)]))
    trace = chart(page)["training"]
    assert len(trace["x"]) <= MOST_POINTS
    assert (7778, 9.5) in zip(trace["x"], trace["y"], strict=True)


@given(st.lists(st.none() | st.floats(), max_size=80), st.integers(2, 20))
def test_thinning_keeps_extremes_order_and_gaps_apart(values, most):
    x, y = thinned(range(len(values)), values, most)
    finite = [value for value in values if value is not None and math.isfinite(value)]
    kept = [value for value in y if value is not None]
    assert len(x) == len(y) <= max(most, 2)
    assert x == sorted(set(x))
    assert [min(kept), max(kept)] == [min(finite), max(finite)] if finite else not kept
    assert all(value == values[at] for at, value in zip(x, y, strict=True) if value is not None)


def test_a_damaged_checkpoint_leaves_the_curves(tmp_path, read):
    run = write_run(tmp_path / "run", [train_row(1, 2.0)], settings=SETTINGS)
    (run / "checkpoint.pt").write_bytes(b"no checkpoint")
    page, _ = read(run)
    assert "is not a whole checkpoint" in page.said
    assert chart(page)["training"]["y"] == [2]


def test_a_line_that_is_no_row_is_left_out(tmp_path, read):
    run = write_run(tmp_path / "run", [train_row(1, 2.0), {"event": 3}, {"update": "</script>"}, train_row(2, 1.0)])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "train", "upd')
    page, _ = read(run)
    assert chart(page)["training"]["x"] == [1, 2]


def test_what_else_was_logged_is_a_table(tmp_path, read):
    rows = [train_row(1, 2.0), {"event": "resume", "update": 1, "from": "<b>here</b>"}, train_row(2, 1.0)]
    page, _ = read(write_run(tmp_path / "run", rows))
    table = page.tables["Stops, resumes and what else was logged"]
    assert table[1] == ["1", "resume", "from: <b>here</b>"]


def test_forecasts_are_shown_beside_simple_ones(tmp_path, read):
    rows = [train_row(1, 0.9, unit="mse"), held_row(2, 0.5) | {"unit": "mse", "baselines": {"last value": 0.7}}]
    for row in rows:
        row.pop("bits")
    page, _ = read(write_run(tmp_path / "run", rows))
    (view,) = page.charts[0]["views"]
    assert view["layout"]["yaxis"]["title"]["text"] == "mean squared error, in variances"
    assert chart(page)["last value"]["y"] == [0.7, 0.7]


def test_memory_is_predicted_and_measured_where_the_store_is_there(tmp_path, read):
    text = np.frombuffer(b"the quick brown fox " * 20, np.uint8)
    with ss.create(tmp_path / "text.zarr", {"x": ss.Field("uint8")}) as writer:
        for number in range(4):
            writer.write(f"{number}", x=text[number:])
    settings = TrainingSettings(k1=8, k2=16, lanes=2, hidden=8, embedding=4, updates=2, threads=1, held_out=0.3)
    train(tmp_path / "text.zarr", tmp_path / "run", settings)
    (tmp_path / "text.zarr").rename(tmp_path / "moved.zarr")
    page, _ = read(tmp_path / "run")
    assert "Memory is not predicted" in page.said
    page, _ = read(tmp_path / "run", store=tmp_path / "moved.zarr")
    assert page.facts["resumed"] == "0 times"
    assert page.facts["measured: most memory of the process"].endswith(("MB", "GB"))
    assert page.facts["lanes × window"] == "2 × 8"
    (tmp_path / "moved.zarr").rename(tmp_path / "text.zarr")
    train(tmp_path / "text.zarr", tmp_path / "run", resume=True)
    page, _ = read(tmp_path / "run")
    assert page.facts["predicted: an update"].endswith("kB")
    assert page.facts["lanes × window"] == "2 × 8"
    with ss.create(tmp_path / "other.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("0", x=text)
    page, _ = read(tmp_path / "run", store=tmp_path / "other.zarr")
    assert "name the one that it was trained on" in page.said
    page, _ = read(tmp_path / "run", store=str(tmp_path / "gone.zarr"))
    assert "Memory is not predicted" in page.said
