"""verify, info, log, clean, compact and repair from the command line: results, exit codes, and one line for errors."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import streamseq as ss


@pytest.fixture(autouse=True)
def without_a_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(params=["zarr", "arrow"])
def store(run, request):
    """A store of four versions with shards of 100 bytes; "a" has some of each."""
    name = f"s.{request.param}"
    for number in range(4):
        options = {"chunk_bytes": 25, "shard_bytes": 100}
        fields = {"x": ss.Field("uint8", codec="none")}
        with ss.append(name, job="more") if number else ss.create(name, fields, **options, job="first") as writer:
            writer.append("a", x=np.arange(10 * number, 10 * number + 10, dtype=np.uint8))
            writer.write(f"b{number}", x=np.full(20, number, np.uint8))
    return name


def corrupt(store, number=1):
    """Flip a bit of what a commit wrote of its own sequence, "b1" unless another is said."""
    shard = ss.open(store).snapshot.shards[number].id
    path = f"{store}/shards/{shard}/x.arrow" if store.endswith(".arrow") else f"{store}/shards/{shard}/x/c/0"
    with open(path, "rb") as file:
        content = bytearray(file.read())
    # Its last chunk is rows 25 to 30 of the shard.
    content[content.rindex(bytes([number] * 5))] ^= 64
    with open(path, "wb") as file:
        file.write(content)


def files(store):
    return sorted(os.path.join(folder, name) for folder, _, names in os.walk(store) for name in names)


def test_verify_says_that_it_is_well(run, store):
    code, out, err = run("verify", store)
    assert code == 0
    assert out.endswith("it is well\n")
    assert len(err.splitlines()) == 2
    assert err.startswith("verify: ")
    code, out, err = run("verify", store, "--json", "--quiet", "--workers", 2)
    report = json.loads(out)
    assert (code, err, report["ok"], report["problems"], report["sequences"]) == (0, "", True, [], 5)


def test_verify_exits_1_and_names_what_is_hit(run, store):
    corrupt(store)
    code, out, _ = run("verify", store, "--quiet")
    assert code == 1
    shard = ss.open(store).snapshot.shards[1].id
    assert f"store {os.path.abspath(store)}, shard {shard}, field 'x', chunk" in out
    assert "'b1'" in out
    assert out.endswith("it is not well: 1 problem\n")
    code, out, _ = run("verify", store, "--quiet", "--json")
    (problem,) = json.loads(out)["problems"]
    assert (code, problem["shard"], problem["field"]) == (1, shard, "x")
    assert "b1" in {span["id"] for span in problem["spans"]}
    assert run("verify", store, "--quiet", "--version", 1)[0] == 0
    code, out, _ = run("verify", store, "--quiet", "--all-versions", "--json")
    assert (code, json.loads(out)["versions"]) == (1, [1, 2, 3, 4])
    assert json.loads(out)["problems"][0]["versions"] == [2, 3, 4]


def test_verify_tells_leftovers_and_is_well_all_the_same(run, store):
    os.mkdir(f"{store}/shards/0123456789abcdef-000000")
    code, out, _ = run("verify", store, "--quiet")
    assert code == 0
    assert "1 leftovers of writers that died: streamseq clean removes them" in out


def test_info_and_log(run, store):
    code, out, err = run("info", store)
    assert (code, err) == (0, "")
    assert "5 sequences, 120 timesteps" in out
    assert json.loads(run("info", store, "--json", "--version", 1)[1])["timesteps"] == 30
    code, out, err = run("log", store)
    assert (code, err, len(out.splitlines())) == (0, "", 4)
    assert "write by first" in out.splitlines()[0]
    code, out, _ = run("log", store, "--json")
    assert [entry["job"] for entry in json.loads(out)["versions"]] == ["first", "more", "more", "more"]
    path = f"{store}/versions/00000002.json"
    os.truncate(path, 10)
    code, out, _ = run("log", store)
    assert (code, len(out.splitlines())) == (1, 4)


def test_clean(run, store):
    before = files(store)
    for name in ("shards/0123456789abcdef-000000", "staging/0123456789abcdef"):
        os.mkdir(f"{store}/{name}")
        with open(f"{store}/{name}/file", "w"):
            pass
    code, out, _ = run("clean", store, "--dry-run", "--json")
    assert (code, json.loads(out)["dry_run"]) == (0, True)
    assert {each["name"] for each in json.loads(out)["removed"]} == {
        "shards/0123456789abcdef-000000",
        "staging/0123456789abcdef",
    }
    assert len(files(store)) == len(before) + 2
    code, out, err = run("clean", store, "--older-than", "12h")
    assert (code, err) == (0, "")
    assert out.startswith("removed 2 leftovers: ")
    assert files(store) == before
    assert run("clean", store, "--older-than", "0")[1].endswith("has no leftovers to remove\n")


def test_compact(run, store):
    code, out, err = run("compact", store, "--json")
    report = json.loads(out)
    assert (code, report["version"], report["shards_before"], report["shards"]) == (0, 5, 4, 2)
    assert err.splitlines()[0] == "compact: 120 timesteps"
    assert ss.open(store).read("a")["x"].tolist() == list(range(40))
    assert ss.log(store)[-1].job == "streamseq compact"
    code, out, _ = run("compact", store, "--quiet")
    assert code == 0
    assert "has nothing to gain" in out


def test_repair(run, store):
    code, out, _ = run("repair", store, "--quiet")
    assert (code, out) == (0, f"{os.path.abspath(store)} version 4 is well: no version was made\n")
    corrupt(store)
    before = files(store)
    code, out, _ = run("repair", store, "--quiet", "--dry-run", "--json")
    would = json.loads(out)
    assert (code, would["version"], [each["id"] for each in would["left_out"]]) == (1, None, ["b1"])
    assert files(store) == before
    code, out, _ = run("repair", store, "--quiet")
    assert code == 0
    assert "left out: 'b1' (20 timesteps" in out
    assert ss.open(store).ids.to_pylist() == ["a", "b0", "b2", "b3"]
    assert ss.log(store)[-1].job == "streamseq repair"
    assert run("verify", store, "--quiet")[0] == 0


@pytest.mark.parametrize("command", ["verify", "info", "log", "clean", "compact", "repair"])
def test_what_is_no_store_is_one_line(run, command):
    code, out, err = run(command, "no.zarr")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("error: ")
    assert "no.zarr is not a store" in err
    assert not os.path.exists("no.zarr")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["verify"], "Missing argument 'STORE'"),
        (["verify", "s.zarr", "--workers", "0"], "--workers"),
        (["verify", "s.zarr", "--version", "1", "--all-versions"], "one version is checked or all of them"),
        (["clean", "s.zarr", "--older-than", "soon"], "'soon' is not an age such as"),
        (["clean", "s.zarr", "--older-than", "9999999999d"], "is too long an age"),
        (["compact", "s.zarr", "--fast"], "--fast"),
    ],
)
def test_wrong_use_is_one_line_and_exit_2(run, command, said):
    code, out, err = run(*command)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err


@pytest.mark.parametrize("command", ["verify", "compact", "repair"])
def test_ctrl_c_is_one_line_and_leaves_nothing(run, store, monkeypatch, command):
    corrupt(store, 3)
    before = files(store)

    def interrupted(self, done, total):
        if done:
            raise KeyboardInterrupt

    if command == "compact":
        ss.repair(store)
        before = files(store)
    monkeypatch.setattr("streamseq.etl.progress.Progress.__call__", interrupted)
    code, out, err = run(command, store)
    assert (code, out, err.strip()) == (130, "", "error: interrupted")
    assert files(store) == before


def test_the_commands_import_no_torch_and_no_dask(store):
    code = (
        "import sys; from streamseq.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'dask') if name in sys.modules])"
    )
    for command in ("verify", "info", "log", "clean", "compact", "repair"):
        done = subprocess.run([sys.executable, "-c", code, command, store], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]", command
