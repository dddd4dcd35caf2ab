"""Workers and clients of real Dask processes that are killed at random: the store is that of an undisturbed job."""

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster, Status
from support.jobs import entries, named
from support.slow_source import CUT, SlowSource

import streamseq as ss
from streamseq.storage.disk_store import DiskStore

PARTITIONS = 24
MAIN = [sys.executable, "-c", "from support.slow_source import main; main()"]


@pytest.fixture(scope="module")
def cluster():
    """Two workers that are processes, and are started again when they die."""
    with (
        # One that is not back after so long is given up.
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
        ) as cluster,
    ):
        yield cluster


@pytest.fixture
def folder(tmp_path):
    for name in ("marks", "undisturbed-marks"):
        (tmp_path / name).mkdir()
    return tmp_path


def start_client(folder, cluster):
    return subprocess.Popen(
        [*MAIN, str(folder / "s.zarr"), str(folder / "marks"), str(PARTITIONS), cluster.scheduler_address],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def kill_worker(cluster, random_):
    """Kill the process of a worker; return whether there was one."""
    # Dask gives up a worker that dies while it starts.
    alive = [
        nanny.pid
        for nanny in cluster.workers.values()
        if nanny.pid is not None and nanny.process.status == Status.running
    ]
    if not alive:
        return False
    try:
        os.kill(random_.choice(alive), signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def run_once(folder, cluster, random_, workers, client):
    """Run the job once; kill a worker `workers` times at random moments, and then the client where that is wanted.

    Returns:
        What the client reported, None where it did not come to its end; and how many workers were killed.
    """
    process = start_client(folder, cluster)
    assert process.stdout is not None
    # After so many partitions; the client last of all.
    moments = sorted(random_.randrange(PARTITIONS) for _ in range(workers + client))
    killed, lines = 0, []
    for line in process.stdout:
        lines.append(line)
        while moments and len(lines) > moments[0]:
            moments.pop(0)
            time.sleep(random_.random() * 0.05)
            if moments or not client:
                killed += kill_worker(cluster, random_)
            else:
                process.kill()
    process.stdout.close()
    done = process.wait(60) == 0
    return json.loads(lines[-1]) if done else None, killed


def check_outcome(folder, report):
    address = folder / "s.zarr"
    wanted_report = ss.ingest(SlowSource(folder / "undisturbed-marks", PARTITIONS, 0), folder / "u.zarr", **CUT)
    wanted, store = ss.open(folder / "u.zarr"), ss.open(address)
    assert store.versions == [1]
    assert store.fingerprint == wanted.fingerprint
    assert store.ids.to_pylist() == wanted.ids.to_pylist()
    # Every value is there once, in order: no timestep is missing, none comes twice.
    assert [value for id in store.ids.to_pylist() for value in store.read(id)["x"]] == list(range(store.num_timesteps))
    assert store.num_timesteps == wanted.num_timesteps == report["timesteps"]
    assert [store.attrs(id) for id in store.ids.to_pylist()] == [wanted.attrs(id) for id in wanted.ids.to_pylist()]
    assert store.verify().ok
    assert (folder / "s.zarr.quarantine.jsonl").read_bytes() == (folder / "u.zarr.quarantine.jsonl").read_bytes()
    assert [item["what"] for item in report["skipped"]] == [item.what for item in wanted_report.skipped]
    deadline = time.monotonic() + 30
    while (left := ss.clean(address, jobs=True)).writers and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left.writers
    attached = {f"tables/{file.name}" for file in DiskStore(address).snapshot.attachments.values()}
    assert set(entries(address)) == set(named(address)) | attached
    assert sorted(path.name for path in folder.iterdir() if path.name.startswith("s.")) == [
        "s.zarr",
        "s.zarr.quarantine.jsonl",
    ]


def disturb(folder, cluster, seed):
    """Kill clients and workers at random until a client comes to its end."""
    random_ = random.Random(seed)
    killed_workers = killed_clients = 0
    for run in range(20):
        # The first runs are killed for sure, and later ones less and less.
        client = run == 0 or random_.random() < 0.6 / run
        workers = random_.randrange(1 + (run < 4), 3) if run < 4 else 0
        report, killed = run_once(folder, cluster, random_, workers, client)
        killed_workers += killed
        killed_clients += client and report is None
        if report is not None:
            assert killed_workers
            assert killed_clients
            return report
    raise AssertionError("the job came to no end")


@pytest.mark.alone
@pytest.mark.parametrize("seed", range(2))
def test_clients_and_workers_that_are_killed_at_random_end_in_the_same_store(folder, cluster, seed):
    check_outcome(folder, disturb(folder, cluster, seed))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 130))
def test_clients_and_workers_that_are_killed_at_random_end_in_the_same_store_again_and_again(folder, cluster, seed):
    check_outcome(folder, disturb(folder, cluster, seed))


@pytest.mark.alone
def test_a_worker_that_dies_loses_only_its_task(folder, cluster):
    report, killed = run_once(folder, cluster, random.Random(5), 1, False)
    assert report is not None
    assert killed == 1
    reads = Counter(path.name.split("-")[0] for path in (folder / "marks").iterdir())
    assert len(reads) == PARTITIONS
    # That which it ran, and one that it had done and not yet told of.
    assert sum(reads.values()) <= PARTITIONS + 2
    check_outcome(folder, report)
