"""What is quarantined: a file of JSON lines beside the store, complete whenever there is a version."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support.s3 import Proxy, s3_server

import streamseq as ss
from streamseq.etl import Partition, Piece, Skipped, quarantine

CUT = {"chunk_bytes": 80, "shard_bytes": 800, "workers": 2}


class Lines:
    """A partition for each file of a folder; a line is a number, or bad. The line "fail" fails, "wait" never ends."""

    threads = True

    def __init__(self, folder, on_error="quarantine"):
        self.fields = {"x": ss.Field("int64")}
        self.folder = Path(folder)
        self.on_error = on_error
        self.settings = {"on_error": on_error}

    def partitions(self, target_bytes):
        return [
            Partition(num_bytes=path.stat().st_size, content=(path.name, path.read_bytes()))
            for path in sorted(self.folder.iterdir())
        ]

    def read(self, partition):
        name, content = partition.content
        if content == b"unreadable":
            yield Skipped(what=name, reason="unreadable", num_bytes=len(content))
            return
        for number, line in enumerate(content.splitlines(keepends=True), 1):
            if line == b"fail\n":
                raise OSError(5, "disk on fire")
            if line.strip().isdigit():
                yield Piece(id=name, arrays={"x": np.array([int(line)])})
            else:
                kept = line if self.on_error == "quarantine" else None
                place = f"line {number}"
                yield Skipped(what=name, place=place, reason="no number", num_bytes=len(line), content=kept)


BAD = {"f0": b"1\n", "f1": b"2\nodd\n3\n\xff\xfe\n", "f2": b"unreadable", "f3": "drei\n4\näh\n".encode()}
WANTED = [
    ("f1", "line 2", b"odd\n"),
    ("f1", "line 4", b"\xff\xfe\n"),
    ("f2", "", None),
    ("f3", "line 1", b"drei\n"),
    ("f3", "line 3", "äh\n".encode()),
]


@pytest.fixture
def folder(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    (tmp_path / "in").mkdir()
    for name, content in BAD.items():
        (tmp_path / "in" / name).write_bytes(content)
    return tmp_path


def parsed(text):
    found = []
    for line in map(json.loads, text.splitlines()):
        content = line["content"].encode() if "content" in line else None
        if "content_base64" in line:
            assert content is None
            content = base64.b64decode(line["content_base64"])
            with pytest.raises(UnicodeDecodeError):
                content.decode()
        assert line["reason"] in ("no number", "unreadable")
        assert line["num_bytes"] == (10 if content is None else len(content))
        found.append((line["what"], line["place"], content))
    return found


def quarantined(address):
    with fsspec.open(str(address) + ".quarantine.jsonl", "rb") as file:
        return parsed(file.read())


def around(folder):
    return sorted(os.listdir(folder))


def test_what_is_quarantined_lies_beside_the_store_in_order(folder):
    report = ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    assert report.quarantine == str(folder / "s.zarr.quarantine.jsonl")
    assert quarantined(folder / "s.zarr") == WANTED
    assert [(item.what, item.place, item.content) for item in report.skipped] == WANTED
    assert json.loads(report.to_json())["quarantine"] == report.quarantine
    assert f"what was left out is in {report.quarantine}" in str(report)
    assert around(folder) == ["in", "s.zarr", "s.zarr.quarantine.jsonl"]
    assert ss.open(folder / "s.zarr").verify().ok
    assert not ss.clean(folder / "s.zarr", dry_run=True).removed


@pytest.mark.parametrize("on_error", ["skip", "quarantine"])
def test_without_anything_quarantined_there_is_no_file(folder, on_error):
    if on_error == "quarantine":
        for name in ("f1", "f2", "f3"):
            (folder / "in" / name).unlink()
    report = ss.ingest(Lines(folder / "in", on_error), folder / "s.zarr", **CUT)
    assert report.quarantine is None
    assert json.loads(report.to_json())["quarantine"] is None
    assert "jsonl" not in str(report)
    assert around(folder) == ["in", "s.zarr"]


def test_a_job_that_is_run_again_replaces_the_file_and_removes_it_when_all_is_well(folder):
    ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    (folder / "in/f3").write_bytes(b"5\n")
    ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    assert quarantined(folder / "s.zarr") == WANTED[:3]
    # One that has nothing to do says again what it left out, also where the file was lost.
    (folder / "s.zarr.quarantine.jsonl").unlink()
    report = ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    assert report.partitions_done_before == report.partitions
    assert quarantined(folder / "s.zarr") == WANTED[:3]
    for name in ("f1", "f2"):
        (folder / "in" / name).write_bytes(b"6\n")
    assert ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT).quarantine is None
    assert around(folder) == ["in", "s.zarr"]


def test_a_job_that_failed_keeps_what_it_left_out_for_the_next_run(folder):
    (folder / "in/f4").write_bytes(b"fail\n")
    with pytest.raises(OSError, match="disk on fire"):
        ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT | {"workers": 1})
    assert around(folder) == ["in", "s.zarr"]
    (folder / "in/f4").write_bytes(b"7\n")
    report = ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    assert report.partitions_done_before > 0
    assert quarantined(folder / "s.zarr") == WANTED


def test_a_job_whose_version_another_one_made_leaves_no_file(folder):
    class Late(Lines):
        def read(self, partition):
            if partition.content[0] == "f3":
                with ss.create(folder / "s.zarr", self.fields) as writer:
                    writer.write("other", x=np.arange(5))
            yield from super().read(partition)

    with pytest.raises(ss.VersionConflictError):
        ss.ingest(Late(folder / "in"), folder / "s.zarr", **CUT)
    assert around(folder) == ["in", "s.zarr"]


def test_of_very_much_the_report_has_no_bytes_and_the_file_has_all(folder, monkeypatch):
    monkeypatch.setattr(quarantine, "_HELD_BYTES", 10)
    report = ss.ingest(Lines(folder / "in"), folder / "s.zarr", **CUT)
    assert sum(len(item.content or b"") for item in report.skipped) <= 10
    assert len(report.skipped) == len(WANTED)
    assert quarantined(folder / "s.zarr") == WANTED


def test_a_store_in_object_storage_has_it_beside_it_too(folder):
    address = "memory://bucket-q/plants.zarr"
    report = ss.ingest(Lines(folder / "in"), address, **CUT)
    assert report.quarantine == f"{address}.quarantine.jsonl"
    assert quarantined(address) == WANTED
    for name in ("f1", "f2", "f3"):
        (folder / "in" / name).write_bytes(b"6\n")
    assert ss.ingest(Lines(folder / "in"), address, **CUT).quarantine is None
    assert not fsspec.filesystem("memory").exists(f"{address}.quarantine.jsonl")
    assert ss.open(address).version == 2


def test_busy_servers_are_asked_again(folder, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with s3_server() as port:
        proxy = Proxy(port)
        try:
            options = {"endpoint_url": proxy.address}
            files = fsspec.filesystem("s3", **options)
            files.mkdir("bucket")
            fault = proxy.fail("busy", part="quarantine.jsonl", times=3)
            address = "s3://bucket/plants.zarr"
            report = ss.ingest(Lines(folder / "in"), address, storage_options=options, **CUT)
            assert fault.times == 0
            assert parsed(files.cat_file(report.quarantine)) == WANTED
        finally:
            proxy.close()


def test_a_store_that_is_all_of_a_bucket_is_refused_before_anything_is_read(folder):
    with pytest.raises(ValueError, match="put the store into a folder"):
        ss.ingest(Lines(folder / "in"), "s3://bucket", backend="zarr", **CUT)


KILLED = """
import sys
sys.path[:0] = {tests!r}
from test_quarantine import CUT, Lines
import streamseq as ss
ss.ingest(Lines({inputs!r}), {address!r}, progress=lambda done, total: print(done, flush=True), **CUT)
"""


@pytest.mark.alone
def test_a_job_that_was_killed_has_all_of_it_in_the_end(folder):
    for number in range(4, 40):
        (folder / "in" / f"g{number:02d}").write_bytes(b"1\nbad %d\n" % number)
    wanted = [*WANTED, *((f"g{number:02d}", "line 2", b"bad %d\n" % number) for number in range(4, 40))]
    address = folder / "s.zarr"
    code = KILLED.format(
        tests=[str(path) for path in Path(__file__).parents[:2]], inputs=str(folder / "in"), address=str(address)
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) > 150:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert around(folder) == ["in", "s.zarr"]
    again = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert int(again.stdout.splitlines()[0]) > 0
    assert quarantined(address) == wanted
