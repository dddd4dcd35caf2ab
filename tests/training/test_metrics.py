"""The log of a run is one curve, and the picture of it is a PNG."""

import json
import sys

import pytest

from streamseq.training.curves import draw_curves
from streamseq.training.metrics import MetricsLog


def filled(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for update in (2, 4, 6):
        log.append("train", update, loss=8.0 - update, unit="mse", timesteps_per_second=100.0)
    log.append("evaluate", 6, loss=2.5, unit="mse", baselines={"mean": 1.0})
    return log


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = filled(tmp_path).rows()
    assert rows[0] == {"event": "train", "update": 2, "loss": 6.0, "unit": "mse", "timesteps_per_second": 100.0}
    assert [(row["event"], row["update"]) for row in rows[2:]] == [("train", 6), ("evaluate", 6)]
    assert MetricsLog(tmp_path / "none.jsonl").rows() == []


def test_rows_after_an_update_are_cut_with_a_line_that_was_not_finished(tmp_path):
    log = filled(tmp_path)
    with log.path.open("a") as file:
        file.write('{"event": "train", "upd')
    assert len(log.rows()) == 4
    log.cut_after(4)
    assert [json.loads(line)["update"] for line in log.path.read_text().splitlines()] == [2, 4]
    log.append("train", 5)
    assert [row["update"] for row in log.rows()] == [2, 4, 5]


@pytest.mark.parametrize("rows", ["all", "none"])
def test_curves_are_a_png(tmp_path, rows):
    pytest.importorskip("matplotlib")
    draw_curves(filled(tmp_path).rows() if rows == "all" else [], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install streamseq\[plot\]"):
        draw_curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
