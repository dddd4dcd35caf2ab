"""The command line: results, exit codes, and one clear line for whatever is wrong."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import numpy as np
import pytest

import streamseq as ss
from streamseq import cli

STREAMSEQ = [sys.executable, "-W", "error", "-m", "streamseq"]


@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, content in {"a.txt": b"one", "b.md": b"three", "c/d.txt": b"", "c/e.txt": b"four"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def everything_below(folder):
    return sorted(str(path) for path in Path(folder).rglob("*"))


def test_ingest_text_writes_a_store_and_reports(run, texts):
    code, out, err = run("ingest", "text", texts, "--to", "s.zarr", "--pattern", "*.txt", "--json")
    assert code == 0
    report = json.loads(out)
    assert (report["sequences"], report["timesteps"], report["bytes_in"]) == (2, 7, 7)
    assert report["skipped"] == [{"what": str(texts / "c/d.txt"), "place": "", "reason": "empty"}]
    assert report["store"] == str(Path("s.zarr").absolute())
    assert err.splitlines()[0] == "ingest: 7 B"
    assert "done" in err.splitlines()[1]
    store = ss.open("s.zarr")
    assert {id: store.read(id)["x"].tobytes() for id in store.ids.to_pylist()} == {"a.txt": b"one", "c/e.txt": b"four"}


def test_ingest_text_takes_its_options(run, texts):
    options = ["--one-sequence", "--id", "all", "--backend", "arrow", "--workers", 1, "--shard-bytes", 4, "--quiet"]
    code, out, err = run("ingest", "text", texts / "b.md", texts / "a.txt", "--to", "s", *options)
    assert (code, err) == (0, "")
    assert "1 sequences, 8 timesteps" in out
    store = ss.open("s")
    assert store.backend == "arrow"
    assert store.read("all")["x"].tobytes() == b"threeone"
    assert len(list(Path("s/shards").glob("*-*"))) == 3


def to(*args):
    return ["ingest", "text", *args, "--to", "new/s.zarr"]


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        (to("nope"), 1, "there is no file or folder 'nope'"),
        (to("texts/c/d.txt"), 1, "texts/c/d.txt' is empty"),
        (to("hidden"), 1, "folder 'hidden' has no files"),
        (to("texts", "--pattern", "*.rs"), 1, "has no files like *.rs"),
        (to("texts/*.rs"), 1, "glob 'texts/*.rs' has no files"),
        (to("texts/a.txt/x"), 1, "Not a directory"),
        (to("pipe"), 1, "pipe' cannot be read: it is not a regular file"),
        (to("texts", "other"), 1, "are both 'a.txt'"),
        (to("foo://x"), 2, "'foo://x'"),
        (to("texts", "--workers", "0"), 2, "--workers"),
        (to("texts", "--id", "x"), 2, "one sequence"),
        (to("texts", "--on-error", "ignore"), 2, "--on-error"),
        (to("texts", "--shard-bytes", "x"), 2, "--shard-bytes"),
        (to("texts", "--scheduler", "nonsense"), 1, "no Dask scheduler answers at 'nonsense'"),
        (["ingest", "text", "texts"], 2, "--to"),
        (["ingest", "text", "--to", "new/s.zarr"], 2, "SOURCE"),
        (["ingest", "text", "texts", "--to", "new/s"], 2, "backend"),
        (["ingest", "text", "texts", "--to", "texts", "--backend", "zarr"], 1, "holds files"),
        (["ingest", "text", "texts", "--to", "texts/a.txt", "--backend", "zarr"], 1, "is a file"),
        (
            ["ingest", "video", "texts", "--to", "new/s.zarr"],
            2,
            "there is no kind of source 'video', there are: ",
        ),
        (["frobnicate"], 2, "frobnicate"),
        (["train", "nope.zarr", "--out", "run"], 1, "nope.zarr is not a store"),
        (["train", "texts", "--out", "run"], 1, "texts is not a store"),
        (["train", "nope.zarr", "--out", "run", "--k1", "32", "--k2", "16"], 2, "k2 >= k1"),
        (["train", "nope.zarr", "--out", "run", "--window", "0"], 2, "window is at least 1, got 0"),
        (["train", "nope.zarr", "--out", "run", "--k1", "half"], 2, "neither a number of timesteps nor n"),
        (["train", "nope.zarr", "--out", "run", "--resume"], 1, "run/checkpoint.pt"),
        (["train", "nope.zarr"], 2, "--out"),
        (["demo", "--out", "texts"], 2, "texts holds something that no demo made"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, texts, tmp_path, args, code, line):
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/.x").write_bytes(b"x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.txt").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    before = everything_below(tmp_path)
    got, out, err = run(*args)
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert line in err
    assert (got, out) == (code, "")
    assert everything_below(tmp_path) == before


def test_a_store_that_another_job_wrote_is_refused_and_its_own_has_nothing_to_do(run, texts):
    assert run("ingest", "text", texts, "--to", "s.zarr")[0] == 0
    before = everything_below("s.zarr")
    code, _, err = run("ingest", "text", texts, "--to", "s.zarr", "--one-sequence")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "is a store already, and not one that this job wrote" in err
    assert everything_below("s.zarr") == before
    code, out, _ = run("ingest", "text", texts, "--to", "s.zarr", "--json")
    report = json.loads(out)
    assert (code, report["version"]) == (0, 1)
    assert report["partitions_done_before"] == report["partitions"] > 0
    assert everything_below("s.zarr") == before


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read everything")
def test_an_unreadable_file_is_told_or_skipped(run, texts):
    (texts / "a.txt").chmod(0)
    code, _, err = run("ingest", "text", texts, "--to", "s.zarr", "--quiet")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "a.txt' cannot be read: Permission denied" in err
    assert not Path("s.zarr").exists()
    assert run("ingest", "text", texts, "--to", "s.zarr", "--on-error", "skip")[0] == 0


@pytest.fixture
def heeds_ctrl_c():
    """A test run in the background may ignore Ctrl-C, and what it starts would too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_leaves_nothing_and_says_so(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    block = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes()
    with (folder / "large").open("wb") as file:
        for _ in range(300):
            file.write(block)
    job = subprocess.Popen(
        [*STREAMSEQ, "ingest", "text", "in", "--to", "new/s.zarr"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not any((tmp_path / "new/s.zarr").glob("s*/*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)  # until the job has written something
    job.send_signal(signal.SIGINT)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 130
    assert [line for line in err.splitlines() if line and not line.startswith("ingest: ")] == [
        "error: interrupted: the same command goes on with what is done"
    ]
    assert os.listdir(tmp_path) == ["in"]


def test_the_real_command_is_quiet_about_its_cluster(tmp_path, texts):
    done = subprocess.run(
        [*STREAMSEQ, "ingest", "text", "texts", "--to", "s.zarr", "--json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert len(done.stderr.splitlines()) == 2


def test_a_traceback_is_shown_where_it_is_asked_for(run, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_TRACEBACK", "1")
    with pytest.raises(FileNotFoundError):
        cli.main(["ingest", "text", "nope", "--to", "s.zarr"])


@pytest.mark.parametrize("kind", ["", "text", "table", "array", "audio", "genome"])
def test_help_and_version_import_nothing_heavy(kind):
    code = (
        f"import sys; sys.argv = ['streamseq', 'ingest', *{kind.split()}, '--help']\n"
        "try:\n    from streamseq.cli import main; main()\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'dask', 'distributed', 'zarr', 'pyarrow', 'tqdm'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("--on-error" if kind else "text") in done.stdout


def test_version_and_empty_command_lines(run):
    assert run("--version") == (0, f"streamseq {ss.__version__}\n", "")
    code, out, err = run()
    assert (code, out) == (2, "")
    assert "Commands:" in err


def test_pipelines_of_other_packages_are_found_and_broken_ones_told(run, monkeypatch, tmp_path):
    (tmp_path / "others.py").write_text(
        "import click, numpy as np, streamseq as ss\n"
        "from streamseq.etl import Partition, Piece\n"
        "from streamseq.etl.command import ingest_command\n"
        "class Countdown:\n"
        "    def __init__(self, start): self.start = start; self.fields = {'x': ss.Field('int64')}\n"
        "    def partitions(self, target_bytes): return [Partition(num_bytes=8 * self.start, content=None)]\n"
        "    def read(self, partition): yield Piece(id='down', arrays={'x': np.arange(self.start)[::-1]})\n"
        "@click.command('countdown')\n"
        "@click.argument('start', type=int)\n"
        "@ingest_command\n"
        "def command(start):\n"
        "    'Ingest a countdown.'\n"
        "    return Countdown(start)\n"
        "something = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [
        EntryPoint("countdown", "others:command", "streamseq.pipelines"),
        EntryPoint("missing", "no_such_package:command", "streamseq.pipelines"),
        EntryPoint("odd", "others:something", "streamseq.pipelines"),
    ]
    monkeypatch.setattr(cli, "_pipelines", lambda: points)
    assert run("ingest", "countdown", "3", "--to", "s.zarr")[0] == 0
    assert ss.open("s.zarr").read("down")["x"].tolist() == [2, 1, 0]
    code, out, _ = run("ingest", "--help")
    assert code == 0
    assert "Ingest a countdown." in out
    for name, reason in (("missing", "no_such_package"), ("odd", "not a click command")):
        code, _, err = run("ingest", name, "x", "--to", "t.zarr")
        assert (code, len(err.splitlines())) == (1, 1)
        assert reason in err


@pytest.fixture
def store(tmp_path):
    rng = np.random.default_rng(0)
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("uint8")}) as writer:
        for number in range(6):
            writer.write(f"{number}", x=rng.integers(97, 123, 300, np.uint8))
    return tmp_path / "s.zarr"


SMALL = ["--lanes", 2, "--hidden", 8, "--embedding", 4, "--threads", 1, "--held-out", "0.2", "--quiet"]


def test_train_trains_and_resumes_with_the_settings_it_had(run, store):
    args = ["train", store, "--out", "run", "--k1", 16, "--k2", 32, *SMALL, "--updates", 5]
    code, out, err = run(*args, "--json")
    assert (code, err) == (0, "")
    first = json.loads(out.splitlines()[-1])
    assert (first["updates"], first["timesteps"], first["finished"]) == (5, 160, True)
    assert {"loss", "timesteps_per_second", "peak_rss_bytes", "data_wait_fraction"} <= first.keys()
    code, out, err = run(*args)
    assert (code, len(err.splitlines())) == (2, 1)
    code, out, _ = run("train", store, "--out", "run", "--resume", "--json")
    assert (code, json.loads(out)["updates"]) == (0, 5)
    code, _, err = run("train", store, "--out", "run", "--resume", "--k1", 8)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "k1=16" in err
    assert run("train", store, "--out", "run", "--resume", "--log-every", 3)[0] == 0


def test_train_takes_n(run, store):
    code, out, _ = run("train", store, "--out", "run", "--k1", "n", "--k2", "n", *SMALL, "--updates", 1)
    assert code == 0
    assert "finished after 1 updates" in out


def test_train_has_an_option_for_every_setting_and_shows_its_default():
    from streamseq.training import TrainingSettings

    options = {option.name: option for option in cli.commands.commands["train"].params}
    for field in fields(TrainingSettings):
        option = options[field.name]
        assert option.default is None or option.default is click.core.UNSET, field.name
        shown = option.help.rsplit("[default: ", 1)[1].removesuffix("]")
        if field.name == "shuffle":
            assert (shown == "shuffle") == field.default
        elif field.default is not None:
            assert type(field.default)(shown) == field.default, field.name


def test_bench_prints_a_table_or_json(run):
    with ss.create("s.zarr", {"x": ss.Field("int32", codec="zstd")}, chunk_bytes=4000) as writer:
        for number in range(8):
            writer.write(str(number), x=np.arange(20_000, dtype=np.int32))
    code, out, err = run("bench", "s.zarr", "--lanes", 4, "--window", 100, "--seconds", 0.2, "--memory", "5MB")
    assert (code, err) == (0, "")
    assert [line.split("  ")[0] for line in out.splitlines()[1:4]] == ["windows/s", "bytes/s", "of copying"]
    assert "decodes" in out
    code, out, _ = run("bench", "s.zarr", "--lanes", 4, "--window", 100, "--seconds", 0.2, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["second_pass"]["windows"] <= 400
    assert 0 < found["decode_bytes_per_second"] < 1e12
    assert 0 <= found["first_pass"]["cache_hits"] <= 1
    with ss.create("raw.arrow", {"x": ss.Field("int32", codec="none")}) as writer:
        writer.write("a", x=np.arange(20_000, dtype=np.int32))
    code, out, _ = run("bench", "raw.arrow", "--lanes", 4, "--window", 100, "--layout", "even", "--seconds", 0.1)
    assert code == 0
    assert "nothing is decoded" in out


def test_bench_on_something_else_is_an_error(run):
    code, out, err = run("bench", "nowhere")
    assert (code, out) == (1, "")
    assert "not a store" in err
    with ss.create("s.zarr", {"x": ss.Field("int32")}) as writer:
        writer.write("a", x=np.arange(20_000, dtype=np.int32))
    assert run("bench", "s.zarr", "--memory", "1kB")[0] == 1
    assert run("bench", "s.zarr", "--memory", "lots")[0] == 2
    assert run("bench", "s.zarr", "--seconds", "0")[0] == 2


def test_a_forecast_says_how_far_it_is_and_what_it_came_to(run, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    with ss.create("waves.zarr", {"time": ss.Field("int64"), "level": ss.Field("float64")}) as writer:
        for number in range(4):
            wave = np.sin(np.arange(150) / 4 + number) * 20 + 300 + rng.standard_normal(150)
            writer.write(f"{number}", time=np.arange(150) * 60, level=wave)
    monkeypatch.setattr(cli, "_SECONDS_BETWEEN_LINES", 0)
    few = ["--k1", 16, "--k2", 32, "--lanes", 2, "--hidden", 12, "--threads", 1]
    code, out, err = run("train", "waves.zarr", "--out", "run", *few, "--updates", 80, "--learning-rate", 0.02)
    assert code == 0
    assert err.splitlines()[0] == "forecasting 1 channel of level one timestep ahead; left out: time"
    assert err.splitlines()[2].startswith("update 1 of 80: ")
    assert " mse" in err.splitlines()[2]
    assert re.search(
        r"held-out error [0-9.]+ .* of the last value, .* of the mean: [0-9.]+ % below the last value", out
    )
    code, out, _ = run("predict", "waves.zarr", "--checkpoint", "run/checkpoint.pt", "--to", "f.zarr", "--quiet")
    assert (code, "level_forecast float64 of 4 sequences" in out) == (0, True)
    came, said = ss.open("waves.zarr").read("1")["level"], ss.open("f.zarr").read("1")["level_forecast"]
    assert np.abs(said[:-1] - came[1:]).mean() < 0.7 * np.abs(np.diff(came)).mean()
    code, out, err = run(
        "predict", "waves.zarr", "--checkpoint", "run/checkpoint.pt", "--to", "g.zarr", "--what", "nll"
    )
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "one or more of forecast, error" in err
    code, _, err = run("train", "waves.zarr", "--out", "again", "--resume", "--like", "run")
    assert (code, "leave --like out" in err) == (2, True)
    assert (
        run("train", "waves.zarr", "--out", "again", "--like", "run", "--updates", 1, "--threads", 1, "--quiet")[0] == 0
    )
    assert run("train", "waves.zarr", "--out", "other", "--inputs", "level", "--targets", "tide")[0] == 2
