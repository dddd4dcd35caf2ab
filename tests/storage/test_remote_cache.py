"""Copies of remote files: bounded, shared, dropped when they are broken; and how streams read through them."""

import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

import streamseq as ss
from streamseq.storage.places.place import place_of
from streamseq.storage.places.remote_ahead import Ahead
from streamseq.storage.places.retrying import ExhaustedError, TruncatedError, retrying
from streamseq.storage.places.shard_cache import ShardCache

FIELDS = {"x": ss.Field("float32", (3,)), "label": ss.Field("int64", codec="none")}
CUT = {"chunk_bytes": 400, "shard_bytes": 4000}
STEPS = 500


def arrays(first=0, steps=STEPS):
    numbers = np.arange(first, first + steps)
    return {"x": (3 * numbers[:, None] + np.arange(3)).astype(np.float32), "label": numbers}


@pytest.fixture
def uri(bucket, backend):
    address = f"{bucket}/plants.{backend}"
    with ss.create(address, FIELDS, **CUT) as writer:
        writer.write("a", **arrays())
        writer.write("b", **arrays(1000))
    return address


def check(store):
    for id, first in (("a", 0), ("b", 1000)):
        read = store.read(id)
        for name, values in arrays(first).items():
            assert np.array_equal(read[name], values)


def sizes(cache):
    return [path.stat().st_size for path in (cache / "files").rglob("*") if path.is_file()]


def test_what_was_read_once_needs_no_network(proxy, uri):
    store = ss.open(uri)
    check(store)
    proxy.requests.clear()
    proxy.fail("denied", part="/shards/")
    proxy.fail("denied", part="/tables/")
    check(ss.open(uri))
    check(store)
    assert proxy.count(part="/shards/") == proxy.count(part="/tables/") == 0


@pytest.mark.parametrize("most", [0, 3000, 12000])
def test_the_cache_is_bounded_whatever_it_is_bounded_to(uri, own_cache, monkeypatch, most):
    monkeypatch.setenv("STREAMSEQ_CACHE_BYTES", str(most))
    store = ss.open(uri)
    for _ in range(2):
        check(store)
        assert sum(sizes(own_cache)) <= most
    assert bool(sizes(own_cache)) == bool(most)
    assert list((own_cache / "held").iterdir()) == []


def test_the_least_used_goes_first(own_cache):
    cache = ShardCache("s3://bucket/store", own_cache, 300)

    def fetch(name, size, path):
        fetched.append(name)
        path.write_bytes(bytes(size))

    def use(name, size=100):
        time.sleep(0.01)
        with cache.files({name: size}, fetch) as folder:
            assert (folder / name).stat().st_size == size

    fetched = []
    for name in "abcadab":
        use(name)
    assert fetched == list("abcdb")
    use("larger", 301)
    use("larger", 301)
    assert fetched == [*"abcdb", "larger", "larger"]
    use("a")
    assert fetched[-1] == "larger"
    with pytest.raises(ss.StoreError, match="lead nowhere else"):
        use("../a")


def test_what_is_dropped_while_it_is_handed_out_can_be_opened(own_cache):
    cache = ShardCache("s3://bucket/store", own_cache, 100)
    with cache.files({"a": 60}, lambda name, size, path: path.write_bytes(b"a" * size)) as folder:
        with cache.files({"b": 60}, lambda name, size, path: path.write_bytes(b"b" * size)):
            pass
        assert sizes(own_cache) == [60]
        assert (folder / "a").read_bytes() == b"a" * 60


def test_one_of_several_fetches_and_the_others_wait(own_cache):
    fetched = []

    def fetch(name, size, path):
        fetched.append(name)
        time.sleep(0.05)
        path.write_bytes(bytes(size))

    def use():
        with ShardCache("s3://bucket/store", own_cache, 1000).files({"a": 10}, fetch):
            pass

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["a"]


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty"])
def test_copies_that_are_broken_are_fetched_again(uri, own_cache, damage):
    check(ss.open(uri))
    damaged = 0
    for path in (own_cache / "files").rglob("*"):
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 8
            path.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-3]), "empty": b""}[damage])
            damaged += 1
    assert damaged > 10
    check(ss.open(uri))


def test_a_copy_that_breaks_while_it_is_read_is_fetched_again(uri, own_cache):
    store = ss.open(uri)
    _ = store.read("a", 0, 1)
    part = "/x.arrow" if uri.endswith("arrow") else "/x/c/0"
    paths = [path for path in (own_cache / "files").rglob("*") if part in str(path) and path.is_file()]
    for path in paths:
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 64] = bytes(64)
        path.write_bytes(content)  # the file that the reader has open, too
    assert paths
    check(store)


@pytest.mark.parametrize("backend", ["arrow"], indirect=True)
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_read_the_same_windows(uri, start):
    stream = ss.StreamDataset(ss.open(uri), lanes=2, window=64)
    wanted = [window["label"].clone() for window in stream]
    loader = torch.utils.data.DataLoader(
        ss.StreamDataset(ss.open(uri), lanes=2, window=64),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
    )
    got = [window["label"] for window in loader]
    assert len(got) == len(wanted) > 3
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_coming_shards_are_fetched_before_they_are_needed(uri):
    place = place_of(uri)
    shard = ss.open(uri).snapshot.shards[-1].id
    assert not place.near(shard, "x")
    until = time.monotonic() + 20
    while not place.near(shard, "x") and time.monotonic() < until:
        time.sleep(0.02)
    assert place.near(shard, "x")
    assert not place.near(shard, "label")
    loader = ss.StreamLoader(ss.StreamDataset(ss.open(uri), lanes=1, window=50))
    labels = torch.cat([window["label"].flatten() for window in loader]).numpy()
    assert np.array_equal(labels, np.concatenate([arrays()["label"], arrays(1000)["label"]]))


def test_what_waits_to_be_fetched_is_bounded():
    hold, ahead = threading.Event(), Ahead()
    begun = [ahead.begin(str(number), hold.wait) for number in range(100)]
    assert 1 < sum(begun) < 50
    assert ahead.begin("0", hold.wait)
    hold.set()


def test_a_store_on_a_plain_http_server_is_read(tmp_path, backend, own_cache, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "5")
    path = tmp_path / "served" / f"s.{backend}"
    with ss.create(path, FIELDS, **CUT) as writer:
        writer.write("a", **arrays())
    with ss.append(path) as writer:
        writer.write("b", **arrays(1000))

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def list_directory(self, path):
            self.send_error(403)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}/s.{backend}"
        store = ss.open(address)
        assert store.versions == [1, 2]
        check(store)
        with pytest.raises(ss.StoreError, match="can only be read: write to a local path"), ss.append(address):
            pass
    finally:
        server.shutdown()
        server.server_close()
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "0.1")
    with pytest.raises(ss.StoreError, match=r"failed \d+ times .*Connect"):
        ss.open(address)


def test_addresses_of_packages_that_are_not_there(monkeypatch):
    def missing(*args, **options):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("streamseq.storage.places.remote_place.url_to_fs", missing)
    with pytest.raises(ss.StoreError, match=r"pip install streamseq\[gcs\]"):
        ss.open("gs://bucket/plants.zarr")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("STREAMSEQ_RETRY_SECONDS", "soon"), ("STREAMSEQ_CACHE_BYTES", "-1"), ("STREAMSEQ_CACHE", None)],
)
def test_settings_that_make_no_sense(tmp_path, monkeypatch, variable, value):
    if value is None:
        (tmp_path / "file").write_bytes(b"")
        monkeypatch.setenv(variable, str(tmp_path / "file"))
        with ss.create("memory://settings.zarr", FIELDS) as writer:
            writer.write("a", **arrays())
        with pytest.raises(ss.StoreError, match="set STREAMSEQ_CACHE to another folder"):
            ss.open("memory://settings.zarr").read("a")
        fsspec.filesystem("memory").rm("settings.zarr", recursive=True)
        return
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} is a number"):
        ss.open("memory://nothing.zarr")


def test_what_helps_to_try_again_is_tried_again(monkeypatch):
    monkeypatch.setattr("streamseq.storage.places.retrying._FIRST_PAUSE", 0.001)

    def attempt(*errors):
        left = list(errors)

        def action():
            if left:
                raise left.pop(0)
            return "done"

        return action

    class Answer(Exception):
        def __init__(self, status):
            self.status = status

    assert retrying("it", attempt(ConnectionResetError(), TimeoutError(), TruncatedError(), Answer(503)), 10) == "done"
    for status in (400, 401, 403, 501 - 100):
        with pytest.raises(ss.StoreError, match="it failed with Answer"):
            retrying("it", attempt(Answer(status)), 10)
    with pytest.raises(FileExistsError):
        retrying("it", attempt(Answer(412)), 10)
    with pytest.raises(FileNotFoundError):
        retrying("it", attempt(FileNotFoundError()), 10)
    with pytest.raises(OSError, match="disk is full"):
        retrying("it", attempt(OSError(28, "disk is full")), 10)
    with pytest.raises(ExhaustedError, match=r"it failed 1 times in .* with TimeoutError"):
        retrying("it", attempt(TimeoutError()), 0)


def test_copies_of_killed_processes_are_removed(own_cache):
    cache = ShardCache("s3://bucket/store", own_cache, 1000)
    left = own_cache / "held" / "1-left"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    cache.keep("a", b"1")
    assert not left.exists()
    assert cache.read("a") == b"1"
    assert isinstance(cache.path("a"), Path)
