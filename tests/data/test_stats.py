"""What a loader says about itself."""

import time

import numpy as np
import pytest

import streamseq as ss


@pytest.fixture
def store(tmp_path):
    with ss.create(tmp_path / "s.zarr", {"x": ss.Field("int32", codec="zstd")}, chunk_bytes=4000) as writer:
        for number in range(8):
            writer.write(str(number), x=np.arange(10_000, dtype=np.int32))
    return ss.open(tmp_path / "s.zarr")


def test_a_loader_counts_what_it_hands_out_and_decodes(store):
    stream = ss.StreamDataset(store, 4, 100)
    loader = ss.StreamLoader(stream)
    assert loader.stats.windows == 0
    assert loader.stats.wait_fraction == loader.stats.windows_per_second == loader.stats.cache_hits == 0
    for number, _ in enumerate(loader, 1):
        assert loader.stats.windows == number
    stats = loader.stats
    assert stats.windows == len(stream) == 200
    assert stats.num_bytes == 200 * 4 * 100 * 4
    assert stats.decoded == 80
    assert stats.decoded_bytes == 80 * 4000
    assert stats.chunks >= stats.decoded
    assert stats.decoding > 0
    assert 0 < stats.waited <= stats.seconds
    assert stats.memory_bytes >= 200 * 4 * 100 * 5
    assert loader.stats == stats
    # One that goes on after a resume counts its own windows.
    loader.load_state_dict(stream[149].token.state_dict())
    assert len(list(loader)) == loader.stats.windows == 50


def test_time_that_the_user_takes_is_not_waited_for(store):
    loader = ss.StreamLoader(ss.StreamDataset(store, 4, 1000))
    for _ in loader:
        time.sleep(0.02)
    stats = loader.stats
    assert stats.seconds >= 20 * 0.02
    assert stats.waited <= stats.seconds - 20 * 0.02 + 0.001


def test_fewer_sequences_than_lanes_are_warned_about(store):
    with pytest.warns(UserWarning, match='8 for 9, so 1 lanes stay idle; layout="even"'):
        ss.StreamDataset(store, 9, 100)
    with pytest.warns(UserWarning, match="1 for 2"):
        ss.StreamDataset(store, 2, 100, sequences=["3"])
