"""How far back the data depends, by lag, without a model."""

import numpy as np
import pytest

import streamseq as ss
from streamseq.search.dependence import lags_up_to, measure_dependence


def copied(lag, share, *, length=60_000, values=24, seed=0):
    """Symbols of which some are those of `lag` timesteps before."""
    random = np.random.default_rng(seed)
    x = random.integers(0, values, length).astype(np.uint8)
    again = random.random(length) < share
    for at in range(lag, length):
        if again[at]:
            x[at] = x[at - lag]
    return x


def store_of(*arrays):
    return ss.from_arrays({f"{number}": {"x": array} for number, array in enumerate(arrays)})


@pytest.mark.parametrize("lag", [1, 7, 61, 301, 999])
def test_a_copy_is_found_at_its_lag(lag):
    found = measure_dependence(store_of(copied(lag, 0.5)), "x", longest=1200)
    assert found.within(0.5) == lag
    assert found.reach % lag == 0
    near = (np.abs(found.lags - lag) == 1) & (found.lags % lag != 0)
    assert (found.values[near] <= found.chance[near]).all()


@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_nothing_nothing_is_seen(seed):
    random = np.random.default_rng(seed)
    for values in (2, 24, 256):
        independent = random.integers(0, values, 40_000).astype(np.uint8)
        assert measure_dependence(store_of(independent), "x", longest=600).reach == 0
    noise = random.standard_normal((40_000, 3)).astype(np.float32)
    assert measure_dependence(store_of(noise), "x", longest=600).reach == 0


def test_sequences_that_differ_do_not_look_like_memory():
    random = np.random.default_rng(0)
    low, high = random.integers(0, 8, 30_000), random.integers(8, 16, 30_000)
    store = store_of(*low.astype(np.uint8).reshape(10, -1), *high.astype(np.uint8).reshape(10, -1))
    assert measure_dependence(store, "x", longest=300).reach == 0


def test_a_fading_memory_of_numbers_has_its_length():
    random = np.random.default_rng(0)
    x = np.zeros(80_000)
    for at, noise in enumerate(random.standard_normal(len(x))):
        x[at] = 0.95 * x[at - 1] + noise
    found = measure_dependence(store_of(x.astype(np.float32)), "x", longest=1000)
    # The autocorrelation is 0.95^lag: 90 % of its sum lie within ln 10 / -ln 0.95.
    assert 30 <= found.within(0.9) <= 60
    assert found.values[found.lags == 10] == pytest.approx(0.95**10, abs=0.05)


def test_the_figures_are_those_of_the_definition():
    x = copied(3, 0.7, length=5000, values=5)
    found = measure_dependence(store_of(x), "x", longest=4)
    joint = np.zeros((5, 5))
    np.add.at(joint, (x[3:], x[:-3]), 1)
    joint /= joint.sum()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    wanted = (joint * np.log(joint / apart)).sum()
    assert found.values[2] == pytest.approx(wanted, rel=0.02)


def test_missing_numbers_count_as_nothing():
    x = np.sin(np.arange(4000) / 5).astype(np.float32)
    x[::7] = np.nan
    assert np.isfinite(measure_dependence(store_of(x), "x", longest=50).values).all()


def test_what_has_no_pairs_is_refused():
    with pytest.raises(ValueError, match=r"no sequence of .* has two"):
        measure_dependence(store_of(np.zeros(1, np.uint8)), "x")
    with pytest.raises(KeyError, match="not 'y'"):
        measure_dependence(store_of(np.zeros(9, np.uint8)), "y")


def test_lags_go_up_without_a_gap_at_first():
    lags = lags_up_to(1000)
    assert lags[:64].tolist() == list(range(1, 65))
    assert np.diff(lags).min() >= 1
    assert lags[-1] <= 1000
    assert (lags[1:] / lags[:-1])[64:].max() < 1.07
