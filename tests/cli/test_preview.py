"""mark and preview from the command line: results, exit codes, and one line for errors."""

import json

import numpy as np
import pytest

import streamseq as ss

DAY = 86_400


@pytest.fixture
def store(run):
    with ss.create(
        "s.zarr", {"time": ss.Field("int64"), "x": ss.Field("float32"), "event": ss.Field("uint8")}
    ) as writer:
        for number, n in enumerate((100, 40)):
            hours = np.arange(n, dtype=np.int64) * 3600
            hours[60:] += 5 * DAY
            writer.write(
                f"station-{number}",
                time=hours,
                x=np.sin(hours).astype(np.float32),
                event=np.uint8(np.arange(n) % 30 == 9) * 3,
            )
    return "s.zarr"


def test_mark_stores_boundaries(run, store):
    assert run("mark", store, "days", "--calendar", "time:day", "--gap", "time:7200", "--quiet") == (
        0,
        "s.zarr version 2 has boundaries 'days': 6 in 2 sequences, 1 of them breaks\n",
        "",
    )
    found = ss.open(store).boundaries("days")["station-0"]
    assert found.positions.tolist() == [24, 48, 60, 72, 96]
    assert found.breaks.tolist() == [False, False, True, False, False]
    assert ss.log(store)[-1].job == "streamseq mark"


@pytest.mark.parametrize(
    ("options", "positions", "breaks"),
    [
        (["--marker", "event"], [9, 39, 69, 99], 0),
        (["--marker", "event:3", "--after"], [10, 40, 70], 0),
        (["--marker", "event:4"], [], 0),
        (["--change", "event", "--breaks"], [9, 10, 39, 40, 69, 70, 99], 7),
        (["--calendar", "time:day", "--timezone", "Asia/Tokyo"], [15, 39, 60, 63, 87], 0),
        (["--calendar", "time:hour", "--unit", "m"], [*range(1, 100)], 0),
        (["--gap", "time:3599.5"], [*range(1, 100)], 99),
    ],
)
def test_rules_are_given_by_options(run, store, options, positions, breaks):
    code, out, _ = run("mark", store, "some", *options, "--json", "--quiet")
    assert code == 0
    found = ss.open(store).boundaries("some")["station-0"]
    assert (found.positions.tolist(), int(found.breaks.sum())) == (positions, breaks)
    assert json.loads(out) == {
        "store": store,
        "name": "some",
        "version": 2,
        "boundaries": len(ss.open(store).boundaries("some")),
        "breaks": int(ss.open(store).boundaries("some").boundaries.breaks.sum()),
        "sequences": len(ss.open(store).boundaries("some").boundaries.sequence),
    }


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        ([], 2, "pass --calendar"),
        (["--gap", "time"], 2, "'time' is not of the form FIELD:LONGER_THAN"),
        (["--gap", "time:long"], 2, "'long' is no number"),
        (["--calendar", "time:fortnight"], 2, "fortnight"),
        (["--calendar", ":day"], 2, "FIELD:PERIOD"),
        (["--marker", "speed"], 1, "not 'speed'"),
    ],
)
def test_wrong_rules_are_one_line(run, store, options, code, match):
    got, out, err = run("mark", store, "days", *options, "--quiet")
    assert (got, out) == (code, "")
    assert match in err
    assert err.count("\n") == 1
    assert ss.open(store).version == 1


def test_preview_draws(run, store, tmp_path):
    run("mark", store, "days", "--calendar", "time:day", "--gap", "time:7200", "--quiet")
    options = ("--lanes", 2, "--window", 32, "--boundaries", "days", "--out", "p.png")
    code, out, err = run("preview", store, *options)
    assert (code, err) == (0, "")
    assert "140 timesteps, 6 boundaries (1 breaks)" in out
    assert out.endswith("windows 0 to 4 of lanes 0 to 1 are in p.png\n")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("preview", store, *options, "--json", "--from-window", 1, "--windows", 2, "--shuffle")
    seen = json.loads(out)
    stream = ss.StreamDataset(ss.open(store), lanes=2, window=32, split=ss.splits.Domain("days"), shuffle=True)
    assert code == 0
    assert {name: seen[name] for name in ("store", "out", "windows", "first_window", "windows_drawn")} == {
        "store": store,
        "out": "p.png",
        "windows": len(stream),
        "first_window": 1,
        "windows_drawn": 2,
    }
    assert seen["padding_timesteps"] == stream.occupancy.padding_timesteps
    assert (seen["boundaries"], seen["breaks"], seen["timesteps"]) == (6, 1, 140)


def test_preview_of_whole_sequences_and_of_an_older_version(run, store):
    run("mark", store, "days", "--calendar", "time:day", "--quiet")
    code, out, _ = run("preview", store, "--as-is", "--out", "p.png", "--json")
    assert (code, json.loads(out)["window"]) == (0, None)
    code, _, err = run("preview", store, "--boundaries", "days", "--version", 1, "--out", "p.png")
    assert (code, err.count("\n")) == (1, 1)
    assert "version 1 has no boundaries 'days', it has none" in err


@pytest.mark.parametrize(
    ("options", "code", "match"),
    [
        (["--from-window", "9"], 2, "windows 0 to 0, got 9"),
        (["--lane", "8"], 2, "lanes 0 to 7"),
        (["--field", "y"], 1, "not 'y'"),
        (["--as-is", "--window", "5"], 2, "neither --window nor"),
        (["--windows", "300"], 2, "--windows"),
        (["--boundaries", "days"], 1, "it has none"),
    ],
)
def test_wrong_use_of_preview_is_one_line(run, store, tmp_path, options, code, match):
    got, out, err = run("preview", store, *options, "--out", "p.png")
    assert (got, out, err.count("\n")) == (code, "", 1)
    assert match in err
    assert not (tmp_path / "p.png").exists()


def test_preview_without_matplotlib_says_what_to_install(run, store, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    code, _, err = run("preview", store, "--out", "p.png")
    assert code == 1
    assert "pip install streamseq[plot]" in err
