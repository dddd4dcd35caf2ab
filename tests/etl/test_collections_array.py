"""Dask arrays as a source: the same store as of the values themselves, for any chunks, axes, transforms and workers."""

import logging
import os
import signal
import time
from functools import reduce

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client, LocalCluster
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.synchronous_pool import connect
from support.transforms import HALO, IN_ORDER, LAST, STEPWISE, TIMED, values

import streamseq as ss
from streamseq.etl import ArrayCollection, SourceError
from streamseq.etl.transformed_source import TransformedSource
from streamseq.etl.transforms import Filter, Scan

CUT = {"chunk_bytes": 80, "shard_bytes": 800}
VALUES = np.arange(2400).reshape(600, 4)


@pytest.fixture(scope="module")
def client():
    with Client(
        processes=False, n_workers=2, threads_per_worker=1, dashboard_address=None, set_as_default=False
    ) as one:
        yield one


@pytest.fixture
def at_once():
    """Tasks run in this thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamseq.etl.cluster.connect", connect)
        yield


@st.composite
def chunks(draw, length, most=6):
    cuts = sorted(draw(st.sets(st.integers(1, max(1, length - 1)), max_size=most)) - {length})
    return tuple(np.diff([0, *cuts, length]).tolist())


chains = st.one_of(
    st.lists(st.sampled_from([*STEPWISE, *HALO]), max_size=3),
    st.lists(st.sampled_from([*STEPWISE, *HALO, *IN_ORDER]), min_size=1, max_size=3),
    st.tuples(st.sampled_from(TIMED)).map(list),
    st.tuples(st.sampled_from([*STEPWISE, *HALO, *IN_ORDER]), st.sampled_from(LAST)).map(list),
)


@settings(max_examples=70, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), chain=chains, length=st.integers(1, 40), known=st.booleans())
def test_transforms_are_those_of_whole_sequences_for_any_chunks(tmp_path_factory, at_once, data, chain, length, known):
    whole = values(3, length)
    arrays = {}
    if known:
        for name, array in whole.items():
            others = [data.draw(chunks(2))] if array.ndim > 1 else []
            arrays[name] = da.from_array(array, chunks=(data.draw(chunks(length)), *others))
    else:
        time = data.draw(chunks(length))
        for name, array in whole.items():
            arrays[name] = da.from_array(array, chunks=(time, *(1 for _ in array.shape[1:])))
            arrays[name] = arrays[name][da.from_array(np.ones(length, bool), chunks=(time,))]
            assert np.isnan(arrays[name].shape[0])
    address = tmp_path_factory.mktemp("s") / "s.zarr"
    shard = data.draw(st.sampled_from([100, 400, 1 << 20]))
    transforms = [transform for transform, _ in chain]
    report = ss.ingest(arrays, address, transforms, chunk_bytes=50, shard_bytes=shard)
    got = ss.open(report.store).read("0")
    wanted = reduce(lambda arrays, step: step[1](arrays), chain, whole)
    assert report.bytes_in == sum(array.nbytes for array in whole.values())
    for name, expected in wanted.items():
        if expected.dtype.kind == "f":
            np.testing.assert_allclose(got[name], expected, rtol=1e-9, atol=1e-7)
        else:
            np.testing.assert_array_equal(got[name], expected)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), sequences=st.integers(1, 7), length=st.integers(1, 20), shard=st.sampled_from([400, 1 << 20]))
@pytest.mark.parametrize("transforms", [[], [Filter("x", [1.0, 2.0, 4.0])], [Scan(lambda s, a: (s, a), 0)]])
def test_any_axes_are_those_of_time_and_sequences(
    tmp_path_factory, at_once, data, sequences, length, shard, transforms
):
    random = np.random.default_rng(0).permutation(sequences * length * 6).reshape(sequences, length, 3, 2)
    order = data.draw(st.permutations(range(4)))
    dask_chunks = tuple(data.draw(chunks(random.shape[axis])) for axis in order)
    array = da.from_array(random.transpose(order), chunks=dask_chunks)
    # The axes of a timestep keep their order.
    steps = [axis for axis in order if axis > 1]
    source = ArrayCollection(
        {"x": array, "y": da.from_array(random[..., 0, 0], chunks=(data.draw(chunks(sequences)), -1))},
        time_axis={"x": order.index(1), "y": 1},
        sequence_axis={"x": order.index(0) - 4, "y": 0},
    )
    address = tmp_path_factory.mktemp("s") / "s.arrow"
    store = ss.open(ss.ingest(source, address, transforms, chunk_bytes=80, shard_bytes=shard).store)
    assert store.ids.to_pylist() == [str(number) for number in range(sequences)]
    for number in range(sequences):
        x = random[number].transpose(0, *(axis - 1 for axis in steps))
        if transforms and isinstance(transforms[0], Filter):
            padded = np.concatenate([x[:1], x, x[-1:]]).astype(float)
            x = padded[2:] + 2 * padded[1:-1] + 4 * padded[:-2]
        np.testing.assert_array_equal(store.read(number)["x"], x)
        np.testing.assert_array_equal(store.read(number)["y"], random[number, :, 0, 0])


def test_small_chunks_are_grouped_and_large_ones_become_several_shards(tmp_path):
    array = da.from_array(VALUES, chunks=((5, 5, 5, 5, 380, 200), 3))
    source = ArrayCollection(array)
    spans = [(partition.content.start, partition.content.stop) for partition in source.partitions(800)]
    assert spans == [(0, 4), (4, 5), (5, 6)]
    report = ss.ingest(source, tmp_path / "s.zarr", workers=2, **CUT)
    assert report.partitions == 3
    assert len(list((tmp_path / "s.zarr/shards").glob("*-*"))) > 20
    np.testing.assert_array_equal(ss.open(report.store).read("0")["x"], VALUES)


def test_the_store_is_the_same_for_any_workers(tmp_path, client):
    prints = set()
    for name, how in (("a", {"workers": 1}), ("b", {"workers": 3}), ("c", {"client": client})):
        array = da.from_array(VALUES, chunks=(50, 2))
        report = ss.ingest(array - array.mean(axis=0), tmp_path / f"{name}.zarr", **how, **CUT)
        prints.add(ss.open(report.store).fingerprint)
    assert len(prints) == 1
    np.testing.assert_array_equal(ss.open(report.store).read("0")["x"], VALUES - VALUES.mean(axis=0))


class Calls:
    """A function of blocks that counts in a folder how often it was called, in whatever process."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def __call__(self, block, block_info=None):
        number = 0 if block_info is None else block_info[0]["chunk-location"][0]
        attempt = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{attempt}").touch(exist_ok=False)
        return block

    def __dask_tokenize__(self):
        return ("calls", str(self.folder))

    def list(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.mark.parametrize("transforms", [[], [Filter("x", [1.0, 1.0, 1.0])], [Scan(lambda s, a: (s, a), 0)]])
def test_what_several_tasks_need_is_computed_once(tmp_path, client, transforms):
    calls = Calls(tmp_path / "calls")
    array = da.from_array(VALUES, chunks=(50, 4)).map_blocks(calls, dtype=np.int64, meta=np.empty((0, 0), np.int64))
    overlapped = array.map_overlap(lambda x: x + 0.0, depth={0: 3}, boundary="none", meta=np.empty((0, 0)))
    ss.ingest(overlapped - array.mean(), tmp_path / "s.zarr", transforms, client=client, **CUT)
    assert calls.list() == sorted(f"{number}-0" for number in range(12))
    for _ in range(100):
        if not any(client.has_what().values()):
            return
        time.sleep(0.1)
    pytest.fail("nothing stays on the cluster")


def test_a_killed_job_does_only_what_is_not_done(tmp_path, client):
    calls = Calls(tmp_path / "calls")

    def made():
        array = da.from_array(VALUES, chunks=(50, 4))
        return array.map_blocks(calls, dtype=np.int64, meta=np.empty((0, 0), np.int64))

    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ss.ingest(made(), tmp_path / "s.zarr", client=client, progress=stop, chunk_bytes=80, shard_bytes=1600)
    first = len(calls.list())
    report = ss.ingest(made(), tmp_path / "s.zarr", client=client, chunk_bytes=80, shard_bytes=1600)
    assert report.partitions == 12
    assert report.partitions_done_before >= 7
    assert len(calls.list()) == first + 12 - report.partitions_done_before
    np.testing.assert_array_equal(ss.open(report.store).read("0")["x"], VALUES)
    again = ss.ingest(made(), tmp_path / "s.zarr", client=client, chunk_bytes=80, shard_bytes=1600)
    assert again.partitions_done_before == 12
    with pytest.raises(ss.StoreError, match="is a store already"):
        ss.ingest(made() + 1, tmp_path / "s.zarr", client=client, chunk_bytes=80, shard_bytes=1600)


def running(total, arrays):
    sums = total + np.cumsum(arrays["x"], axis=0)
    return sums[-1], {"x": sums}


def test_a_killed_job_with_running_state_goes_through_a_sequence_again_and_writes_what_is_not_written(tmp_path, client):
    def stop(done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    def run(name, **options):
        array = da.from_array(np.stack([VALUES, VALUES + 7]), chunks=(1, 50, 4))
        source = ArrayCollection(array, sequence_axis=0, time_axis=1)
        return ss.ingest(
            source, tmp_path / name, [Scan(running, np.zeros(4, np.int64))], client=client, **options, **CUT
        )

    whole = ss.open(run("whole.zarr").store)
    np.testing.assert_array_equal(whole.read("1")["x"], np.cumsum(VALUES + 7, axis=0))
    with pytest.raises(KeyboardInterrupt):
        run("s.zarr", progress=stop)
    report = run("s.zarr")
    assert ss.open(report.store).fingerprint == whole.fingerprint
    assert sorted(path.name for path in (tmp_path / "s.zarr/staging").iterdir()) == ["jobs", "zarr.json"]


def test_random_names_begin_anew(tmp_path, client):
    def made():
        return da.from_delayed(dask.delayed(lambda: VALUES, pure=False)(), VALUES.shape, VALUES.dtype)

    ss.ingest(made(), tmp_path / "s.zarr", client=client, **CUT)
    with pytest.raises(ss.StoreError, match="is a store already"):
        ss.ingest(made(), tmp_path / "s.zarr", client=client, **CUT)


def test_what_is_on_the_cluster_already_is_used(tmp_path, client):
    calls = Calls(tmp_path / "calls")
    array = da.from_array(VALUES, chunks=(50, 4)).map_blocks(calls, dtype=np.int64, meta=np.empty((0, 0), np.int64))
    persisted = client.persist(array)
    report = ss.ingest(persisted + 1, tmp_path / "s.zarr", [Filter("x", [0.0, 1.0, 0.0])], client=client, **CUT)
    np.testing.assert_array_equal(ss.open(report.store).read("0")["x"], VALUES + 1)
    assert len(calls.list()) == 12
    np.testing.assert_array_equal(persisted.compute(scheduler=client), VALUES)
    with pytest.raises(ValueError, match="a persisted collection is written where it lies"):
        ss.ingest(persisted, tmp_path / "t.zarr", workers=1, **CUT)


def test_the_current_client_does_the_work(tmp_path, client):
    persisted = client.persist(da.from_array(VALUES, chunks=(300, 4)))
    with client.as_current():
        report = ss.ingest(persisted, tmp_path / "s.zarr", **CUT)
    np.testing.assert_array_equal(ss.open(report.store).read("0")["x"], VALUES)


def test_a_transformed_collection_is_a_source_too(tmp_path, client):
    source = TransformedSource(ArrayCollection(da.from_array(VALUES, chunks=(70, 4))), [lambda a: {"y": a["x"] + 1}])
    report = ss.ingest(source, tmp_path / "s.zarr", [lambda a: {"z": a["y"] * 2}], client=client, **CUT)
    np.testing.assert_array_equal(ss.open(report.store).read("0")["z"], (VALUES + 1) * 2)


def test_a_partition_can_be_read_here():
    source = ArrayCollection(da.from_array(VALUES, chunks=(70, 3)))
    pieces = [piece for partition in source.partitions(2000) for piece in source.read(partition)]
    np.testing.assert_array_equal(np.concatenate([piece.arrays["x"] for piece in pieces]), VALUES)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: ArrayCollection(VALUES), TypeError, "is a Dask array, got ndarray"),
        (lambda x: ArrayCollection(x, time_axis=2), ValueError, "has 2 axes, the axis of time is 2"),
        (lambda x: ArrayCollection(x, time_axis="t"), TypeError, "the axis of time is an int"),
        (lambda x: ArrayCollection(x, sequence_axis=0), ValueError, "an axis each"),
        (
            lambda x: ArrayCollection({"x": x, "y": x[:5]}),
            ValueError,
            "as many timesteps each, got 600 of 'x', 5 of 'y'",
        ),
        (lambda x: ArrayCollection({}), ValueError, "at least one"),
        (lambda x: ArrayCollection(x, sequence_axis=1, ids=["a", "a", "b", "c"]), ValueError, "all different"),
        (lambda x: ArrayCollection(x, sequence_axis=1, ids="a"), TypeError, "give a list"),
        (lambda x: ArrayCollection(x, ids=["a"]), TypeError, "sequence_axis"),
        (lambda x: ArrayCollection(x[:, 0] * 1j), TypeError, "field 'x' is no field: .*complex"),
        (lambda x: ArrayCollection(x[:0]), ValueError, "at least one timestep"),
        (lambda x: ArrayCollection(x[:, x[0] > 1]), ValueError, "compute_chunk_sizes"),
        (
            lambda x: ArrayCollection({"x": x[x[:, 0] > 1], "y": x.rechunk(7)[x[:, 0] > 1]}),
            ValueError,
            "as many chunks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(da.from_array(VALUES, chunks=(100, 4)))


def test_other_things_than_sources_are_refused_before_anything_is_made(tmp_path):
    for given_, message in (
        (VALUES, "dict of Dask arrays, got ndarray"),
        ({"x": VALUES}, "got dict"),
        ({}, "got dict"),
    ):
        with pytest.raises(TypeError, match=message):
            ss.ingest(given_, tmp_path / "s.zarr")
    with pytest.raises(TypeError, match="arrays, bags and dataframes, got Delayed"):
        ss.ingest(dask.delayed(int)(), tmp_path / "s.zarr")
    assert list(tmp_path.iterdir()) == []


def test_what_goes_wrong_in_the_collection_is_raised_and_nothing_is_left(tmp_path, client):
    def broken(block):
        raise ZeroDivisionError("in the user's function")

    array = da.from_array(VALUES, chunks=(50, 4)).map_blocks(broken, dtype=np.int64, meta=np.empty((0, 0), np.int64))
    with pytest.raises(ZeroDivisionError, match="in the user's function"):
        ss.ingest(array, tmp_path / "s.zarr", client=client, **CUT)
    assert list(tmp_path.iterdir()) == []
    nothing = da.from_array(VALUES, chunks=(50, 4))
    with pytest.raises(SourceError, match="at least one timestep"):
        ss.ingest(nothing[nothing[:, 0] < 0], tmp_path / "s.zarr", client=client, **CUT)


def test_a_worker_that_dies_loses_what_it_had_and_nothing_else(tmp_path):
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
    ):
        array = da.arange(40_000, chunks=1000).reshape(10_000, 4)
        array = array - array.mean(axis=0)
        pids: list[int] = []

        def kill(done, total):
            if done > total / 3 and pids:
                os.kill(pids.pop(), signal.SIGKILL)
                pids.clear()

        pids.extend(client.run(os.getpid).values())
        options = {"client": client, "chunk_bytes": 1000, "shard_bytes": 8000}
        transforms = [Scan(running, np.zeros(4))]
        killed = ss.ingest(array, tmp_path / "killed.zarr", transforms, progress=kill, **options)
        assert not pids
        whole = ss.ingest(array, tmp_path / "whole.zarr", transforms, **options)
        assert ss.open(killed.store).fingerprint == ss.open(whole.store).fingerprint
        shards = [len(list((tmp_path / name / "shards").glob("*-*"))) for name in ("killed.zarr", "whole.zarr")]
        assert shards[0] == shards[1]


def test_no_data_comes_to_the_client(tmp_path, monkeypatch):
    gathered = []
    gather = Client._gather

    async def spy(self, futures, *args, **options):
        found = await gather(self, futures, *args, **options)
        gathered.extend(found if isinstance(found, list) else [found])
        return found

    monkeypatch.setattr(Client, "_gather", spy)
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=logging.CRITICAL
        ) as cluster,
        Client(cluster) as client,
        # A graph with data in it is told by a warning, which is an error here.
        dask.config.set({"distributed.admin.large-graph-warning-threshold": "64 kiB"}),
    ):
        array = da.arange(400_000, chunks=20_000).reshape(100_000, 4)
        array = client.persist(array)
        array = array - array.mean(axis=0)
        for name, transforms in (("a", []), ("b", [Filter("x", [1.0, 2.0, 1.0])]), ("c", [Scan(running, np.zeros(4))])):
            report = ss.ingest(array, tmp_path / f"{name}.zarr", transforms, client=client, shard_bytes=160_000)
            assert report.partitions >= 20
            assert report.timesteps == 100_000
        assert len(gathered) == 3 * report.partitions
        assert {type(result).__name__ for result in gathered} == {"TaskResult"}
        wanted = np.arange(400_000).reshape(-1, 4) - np.arange(400_000).reshape(-1, 4).mean(axis=0)
        np.testing.assert_allclose(ss.open(tmp_path / "a.zarr").read("0")["x"], wanted)
        np.testing.assert_allclose(ss.open(report.store).read("0")["x"], np.cumsum(wanted, axis=0))
