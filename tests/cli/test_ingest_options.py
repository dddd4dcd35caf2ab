"""Options of every ingestion: transforms, workers, what happens at errors, and Ctrl-C."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import click
import numpy as np
import pytest
from distributed import LocalCluster

import streamseq as ss
from streamseq import cli

STREAMSEQ = [sys.executable, "-W", "error", "-m", "streamseq"]
KINDS = ["array", "audio", "genome", "table", "text"]


@pytest.fixture
def run(run):
    """Run `streamseq ingest` in this process, in a folder of its own; the exit code and both outputs."""
    return lambda *args: run("ingest", *args)


def test_transforms_are_done_in_order(run, tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes([1, 2, 200]))
    (tmp_path / "my_features.py").write_text("def doubled(arrays):\n    return {'x': arrays['x'] * 2.0}\n")
    transforms = ["cast:x,float32", "function:my_features.doubled", "clip:x,,100", "rename:x,twice"]
    options = [part for text in transforms for part in ("--transform", text)]
    assert run("text", "a.txt", "--to", "s.zarr", "--quiet", *options)[0] == 0
    assert ss.open("s.zarr").read("a.txt")["twice"].tolist() == [2.0, 4.0, 100.0]
    code, out, _ = run("text", "a.txt", "--to", "s.zarr", "--quiet", "--json", *options)
    assert code == 0
    assert json.loads(out)["partitions_done_before"] == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("blur:x", "a transform is one of cast, select"),
        ("clip:x", "clip:FIELD,LOW,HIGH is"),
        ("clip:y,0,1", "name one of those"),
        ("function:no_such_module.f", "there is no function"),
    ],
)
def test_what_is_no_transform_is_one_line_and_leaves_nothing(run, tmp_path, text, said):
    (tmp_path / "a.txt").write_bytes(b"abc")
    code, out, err = run("text", "a.txt", "--to", "s.zarr", "--transform", text)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err
    assert os.listdir() == ["a.txt"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_ingestion_has_the_options(kind):
    context = click.Context(cli.ingest)
    command = cli.ingest.get_command(context, kind)
    options = {option.opts[0]: option for option in command.params}
    assert {"--to", "--backend", "--workers", "--scheduler", "--transform", "--on-error", "--json", "--quiet"} <= set(
        options
    )
    assert "processes where" in options["--workers"].help
    assert "STORE.quarantine.jsonl" in options["--on-error"].help


@pytest.fixture
def heeds_ctrl_c():
    """A test run in the background may ignore Ctrl-C, and what it starts would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize("where", ["threads", "processes"])
def test_ctrl_c_reaches_all_processes_is_one_line_and_the_next_run_goes_on(tmp_path, where):
    lines = np.random.default_rng(0).integers(97, 123, (60_000, 60), np.uint8)
    lines[:, -1] = 10
    (tmp_path / "in").mkdir()
    (tmp_path / "in/lines").write_bytes(lines.tobytes())
    kind = ["--lines"] if where == "processes" else ["--transform", "cast:x,float64"]
    command = [*STREAMSEQ, "ingest", "text", "in", "--to", "s.zarr", "--workers", "2", "--shard-bytes", "50000", *kind]
    job = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not any((tmp_path / "s.zarr/staging/jobs").glob("*/*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    # As a terminal does: to the command and all that it started.
    os.killpg(job.pid, signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert [line for line in err.splitlines()[1:] if line] == [
        "error: interrupted: the same command goes on with what is done"
    ]
    with pytest.raises(ss.StoreError):
        ss.open(tmp_path / "s.zarr")
    again = subprocess.run([*command, "--json", "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    assert (again.returncode, again.stderr) == (0, "")
    report = json.loads(again.stdout)
    assert 0 < report["partitions_done_before"] < report["partitions"]
    assert report["timesteps"] == 60 * 60_000 - (60_000 if where == "processes" else 0)


def test_the_dashboard_of_a_scheduler_is_named_on_standard_error(run, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc")
    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:
        where = ["--scheduler", cluster.scheduler_address]
        code, out, err = run("text", "a.txt", "--to", "s.zarr", "--json", *where)
        assert (code, len(out.splitlines())) == (0, 1)
        assert err.splitlines()[0] == f"ingest: Dask's dashboard is at {cluster.dashboard_link}"
        assert run("text", "a.txt", "--to", "t.zarr", "--quiet", "--json", *where)[2] == ""
