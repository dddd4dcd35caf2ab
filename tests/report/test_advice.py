"""The report of an advice, alone or beside a search that started from it."""

import json

import pytest
from support.report_sources import HOSTILE, quadratic, train_row, write_run

import streamseq as ss

ADVICE = {
    "format": 1,
    "store": "plants.zarr",
    "proposals": [
        {"name": "k2", "value": 64, "why": f"so far {HOSTILE}", "sure": "good", "others": []},
        {"name": "segment", "value": None, "why": "no budget", "sure": "weak", "others": []},
    ],
    "commands": {"train": "streamseq train plants.zarr --k2 64"},
    "timesteps": 1000,
    "dependences": [
        {
            "field": "x", "kind": "autocorrelation", "memory": 9, "reach": 20, "lags": [1, 2, 4, 8],
            "values": [1, 0.5, 0, 0], "chance": [0.1, 0.1, 0.1, 0.1],
        },
    ],
    "probe": {"k1": 8, "k2": 16, "updates": 100, "unit": "nats", "loss": 1.5, "without": 2.0},
    "influence": {"decays": True, "lags": [1, 2, 4], "phi": [1, 0.1, 1e-9], "delta": [None, 0.5, 0.01]},
    "truncations": [{"k2": 16, "depth": 9, "phi": 0.1, "delta": None, "relative": 0.25, "cosine": 0.9}],
    "memory": {"total": 2_000_000},
    "notes": ["nothing was left out"],
    "seconds": 12.0,
}  # fmt: skip


def write(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "advice.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_an_advice_says_what_is_proposed_and_why(tmp_path, read):
    page, made = read(write(tmp_path / "advice", ADVICE))
    assert made.kind == "advice"
    assert page.facts["k2"] == "64"
    assert page.tables["What is proposed"][1][:3] == ["k2", "64", "good"]
    assert page.tables["What some k2 would lose"][1] == ["16", "9", "0.1", "–", "0.25", "0.9"]
    assert "img" not in [tag for tag, _ in page.tags]
    dependence, bias = page.charts
    assert dependence["views"][0]["traces"][0]["y"] == [1, 0.5, 0, 0]
    # What has no place on a logarithmic axis is a gap.
    assert [trace["y"] for trace in bias["views"][0]["traces"]] == [[None, 0.5, 0.01], [0.25]]
    assert bias["views"][1]["traces"][0]["y"] == [1, 0.1, None]


def test_it_is_part_of_the_report_of_what_started_from_it(tmp_path, read):
    ss.search(quadratic, tmp_path / "search", {"k1": [8], "k2": "2*k1"})
    for folder in (tmp_path / "search", write_run(tmp_path / "run", [train_row(1, 2.0)])):
        write(folder, ADVICE)
        page, made = read(folder)
        assert made.kind == folder.name
        assert "What is proposed" in page.tables


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"proposals": [1]}', json.dumps(ADVICE | {"influence": {"lags": 3}})]
)
def test_one_that_cannot_be_read_is_told(tmp_path, read, content):
    with pytest.raises(ss.StreamseqError, match="no advice that this version reads"):
        ss.report(write(tmp_path / "advice", content))
    page, _ = read(write(write_run(tmp_path / "run", [train_row(1, 2.0)]), content))
    assert "no advice that this version reads" in page.said


def test_an_advice_with_little_in_it_is_reported(tmp_path, read):
    little = ADVICE | {"dependences": [], "probe": None, "influence": None, "truncations": [], "memory": None}
    page, _ = read(write(tmp_path / "advice", little | {"commands": {}, "notes": []}))
    assert page.charts == []
