"""Truncation: cuts that leave no bias and depend on nothing but their place; bounds on what truncation loses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamseq as ss
from streamseq.core.truncation import decay, excess, middle, relative_bias, smallest

Random, Adaptive = ss.truncation.Random, ss.truncation.Adaptive


@pytest.mark.parametrize(("mean", "alpha"), [(16, 6), (16, 4), (50, 6), (2, 3.5)])
def test_the_mean_length_is_what_is_asked_for(mean, alpha):
    ages = np.arange(1, 2_000_000)
    surviving = np.cumprod(1 - Random(mean, alpha, every=1).probability(ages))
    assert 1 + surviving.sum() == pytest.approx(mean, abs=1e-3)


def test_the_unit_of_age_scales_the_mean():
    cuts = Random(mean=160, every=10)
    assert np.array_equal(cuts.probability(np.arange(1, 9)), Random(16, every=1).probability(np.arange(1, 9)))
    assert Random(mean=160).with_unit(10) == cuts
    assert cuts.with_unit(20) is cuts


@given(
    every=st.integers(1, 500),
    units=st.floats(1.001, 1e6),
    alpha=st.floats(2.001, 100),
    age=st.integers(1, 10**9),
)
def test_a_probability_is_one_and_never_certain(every, units, alpha, age):
    chance = Random(mean=units * every, alpha=alpha, every=every).probability(age)
    assert 0 < chance < 1


def test_cuts_come_as_often_as_their_probability():
    random = Random(mean=10, every=1, seed=5)
    lanes = np.arange(50_000)
    cut, weight = random.cuts(3, lanes, 8, np.full(50_000, 4))
    chance = float(random.probability(4))
    assert cut.mean() == pytest.approx(chance, abs=4 * math.sqrt(chance / 50_000))
    assert (weight[cut] == 0).all()
    assert weight.mean() == pytest.approx(1, abs=0.01)  # which is what makes them unbiased


@given(
    lanes=st.lists(st.integers(0, 300), min_size=1, max_size=40),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**40),
    index=st.integers(0, 2**40),
)
def test_a_lane_s_number_does_not_depend_on_the_lanes_beside_it(lanes, seed, epoch, index):
    random = Random(16, seed=seed)
    every_lane = random.uniform(epoch, np.arange(301), index)
    assert np.array_equal(random.uniform(epoch, lanes, index), every_lane[lanes])
    assert ((every_lane >= 0) & (every_lane < 1)).all()


def test_numbers_differ_between_places_epochs_seeds_and_lanes():
    lanes = np.arange(64)
    grid = [
        Random(16, seed=seed).uniform(epoch, lanes, index)
        for seed in range(3)
        for epoch in range(3)
        for index in range(50)
    ]
    assert len(np.unique(np.concatenate(grid))) == 64 * 450
    assert np.concatenate(grid).mean() == pytest.approx(0.5, abs=4 / math.sqrt(12 * 64 * 450))
    assert Random(16).uniform(0, [], 0).shape == (0,)


def test_numbers_are_the_same_in_every_version():
    # A change would move the cuts of every saved run.
    assert Random(16, seed=7).uniform(2, [0, 5, 1000], 3).tolist() == PINNED


PINNED = [0.9992814000839494, 0.029815599351322608, 0.5961246109866789]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mean": 0}, ValueError, "above 0, got 0"),
        ({"mean": math.inf}, ValueError, "finite"),
        ({"mean": "16"}, TypeError, "mean is a number, got '16'"),
        ({"mean": True}, TypeError, "mean is a number"),
        ({"mean": 16, "alpha": 2}, ValueError, "alpha is more than 2"),
        ({"mean": 16, "every": 16}, ValueError, "more than the 16 timesteps"),
        ({"mean": 16, "every": 0}, ValueError, "every is at least 1, got 0"),
        ({"mean": 16, "every": 2.0}, TypeError, "every is an integer"),
        ({"mean": 16, "seed": -1}, ValueError, "seed is at least 0"),
        ({"mean": 16, "seed": 2**64}, ValueError, "less than 2\\^64"),
    ],
)
def test_random_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        Random(**arguments)


def test_a_unit_that_is_too_long_is_found_when_it_is_known():
    with pytest.raises(ValueError, match="more than the 20 timesteps"):
        Random(16).with_unit(20)
    with pytest.raises(ValueError, match="with_unit"):
        Random(16).probability(1)
    with pytest.raises(ValueError, match="from 1, got 0"):
        Random(16, every=1).probability([3, 0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bias": 0}, ValueError, "bias is a finite number above 0"),
        ({"bias": math.nan}, ValueError, "finite"),
        ({"bias": None}, TypeError, "bias is a number"),
        ({"bias": 0.1, "probe": 3}, ValueError, "probe is at least 4"),
        ({"bias": 0.1, "every": 0}, ValueError, "every is at least 1"),
        ({"bias": 0.1, "tau": 1.5}, TypeError, "tau is an integer"),
    ],
)
def test_adaptive_says_what_is_wrong(arguments, error, message):
    with pytest.raises(error, match=message):
        Adaptive(**arguments)


def test_adaptive_takes_the_smallest_depth_that_is_enough():
    lags, delta = np.array([8, 16, 24]), np.array([0.8, 0.3, 0.05])
    assert Adaptive(0.4).k2(lags, delta, k1=1, largest=100) == 16
    assert Adaptive(0.4).k2(lags, delta, k1=10, largest=100) == 25  # the oldest new loss has depth 16
    assert Adaptive(0.4).k2(lags, delta, k1=10, largest=20) == 20
    assert Adaptive(0.01).k2(lags, delta, k1=10, largest=100) == 100
    assert Adaptive(0.01).k2(lags, delta, k1=10, largest=None) is None
    assert (Adaptive(0.1).probe_length(64), Adaptive(0.1, probe=50).probe_length(None)) == (128, 50)
    with pytest.raises(ValueError, match="Adaptive\\(probe=\\)"):
        Adaptive(0.1).probe_length(None)


@given(scale=st.floats(1e-3, 1e3), beta=st.floats(0.6, 1.2), before=st.lists(st.floats(0, 10), max_size=10))
def test_the_decay_of_a_geometric_tail_is_found_whatever_comes_before(scale, beta, before):
    phi = np.concatenate([before, scale * beta ** np.arange(30)])
    assert decay(phi, tau=len(before)) == pytest.approx(beta, rel=1e-9)


def test_values_that_are_almost_nothing_do_not_count():
    phi = np.concatenate([0.25 ** np.arange(30), np.full(30, 1e-30), np.zeros(10)])
    assert decay(phi, tau=0) == pytest.approx(0.25)
    assert decay(phi, tau=50) == 0
    assert decay([1.0, 1.0, 0.0, 0.0], tau=1) == 0


def test_no_decay_is_seen_where_there_is_none():
    assert decay(np.ones(9)) == 1
    assert decay(1.1 ** np.arange(9)) > 1
    assert np.isinf(excess(np.ones(9), 1.0)).all()
    delta = relative_bias(np.ones(9), np.arange(9), 1.0)
    assert np.isinf(delta).all()
    assert smallest(delta, 1e9) is None


@given(
    head=st.lists(st.floats(0, 10), max_size=12),
    beta=st.floats(0, 0.95),
    noise=st.lists(st.floats(0, 1), min_size=20, max_size=20),
)
def test_the_bound_is_at_least_what_is_lost(head, beta, noise):
    """For every φ that decays by at least β from τ on, of which the tail goes on without end."""
    tau = len(head)
    steps = beta * np.array(noise)
    phi = np.concatenate([head, np.cumprod(np.concatenate([[1.0], steps]))])
    lost = np.cumsum(phi[::-1])[::-1] + phi[-1] * beta / (1 - beta)
    bound = excess(phi, beta, tau=tau)
    assert (bound >= lost * (1 - 1e-12)).all()
    assert (np.diff(bound) <= 1e-12 * bound[:-1]).all()


def test_excess_is_the_formula():
    phi = [4.0, 3.0, 2.0, 1.0, 7.0]
    assert excess(phi, 0.75, tau=2).tolist() == [4 + 3 + 2 + 8, 3 + 2 + 8, 8, 6, 4.5]
    assert excess(phi, 0.0, tau=2).tolist() == [11, 7, 2, 0, 0]


def test_relative_bias_is_over_the_best_lower_bound_of_the_gradient():
    phi = [4.0, 3.0, 2.0, 1.0, 0.5]
    norms = [0.0, 4.0, 6.0, 14.0, 9.0]
    bound = excess(phi, 0.5, tau=3)
    wanted = bound / max(norm - lost for norm, lost in zip(norms, bound, strict=True))
    assert relative_bias(phi, norms, 0.5, tau=3) == pytest.approx(wanted)
    assert np.isinf(relative_bias(phi, np.zeros(5), 0.5, tau=3)).all()  # nothing is seen beside what may be lost
    assert relative_bias(np.zeros(5), np.zeros(5), 0.0).tolist() == [0] * 5  # nothing is lost
    with pytest.raises(ValueError, match="a gradient norm for each lag, got 4 for 5"):
        relative_bias(phi, norms[:4], 0.5)


@given(phi=st.lists(st.floats(0, 100), min_size=2, max_size=30), bias=st.floats(1e-3, 10))
def test_what_is_chosen_is_the_smallest_below_the_wish(phi, bias):
    norms = np.concatenate([[0.0], np.cumsum(phi)[:-1]])
    delta = relative_bias(phi, norms, decay(phi))
    index = smallest(delta, bias)
    assert (index is None) == (delta >= bias).all()
    if index is not None:
        assert delta[index] < bias
        assert (delta[:index] >= bias).all()


@pytest.mark.parametrize(
    ("phi", "tau", "message"),
    [
        ([1.0], None, "at least two finite numbers"),
        ([1.0, math.nan, 1.0], None, "finite"),
        ([1.0, -1.0, 1.0], None, "none below 0"),
        ([[1.0, 2.0]], None, "at least two"),
        ([1.0, 1.0, 1.0], 2, "take at most 1"),
        ([1.0, 1.0, 1.0], -1, "got -1"),
    ],
)
def test_what_is_no_influence_is_refused(phi, tau, message):
    with pytest.raises(ValueError, match=message):
        decay(phi, tau=tau)
    with pytest.raises(ValueError, match=message):
        excess(phi, 0.5, tau=tau)


def test_the_middle_leaves_two_lags():
    assert [middle(num) for num in (2, 3, 4, 5, 100)] == [0, 1, 2, 2, 50]
