"""Processes change nothing: start methods, workers that persist, die or are more the next time; StatefulDataLoader."""

import json
import os
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

# Workers seed it. Its import in a forked one can fail in Python 3.11 when a finalizer imports something just then
# (https://github.com/python/cpython/issues/106176).
import numpy.random
import pytest
from torch.utils.data import DataLoader, get_worker_info

import streamseq as ss

LENGTHS = [61, 9, 34, 17, 50, 3]
FIELDS = {"x": ss.Field("int32"), "v": ss.Field("float32", (2,))}

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    """A store on disk for each backend, of several chunks and shards."""
    folder, made = tmp_path_factory.mktemp("stores"), {}
    for backend in ("zarr", "arrow"):
        made[backend] = folder / f"store.{backend}"
        with ss.create(made[backend], FIELDS, chunk_bytes=64, shard_bytes=1024) as writer:
            for i, n in enumerate(LENGTHS):
                x = i * 1000 + np.arange(1, n + 1, dtype=np.int32)
                writer.write(f"s{i}", x=x, v=np.stack([x, -x], 1).astype(np.float32))
    return made


def make_stream(uri, **options):
    return ss.StreamDataset(ss.open(uri), 3, 5, shuffle=True, lookahead={"next": ("x", 1)}, **options)


def contents(window):
    """All that a window holds, in values that compare."""
    return (
        {name: window[name].tolist() for name in window},
        window.mask.tolist(),
        window.lengths.tolist(),
        window.token,
    )


def all_of(windows):
    return [contents(window) for window in windows]


def open_files(folder):
    """The files of a folder that this process holds open."""
    paths = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            path = os.readlink(descriptor)
        except FileNotFoundError:  # the one that lists the folder
            continue
        if path.startswith(str(folder)):
            paths.append(path)
    return paths


class Watched(ss.StreamDataset):
    """Gives the process that reads, and how many of the store's files it held before the first window and holds now."""

    def __iter__(self):
        before = len(open_files(self.store.uri))
        for _ in super().__iter__():
            yield os.getpid(), before, len(open_files(self.store.uri))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_every_start_method_gives_the_same_windows_in_every_epoch(uris, backend, method):
    stream = make_stream(uris[backend])
    wanted = []
    for epoch in range(2):
        stream.set_epoch(epoch)
        wanted.append(all_of(stream))
    assert wanted[0] != wanted[1]
    stream.set_epoch(0)
    stream[3]  # the parent's own files are open
    loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True, multiprocessing_context=method)
    for epoch in range(2):
        stream.set_epoch(epoch)
        assert all_of(loader) == wanted[epoch]
        assert all_of(stream) == wanted[epoch]


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_a_pickled_stream_holds_no_files_and_no_decoded_chunks(uris, backend):
    stream = make_stream(uris[backend])
    unread = pickle.dumps(stream)
    wanted = all_of(stream)
    stream[3]
    read = pickle.dumps(stream)
    assert len(read) < len(unread) + 200
    assert contents(pickle.loads(read)[3]) == wanted[3]
    before = len(open_files(uris[backend]))
    copy = pickle.loads(read)
    assert len(open_files(uris[backend])) == before
    assert all_of(copy) == wanted
    assert all_of(stream) == wanted


@pytest.mark.parametrize("backend", ["zarr", "arrow"])
def test_a_worker_opens_the_files_that_it_reads_itself(uris, backend):
    stream = Watched(ss.open(uris[backend]), 3, 5)
    loader = DataLoader(stream, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    seen = list(loader)
    assert {pid for pid, _, _ in seen} == {seen[0][0]} != {os.getpid()}
    assert all(before == 0 for _, before, _ in seen)
    assert any(during for _, _, during in seen)
    assert not open_files(uris[backend])


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (1, 2), (2, 0)])
def test_a_run_goes_on_with_another_number_of_workers(uris, before, after):
    """Also where it stopped when workers had read further ahead than what was consumed."""
    wanted = all_of(make_stream(uris["arrow"]))
    for step in (1, 4, len(wanted)):
        stream = make_stream(uris["arrow"])
        windows = iter(DataLoader(stream, batch_size=None, num_workers=before))
        consumed = [next(windows) for _ in range(step)]
        state = pickle.loads(pickle.dumps(consumed[-1].token.state_dict()))
        del windows
        stream = make_stream(uris["arrow"])
        stream.load_state_dict(state)
        loader = DataLoader(stream, batch_size=None, num_workers=after)
        assert all_of(consumed) + all_of(loader) == wanted
        assert all_of(loader) == wanted


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_that_is_killed_is_named_in_an_error(uris, method):
    command = [sys.executable, "-m", "tests.support.killed_worker", str(uris["zarr"]), method]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    named = rf"DataLoader worker \(pid.*{report['worker']}\)"
    said = next(text for text in report["said"] if re.search(named, text))
    assert "exited unexpectedly" in said or "killed by signal" in said
    # The stream is as good as before.
    assert report["again"] == report["windows"]


stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="pip install torchdata")

# torchdata 0.11 calls what newer versions of torch warn of.
needs_torchdata = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")


def stateful_loader(stream, workers, **options):
    return stateful.StatefulDataLoader(stream, batch_size=None, num_workers=workers, **options)


def assert_goes_on(stop, resume, wanted, step):
    """The loader `resume` goes on from the state that the loader `stop` has after `step` windows."""
    windows = iter(stop)
    consumed = [next(windows) for _ in range(step)]
    state = pickle.loads(pickle.dumps(stop.state_dict()))
    del windows
    resume.load_state_dict(state)
    assert all_of(consumed) + all_of(resume) == wanted


@needs_torchdata
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("step", [0, 1, 4, 7])
def test_a_stateful_data_loader_goes_on_after_the_last_consumed_window(uris, workers, step):
    wanted = all_of(make_stream(uris["zarr"], epoch=1))
    stop = stateful_loader(make_stream(uris["zarr"], epoch=1), workers)
    resume = stateful_loader(make_stream(uris["zarr"]), workers)
    assert_goes_on(stop, resume, wanted, step)
    # Only that one iteration started there.
    assert resume.dataset.epoch == 1
    assert all_of(resume) == wanted


@needs_torchdata
def test_a_stateful_data_loader_goes_on_at_the_end_of_an_epoch(uris):
    """Its workers have then counted further than there are windows."""
    wanted = all_of(make_stream(uris["zarr"]))
    for workers in (0, 1, 2, 3):
        for step in (len(wanted) - 1, len(wanted)):
            stop, resume = (stateful_loader(make_stream(uris["zarr"]), workers) for _ in range(2))
            assert_goes_on(stop, resume, wanted, step)


@needs_torchdata
def test_a_stateful_data_loader_goes_on_in_a_later_epoch_of_persistent_workers(uris):
    stream = make_stream(uris["zarr"])
    stop = stateful_loader(stream, 2, persistent_workers=True)
    assert all_of(stop) == all_of(stream)
    stream.set_epoch(1)
    assert_goes_on(stop, stateful_loader(make_stream(uris["zarr"]), 2), all_of(stream), 3)


class LateToStart(ss.StreamDataset):
    """A worker waits after loading its position, until the others have loaded theirs."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        if get_worker_info() is not None:
            time.sleep(0.3)


@needs_torchdata
def test_workers_that_load_positions_at_the_same_time_do_not_disturb_each_other(uris):
    """After an odd number of windows the two workers' positions differ."""
    store = ss.open(uris["zarr"])
    wanted = all_of(ss.StreamDataset(store, 3, 5))
    stop, resume = (stateful_loader(LateToStart(store, 3, 5), 2) for _ in range(2))
    assert_goes_on(stop, resume, wanted, 5)
