"""Where reports are written, and what is refused."""

import json
import sys

import numpy as np
import pytest
from support.report_sources import train_row, write_run

import streamseq as ss
from streamseq import cli


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process; the exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*args):
        with pytest.raises(SystemExit) as exit:
            cli.main([str(arg) for arg in args])
        said = capsys.readouterr()
        return exit.value.code, said.out, said.err

    return call


def test_the_report_of_a_folder_is_in_it_and_that_of_a_store_beside_it(tmp_path, run, store):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    code, out, _ = run("report", "run")
    assert code == 0
    assert "report of the run" in out
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!DOCTYPE html>")
    assert ss.report(store).out == str(store) + ".report.html"


def test_json_says_what_was_written(tmp_path, run):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    code, out, _ = run("report", "run", "--out", "page.html", "--json")
    said = json.loads(out)
    assert (code, said["kind"], said["out"]) == (0, "run", "page.html")
    assert said["bytes"] == (tmp_path / "page.html").stat().st_size


def test_a_folder_as_the_place_gets_report_html(tmp_path, run):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    (tmp_path / "pages").mkdir()
    assert run("report", "run", "--out", "pages")[0] == 0
    assert (tmp_path / "pages" / "report.html").exists()


@pytest.mark.parametrize(("make", "said"), [(None, "not there"), ("folder", "an empty folder"), ("file", "a file")])
def test_other_paths_are_refused_with_what_was_looked_for(tmp_path, run, make, said):
    if make == "folder":
        (tmp_path / "other").mkdir()
    elif make == "file":
        (tmp_path / "other").write_text("")
    code, _, err = run("report", "other")
    assert code == 1
    assert err.count("\n") == 1
    for part in ("versions/", "metrics.jsonl", "study.log", f"other is {said}"):
        assert part in err


def test_a_report_that_fails_leaves_the_one_before(tmp_path, run):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    (tmp_path / "page.html").write_text("before")
    code, _, err = run("report", "gone", "--out", "page.html")
    assert (code, (tmp_path / "page.html").read_text()) == (1, "before")
    code, _, err = run("report", "run", "--out", "nowhere/page.html")
    assert code == 1
    assert "into a folder that exists" in err


def test_without_plotly_the_extra_is_named(tmp_path, run, monkeypatch):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    code, _, err = run("report", "run")
    assert (code, err) == (1, "error: a report needs plotly: pip install streamseq[report]\n")


def test_a_version_is_of_a_store(tmp_path, run):
    write_run(tmp_path / "run", [train_row(1, 2.0)])
    code, _, err = run("report", "run", "--version", "1")
    assert code == 2
    assert "a version is of a store" in err


def test_reports_are_made_by_the_package_s_name(tmp_path):
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8")}) as writer:
        writer.write("a", x=np.uint8([1, 2, 3]))
    assert ss.report(tmp_path / "s.zarr", tmp_path / "page.html").kind == "store"
    with pytest.raises(ValueError, match="lanes is at least 1, got 0"):
        ss.report(tmp_path / "s.zarr", lanes=0)
