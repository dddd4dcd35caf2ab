"""How far back the data depends, by lag, without a model."""

import numpy as np
import pytest
from support.copies import copied, store_of

import streamseq as ss
from streamseq.search.dependence import lags_up_to, measure_dependence


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


@pytest.mark.parametrize(("lag", "share"), [(5, 0.3), (24, 0.95), (301, 0.6)])
def test_the_memory_of_a_copy_is_its_lag_and_not_a_multiple(lag, share):
    assert measure_dependence(store_of(copied(lag, share)), "x", longest=4 * lag).memory == lag


def test_the_memory_of_a_chain_is_one_timestep_however_far_it_is_seen():
    random = np.random.default_rng(0)
    chain, numbers = np.zeros(60_000, np.uint8), np.zeros(60_000)
    stays, noise = random.random(len(chain)) < 0.95, random.standard_normal(len(chain))
    for at in range(1, len(chain)):
        chain[at] = chain[at - 1] if stays[at] else random.integers(0, 6)
        numbers[at] = 0.95 * numbers[at - 1] + noise[at]
    for x in (chain, numbers.astype(np.float32)):
        found = measure_dependence(store_of(x), "x", longest=500)
        assert found.reach > 20
        assert found.memory == 1


def test_the_memory_of_numbers_is_the_order_of_their_forecast():
    random = np.random.default_rng(0)
    x = np.zeros((40_000, 2))
    noise = random.standard_normal(x.shape)
    for at in range(17, len(x)):
        x[at] = 0.5 * x[at - 1] + [0.0, 0.4] * x[at - 17] + noise[at]
    assert measure_dependence(store_of(x.astype(np.float32)), "x", longest=200).memory == 17


def test_where_nothing_is_seen_there_is_no_memory():
    random = np.random.default_rng(0)
    assert measure_dependence(store_of(random.integers(0, 9, 30_000).astype(np.uint8)), "x").memory == 0
    assert measure_dependence(store_of(random.standard_normal(30_000)), "x", longest=300).memory == 0
    assert measure_dependence(store_of(np.full(500, 3, np.uint8)), "x").memory == 0


def test_a_memory_in_a_noisy_observation_is_longer_than_one_timestep():
    """A chain that is seen through noise: what lies before the last timestep tells more of where it is."""
    random = np.random.default_rng(0)
    hidden = np.zeros(80_000)
    for at, noise in enumerate(random.standard_normal(len(hidden))):
        hidden[at] = 0.95 * hidden[at - 1] + 0.3 * noise
    seen = hidden + random.standard_normal(len(hidden))
    assert 2 < measure_dependence(store_of(seen.astype(np.float32)), "x", longest=400).memory < 30


def test_missing_values_leave_a_memory_that_is_a_number():
    """Correlations of the pairs that are there are those of no one process, and a recursion over them may explode."""
    random = np.random.default_rng(0)
    hours = np.arange(300)
    pieces = {}
    for name in "abcde":
        wave = np.sin(2 * np.pi * (hours / 24 + random.random())) + 0.05 * random.standard_normal(300)
        wave[random.random(300) < 0.05] = np.nan
        pieces[name] = {"x": wave}
    found = measure_dependence(ss.from_arrays(pieces), "x", longest=260)
    assert 0 < found.memory < 60
