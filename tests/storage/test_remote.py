"""Stores in object storage, over a server of the S3 protocol that fails as it is told to."""

import multiprocessing
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import fsspec
import numpy as np
import pytest
from storage.test_conformance import FIELDS as ALL_FIELDS
from storage.test_conformance import StoreSuite

import streamseq as ss
from streamseq.storage.places.place import UnknownOutcomeError

FIELDS = {"x": ss.Field("float32", (3,)), "label": ss.Field("int64", codec="none")}
CUT = {"chunk_bytes": 400, "shard_bytes": 4000}
STEPS = 300


@pytest.fixture
def uri(bucket, backend):
    return f"{bucket}/some/plants.{backend}"


def arrays(first=0, steps=STEPS):
    numbers = np.arange(first, first + steps)
    return {"x": (3 * numbers[:, None] + np.arange(3)).astype(np.float32), "label": numbers}


def write(uri, **options):
    with ss.create(uri, FIELDS, **CUT, **options) as writer:
        writer.write("a", **arrays())
        writer.write("b", **arrays(1000))
    return uri


def check(store, ids=("a", "b")):
    for id, first in zip("abcd", (0, 1000, 2000, 3000), strict=True):
        if id in ids:
            read = store.read(id)
            for name, values in arrays(first).items():
                assert np.array_equal(read[name], values)


def files(uri, part=""):
    fs = fsspec.filesystem(uri.partition(":")[0], use_listings_cache=False)
    return sorted(path for path in fs.find(uri.partition("://")[2]) if part in path)


@pytest.mark.usefixtures("own_cache")
class RemoteSuite(StoreSuite):
    suffix = ""
    shard_bytes = 6000

    def address(self):
        return f"memory://{uuid.uuid4().hex}"

    def build(self, folder, arrays, attrs):
        address = f"{self.address()}{self.suffix}"
        with ss.create(address, ALL_FIELDS, chunk_bytes=100, shard_bytes=self.shard_bytes) as writer:
            for id, named in arrays.items():
                writer.write(id, attrs=attrs.get(id), **named)
        return ss.open(address)

    def test_it_is_well(self, store):
        assert store.uri.endswith(self.suffix)
        assert store.verify().ok
        assert ss.clean(store.uri).removed == ()


class TestZarrInMemory(RemoteSuite):
    suffix = ".zarr"


class TestArrowOnServer(RemoteSuite):
    suffix = ".arrow"
    shard_bytes = 20000

    @pytest.fixture(autouse=True)
    def server(self, bucket):
        self.bucket = bucket

    def address(self):
        return f"{self.bucket}/{uuid.uuid4().hex}"


def test_versions(uri):
    write(uri)
    first = ss.open(uri)
    with ss.append(uri, job="more") as writer:
        writer.write("c", **arrays(2000))
        writer.append("a", **arrays(STEPS, 5))
    assert ss.open(uri).versions == first.versions == [1, 2]
    assert ss.open(uri).lengths.tolist() == [STEPS + 5, STEPS, STEPS]
    check(ss.open(uri), "bc")
    check(ss.open(uri, version=1))
    assert [entry.job for entry in ss.log(uri)][1] == "more"
    assert ss.compact(uri).version == 3
    check(ss.open(uri), "bc")
    with pytest.raises(ss.StoreError, match="is a store already"):
        ss.create(uri, FIELDS)
    with pytest.raises(ss.StoreError, match="there is nothing there"):
        ss.open(uri + "x")


def test_an_exception_leaves_nothing(uri):
    def fail():
        with ss.create(uri, FIELDS, **CUT) as writer:
            writer.write("a", **arrays())
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fail()
    assert files(uri) == []


@pytest.mark.parametrize("kind", ["drop", "lose", "cut", "busy", "slow"])
def test_faults_that_pass_do_no_harm(proxy, bucket, kind):
    uri = f"{bucket}/s.arrow"
    for part in ("/versions/", "/shards/", "/tables/", "/staging/"):
        for method in ("GET", "PUT", "HEAD"):
            proxy.fail(kind, method, part, times=1)
    write(uri)
    with ss.append(uri) as writer:
        writer.write("c", **arrays(2000))
    # The reads as well, of which some were done by the writers.
    for part in ("/versions/", "/shards/", "/tables/"):
        proxy.fail(kind, "", part, times=2)
    store = ss.open(uri)
    check(store, "abc")
    assert store.versions == [1, 2]
    assert not files(uri, "/staging/")


def test_an_answer_that_is_lost_is_no_conflict_with_oneself(proxy, uri):
    # The server makes the version, the writer does not hear of it and asks again.
    lost = proxy.fail("lose", "PUT", "/versions/0000", times=1)
    write(uri)
    assert lost.times == 0
    assert ss.open(uri).versions == [1]
    check(ss.open(uri))


@pytest.mark.parametrize("kind", ["short", "flip"])
@pytest.mark.parametrize("part", ["/tables/", "x", "label"])
def test_bodies_that_are_not_what_was_written_are_fetched_again(proxy, uri, kind, part):
    write(uri)
    wrong = proxy.fail(kind, "GET", part if part == "/tables/" else f"/{part}", times=1)
    store = ss.open(uri)
    if kind == "flip" and part == "x":
        wrong.part = "x.arrow" if uri.endswith("arrow") else "x/c"
    check(store)
    assert wrong.times == 0


def test_bytes_that_are_wrong_in_the_store_are_an_error(proxy, uri):
    write(uri)
    proxy.fail("flip", "GET", "label.arrow" if uri.endswith("arrow") else "label/c")
    with pytest.raises(ss.CorruptionError, match="field 'label'"):
        ss.open(uri).read("a")
    proxy.reset()
    check(ss.open(uri))


def test_verify_looks_at_the_store_and_not_at_copies(proxy, uri):
    write(uri)
    store = ss.open(uri)
    check(store)
    path = files(uri, "label.arrow" if uri.endswith("arrow") else "label/c")[0]
    fs = fsspec.filesystem("s3", use_listings_cache=False)
    content = bytearray(fs.cat_file(path))
    content[len(content) // 2] ^= 4
    fs.pipe_file(path, bytes(content))
    check(ss.open(uri))
    assert {problem.field for problem in store.verify().problems} == {"label"}


def test_what_does_not_pass_is_said_once_the_time_is_up(proxy, uri, monkeypatch):
    write(uri)
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "0.3")
    proxy.fail("busy", "GET")
    with pytest.raises(ss.StoreError, match=r"failed \d+ times in .* the last time with .*check the network"):
        ss.open(uri)


def test_a_refusal_is_not_tried_again(proxy, uri):
    write(uri)
    proxy.requests.clear()
    proxy.fail("denied")
    with pytest.raises(ss.StoreError, match="Access Denied: check the credentials"):
        ss.open(uri)
    assert proxy.count() == 1


def test_a_stalled_server_is_given_up(proxy, uri, monkeypatch):
    write(uri)
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "0.5")
    proxy.fail("stall", "GET")
    quick = {"config_kwargs": {"read_timeout": 0.3, "retries": {"max_attempts": 0}}}
    with pytest.raises(ss.StoreError, match=r"failed \d+ times .*imeout"):
        ss.open(uri, storage_options=quick)


def test_a_server_that_never_takes_a_body_is_given_up(proxy, uri, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "0.5")
    proxy.fail("mute", part="/staging/")
    with pytest.raises(ss.StoreError, match=r"failed \d+ times .*imeout"):
        write(uri)


def test_a_commit_of_unknown_outcome_keeps_what_it_may_have_named(proxy, uri, monkeypatch):
    monkeypatch.setenv("STREAMSEQ_RETRY_SECONDS", "0.3")
    proxy.fail("lose", "PUT", "/versions/0000")
    proxy.fail("drop", "GET", "/versions/0000")
    proxy.fail("drop", "HEAD", "/versions/0000")
    with pytest.raises(UnknownOutcomeError, match=r"whether .* was written is not known"):
        write(uri)
    proxy.reset()
    # The server had made it.
    check(ss.open(uri))
    assert ss.open(uri).verify().ok


def test_writers_at_the_same_time(uri):
    write(uri)
    ready = threading.Barrier(2)

    def append(id, first):
        with ss.append(uri) as writer:
            writer.append(id, **arrays(first))
            ready.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(append, "cd", (2000, 3000)))
    assert ss.open(uri).versions == [1, 2, 3]
    check(ss.open(uri), "abcd")
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(append, "e", 4000) for _ in range(2)]
        errors = [each.exception() for each in both]
    assert sorted(type(error) for error in errors if error) == [ss.VersionConflictError]
    assert ss.open(uri).lengths.tolist() == [STEPS] * 5


def test_two_that_create_the_same_store(uri):
    ready = threading.Barrier(2)

    def create():
        with ss.create(uri, FIELDS, **CUT) as writer:
            writer.write("a", **arrays())
            ready.wait()

    with ThreadPoolExecutor(2) as pool:
        errors = [each.exception() for each in [pool.submit(create) for _ in range(2)]]
    assert [type(error) for error in errors if error] == [ss.VersionConflictError]
    check(ss.open(uri), "a")
    assert ss.clean(uri).removed == ()


def test_a_server_without_conditions_is_refused(proxy, uri):
    proxy.fail("unconditional", "PUT")
    with pytest.raises(ss.StoreError, match="wrote over a file in spite of the condition"):
        write(uri)
    assert not files(uri, "/shards/")


def test_options_are_given_by_hand_and_reach_other_processes(proxy, uri, monkeypatch):
    options = {"endpoint_url": proxy.address, "key": "testing", "secret": "testing"}
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    write(uri, storage_options=options)
    with ss.append(uri, storage_options=options) as writer:
        writer.write("c", **arrays(2000))
    store = ss.open(uri, storage_options=options)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(length_of, (store, "c")) == STEPS
    with pytest.raises(ValueError, match="storage options are for object stores"):
        ss.open("plants.zarr", storage_options=options)


def length_of(store, id):
    return len(store.read(id)["x"])


@pytest.fixture
def pickled_by_value():
    """Workers do not have the modules of tests."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_ingest_with_workers_that_are_processes(bucket, pickled_by_value):
    uri = f"{bucket}/numbers.arrow"
    from distributed import Client, LocalCluster

    from streamseq.etl import Partition, Piece

    class Numbers:
        fields = FIELDS

        def partitions(self, target_bytes):
            return [Partition(num_bytes=10, content=number) for number in range(4)]

        def read(self, partition):
            yield Piece(id="abcd"[partition.content], arrays=arrays(1000 * partition.content), attrs=None)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        report = ss.ingest(Numbers(), uri, client=client, **CUT)
    assert (report.store, report.sequences) == (uri, 4)
    check(ss.open(uri), "abcd")
    assert {path.rpartition("/")[2] for path in files(uri, "/staging/")} <= {"zarr.json"}
