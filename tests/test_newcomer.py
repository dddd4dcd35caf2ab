"""A newcomer gets from a folder of CSV files to a chosen k, a trained model and a report, as the README shows."""

import csv
import json
import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import streamseq as ss
from streamseq import cli
from streamseq.training import load_model

README = Path(__file__).parents[1] / "README.md"
# The same commands, with less time and a smaller model.
INSTEAD = {"search": {"--seconds": "0.7"}, "train": {"--seconds": "3"}}
ALSO = {
    "search": ["--set", "hidden=16", "--set", "lanes=4", "--set", "threads=1", "--evaluations", "2", "--trials", "3"],
    "train": ["--json"],
}


@pytest.fixture
def readings(tmp_path, monkeypatch):
    """A folder of readings of some stations, an hour apart: a daily wave, what depends on it, gaps and a remark."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    (tmp_path / "readings").mkdir()
    for station in ("harbour", "hill", "north", "south", "tower"):
        hours = np.arange(300)
        temperature = 10 + 6 * np.sin(2 * np.pi * (hours / 24 + rng.random())) + 0.3 * rng.standard_normal(300)
        humidity = 60 - 3 * (temperature - 10) + rng.standard_normal(300)
        with open(f"readings/{station}.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["time", "temperature", "humidity", "remark"])
            for hour, warm, wet in zip(hours.tolist(), temperature, humidity, strict=True):
                time = datetime(2024, 1, 1) + timedelta(hours=hour)
                rows.writerow([time.isoformat(), f"{warm:.2f}", "" if rng.random() < 0.05 else f"{wet:.1f}", "fine"])
    return tmp_path


def commands():
    """The four commands of the README."""
    section = README.read_text().split("## Your own CSV files")[1].split("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (streamseq .*)$", section, re.MULTILINE)]


def run(capsys, *args):
    with pytest.raises(SystemExit) as exit:
        cli.main(args)
    said = capsys.readouterr()
    assert exit.value.code == 0, said.err
    return said.out


def test_four_commands_lead_from_csv_files_to_a_report(readings, capsys, monkeypatch):
    # The advice that a search begins with may take a minute: here a few seconds.
    monkeypatch.setattr("streamseq.search.start.UPDATES", 30)
    said = {}
    assert [command[0] for command in commands()] == ["ingest", "search", "train", "report"]
    for name, *args in commands():
        for option, value in INSTEAD.get(name, {}).items():
            args[args.index(option) + 1] = value
        said[name] = run(capsys, name, *args, *ALSO.get(name, []))

    store = ss.open("readings.zarr")
    assert sorted(store.ids.to_pylist()) == ["harbour", "hill", "north", "south", "tower"]
    assert {name: field.shape for name, field in store.fields.items()} == {"time": (), "x": (2,)}

    search = json.loads((readings / "search/advice.json").read_text())
    assert "3 of 3 trials, each with 0.7 seconds; the best one's checkpoint is" in said["search"]

    result = json.loads(said["train"].splitlines()[-1])
    assert (result["task"], result["finished"]) == ("forecast", True)
    assert result["held_out_loss"] < result["baselines"]["last value"] < result["baselines"]["mean"]
    chosen, best = load_model("run/checkpoint.pt")[1], load_model("search/best.pt")[1]
    assert (chosen.k1, chosen.k2, chosen.hidden, chosen.lanes) == (best.k1, best.k2, 16, 4)
    assert chosen.k1 in search["space"]["k1"]

    page = (readings / "report.html").read_text()
    assert "last value" in page
