"""Influence balancing (Tallec & Ollivier 2017): which truncations lead the right way, in closed form and in the engine.

23 units, s' = A s + θ v, loss (s_1 - 1)^2 / 2 at every timestep; c(d) = Σ_{j<d} (A^j v)_1 is what d timesteps of θ do
to the first unit, c(∞) = -6. An update of TBPTT(k1, k2) has one loss of each depth from k2 - k1 + 1 to k2.
"""

import numpy as np
import pytest
import torch
from torch import nn

import streamseq as ss

UNITS, UP = 23, 10
A = np.eye(UNITS) / 2 + np.diag(np.full(UNITS - 1, 0.5), 1)
V = np.array([1.0] * UP + [-1.0] * (UNITS - UP))


def effects(depth):
    """c(0), c(1), …, c(depth)."""
    found, power = [0.0], V
    for _ in range(depth):
        found.append(found[-1] + power[0])
        power = A @ power
    return np.array(found)


C = effects(400)


def leads_the_right_way(k1, k2):
    """Whether the gradient of an update in the steady state has the sign of the exact one."""
    return C[k2 - k1 + 1 : k2 + 1].sum() < 0


class Balance(nn.Module):
    """The units, in closed form for up to 110 timesteps at once."""

    def __init__(self, theta=0.5):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        powers, pushed = [np.eye(UNITS)], [np.zeros(UNITS)]
        for _ in range(110):
            pushed.append(pushed[-1] + powers[-1] @ V)
            powers.append(A @ powers[-1])
        self.powers, self.pushed = torch.from_numpy(np.stack(powers)), torch.from_numpy(np.stack(pushed))

    def initial_state(self, lanes):
        return torch.ones(lanes, UNITS, dtype=torch.float64)

    def forward(self, x, state):
        steps = x.shape[1]
        first = state @ self.powers[1 : steps + 1, 0].T + self.theta * self.pushed[1 : steps + 1, 0]
        return first, state @ self.powers[steps].T + self.theta * self.pushed[steps]


def loss(first, window):
    return (first - 1) ** 2 / 2


def updates(model, k1, k2, timesteps):
    store = ss.from_arrays({"nothing": {"x": np.zeros(timesteps, np.uint8)}})
    return ss.TBPTT(model, loss, k1=k1, k2=k2, inputs="x").updates(ss.StreamDataset(store, lanes=1, window=k1))


def test_the_effect_of_the_parameter_changes_its_sign_at_depth_41():
    assert C[20] == pytest.approx(16.48, abs=0.005)
    assert C[40] == pytest.approx(0.57, abs=0.005)
    assert np.flatnonzero(C[1:] < 0)[0] + 1 == 41
    assert (C[41:] < 0).all()
    assert C[-1] == pytest.approx(-6, abs=1e-12)


def test_which_truncations_lead_the_right_way():
    assert [k2 for k2 in range(1, 200) if leads_the_right_way(1, k2)] == list(range(41, 200))
    assert [k for k in range(1, 200) if leads_the_right_way(k, k)] == list(range(110, 200))
    largest = {k2: max(k1 for k1 in range(1, k2) if leads_the_right_way(k1, k2)) for k2 in (41, 50, 60, 80, 100, 109)}
    assert largest == {41: 1, 50: 17, 60: 33, 80: 61, 100: 89, 109: 106}


@pytest.mark.parametrize(
    ("k1", "k2"),
    [(1, 40), (1, 41), (2, 41), (17, 50), (18, 50), (33, 60), (34, 60), (89, 100), (90, 100), (109, 109), (110, 110)],
)
def test_the_engine_s_gradient_has_the_sign_of_its_depths(k1, k2):
    """In the steady state every loss has the same error, and an update's gradient is that times the mean effect."""
    model = Balance()
    timesteps = -(-400 // k1) * k1
    for _ in updates(model, k1, k2, timesteps):
        gradient = model.theta.grad.item()
        model.zero_grad()
    error = 0.5 * C[-1] - 1
    assert gradient == pytest.approx(error * C[k2 - k1 + 1 : k2 + 1].mean(), rel=1e-6)
    # Downhill lies below 0.5, at -1/6: the gradient has to be above 0.
    assert (gradient > 0) == leads_the_right_way(k1, k2)


@pytest.mark.parametrize(
    ("k1", "k2", "count", "arrives"),
    [(50, 100, 500, True), (10, 50, 900, True), (100, 100, 200, False), (10, 10, 40, False), (25, 50, 60, False)],
)
def test_training_arrives_or_moves_away(k1, k2, count, arrives):
    """(100, 100) and (50, 100) need the same activations."""
    model = Balance()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in updates(model, k1, k2, count * k1):
        optimizer.step()
        optimizer.zero_grad()
    theta = model.theta.item()
    assert theta == pytest.approx(-1 / 6, abs=1e-4) if arrives else theta > 1


def draws(random, steps, number):
    """Gradients of `steps` losses with error 1, by backward signals that are cut and weighted: float64 [number].

    Each draw is a lane, and each step a unit.
    """
    lanes = np.arange(number)
    age = np.zeros(number, np.int64)
    weights = []
    for index in range(1, steps):
        age += 1
        cut, weight = random.cuts(0, lanes, index, age)
        age[cut] = 0
        weights.append(weight)
    error = np.zeros((UNITS, 1))
    error[0] = 1
    signal = np.repeat(error, number, 1)
    gradients = V @ signal
    for weight in reversed(weights):
        signal = error + weight * (A.T @ signal)
        gradients += V @ signal
    return gradients


@pytest.mark.parametrize(("mean", "spread"), [(50, 339), (16, 800)])
def test_random_cuts_leave_no_bias(mean, spread):
    exact = C[1:61].sum()
    assert exact == pytest.approx(297.71, abs=0.005)
    gradients = draws(ss.truncation.Random(mean, every=1, seed=1), 60, 12_000)
    error = gradients.std() / np.sqrt(len(gradients))
    assert abs(gradients.mean() - exact) < 3 * error
    assert gradients.std() == pytest.approx(spread, rel=0.1)


def test_cuts_without_weights_would_leave_one():
    class Unweighted(ss.truncation.Random):
        def cuts(self, *arguments):
            cut, _ = super().cuts(*arguments)
            return cut, np.where(cut, 0.0, 1.0)

    gradients = draws(Unweighted(50, every=1), 60, 12_000)
    error = gradients.std() / np.sqrt(len(gradients))
    assert abs(gradients.mean() - C[1:61].sum()) > 10 * error


def test_the_weights_hold_at_any_multiple_of_timesteps():
    """Cuts every 5 timesteps: fewer places, no bias either."""
    random = ss.truncation.Random(50, every=5, seed=3)
    number, lanes = 12_000, np.arange(12_000)
    age = np.zeros(number, np.int64)
    weights = np.ones((60, number))
    for index in range(1, 12):
        age += 1
        cut, weights[5 * index - 1] = random.cuts(0, lanes, index, age)
        age[cut] = 0
    signal = np.zeros((UNITS, number))
    gradients = np.zeros(number)
    for step in reversed(range(60)):
        signal = weights[step] * (A.T @ signal)
        signal[0] += 1
        gradients += V @ signal
    error = gradients.std() / np.sqrt(number)
    assert abs(gradients.mean() - C[1:61].sum()) < 3 * error


@pytest.mark.parametrize(("mean", "alpha"), [(16, 6), (16, 4), (50, 6)])
def test_the_lengths_between_cuts_have_the_mean(mean, alpha):
    random = ss.truncation.Random(mean, alpha, every=1, seed=2)
    lanes = np.arange(400)
    age = np.zeros(400, np.int64)
    lengths = []
    for index in range(1, 4000):
        age += 1
        cut, _ = random.cuts(0, lanes, index, age)
        lengths += age[cut].tolist()
        age[cut] = 0
    error = np.std(lengths) / np.sqrt(len(lengths))
    assert abs(np.mean(lengths) - mean) < 5 * error
