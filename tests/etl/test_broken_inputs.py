"""Broken input of every kind, by command and from Python: what is in the store and what is told are the input."""

import base64
import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from streamseq_pipelines.genome import GenomeSource
from streamseq_pipelines.table import Columns, TableSource
from streamseq_pipelines.text import TextSource

import streamseq as ss
from streamseq import cli
from streamseq.etl import SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Input with something broken in it.

    Args:
        make: Makes the files in a folder.
        source: Makes the source, of the folder and `on_error`.
        command: The same as options of `streamseq ingest`.
        lost: What is left out: the file, the place, a pattern for the reason, and the bytes that are quarantined.
        kept: What the store holds, by id.
    """

    make: Callable[[Path], None]
    source: Callable[..., object]
    command: tuple[str, ...]
    lost: tuple[tuple[str, str, str, bytes | None], ...]
    kept: dict[str, list[float] | bytes]


HEADER = b"station,t,x\n"


def table(content, *options, lost, kept, files=None):
    """A CSV file of two stations, `a.csv`, and perhaps others."""
    names = {"missing": "missing", "sequence": "sequence_column", "timestamp": "timestamp_column"}
    made = {"sequence": "station", "timestamp": "t", "field": "x=x:float64"} | dict(options)
    command = [part for name, value in made.items() for part in (f"--{name}", value)]

    def make(folder):
        for name, held in {"a.csv": HEADER + content, **(files or {})}.items():
            (folder / name).write_bytes(held)

    def source(folder, on_error):
        given = {names[name]: value for name, value in made.items() if name != "field"}
        return TableSource([folder], fields={"x": Columns("x", "float64")}, on_error=on_error, **given)

    return Case(make=make, source=source, command=("table", *command), lost=lost, kept=kept)


def text(make, *, lost, kept, **options):
    command = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in options.items()
    ]
    return Case(
        make=make,
        source=lambda folder, on_error: TextSource([folder], on_error=on_error, **options),
        command=("text", *command),
        lost=lost,
        kept=kept,
    )


def files(**contents):
    def make(folder):
        for name, content in contents.items():
            (folder / name.replace("_", ".", 1).replace("_", ".")).write_bytes(content)

    return make


def thousand(folder):
    for number in range(1000):
        (folder / f"{number:04d}.txt").write_bytes(b"%d" % number)
    (folder / "0500.txt").unlink()
    (folder / "0500.txt").symlink_to(folder / "nowhere")


ROWS = b"north,2024-01-01 00:00,1\nnorth,2024-01-01 01:00,2\nsouth,2024-01-01 00:00,8\n"
GZIPPED = gzip.compress(np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes())

CASES = {
    "bad UTF-8 in JSON lines": text(
        files(a_jsonl=b'{"text": "one"}\n{"text": "\xff\xfe"}\nno document\n{"text": "four"}\n'),
        jsonl_field="text",
        lost=(
            ("a.jsonl", "line 2", "UTF-8|utf-8", b'{"text": "\xff\xfe"}'),
            ("a.jsonl", "line 3", "JSON", b"no document"),
        ),
        kept={"a.jsonl@0": b"one", "a.jsonl@43": b"four"},
    ),
    "bad UTF-8 in a table": table(
        ROWS + b"n\xffrth,2024-01-01 02:00,3\nnorth,2024-01-01 02:00,4\n",
        lost=(("a.csv", "line 5", "UTF-?8|utf-?8", b"n\xffrth,2024-01-01 02:00,3"),),
        kept={"north": [1, 2, 4], "south": [8]},
    ),
    "ragged rows": table(
        ROWS + b"north,2024-01-01 02:00\nsouth,2024-01-01 02:00,9,9\nsouth,2024-01-01 03:00,10\n",
        lost=(
            ("a.csv", "line 5", "2 cells, the header has 3", b"north,2024-01-01 02:00"),
            ("a.csv", "line 6", "4 cells, the header has 3", b"south,2024-01-01 02:00,9,9"),
        ),
        kept={"north": [1, 2], "south": [8, 10]},
    ),
    "an unsorted timestamp": table(
        ROWS + b"north,2024-01-01 00:30,3\nnorth,2024-01-01 02:00,4\nnorth,never,5\n",
        lost=(
            # Cells that say nothing are found before rows are compared.
            ("a.csv", "line 7", "never", b"north,never,5"),
            ("a.csv", "line 5", "comes after", b"north,2024-01-01 00:30,3"),
        ),
        kept={"north": [1, 2, 4], "south": [8]},
    ),
    "NaN where none may be": table(
        ROWS + b"north,2024-01-01 02:00,nan\nnorth,2024-01-01 03:00,\nnorth,2024-01-01 04:00,4\n",
        ("missing", "error"),
        lost=(
            ("a.csv", "line 5", "'x' is ", b"north,2024-01-01 02:00,nan"),
            ("a.csv", "line 6", "'x' is ", b"north,2024-01-01 03:00,"),
        ),
        kept={"north": [1, 2, 4], "south": [8]},
    ),
    "a table that is none": table(
        ROWS,
        files={"b.csv": b"\x00\x01\x02"},
        lost=(("b.csv", "", "column", None),),
        kept={"north": [1, 2], "south": [8]},
    ),
    "a truncated gzip": text(
        files(a_txt_gz=GZIPPED[:-3000], b_txt=b"whole"),
        lost=(("a.txt.gz", "", "", None),),
        kept={"b.txt": b"whole"},
    ),
    "a thousand files and one that cannot be read": text(
        thousand,
        lost=(("0500.txt", "", "symbolic link to nothing", None),),
        kept={f"{number:04d}.txt": b"%d" % number for number in range(1000) if number != 500},
    ),
    "records with other letters": Case(
        make=files(a_fa=b">one\nACGT\n>two\nAC!T\n>three\nGG\n"),
        source=lambda folder, on_error: GenomeSource([folder], on_error=on_error),
        command=("genome",),
        lost=(("a.fa", "line 4", "!", b">two\nAC!T\n"),),
        kept={"one": b"", "three": b""},
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def folder(tmp_path, case):
    (tmp_path / "in").mkdir()
    case.make(tmp_path / "in")
    return tmp_path / "in"


def contents(address):
    store = ss.open(address)
    return {id: store.read(id)["x"] for id in store.ids.to_pylist()}


def check_store(case, address):
    found = contents(address)
    assert found.keys() == case.kept.keys()
    for id, wanted in case.kept.items():
        if isinstance(wanted, list):
            assert found[id].tolist() == wanted
        elif wanted:
            assert found[id].tobytes() == wanted
        else:
            assert len(found[id])
    assert ss.open(address).verify().ok


def check_told(case, folder, told):
    """`told` are dicts as they are in the JSON of a report."""
    places = [(item["what"], item["place"]) for item in told]
    assert [what for what, _ in places] == [str(folder / name) for name, *_ in case.lost]
    for item, (name, place, reason, _) in zip(told, case.lost, strict=True):
        if place or name.endswith("txt"):
            assert item["place"] == place
        assert item["reason"]
        assert re.search(reason, item["reason"])


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_from_python_what_is_broken_is_told_and_the_rest_is_written(case, folder, on_error):
    address = folder.parent / "s.zarr"
    report = ss.ingest(case.source(folder, on_error=on_error), address, workers=2)
    check_store(case, address)
    check_told(case, folder, json.loads(report.to_json())["skipped"])
    wanted = [content if on_error == "quarantine" else None for *_, content in case.lost]
    assert [item.content for item in report.skipped] == wanted
    assert (report.quarantine is None) == (on_error == "skip")
    every = sum(path.stat().st_size for path in folder.iterdir() if path.exists())
    assert report.bytes_in + sum(item.num_bytes for item in report.skipped) >= every - len(HEADER)


def test_from_python_what_is_broken_fails_the_job(case, folder):
    with pytest.raises(SourceError) as raised:
        ss.ingest(case.source(folder, on_error="fail"), folder.parent / "s.zarr", workers=2)
    # Several are wrong in some, and whichever task comes first tells.
    assert any(
        str(folder / name) in str(raised.value) and place in str(raised.value) and re.search(reason, str(raised.value))
        for name, place, reason, _ in case.lost
    )
    with pytest.raises(ss.StoreError):
        ss.open(folder.parent / "s.zarr")


@pytest.mark.parametrize("on_error", ["fail", "skip", "quarantine"])
def test_the_command_tells_all_of_it(case, folder, on_error, capsys, monkeypatch):
    monkeypatch.delenv("STREAMSEQ_TRACEBACK", raising=False)
    address = folder.parent / "s.zarr"
    kind, *options = case.command
    with pytest.raises(SystemExit) as exit:
        cli.main(
            ["ingest", kind, str(folder), "--to", str(address), "--json", "--quiet", "--on-error", on_error, *options]
        )
    out, err = capsys.readouterr()
    if on_error == "fail":
        assert (exit.value.code, out, len(err.splitlines())) == (1, "", 1)
        assert any(str(folder / name) in err and place in err for name, place, *_ in case.lost)
        return
    assert (exit.value.code, err) == (0, "")
    report = json.loads(out)
    check_store(case, address)
    check_told(case, folder, report["skipped"])
    if on_error == "skip":
        assert report["quarantine"] is None
        return
    lines = [json.loads(line) for line in Path(report["quarantine"]).read_text().splitlines()]
    check_told(case, folder, lines)
    for line, (*_, content) in zip(lines, case.lost, strict=True):
        held = line["content"].encode() if "content" in line else None
        if "content_base64" in line:
            held = base64.b64decode(line["content_base64"])
        assert held == content
        assert content is None or line["num_bytes"] >= len(content)
