"""Boundaries that are found by the job that writes a store: in the same call, and right when it is run again."""

import numpy as np
import pytest
from streamseq_pipelines.text import TextSource

import streamseq as ss
from streamseq.storage.boundaries import mark as marking

LINES = ss.splits.Marker("x", ord("\n"), after=True)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for name, text in {"a": "one\ntwo\n", "b": "three", "c": "\nfour"}.items():
        (tmp_path / "texts" / name).write_text(text)
    return tmp_path


@pytest.fixture
def looks(monkeypatch):
    """The names of stores that were looked through."""
    found, find = [], marking.find_boundaries
    monkeypatch.setattr(marking, "find_boundaries", lambda store, *rest: found.append(store.uri) or find(store, *rest))
    return found


def run(folder, **boundaries):
    source = TextSource([str(folder / "texts" / "*")])
    return ss.ingest(source, folder / "texts.zarr", workers=1, boundaries=boundaries)


def positions(folder, name="lines"):
    store = ss.open(folder / "texts.zarr")
    found = store.boundaries(name)
    return {id: found[id].positions.tolist() for id in store.ids.to_pylist()}


def test_they_are_stored_with_the_job(folder):
    report = run(folder, lines=LINES, halves=lambda arrays: [len(arrays["x"]) // 2])
    assert report.version == ss.open(report.store).version == 2
    assert positions(folder) == {"a": [4], "b": [], "c": [1]}
    assert positions(folder, "halves") == {"a": [4], "b": [2], "c": [2]}
    assert ss.open(report.store).boundary_names == ["halves", "lines"]


def test_the_job_run_again_does_nothing_and_finds_what_is_missing(folder, looks):
    assert run(folder, lines=LINES).version == 2
    assert run(folder, lines=LINES).version == 2
    assert len(looks) == 1
    assert run(folder).version == 2
    assert run(folder, lines=LINES, others={"a": [1]}).version == 3
    assert positions(folder, "others") == {"a": [1], "b": [], "c": []}
    assert positions(folder) == {"a": [4], "b": [], "c": [1]}


def test_a_job_that_was_stopped_before_they_were_found_finds_them_when_it_is_run_again(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("streamseq.etl.job.mark_all", lambda *args, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(folder, lines=LINES)
    assert ss.open(folder / "texts.zarr").boundary_names == []
    report = run(folder, lines=LINES)
    assert (report.version, report.partitions_done_before) == (2, report.partitions)
    assert positions(folder) == {"a": [4], "b": [], "c": [1]}


def test_data_that_changed_is_looked_through_again(folder):
    run(folder, lines=LINES)
    (folder / "texts" / "b").write_text("thr\nee")
    assert run(folder, lines=LINES).version == 4
    assert positions(folder) == {"a": [4], "b": [4], "c": [1]}


def test_a_store_that_is_written_anew_meanwhile_is_not_marked_with_what_was_there(folder, monkeypatch):
    run(folder)
    find = marking.find_boundaries

    def slowly(*args):
        found = find(*args)
        (folder / "texts" / "b").write_text("thr\nee")
        run(folder)
        return found

    monkeypatch.setattr(marking, "find_boundaries", slowly)
    with pytest.raises(ss.VersionConflictError, match=r"version 2 of .* has others \(replace\)"):
        ss.mark(folder / "texts.zarr", "lines", LINES)
    assert ss.open(folder / "texts.zarr").boundary_names == []


@pytest.mark.parametrize(
    ("boundaries", "error", "match"),
    [
        ({"lines": ss.splits.Marker("y")}, KeyError, "fields x, not 'y'"),
        ({"lines": ss.splits.Where(np.flatnonzero, ["y"])}, KeyError, "fields x, not 'y'"),
        ({"lines": 3}, TypeError, "got 3"),
        ({"../lines": LINES}, ValueError, "is not of the form"),
        ({3: LINES}, TypeError, "have a name, got 3"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(folder, boundaries, error, match):
    with pytest.raises(error, match=match):
        ss.ingest(TextSource([str(folder / "texts" / "*")]), folder / "texts.zarr", boundaries=boundaries)
    with pytest.raises(ss.StoreError):
        ss.open(folder / "texts.zarr")
