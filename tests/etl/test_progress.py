"""Progress: lines off a terminal, a bar on one, and where a job's time went."""

import json
import logging
import os
import pty
import subprocess
import sys
import time

import numpy as np
import pytest
from distributed import Client, LocalCluster

import streamseq as ss
from streamseq.etl import Partition, Piece, progress
from streamseq.etl.progress import Progress


class Sleepy:
    """Partitions that take `seconds` each."""

    fields = {"x": ss.Field("int64")}  # noqa: RUF012 - as a user would write it

    def __init__(self, count, seconds):
        self.count = count
        self.seconds = seconds

    def partitions(self, target_bytes):
        return [Partition(num_bytes=1000, content=number) for number in range(self.count)]

    def read(self, partition):
        time.sleep(self.seconds)
        yield Piece(id=str(partition.content), arrays={"x": np.arange(100)})


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when it is told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_off_a_terminal_a_line_every_ten_seconds_says_bytes_rate_and_time_left(clock, capsys):
    with Progress() as show:
        show(1_000_000, 5_000_000)
        for _ in range(24):
            clock[0] += 1
            show(min(5_000_000, show._first[0] + int(clock[0] - 100) * 100_000), 5_000_000)
        clock[0] += 16
        show(5_000_000, 5_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "ingest: 5.0 MB, 1.0 MB of them were done before",
        "ingest: 2.0 MB of 5.0 MB, 100.0 kB/s, 30 s left",
        "ingest: 3.0 MB of 5.0 MB, 100.0 kB/s, 20 s left",
        "ingest: done in 40.0 s",
    ]


def test_a_job_that_has_done_nothing_yet_does_not_say_how_long_it_takes(clock, capsys):
    with Progress("predict", "timestep") as show:
        show(0, 500)
        clock[0] += 30
        show(0, 500)
        clock[0] += 3970
        show(400, 500)
    assert capsys.readouterr().err.splitlines()[1:] == [
        "predict: 0 of 500 timesteps, 0.0/s",
        "predict: 400 of 500 timesteps, 0.1/s, 16 min 40 s left",
    ]


def test_progress_is_told_while_a_task_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("streamseq.etl.cluster._POLL_SECONDS", 0.05)
    seen = []
    ss.ingest(Sleepy(1, 0.5), tmp_path / "s.zarr", workers=1, progress=lambda *done: seen.append(done))
    assert seen[-1] == (1000, 1000)
    assert seen.count((0, 1000)) > 2


def test_starting_up_is_reported_apart(tmp_path, monkeypatch):
    from streamseq.etl import cluster

    def slowly(*args, **options):
        time.sleep(0.4)
        return connect(*args, **options)

    connect = cluster.connect
    monkeypatch.setattr(cluster, "connect", slowly)
    report = ss.ingest(Sleepy(2, 0.3), tmp_path / "s.zarr", workers=2)
    assert 0.4 <= report.startup_seconds <= report.seconds - 0.3
    assert json.loads(report.to_json())["startup_seconds"] == round(report.startup_seconds, 3)
    assert f"{report.startup_seconds:.1f} s of them to start" in str(report)


def test_the_dashboard_of_the_users_cluster_is_named_and_only_that(tmp_path):
    said = []
    ss.ingest(Sleepy(1, 0), tmp_path / "own.zarr", workers=1, note=said.append)
    assert said == []
    with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
    ) as cluster:
        for name, where in (("a", {"scheduler": cluster.scheduler_address}), ("b", {"client": Client(cluster)})):
            ss.ingest(Sleepy(1, 0), tmp_path / f"{name}.zarr", note=said.append, **where)
            if "client" in where:
                where["client"].close()
        port = cluster.dashboard_link.rsplit(":", 1)[1]
    assert len(said) == 2
    assert all(text.startswith("Dask's dashboard is at http://127.0.0.1:") and text.endswith(port) for text in said)


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(40):
        (tmp_path / "in" / f"{number}").write_bytes(os.urandom(1 << 20))
    controller, terminal = pty.openpty()
    job = subprocess.Popen(
        [sys.executable, "-m", "streamseq", "ingest", "text", "in", "--to", "s.zarr", "--shard-bytes", "1000000"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env=os.environ | {"COLUMNS": "80"},
    )
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(controller, 4096)
        except OSError:  # as Linux says that the other end is closed
            break
        if not block:
            break
        shown += block
    os.close(controller)
    assert job.wait(60) == 0
    last = [line for line in shown.decode().replace("\n", "\r").split("\r") if line.strip()][-1]
    assert last.startswith("ingest: 100%|")
    assert "41.9M/41.9M [" in last
    assert "B/s]" in last
    assert "<" in last  # time gone < time left
