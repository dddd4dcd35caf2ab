"""Memory budgets: what fits, what is given up first, and that they are kept."""

import gc
import time
import tracemalloc
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamseq as ss
from streamseq.core.errors import PlanError
from streamseq.data.limits import MAX_WINDOWS, Needs, limits_within, usual_limits
from streamseq.data.readahead import ReadAhead


@st.composite
def needs(draw):
    return Needs(
        lanes=draw(st.integers(1, 2000)),
        window_bytes=draw(st.integers(1, 10**8)),
        single=draw(st.booleans()),
        chunk_bytes=draw(st.sampled_from([0, 1, 10**6, 10**8])),
        shuffle=draw(st.booleans()),
        blocks=draw(st.integers(2, 10)),
    )


@given(needs(), st.integers(0, 10**11))
def test_limits_fit_into_the_memory_or_say_how_much_would_do(need, memory):
    try:
        limits = limits_within(need, memory)
    except PlanError as error:
        least = int(str(error).split("pass memory=")[1].split(",")[0])
        assert least > memory
        assert need.total_bytes(limits_within(need, least)) <= least
        return
    assert need.total_bytes(limits) <= memory
    assert limits.windows >= 1
    assert limits.chunks >= 1
    assert limits.windows == 1 or not need.single


@given(needs())
def test_with_enough_memory_nothing_is_given_up(need):
    assert limits_within(need, 10**15) == usual_limits(need)


@pytest.fixture(scope="module", params=["zarr", "arrow"])
def store(request, tmp_path_factory):
    """64 sequences of two chunks of 256 KiB each."""
    uri = tmp_path_factory.mktemp("limits") / f"s.{request.param}"
    rng = np.random.default_rng(0)
    with ss.create(uri, {"x": ss.Field("int32", codec="zstd")}, chunk_bytes=1 << 18, shard_bytes=1 << 22) as writer:
        for number in range(64):
            writer.write(str(number), x=rng.integers(0, 100, 1 << 17).astype(np.int32))
    return ss.open(uri)


def peak_of(iterable):
    """The most memory that Python objects and arrays took while it was iterated, and a sum of what came."""
    gc.collect()
    tracemalloc.start()
    try:
        total = sum(int(window["x"].sum()) for window in iterable)
        return tracemalloc.get_traced_memory()[1], total
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("memory", [2_700_000, 8_000_000, "30MB"])
def test_a_budget_is_kept_with_many_lanes_and_large_chunks(store, memory):
    # All chunks of 64 lanes take 16 MB; a window takes 160 KiB.
    stream = ss.StreamDataset(store, 64, 512, memory=memory)
    total = sum(int(store.read(number)["x"].sum()) for number in range(64))
    list(zip(range(3), ss.StreamLoader(stream), strict=False))
    for loader in (stream, ss.StreamLoader(stream, prefetch=2)):
        peak, found = peak_of(loader)
        assert found == total
        budget = 30_000_000 if memory == "30MB" else memory
        # Half a megabyte for what is no tensor: the plan, tables of pieces, open files.
        assert peak < budget + 500_000


def test_without_a_budget_more_is_used(store):
    assert peak_of(ss.StreamLoader(ss.StreamDataset(store, 64, 512)))[0] > 12_000_000


def test_too_small_a_budget_names_the_least_that_works(store):
    with pytest.raises(PlanError, match="is too little") as caught:
        ss.StreamDataset(store, 64, 512, memory=100_000)
    least = int(str(caught.value).split("pass memory=")[1].split(",")[0])
    stream = ss.StreamDataset(store, 64, 512, memory=least)
    assert sum(int(window.lengths.sum()) for window in stream) == store.num_timesteps
    with pytest.raises(PlanError, match="blocks"):
        next(iter(ss.StreamLoader(stream, prefetch=30)))
    for wrong, error in (("much", ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="size"):
            ss.StreamDataset(store, 64, 512, memory=wrong)


def test_the_memory_of_the_first_block_is_used_again(tmp_path, monkeypatch):
    """The training loop's thread reads it, for the other one is late; nothing may keep it then."""
    with ss.create(tmp_path / "s.arrow", {"x": ss.Field("int32", codec="none")}, chunk_bytes=1024) as writer:
        writer.append("a", x=np.arange(100_000, dtype=np.int32))
    work = ReadAhead._work

    def late(self):
        time.sleep(0.05)
        work(self)

    monkeypatch.setattr(ReadAhead, "_work", late)
    stream = ss.StreamDataset(ss.open(tmp_path / "s.arrow"), 1, 4)
    iterator = iter(ss.StreamLoader(stream, prefetch=1))
    first = next(iterator)["x"].data_ptr()
    later = {window["x"].data_ptr() for window in islice(iterator, MAX_WINDOWS, 20 * MAX_WINDOWS)}
    iterator.close()
    assert first in later
